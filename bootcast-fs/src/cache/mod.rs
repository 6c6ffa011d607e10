//! Where pages are kept on this machine.
//!
//! A [`Cache`] opens a [`Store`] for each version of a file: a sparse file, on disk or in memory,
//! that is written in runs and read at any offset. On disk a store also keeps which of its pages
//! are held:
//!
//! ```text
//! CACHE_DIR/objects/<id>/data    the file's bytes where they belong, holes where they are missing
//! CACHE_DIR/objects/<id>/state   one line of JSON (see `state`), then the bitmap of held pages
//! ```
//!
//! `<id>` is the BLAKE3 of server, path and version. `state` is replaced atomically, and only after
//! `data` was synced: whatever crashes, a page that it calls held is on disk. `data` is locked
//! while it is in use; who finds it locked works on a nameless file of its own.

mod state;
mod store;
mod symbols;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bootcast_proto::{Etag, RemotePath};
use rustix::fs::{FlockOperation, MemfdFlags, OFlags};

pub use state::Kept;
pub use store::{CheckpointError, Store};
pub use symbols::Symbols;

/// Identifies what is stored: one version of one file of one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectKey {
    /// Server as `host:port`.
    pub server: String,
    /// Path of the file.
    pub path: RemotePath,
    /// Version of the file. An object without a version cannot outlive its use.
    pub etag: Option<Etag>,
}

impl ObjectKey {
    /// Name of the object's directory.
    fn id(&self, etag: &Etag) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [self.server.as_bytes(), self.path.as_bytes(), etag.as_str().as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// Place where stores are created.
#[derive(Clone, Debug)]
pub enum Cache {
    /// In files below this directory.
    Disk(PathBuf),
    /// In memory, in files without a name.
    Memory,
}

impl Cache {
    /// Opens the cache in `dir`. Creates the directory, accessible to its owner only, if it is
    /// missing.
    pub fn on_disk(dir: &Path) -> io::Result<Self> {
        create_private_dir(&dir.join("objects"))?;
        // Reports an unusable directory now rather than at the first open of a file.
        nameless_file(dir)?;
        Ok(Self::Disk(dir.to_path_buf()))
    }

    /// Opens the store of `key`, with the pages that an earlier use left in it.
    pub fn open(&self, key: &ObjectKey) -> io::Result<Store> {
        match (self, &key.etag) {
            (Self::Memory, _) | (Self::Disk(_), None) => {
                Ok(Store::nameless(self.nameless()?, self.clone()))
            }
            (Self::Disk(dir), Some(etag)) => {
                let object = dir.join("objects").join(key.id(etag));
                create_private_dir(&object)?;
                let data = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o600)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(object.join("data"))?;
                match rustix::fs::flock(&data, FlockOperation::NonBlockingLockExclusive) {
                    // An object that cannot be examined is left alone, not discarded.
                    Ok(()) => Store::named(data, object, key.clone(), etag.clone(), self.clone())
                        .or_else(|_| Ok(Store::nameless(self.nameless()?, self.clone()))),
                    Err(rustix::io::Errno::WOULDBLOCK) => {
                        Ok(Store::nameless(self.nameless()?, self.clone()))
                    }
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Creates a file that disappears with its last descriptor.
    fn nameless(&self) -> io::Result<File> {
        match self {
            Self::Disk(dir) => nameless_file(dir),
            Self::Memory => Ok(rustix::fs::memfd_create("bootcast", MemfdFlags::CLOEXEC)?.into()),
        }
    }
}

/// Creates a file in the file system of `dir` that disappears with its last descriptor.
pub(crate) fn nameless_file(dir: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::TMPFILE.bits()).expect("open flags fit an int");
    let made = OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(flags).open(dir);
    match made {
        // The file system does not support `O_TMPFILE`.
        Err(error)
            if error.kind() == io::ErrorKind::Unsupported
                || error.kind() == io::ErrorKind::IsADirectory =>
        {
            tempfile::tempfile_in(dir)
        }
        made => made,
    }
}

fn create_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
