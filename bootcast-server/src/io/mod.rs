//! The only place with sockets, threads and a clock.
//!
//! | module | holds |
//! |---|---|
//! | [`sender`] | the thread that runs all casts |
//! | [`page_reader`] | reads a file into datagrams |
//! | `reading` | reads bytes of a file, or tells which error that is |
//! | [`repair_reader`] | reads a file and encodes repair symbols into datagrams |
//! | [`cast_keys`] | keys for the datagrams of each cast |
//! | [`socket`] | sends datagrams |
//! | [`interface`] | finds the network interface |
//! | [`settle`] | waits until the version of a file just written is unique |
//! | [`lookups`] | shares threads out over the served tree |
//! | [`listings`] | lists each directory once for all who ask |
//! | [`http`] | connections of the control plane |
//! | [`peers`] | limits the connections of each host |
#![expect(clippy::disallowed_methods, reason = "the clock is read here and nowhere else")]

pub mod cast_keys;
pub mod http;
pub mod interface;
pub mod listings;
pub mod lookups;
pub mod page_reader;
pub mod peers;
mod reading;
pub mod repair_reader;
pub mod sender;
pub mod settle;
pub mod socket;
