//! Stores that read what another store of the same object writes, mostly one of another process.
//! docs/SEMANTICS.md, "One copy for several mounts".

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bootcast_proto::Etag;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::{ObjectDir, Store, Use};
use crate::cache::state::{self, Restored};
use crate::cache::{Cache, ObjectKey, Older, kept};
use crate::panics::lock;

/// Name of the socket in the directory of an object, on which its holder tells what arrives.
pub(crate) const SHARE_SOCKET: &str = "share";

/// Outcome of an attempt to lock the object of a store that follows.
#[derive(Debug)]
pub enum Lock {
    /// Nobody else fills it: this store does from now on. Has the pages of its state.
    Own(Option<Restored>),
    /// It is complete, and its users share it. Has all of its pages.
    Shared(Restored),
    /// Another store fills it.
    Held,
    /// Somebody removed it.
    Removed,
}

impl Store {
    /// Creates a store that reads what another one writes. The caller must not have locked `data`.
    pub(in crate::cache) fn following(
        data: File,
        dir: PathBuf,
        key: ObjectKey,
        etag: Etag,
        cache: Cache,
    ) -> Self {
        let object = ObjectDir { dir, key, etag };
        let mut store = Self::with(data, cache, Some(object), None);
        store.use_of_object = Mutex::new(Use::Following);
        store.is_pinned = Mutex::new(false);
        store.may_have_holes = AtomicBool::new(true);
        store
    }

    /// Whether another store fills the object.
    pub fn follows(&self) -> bool {
        *lock(&self.use_of_object) == Use::Following
    }

    /// Tries to lock the object, which another store filled. Waits for the disk.
    pub fn try_lock(&self) -> io::Result<Lock> {
        let Some(object) = self.object_dir.as_ref().filter(|_| self.follows()) else {
            return Ok(Lock::Held);
        };
        let _opening = self.room.as_ref().map(|room| room.opening());
        let is_alone = self.flock(FlockOperation::NonBlockingLockExclusive)?;
        if !is_alone && !self.flock(FlockOperation::NonBlockingLockShared)? {
            return Ok(Lock::Held);
        }
        let locked = self.take_object(object, is_alone);
        if matches!(locked, Err(_) | Ok(Lock::Held | Lock::Removed)) {
            self.flock(FlockOperation::Unlock)?;
        }
        locked
    }

    /// Changes the lock of the object. Returns `false` if another store has it.
    fn flock(&self, operation: FlockOperation) -> io::Result<bool> {
        match rustix::fs::flock(&self.data, operation) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Uses the object, which is locked.
    fn take_object(&self, object: &ObjectDir, is_alone: bool) -> io::Result<Lock> {
        if !kept::is_present(&object.dir, &self.data)? {
            return Ok(Lock::Removed);
        }
        if let Some(complete) = state::load_complete(&object.dir, object.key.content, &self.data) {
            // The kernel unlocks before it locks anew (flock(2)): another store may come between.
            if !self.flock(FlockOperation::NonBlockingLockShared)? {
                return Ok(Lock::Held);
            }
            self.use_object(Use::Shared);
            return Ok(Lock::Shared(complete));
        }
        if !is_alone {
            return Ok(Lock::Held);
        }
        let loaded = state::load(&object.dir, &object.key, &object.etag, &self.data)?;
        let (restored, file) = loaded.map_or((None, None), |(it, file)| (Some(it), file));
        *lock(&self.state) = file;
        self.use_object(Use::Own);
        Ok(Lock::Own(restored))
    }

    fn use_object(&self, of: Use) {
        *lock(&self.use_of_object) = of;
        *lock(&self.is_pinned) = true;
    }

    /// Opens a store for what is received without the one that fills the object. Leaves may be
    /// taken from what that has written.
    pub fn open_own(&self) -> io::Result<Self> {
        let dir = self.object_dir.as_ref().map(|object| object.dir.as_path());
        let name = dir.and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let store = self.cache.open_private(&name)?;
        Ok(store.with_older(dir.and_then(Older::of_earlier_use)))
    }

    /// Removes the socket of an object that this store has locked.
    pub(super) fn remove_socket(&self) {
        let is_locked = *lock(&self.is_pinned);
        if is_locked
            && self.is_followable()
            && let Some(dir) = self.shared_dir()
        {
            // The next holder removes it, if this fails.
            let _ = std::fs::remove_file(dir.join(SHARE_SOCKET));
        }
    }

    /// Directory of an object that this store fills, or may fill later; `None` for other stores.
    pub fn shared_dir(&self) -> Option<&Path> {
        self.object_dir.as_ref().map(|object| object.dir.as_path())
    }

    /// Whether others that want to read the object must be told what arrives.
    pub fn is_followable(&self) -> bool {
        let is_own = self.object_dir.is_some() && self.fills();
        is_own && !self.is_settled.load(Ordering::Relaxed)
    }

    /// Whether others may lock the object, too, because no page will be written any more.
    pub fn is_settled(&self) -> bool {
        self.is_settled.load(Ordering::Relaxed)
    }
}

/// Opens a directory to name a socket in it, whose own path may be too long for an address.
pub(crate) fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}
