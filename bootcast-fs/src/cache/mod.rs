//! Storage of received pages on this machine.
//!
//! A [`Cache`] opens a [`Store`] for each version of a file: a sparse file, on disk or in memory,
//! that is written in runs of pages and read at any offset. On disk, a store also records which of
//! its pages are held:
//!
//! ```text
//! CACHE_DIR/objects/<id>/data    the file's bytes where they belong, holes where they are missing
//! CACHE_DIR/objects/<id>/state   one line of JSON, the bitmap of held pages, a checksum
//! CACHE_DIR/objects/<id>/leaves  hashes of the content
//! CACHE_DIR/contents/<b3>         link to an object that has all of this content
//! CACHE_DIR/paths/<id>            list of the objects of one path
//! ```
//!
//! `<id>` is the first half of the BLAKE3 hash of server, path and version, in hexadecimal. `state`
//! is replaced atomically, and only after `data` was synced. So a page that it lists as held is on
//! disk, even after a crash. A damaged `state` counts as absent.
//!
//! A store locks its `data`, alone until it has all of a known content, and then together with
//! others. A second store for a version that is not complete, in this process or another one, uses
//! a nameless file (`O_TMPFILE`) instead. A content that is complete is found under any name.

mod contents;
mod holes;
mod kept;
mod leaf_values;
mod older;
mod paths;
mod state;
mod store;
mod symbols;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bootcast_proto::{ContentId, Etag, RemotePath};
use rustix::fs::{FlockOperation, MemfdFlags, OFlags};

pub use kept::{Checked, Kept, KeptFile, list};
pub use leaf_values::LeafValues;
pub use older::Older;
pub use state::{HeldSnapshot, Restored};
pub use store::{CheckpointError, Store};
pub use symbols::Symbols;

/// Identity of an object: one version of one file of one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectKey {
    /// Server as `host:port`.
    pub server: String,
    /// Path of the file.
    pub path: RemotePath,
    /// Version of the file; `None` on plain servers. Without it, the pages are not found again by a
    /// later use.
    pub etag: Option<Etag>,
    /// Hash of the content, if the server named it. The content of another version that is complete
    /// in the cache then serves for this one.
    pub content: Option<ContentId>,
}

impl ObjectKey {
    /// Returns the name of the object's directory.
    fn id(&self, etag: &Etag) -> String {
        short_hash(&[self.server.as_bytes(), self.path.as_bytes(), etag.as_str().as_bytes()])
    }

    /// Returns the name of the path's list of objects.
    fn path_id(&self) -> String {
        short_hash(&[self.server.as_bytes(), self.path.as_bytes()])
    }
}

/// Returns the first half of the hash of these parts, in hexadecimal.
fn short_hash(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// Place in which stores are created.
#[derive(Clone, Debug)]
pub enum Cache {
    /// Files below this directory.
    Disk(PathBuf),
    /// Files in memory (`memfd`).
    Memory,
}

impl Cache {
    /// Opens the cache in `dir`. Creates the directory if it is missing, with access for its owner
    /// only.
    pub fn on_disk(dir: &Path) -> io::Result<Self> {
        create_private_dir(&dir.join("objects"))?;
        create_private_dir(&dir.join("contents"))?;
        create_private_dir(&dir.join("paths"))?;
        // Makes an unusable directory fail here and not at the first open of a file.
        nameless_file(dir)?;
        Ok(Self::Disk(dir.to_path_buf()))
    }

    /// Opens the store of `key`, with the pages of its last checkpoint, or with all pages of its
    /// content if another version in the cache has that. An incomplete one knows an older version of
    /// its path, if there is one.
    pub fn open(&self, key: &ObjectKey) -> io::Result<Store> {
        let (Self::Disk(dir), Some(etag)) = (self, &key.etag) else {
            return Ok(Store::transient(self.nameless()?, self.clone()));
        };
        let store = self.open_version(dir, key, etag)?;
        if store.is_complete() {
            return Ok(store);
        }
        let older = Older::find(dir, key, &key.id(etag));
        Ok(store.with_older(older))
    }

    /// Opens the store of a version in the directory of a cache on disk.
    fn open_version(&self, dir: &Path, key: &ObjectKey, etag: &Etag) -> io::Result<Store> {
        if let Some(store) = key.content.and_then(|content| self.open_content(dir, key, content)) {
            return Ok(store);
        }
        let object = dir.join("objects").join(key.id(etag));
        create_private_dir(&object)?;
        kept::record_use(&object);
        let data = open_data(&object, true)?;
        match rustix::fs::flock(&data, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if !kept::is_present(&object, &data)? => {
                Ok(Store::transient(self.nameless()?, self.clone()))
            }
            // An object that cannot be read stays as it is: the error may be temporary.
            Ok(()) => Store::persistent(data, object, key.clone(), etag.clone(), self.clone())
                .or_else(|_| Ok(Store::transient(self.nameless()?, self.clone()))),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                match Store::shared(data, object, key.clone(), self.clone()) {
                    Some(store) => Ok(store),
                    None => Ok(Store::transient(self.nameless()?, self.clone())),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens an object that has all of this content; `None` if there is none.
    fn open_content(&self, dir: &Path, key: &ObjectKey, content: ContentId) -> Option<Store> {
        let object = contents::find(dir, content)?;
        kept::record_use(&object);
        let data = open_data(&object, false).ok()?;
        let key = ObjectKey { content: Some(content), ..key.clone() };
        Store::shared(data, object, key, self.clone())
    }

    /// Creates a file that disappears when its last descriptor is closed.
    fn nameless(&self) -> io::Result<File> {
        match self {
            Self::Disk(dir) => nameless_file(dir),
            Self::Memory => Ok(rustix::fs::memfd_create("bootcast", MemfdFlags::CLOEXEC)?.into()),
        }
    }
}

/// Returns the directory of the cache unless another one is named: `/var/cache/bootcast` for root,
/// otherwise `bootcast` below `$XDG_CACHE_HOME` or `~/.cache`.
pub fn default_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/cache/bootcast"));
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    Some(xdg.or_else(home)?.join("bootcast"))
}

/// Opens the bytes of an object.
fn open_data(object: &Path, creates: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(creates).truncate(false).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW).open(object.join("data"))
}

/// Creates a file in the file system of `dir` that disappears when its last descriptor is closed.
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
