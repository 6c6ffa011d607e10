//! The directory `.NAME.part`, in which `bootcast get --continue` keeps what arrived of a file. It
//! is a cache for this file alone, beside the file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::error::ToolError;
use super::output::{PartialFile, hidden_beside};
use crate::cache::Cache;

/// The directory, locked by this process.
#[derive(Debug)]
pub(super) struct Parts {
    /// Path of the file that is fetched.
    target: PathBuf,
    directory: PathBuf,
    cache: Cache,
    _lock: File,
}

impl Parts {
    /// Opens the directory beside `target`, and creates it if it is missing. Fails if another
    /// process uses it.
    pub(super) fn open(target: &Path) -> Result<Self, ToolError> {
        let directory = hidden_beside(target)?;
        let fail = |error: io::Error| ToolError::local(&directory, &error);
        let cache = Cache::on_disk(&directory).map_err(fail)?;
        let lock = File::open(&directory).map_err(fail)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let target = target.display();
                return Err(ToolError::Local(format!("another program fetches {target}")));
            }
            Err(errno) => return Err(fail(errno.into())),
        }
        Ok(Self { target: target.to_path_buf(), directory, cache, _lock: lock })
    }

    /// The cache in the directory.
    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Takes a complete file out of the cache: it has no final name yet, and the permissions of a
    /// new file.
    pub(super) fn take(&self, data: &Path) -> Result<PartialFile, ToolError> {
        PartialFile::of(data, &self.target)
    }

    /// Removes the directory. What cannot be removed stays.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "cannot be removed");
        }
    }
}
