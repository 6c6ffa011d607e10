//! The only place with sockets, threads and a clock.
//!
//! | module | holds |
//! |---|---|
//! | [`sender`] | the one thread that runs all casts |
//! | [`page_reader`] | a file on its way into datagrams |
//! | [`repair_reader`] | its repair symbols, likewise |
//! | [`cast_keys`] | what vouches for the datagrams of each cast |
//! | [`socket`] | datagrams on their way into the network |
//! | [`interface`] | which network that is |
//! | [`settle`] | files just written, until their version is one of its own |
//! | [`http`] | connections of the control plane |
//! | [`peers`] | how many of them a host has |
#![expect(clippy::disallowed_methods, reason = "the clock is read here and nowhere else")]

pub mod cast_keys;
pub mod http;
pub mod interface;
pub mod page_reader;
pub mod peers;
pub mod repair_reader;
pub mod sender;
pub mod settle;
pub mod socket;
