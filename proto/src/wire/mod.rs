//! Datagram formats: a module for the data port, one for the repair channel, and one for the lists
//! of leaf values on it.
//!
//! Decoding never panics and trusts no length in a datagram. A malformed datagram yields a
//! [`DataError`] or a [`RepairError`]; the receiver counts and drops it.

mod data;
mod leaf_list;
mod repair;

pub use data::{DataError, HEADER_LEN, Layout, Page};
pub use leaf_list::{LeafList, LeafSpan};
pub use repair::{
    Beacon, Level, Pace, REPAIR_HEADER_LEN, RepairDatagram, RepairError, end_datagram,
    symbol_header, symbol_number,
};
