//! File with the names of one directory, which several processes append to and tidy.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;

use crate::cache::replace;
use crate::io::now;

/// Time for which a process waits for others that change a file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause between two attempts to lock a file.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// State of a names file. Each change leads to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    /// Time at which the file was made, if the file system tells it. Inode numbers are used again.
    created: Option<SystemTime>,
    /// Time of the last change, in seconds and nanoseconds.
    changed: (i64, i64),
    len: u64,
}

impl Stamp {
    /// Returns the state of the file at `path`, if there is one.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::from(&metadata))
    }

    /// Returns the number of bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Returns the offset of the bytes that were appended since an earlier state; `None` if the
    /// file may have been replaced meanwhile.
    pub(super) fn end_of(&self, earlier: &Self) -> Option<u64> {
        if self == earlier {
            return Some(earlier.len);
        }
        let is_same = (self.inode, self.created) == (earlier.inode, earlier.created);
        (is_same && self.created.is_some() && self.len >= earlier.len).then_some(earlier.len)
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            created: metadata.created().ok(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            len: metadata.len(),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "flock(2) waits without a deadline, or not at all")]
fn pause() {
    std::thread::sleep(LOCK_PAUSE);
}

/// A names file that no other process changes until this is dropped.
#[derive(Debug)]
pub(super) struct Locked {
    path: PathBuf,
    file: File,
}

impl Drop for Locked {
    fn drop(&mut self) {
        // A child that was just forked may have a copy of the descriptor.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

impl Locked {
    /// Opens the file at `path`, and creates it if it is missing. Waits for other processes for a
    /// second at most: one that is stopped would never unlock it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let deadline = now() + LOCK_TIMEOUT;
        loop {
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(0o600);
            let file = options.custom_flags(libc::O_NOFOLLOW).open(path)?;
            match Self::lock(path, file, FlockOperation::NonBlockingLockExclusive) {
                Ok(Some(locked)) => return Ok(locked),
                Ok(None) => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock || deadline <= now() => {
                    return Err(error);
                }
                Err(_) => pause(),
            }
        }
    }

    /// Opens what has been left at `path`; `None` if it is gone or in use.
    pub(super) fn open_left(path: &Path) -> io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        match Self::lock(path, file, FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            locked => locked,
        }
    }

    /// Locks a file; `None` if it has lost its name meanwhile.
    fn lock(path: &Path, file: File, operation: FlockOperation) -> io::Result<Option<Self>> {
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation))?;
        let locked = Self { path: path.to_owned(), file };
        let present = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            present => present?,
        };
        let own = locked.file.metadata()?;
        Ok(((present.dev(), present.ino()) == (own.dev(), own.ino())).then_some(locked))
    }

    pub(super) fn stamp(&self) -> io::Result<Stamp> {
        self.file.metadata().map(|metadata| Stamp::from(&metadata))
    }

    /// Returns the bytes from `offset` on.
    pub(super) fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
        let len = self.file.metadata()?.len().saturating_sub(offset);
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Appends a line.
    pub(super) fn append(&mut self, line: &str) -> io::Result<()> {
        // After a crash the last line may lack its end.
        self.file.write_all(format!("\n{line}\n").as_bytes())
    }

    /// Replaces the file by one with these lines, which is locked from the start.
    pub(super) fn replace(&mut self, lines: &[String]) -> io::Result<()> {
        let make = |path: &Path| {
            let mut options = OpenOptions::new();
            let options = options.read(true).append(true).create_new(true).mode(0o600);
            let file = options.open(path)?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            Ok(file)
        };
        let text = lines.join("\n") + "\n";
        let file = replace(&self.path, make, |file| file.write_all(text.as_bytes()))?;
        *self = Self { path: self.path.clone(), file };
        Ok(())
    }

    /// Removes the file.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_a_stopped_process_has_locked_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names");
        let locked = Locked::open(&path).unwrap();
        assert_eq!(Locked::open(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(locked);
        assert!(Locked::open(&path).is_ok());
    }

    #[test]
    fn an_unchanged_file_has_nothing_new_whether_its_birth_is_known_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names");
        fs::write(&path, "a").unwrap();
        for created in [None, Some(SystemTime::UNIX_EPOCH)] {
            let stamp = Stamp { created, ..Stamp::of(&path).unwrap() };
            assert_eq!(stamp.end_of(&stamp), Some(1));
            let longer = Stamp { len: 5, ..stamp.clone() };
            assert_eq!(longer.end_of(&stamp), created.map(|_| 1));
            assert_eq!(stamp.end_of(&longer), None);
        }
    }
}
