//! Storage of received pages on this machine.
//!
//! A [`Cache`] opens a [`Store`] for each version of a file: a sparse file, on disk or in memory,
//! that is written in runs of pages and read at any offset. On disk, a store also records which of
//! its pages are held:
//!
//! ```text
//! CACHE_DIR/objects/<id>/data    the file's bytes where they belong, holes where they are missing
//! CACHE_DIR/objects/<id>/state   one line of JSON, blocks with bits of held pages and checksums
//! CACHE_DIR/objects/<id>/leaves  hashes of the content
//! CACHE_DIR/contents/<b3>         link to an object that has all of this content
//! CACHE_DIR/paths/<id>            list of the objects of one path
//! CACHE_DIR/names/<id>            names that were opened in one directory, with their attributes
//! CACHE_DIR/lock, CACHE_DIR/grants     see [`room`]
//! ```
//!
//! `<id>` is the first half of the BLAKE3 hash of server, path and version, in hexadecimal. `state`
//! is written only after `data` was synced. So a page that it lists as held is on disk, even after
//! a crash. A damaged block of `state` counts as one without held pages.
//!
//! A store locks its `data`, alone until it has all of a known content, and then together with
//! others. A second store for a version that is not complete, in this process or another one, gets
//! a directory of its own, which goes with it. A content that is complete is found under any name.
//!
//! A cache with a budget (`Budgeted`) removes what was not used for longest (`room`). Bytes for
//! which there is no room are in memory for a while (`window`).

mod budget;
mod contents;
pub(crate) mod holes;
mod kept;
mod leaf_values;
mod names;
mod older;
mod paths;
mod room;
mod small_file;
mod state;
mod store;
mod symbols;
mod window;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bootcast_proto::{ContentId, Etag, RemotePath};
use rustix::fs::{FlockOperation, MemfdFlags, OFlags};

pub use budget::{Amount, Budget};
pub use kept::{Checked, Kept, KeptFile, list};
pub use leaf_values::LeafValues;
pub(crate) use names::fuzz as fuzz_names;
pub use names::{Names, Remembered, forget_names};
pub use older::Older;
pub use small_file::SmallFile;
pub(crate) use state::fuzz as fuzz_state;
pub use state::{HeldSnapshot, Restored};
pub use store::{CheckpointError, Lock, Settled, Store};
pub(crate) use store::{SHARE_SOCKET, is_no_room, open_dir};
pub use symbols::Symbols;

use room::Room;

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
    /// Files below this directory, or in memory, within a budget.
    Budgeted(Budgeted),
}

/// A cache with a budget.
#[derive(Clone, Debug)]
pub struct Budgeted {
    /// Directory of a cache on disk; `None` for memory.
    dir: Option<PathBuf>,
    room: Arc<Room>,
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

    /// Like [`Self::on_disk`], within a budget.
    pub fn with_budget(dir: &Path, budget: Budget) -> io::Result<Self> {
        Self::on_disk(dir)?;
        let room = Room::on_disk(dir, budget)?;
        budget.record(dir);
        Ok(Self::Budgeted(Budgeted { dir: Some(dir.to_path_buf()), room }))
    }

    /// Creates a cache in memory that takes up at most this much.
    pub fn in_memory(size: Amount) -> Self {
        Self::Budgeted(Budgeted { dir: None, room: Room::in_memory(size) })
    }

    /// Returns the directory of a cache on disk.
    pub fn dir(&self) -> Option<&Path> {
        match self {
            Self::Disk(dir) => Some(dir),
            Self::Memory => None,
            Self::Budgeted(cache) => cache.dir.as_deref(),
        }
    }

    fn room(&self) -> Option<&Arc<Room>> {
        match self {
            Self::Disk(_) | Self::Memory => None,
            Self::Budgeted(cache) => Some(&cache.room),
        }
    }

    /// Whether something did not fit into the budget lately.
    pub fn is_short(&self) -> bool {
        self.room().is_some_and(|room| room.is_short())
    }

    /// Opens the store of `key`, with the pages of its last checkpoint, or with all pages of its
    /// content if another version in the cache has that. An incomplete one knows what an
    /// earlier use left, and an older version of its path, if there are any.
    pub fn open(&self, key: &ObjectKey) -> io::Result<Store> {
        let (Some(dir), Some(etag)) = (self.dir(), &key.etag) else {
            return self.open_private("plain");
        };
        let store = {
            let _opening = self.room().map(|room| room.opening());
            self.open_version(dir, key, etag)?
        };
        if store.is_complete() || store.follows() {
            return Ok(store);
        }
        let older = Older::find(dir, key, &key.id(etag));
        Ok(store.with_older(older))
    }

