//! Space for pages that arrive before a stream can take them.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;
use tracing::info;

use super::error::ToolError;
use crate::cache::{Cache, Store, nameless_file};

/// Most bytes of a spool in memory, which the machine needs for other things.
const MEMORY_LIMIT: u64 = 64 << 20;
/// 1 / this is the largest share of the free space that a spool uses: others use it too.
const FREE_DIVISOR: u64 = 2;
/// Unit of `st_blocks`, on all file systems.
const BLOCK_BYTES: u64 = 512;

/// A nameless file, in `$TMPDIR` or in memory, with a limit.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
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
        let file = file.map_err(|error| scratch.failed(&error.to_string()))?;
        Ok(Self { file, limit, scratch })
    }

    /// Creates the store of an object in it.
    pub(super) fn store(&self) -> Result<Store, ToolError> {
        let file = self.file.try_clone();
        let file = file.map_err(|error| self.scratch.failed(&error.to_string()))?;
        Ok(Store::transient(file, self.scratch.cache()))
    }

    /// Whether it has reached its limit.
    pub(super) fn is_full(&self) -> bool {
        let used = self.file.metadata().map_or(0, |metadata| metadata.blocks() * BLOCK_BYTES);
        used >= self.limit
    }

    /// Creates the error of a command that needs more space.
    pub(super) fn failed(&self, reason: &str) -> ToolError {
        self.scratch.failed(reason)
    }
}

/// Place for data that is needed only while the command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scratch {
    /// `$TMPDIR`, or `/tmp`.
    Directory(PathBuf),
    /// Memory, if no file can be created in that directory.
    Memory,
}

impl Scratch {
    /// Chooses the directory for temporary files if a file can be created there, else memory.
    pub(super) fn find() -> Self {
        let dir = std::env::temp_dir();
        match nameless_file(&dir) {
            Ok(_) => Self::Directory(dir),
            Err(error) => {
                info!(dir = %dir.display(), %error, "cannot make files there, using memory");
                Self::Memory
            }
        }
    }

    /// Creates the store of repair symbols in the same place.
    pub(super) fn cache(&self) -> Cache {
        match self {
            Self::Directory(dir) => Cache::Disk(dir.clone()),
            Self::Memory => Cache::Memory,
        }
    }

    fn failed(&self, reason: &str) -> ToolError {
        ToolError::Local(match self {
            Self::Directory(dir) => {
                format!("cannot spool in {}: {reason}; name a larger TMPDIR", dir.display())
            }
            Self::Memory => format!("cannot spool in memory: {reason}; name a larger TMPDIR"),
        })
    }
}

fn memory_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("bootcast", MemfdFlags::CLOEXEC)?.into())
}

/// Returns the free space for users other than root. If the file system does not tell, only a
/// failing write limits the spool.
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
    fn a_spool_counts_what_it_holds_and_not_how_far_it_reaches() {
        let spool = spool(1 << 20);
        spool.file.write_all_at(b"far away", 1 << 40).unwrap();
        assert!(!spool.is_full());
        spool.file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
        assert!(spool.is_full());
    }

    #[test]
    fn the_message_names_the_place_that_was_used() {
        let of = |scratch: Scratch| scratch.failed("it is full").to_string();
        let dir = of(Scratch::Directory("/var/tmp".into()));
        assert!(dir.contains("/var/tmp") && !dir.contains("memory"), "{dir}");
        let memory = of(Scratch::Memory);
        assert!(memory.contains("memory: it is full"), "{memory}");
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_limit_of_its_own() {
        assert_eq!(free_bytes("/nonexistent/dir".as_ref()), u64::MAX);
    }
}
