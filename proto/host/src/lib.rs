//! What both programs ask of the host that they run on.
//!
//! | module | holds |
//! |---|---|
//! | [`interface`] | network interfaces: by name, by address, by route |
//! | [`signals`] | signals that end a program |
//!
//! It stands beside `bootcast-proto`, which may know neither sockets nor signals.

pub mod interface;
pub mod signals;
