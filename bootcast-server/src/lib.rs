//! Sends each page of a file once, by UDP multicast, to all clients that joined. docs/PROTOCOL.md.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | what was typed, and what it means |
//! | [`cast`] | what is sent and when; no I/O |
//! | [`source`] | the served directory, and nothing outside of it |
//! | [`api`] | the control plane: HTTP requests to answers |
//! | [`io`] | sockets, the sender's thread, the clock |
//! | [`server`] | all of it put together |
//! | [`signals`] | an orderly end |

pub mod api;
pub mod cast;
pub mod cli;
pub mod io;
pub mod server;
pub mod signals;
pub mod source;
