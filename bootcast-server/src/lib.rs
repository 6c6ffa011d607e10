//! Sends each page of a file once, by UDP multicast, to all clients that joined. docs/PROTOCOL.md.
//!
//! | module | does |
//! |---|---|
//! | [`cli`] | parses and checks the command line |
//! | [`cast`] | decides which datagrams are sent, and when; no I/O |
//! | [`source`] | opens files of the served directory, and none outside of it |
//! | [`api`] | answers HTTP requests (the control plane) |
//! | [`io`] | owns sockets, threads and the clock |
//! | [`fuzz`] | decoders as entry points for fuzzing |
//! | [`hash`] | prints hashes of files, and computes their manifests ahead |
//! | [`logging`] | logs to standard error without ever waiting for it |
//! | [`server`] | assembles these parts and runs them |

pub mod api;
pub mod cast;
pub mod cli;
pub mod fuzz;
pub mod hash;
pub mod io;
pub mod logging;
pub mod server;
pub mod source;
