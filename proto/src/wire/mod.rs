//! Datagram formats, one file for each port.
//!
//! Decoding never panics and trusts no length in a datagram. Whatever does not fit is a
//! [`DataError`] or a [`RepairError`]; the receiver counts it and drops the datagram.

mod data;
mod repair;

pub use data::{DataError, HEADER_LEN, Layout, Page};
pub use repair::{
    Beacon, Level, Pace, REPAIR_HEADER_LEN, RepairDatagram, RepairError, end_datagram,
    symbol_header, symbol_number,
};
