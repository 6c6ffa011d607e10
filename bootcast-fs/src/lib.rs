//! The client of bootcast: what a server casts, as a file system and as files.
//!
//! | module | holds |
//! |---|---|
//! | [`receiver`] | from datagrams to pages, when to join and leave; no I/O |
//! | [`cache`] | pages on this machine |
//! | [`object`] | one version of one file: its receiver, its pages, who waits for them |
//! | [`io`] | sockets, requests, the clock |
//! | `quiet` | how often one message is logged |
//! | [`fs`] | the file system without FUSE |
//! | [`fuse`] | kernel requests -> `fs` -> replies |
//! | [`mount`] | `-o` options, mount(2), life in the background |
//! | [`tool`] | the command line tool `bootcast` |

pub mod cache;
mod durations;
pub mod fs;
pub mod fuse;
pub mod io;
pub mod mount;
pub mod object;
mod quiet;
pub mod receiver;
mod run;
mod signals;
pub mod tool;

pub use run::run_mount;
