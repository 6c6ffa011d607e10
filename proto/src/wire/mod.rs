//! Datagrams. One file a kind.
//!
//! Decoding never panics and trusts no length that it was sent: whatever does not fit is a
//! [`DataError`], which its receiver counts and forgets.

mod data;
mod repair;

pub use data::{DataError, HEADER_LEN, Layout, Page};
pub use repair::{
    Beacon, Level, Pace, REPAIR_HEADER_LEN, RepairDatagram, RepairError, end_datagram,
    symbol_header, symbol_number,
};
