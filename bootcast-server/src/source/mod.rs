//! The served directory tree. Nothing outside of it is ever opened.
//!
//! The kernel resolves names beneath the directory's descriptor (`openat2`, `RESOLVE_BENEATH`).
//! Therefore neither `..` nor a symbolic link leads out, even while directories are renamed. A path
//! is opened for reading only after it proved to be a regular file, because opening a pipe or a
//! device can block or have side effects.

mod announced;
mod comparing;
mod hashing;
mod lead;
mod listing;
mod version;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use bootcast_proto::api::{Attributes, Kind, Meta};
use bootcast_proto::space::Space;
use bootcast_proto::{Etag, RemotePath};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

pub use announced::{Alias, Announcements, Resolution};
pub use comparing::{Comparison, compare, is_leaf};
pub use hashing::{
    HashError, HashProgress, HashRun, hash_segments, hash_while, hash_with_stream, may_go_on,
};
pub use lead::{Lead, LeadStream};
pub use version::{VERSION_LEN, Version, VersionKey};

/// Maximum number of attempts at a lookup that concurrent renames disturb (EAGAIN, openat2(2)).
const LOOKUP_TRIES: u32 = 8;

/// The served directory.
#[derive(Debug)]
pub struct Source {
    root: OwnedFd,
}

/// A regular file, open for reading.
#[derive(Debug)]
pub struct OpenFile {
    /// Descriptor that is open for reading.
    pub file: File,
    /// Announced version: its `ETag` names the content.
    pub version: Version,
    /// Attributes at the time of opening, as a version. They may differ from those of the announced
    /// version, with which the content began.
    pub present: Version,
    /// Whether it is not known yet that the file has the content of the announced version.
    pub is_suspect: bool,
    /// Whether nobody can change the bytes. Such a file is announced as it is.
    pub is_sealed: bool,
}

impl OpenFile {
    /// Opens the same file once more. Fails if the process has no descriptor left.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, ..*self })
    }
}

/// Why a path cannot be served.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// No such name exists.
    #[error("no such file or directory")]
    NotFound,
    /// The server may not open the path, or the path leads out of the served directory.
    #[error("permission denied")]
    Forbidden,
    /// The path leads to something other than a regular file.
    #[error("not a regular file")]
    NotRegular,
    /// The server is out of descriptors or memory. Trying again later may help.
    #[error("the server is out of file descriptors or memory: try again later")]
    Busy,
    /// A system call failed.
    #[error("cannot read: {0}")]
    Io(Arc<std::io::Error>),
}

impl From<Errno> for SourceError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => Self::NotFound,
            Errno::ACCESS | Errno::PERM | Errno::XDEV | Errno::LOOP => Self::Forbidden,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM => Self::Busy,
            other => std::io::Error::from(other).into(),
        }
    }
}

impl From<std::io::Error> for SourceError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl Source {
    /// Serves the directory `dir`. Fails if it is not a directory, or if the kernel is too old for
    /// `openat2` (before 5.6).
    pub fn new(dir: &Path) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let source = Self { root: rustix::fs::open(dir, flags, Mode::empty())? };
        source.lookup(&RemotePath::root(), OFlags::empty())?;
        Ok(source)
    }

    /// Opens a regular file for reading.
    pub fn open(&self, path: &RemotePath) -> Result<OpenFile, SourceError> {
        OpenFile::at(&self.lookup(path, OFlags::empty())?)
    }

    /// Returns the version that the path leads to at present.
    pub fn version(&self, path: &RemotePath) -> Result<Version, SourceError> {
        let located = self.lookup(path, OFlags::empty())?;
        Ok(Version::of_file(&located)?)
    }

    /// Reads the attributes of the path alone, and of a directory the capacity of its file system.
    /// Does not follow a symbolic link at its end. `announced` returns the version that is
    /// announced for the present one.
    pub fn attributes(
        &self,
        path: &RemotePath,
        announced: &dyn Fn(Version) -> Version,
    ) -> Result<(Attributes, Option<Space>), SourceError> {
        let located = self.lookup(path, OFlags::NOFOLLOW)?;
        let attributes = listing::own_attributes(located.as_fd(), announced)?;
        let is_directory = attributes.kind == Kind::Directory;
        // Attributes are of use without it.
        let space = is_directory.then(|| space(&located).ok()).flatten();
        Ok((attributes, space))
    }

    /// Reads the attributes of a directory and of all its entries. Fails if the path is not a
    /// directory. `announced` returns the version that is announced for the present one of an
    /// entry.
    pub fn list(
        &self,
        path: &RemotePath,
        announced: &dyn Fn(&[u8], Version) -> Version,
    ) -> Result<Meta, SourceError> {
        let located = self.lookup(path, OFlags::NOFOLLOW)?;
        Ok(listing::list(located.as_fd(), announced)?)
    }

    /// Opens the path as a mere location (`O_PATH`), which touches neither data nor devices.
    fn lookup(&self, path: &RemotePath, extra: OFlags) -> Result<OwnedFd, Errno> {
        let name = if path.is_root() { b"." } else { path.as_bytes() };
        let flags = OFlags::PATH | OFlags::CLOEXEC | extra;
        let confined = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 1;
        loop {
            let name = OsStr::from_bytes(name);
            match rustix::fs::openat2(&self.root, name, flags, Mode::empty(), confined) {
                Err(Errno::AGAIN) if tries < LOOKUP_TRIES => tries += 1,
                other => return other,
            }
        }
    }
}

impl OpenFile {
    /// Opens a regular file by a path of this machine, wherever it leads.
    pub fn open_local(path: &Path) -> Result<Self, SourceError> {
        Self::at(&rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Opens the file at a location. Fails before anything is opened if it is not a regular file.
    fn at(located: &OwnedFd) -> Result<Self, SourceError> {
        let stat = rustix::fs::fstat(located)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(SourceError::NotRegular);
        }
        let reopen = format!("/proc/self/fd/{}", located.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = File::from(rustix::fs::open(reopen, flags, Mode::empty())?);
        Ok(Self::new(file)?)
    }

    /// Wraps an open file, whose present version counts as the announced one.
    pub fn new(file: File) -> Result<Self, Errno> {
        let version = Version::of_file(&file)?;
        Ok(Self { file, version, present: version, is_suspect: false, is_sealed: false })
    }

    /// Wraps an open file whose bytes nobody can change.
    pub fn sealed(file: File) -> Result<Self, Errno> {
        Ok(Self { is_sealed: true, ..Self::new(file)? })
    }

    /// Returns the `ETag` of the version.
    pub fn etag(&self) -> Etag {
        self.version.etag()
    }
}

/// Returns the capacity of the file system behind a descriptor.
fn space(located: impl AsFd) -> Result<Space, Errno> {
    let file_system = rustix::fs::fstatvfs(located)?;
    let bytes = |blocks: u64| blocks.saturating_mul(file_system.f_frsize);
    Ok(Space {
        total: bytes(file_system.f_blocks),
        free: bytes(file_system.f_bfree),
        available: bytes(file_system.f_bavail.min(file_system.f_bfree)),
    })
}
