//! Temporary space for pages that arrive before the output can take them.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;
use tracing::info;

use super::error::ToolError;
use crate::cache::{Cache, Store, nameless_file};

/// Most bytes of a spool in memory, so that other programs keep enough.
const MEMORY_LIMIT: u64 = 64 << 20;
/// 1 / this is the largest fraction of the free disk space that a spool uses. The rest is left to
/// other programs.
const FREE_DIVISOR: u64 = 2;
/// Bytes of one block as counted by `st_blocks`, on all file systems.
const BLOCK_BYTES: u64 = 512;

/// A nameless file in `$TMPDIR` or in memory, with a limit.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    /// Most bytes that the spool may use.
    limit: u64,
    scratch: Scratch,
}

impl Spool {
    /// Creates an empty spool.
    pub(super) fn new() -> Result<Self, ToolError> {
        let scratch = Scratch::find();
        let (file, limit) = match &scratch {
            Scratch::Directory(dir) => (nameless_file(dir), free_bytes(dir) / FREE_DIVISOR),
            Scratch::Memory => (memory_file(), MEMORY_LIMIT),
        };
        let file = file.map_err(|error| scratch.error(&error.to_string()))?;
        Ok(Self { file, limit, scratch })
    }

    /// Creates an object's store in this spool.
    pub(super) fn store(&self) -> Result<Store, ToolError> {
        let file = self.file.try_clone();
        let file = file.map_err(|error| self.scratch.error(&error.to_string()))?;
        Ok(Store::transient(file, self.scratch.cache()))
    }

    /// Returns whether the spool has reached its limit.
    pub(super) fn is_full(&self) -> bool {
        let used = self.file.metadata().map_or(0, |metadata| metadata.blocks() * BLOCK_BYTES);
        used >= self.limit
    }

    /// Creates the error of a command that cannot spool for this reason.
    pub(super) fn error(&self, reason: &str) -> ToolError {
        self.scratch.error(reason)
    }
}

/// Place for temporary data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scratch {
    /// `$TMPDIR`, or `/tmp`.
    Directory(PathBuf),
    /// Memory, if no file can be created in the directory.
    Memory,
}

impl Scratch {
    /// Chooses the directory for temporary files if a file can be created there, else memory.
    pub(super) fn find() -> Self {
        let dir = std::env::temp_dir();
        match nameless_file(&dir) {
            Ok(_) => Self::Directory(dir),
            Err(error) => {
                info!(dir = %dir.display(), %error, "cannot create temporary files, using memory");
                Self::Memory
            }
        }
    }

    /// Returns a cache in the same place, for repair symbols.
    pub(super) fn cache(&self) -> Cache {
        match self {
            Self::Directory(dir) => Cache::Disk(dir.clone()),
            Self::Memory => Cache::Memory,
        }
    }

    fn error(&self, reason: &str) -> ToolError {
        ToolError::Local(match self {
            Self::Directory(dir) => {
                let dir = dir.display();
                format!("cannot spool in {dir}: {reason}; set TMPDIR to a larger file system")
            }
            Self::Memory => {
                format!("cannot spool in memory: {reason}; set TMPDIR to a directory with space")
            }
        })
    }
}

fn memory_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("bootcast", MemfdFlags::CLOEXEC)?.into())
}

/// Returns the free space for users other than root, in bytes. If it is unknown, only a failed
/// write limits the spool.
fn free_bytes(dir: &Path) -> u64 {
    match rustix::fs::statvfs(dir) {
        // A tmpfs without a limit reports 0 blocks.
        Ok(found) if found.f_blocks > 0 => found.f_bavail.saturating_mul(found.f_frsize),
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn spool(limit: u64) -> Spool {
        Spool { file: memory_file().unwrap(), limit, scratch: Scratch::Memory }
    }

    #[test]
    fn a_spool_counts_allocated_blocks_and_not_the_file_length() {
        let spool = spool(1 << 20);
        spool.file.write_all_at(b"far away", 1 << 40).unwrap();
        assert!(!spool.is_full());
        spool.file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
        assert!(spool.is_full());
    }

    #[test]
    fn the_message_names_the_place_that_was_used() {
        let error = |scratch: Scratch| scratch.error("it is full").to_string();
        let dir = error(Scratch::Directory("/var/tmp".into()));
        assert!(dir.contains("/var/tmp") && !dir.contains("memory"), "{dir}");
        let memory = error(Scratch::Memory);
        assert!(memory.contains("memory: it is full"), "{memory}");
    }

    #[test]
    fn a_missing_directory_has_no_limit() {
        assert_eq!(free_bytes("/nonexistent/dir".as_ref()), u64::MAX);
    }
}