    /// Whether pages of this version, or another version with the same content, are on disk.
    pub fn has(&self, key: &ObjectKey) -> bool {
        let (Some(dir), Some(etag)) = (self.dir(), &key.etag) else { return false };
        let has_content = key.content.is_some_and(|content| contents::find(dir, content).is_some());
        has_content || state::exists(&dir.join("objects").join(key.id(etag))).unwrap_or(true)
    }

    /// Whether an object of this version, complete or not, or another version with the same content
    /// is on disk.
    fn has_object(&self, key: &ObjectKey) -> bool {
        let (Some(dir), Some(etag)) = (self.dir(), &key.etag) else { return false };
        let object = dir.join("objects").join(key.id(etag));
        self.has(key) || object.try_exists().unwrap_or(true)
    }

    /// Opens the store of a version in the directory of a cache on disk.
    fn open_version(&self, dir: &Path, key: &ObjectKey, etag: &Etag) -> io::Result<Store> {
        if let Some(store) = key.content.and_then(|content| self.open_content(dir, key, content)) {
            return Ok(store);
        }
        let id = key.id(etag);
        let object = dir.join("objects").join(&id);
        let opened = create_private_dir(&object).and_then(|()| {
            kept::record_use(&object);
            open_data(&object, true)
        });
        let data = match opened {
            Err(error) if self.is_no_room(&error) => return self.open_private(&id),
            opened => opened?,
        };
        match rustix::fs::flock(&data, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if !kept::is_present(&object, &data)? => self.open_private(&id),
            // An object that cannot be read stays as it is: the error may be temporary.
            Ok(()) => Store::persistent(data, object, key.clone(), etag.clone(), self.clone())
                .or_else(|_| self.open_private(&id)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                match Store::shared(data, object.clone(), key.clone(), self.clone()) {
                    Some(store) => Ok(store),
                    None => self.follow(object, key, etag).or_else(|_| self.open_private(&id)),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the store of an object that another store fills.
    fn follow(&self, object: PathBuf, key: &ObjectKey, etag: &Etag) -> io::Result<Store> {
        let data = open_data(&object, false)?;
        Ok(Store::following(data, object, key.clone(), etag.clone(), self.clone()))
    }

    /// Opens a store that others do not find, and that vanishes when it is closed.
    fn open_private(&self, id: &str) -> io::Result<Store> {
        let Self::Budgeted(Budgeted { dir: Some(dir), .. }) = self else {
            return Ok(Store::transient(self.nameless()?, self.clone()));
        };
        // It has a name, so that all who share the budget count it.
        let made = tempfile::Builder::new()
            .prefix(&format!("{id}."))
            .tempdir_in(dir.join("objects"))
            .and_then(|object| Ok((open_data(object.path(), true)?, object)));
        match made {
            Ok((data, object)) => {
                rustix::fs::flock(&data, FlockOperation::NonBlockingLockExclusive)?;
                Ok(Store::private(data, object, self.clone()))
            }
            // All of it is read past the cache.
            Err(error) if self.is_no_room(&error) => {
                Ok(Store::transient(nameless_in_memory()?, self.clone()))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the cache has a budget, and its file system is full.
    fn is_no_room(&self, error: &io::Error) -> bool {
        store::is_no_room(error)
            && self.room().is_some_and(|room| {
                room.handle_full_disk();
                true
            })
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
        self.dir().map_or_else(nameless_in_memory, nameless_file)
    }
}

fn nameless_in_memory() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("bootcast", MemfdFlags::CLOEXEC)?.into())
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

/// Puts what `make` creates, and `fill` fills, in the place of `path`. Whoever looks finds all of
/// the old one or all of the new one. If this fails, nothing is left of the new one.
fn replace<T>(
    path: &Path,
    make: impl FnMut(&Path) -> io::Result<T>,
    fill: impl FnOnce(&mut T) -> io::Result<()>,
) -> io::Result<T> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut new = tempfile::Builder::new().prefix(".").make_in(dir, make)?;
    fill(new.as_file_mut())?;
    Ok(new.persist(path)?)
}

/// Replaces the file at `path` by one with these bytes that only its owner may read.
fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let make = |path: &Path| OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    replace(path, make, |file| file.write_all(bytes)).map(drop)
}

fn create_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
