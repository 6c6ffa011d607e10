//! Reader stage: everything between files and the sender thread.
//!
//! | module | does |
//! |---|---|
//! | [`source`] | reads ranges of a version, and classifies read errors |
//! | [`proof`] | compares what was read with the manifest of the version |
//! | [`pages`] | reads pages into datagrams |
//! | [`symbols`] | reads blocks and encodes their repair symbols |
//! | `cached` | reads what is in the page cache, for the sender thread |
//! | [`stage`] | threads that do all this |
//! | `queue` | which job runs next, so that a file system that hangs leaves threads for others |
//!
//! A file system may hang or be slow. Therefore the sender thread reads nothing but what is in the
//! page cache: it gives jobs to the stage, and goes on with other casts until their outcomes
//! arrive.

mod cached;
pub mod pages;
pub mod proof;
mod queue;
pub mod source;
pub mod stage;
pub mod symbols;

#[cfg(test)]
mod ends_tests;
#[cfg(test)]
pub(in crate::io) mod faults;
#[cfg(test)]
mod memory;

use bootcast_proto::PageIndex;

use source::ReadError;

/// A failed read, with the pages that caused it as far as they are known.
#[derive(Debug)]
pub struct ReadFailure {
    /// Error of the first attempt.
    pub error: ReadError,
    /// Pages that cannot be read even alone, in ascending order.
    pub unreadable: Vec<PageIndex>,
}
