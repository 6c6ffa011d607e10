//! The client of bootcast: shows the files of a server as a file system, or fetches single files.
//!
//! | module | holds |
//! |---|---|
//! | [`receiver`] | turns datagrams into pages, decides when to join and leave; no I/O |
//! | [`cache`] | the received bytes, on disk or in memory |
//! | [`object`] | one version of one file: its receiver, its store, the reads that wait for pages |
//! | [`io`] | sockets, requests to the server, the clock |
//! | `log_limit` | rate limit for log messages |
//! | [`proof`] | checks bytes against the BLAKE3 hash of their file |
//! | [`fs`] | the file system without FUSE |
//! | [`fuse`] | kernel requests -> `fs` -> replies |
//! | [`fuzz`] | decoders as entry points for fuzzing |
//! | [`journal`] | what the kernel knows of a mount, for a process that takes over |
//! | [`handover`] | passing the FUSE connection from one process to the next |
//! | [`mount`] | `-o` options, mount(2), the daemon |
//! | [`mount_command`] | the command `bootcastfs` |
//! | [`urlmount_command`] | the command `bootcast-urlmount` |
//! | [`panics`] | ending the program after a panic in any thread |
//! | `run`, `root` | a mount from its start to its end; what it shows |
//! | [`tool`] | the command line tool `bootcast` |
//! | `status`, `totals`, `warnings` | what a mount tells of itself |
//! | `metrics` | metrics for Prometheus |
//! | `durations` | times in options |

pub mod cache;
mod durations;
pub mod fs;
pub mod fuse;
pub mod fuzz;
pub mod handover;
pub mod io;
pub mod journal;
mod log_limit;
mod metrics;
pub mod mount;
pub mod mount_command;
pub mod object;
pub mod panics;
pub mod proof;
pub mod receiver;
mod root;
mod run;
mod sizes;
pub mod status;
pub mod tool;
mod totals;
pub mod urlmount_command;
mod warnings;

pub use run::run_mount;
