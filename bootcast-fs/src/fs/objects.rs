//! Objects of a mount: all opens of a version share one.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bootcast_proto::RemotePath;
use bootcast_proto::api::Kind;
use bootcast_proto::limits::SMALL_FILE;
use tracing::warn;

use super::{FileVersion, Fs, FsError, Server, lock};
use crate::cache::{ObjectKey, is_no_room};
use crate::io::{SmallAnswer, now, seed};
use crate::log_limit;
use crate::object::{Object, Snapshot};
use crate::receiver::{Fill, FillPolicy, UnicastMode, Verify};

/// Maximum number of idle objects on disk that are kept. Each takes a few descriptors.
const MAX_KEPT: usize = 64;

/// Objects of a mount, by path and version.
pub(super) type Objects = HashMap<(RemotePath, FileVersion), Arc<Slot>>;

/// Slot for the object of one version.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Locked while an object is created, which waits for the disk. Each slot has its own lock, so
    /// that opens of other versions do not wait.
    creating: Mutex<()>,
    /// The newest object of the version; `None` before it is created.
    object: Mutex<Option<Arc<Object>>>,
}

impl Slot {
    fn object(&self) -> Option<Arc<Object>> {
        lock(&self.object).clone()
    }

    /// Like [`Self::object`], also if a thread panicked under the lock.
    pub(super) fn object_after_panic(&self) -> Option<Arc<Object>> {
        self.object.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Open in progress. Dropping it undoes the open, because the caller may die at any moment.
pub(super) struct PendingOpen {
    fs: Arc<Fs>,
    /// The opened object; `None` after [`Self::commit`].
    object: Option<Arc<Object>>,
}

impl PendingOpen {
    pub(super) fn object(&self) -> &Object {
        self.object.as_ref().expect("commit() takes the object and consumes self")
    }

    /// Completes the open and returns its object, which the caller must close.
    pub(super) fn commit(mut self) -> Arc<Object> {
        self.object.take().expect("commit() takes the object and consumes self")
    }
}

impl Drop for PendingOpen {
    fn drop(&mut self) {
        if let Some(object) = &self.object {
            self.fs.close_object(object);
        }
    }
}

impl Fs {
    /// Opens the object of this version, and creates it if there is none. Waits for the disk.
    pub(super) fn acquire(
        self: &Arc<Self>,
        path: &RemotePath,
        version: &FileVersion,
        size: Option<u64>,
        small: Option<&SmallAnswer>,
    ) -> Result<PendingOpen, FsError> {
        let key = (path.clone(), version.clone());
        let slot = lock(&self.objects).entry(key).or_default().clone();
        let creating = lock(&slot.creating);
        // A failed object is not opened again. It stays with the opens that it has.
        let existing = slot.object().filter(|object| object.snapshot().failure().is_none());
        let existing = existing.filter(|existing| {
            // Comes before `slot` is dropped, whose reference keeps the object from being retired.
            existing.open();
            let is_here = existing.pin();
            if !is_here {
                existing.close(now());
            }
            is_here
        });
        let object = if let Some(existing) = existing {
            existing
        } else {
            if let (Server::Plain(names), FileVersion::Plain(content)) = (&self.server, version) {
                lock(names).begin(path, *content)?;
            }
            let object = Arc::new(self.create(path, version, size, small)?);
            *lock(&slot.object) = Some(object.clone());
            object.open();
            object
        };
        drop(creating);
        self.intake.attend(&object);
        Ok(PendingOpen { fs: self.clone(), object: Some(object) })
    }

    /// Fetches the content of a small file, so that no join is needed for its open. Returns `None`
    /// if the file is here, or should come with a cast.
    pub(super) async fn fetch_small(
        self: &Arc<Self>,
        path: &RemotePath,
        version: &FileVersion,
        size: u64,
    ) -> Option<SmallAnswer> {
        let FileVersion::Etag(etag) = version else { return None };
        let may_fetch = self.config.unicast != UnicastMode::Never && self.config.pins.is_none();
        if size > SMALL_FILE || !may_fetch || self.object(path, version).is_some() {
            return None;
        }
        let (cache, key) = (self.cache.clone(), self.key(path, version));
        let is_here = tokio::task::spawn_blocking(move || cache.has(&key)).await.unwrap_or(true);
        if is_here {
            return None;
        }
        self.small_file(path, etag, size).await
    }

    /// Creates an object with its store, which gets the content of a small file.
    fn create(
        &self,
        path: &RemotePath,
        version: &FileVersion,
        size: Option<u64>,
        small: Option<&SmallAnswer>,
    ) -> Result<Object, FsError> {
        let key = self.key(path, version);
        let mut store = self.cache.open(&key).map_err(|error| {
            if let Some(more) = log_limit::allow("cannot open the cache", &error) {
                warn!(%path, %error, "cannot open the cache{more}");
            }
            FsError::Io(error.to_string())
        })?;
        let small = small.filter(|_| !store.follows());
        if let Some(SmallAnswer::File(small) | SmallAnswer::Bundled(small)) = small {
            match store.adopt(small) {
                // Its pages come as they are read.
                Err(error) if is_no_room(&error) => {}
                adopted => {
                    adopted
                        .map_err(|error| FsError::Io(format!("cannot write the cache: {error}")))?;
                }
            }
        }
        let fill = match self.config.fill {
            FillPolicy::Never => Fill::Demand,
            FillPolicy::AfterIntent | FillPolicy::AtOpen => Fill::Full,
        };
        let object = Object::new(key, store, size, self.config.timing, fill, seed());
        // The cast of a small file that several hosts want forms in its hold.
        let is_wanted = matches!(small, Some(SmallAnswer::Wanted));
        let awaits = self.config.fill == FillPolicy::AfterIntent && !is_wanted;
        let object = if awaits { object.with_intent_awaited() } else { object };
        let object = if fill == Fill::Demand { object.with_profile() } else { object };
        Ok(object.with_unicast(self.config.unicast).with_verify(self.config.verify))
    }

    /// Returns the cache key of this version.
    pub(super) fn key(&self, path: &RemotePath, version: &FileVersion) -> ObjectKey {
        let etag = match version {
            FileVersion::Etag(etag) => Some(etag.clone()),
            FileVersion::Plain(_) => None,
        };
        let verifies = self.config.verify == Verify::Leaf;
        let stated = etag.as_ref().filter(|_| verifies);
        let content = stated.and_then(|etag| self.control.stated_id(path, etag));
        ObjectKey { server: self.control.server().to_owned(), path: path.clone(), etag, content }
    }

    /// Ends one open of an object.
    pub(super) fn close_object(&self, object: &Arc<Object>) {
        object.close(now());
        object.unpin_if_idle();
        self.intake.attend(object);
    }

    /// Returns the object of this version, if there is one.
    pub(super) fn object(&self, path: &RemotePath, version: &FileVersion) -> Option<Arc<Object>> {
        lock(&self.objects).get(&(path.clone(), version.clone()))?.object()
    }

    /// Returns every object of the mount once.
    pub(super) fn all_objects(&self) -> Vec<Arc<Object>> {
        let mut objects: Vec<_> =
            lock(&self.objects).values().filter_map(|slot| slot.object()).collect();
        // Failed objects that were replaced are known only by their open handles.
        objects.extend(self.handles.iter().map(|handle| handle.object.clone()));
        objects.sort_by_key(|object| object.id());
        objects.dedup_by_key(|object| object.id());
        objects
    }

    /// Moves bytes of files past the cache to the cache if that has room, and gives memory back
    /// that they use beyond their share.
    pub(super) fn tidy_windows(&self) {
        for object in self.all_objects() {
            if !self.cache.is_short() {
                object.settle_window();
            }
            object.trim_window();
        }
    }

    /// Fails the parked reads of killed callers, and those that were parked before `deadline`.
    pub(super) fn reap(&self, deadline: Option<Instant>) {
        let bundles = lock(&self.bundles).objects();
        for object in self.all_objects().into_iter().chain(bundles) {
            object.reap(deadline);
        }
    }

    /// Makes a checkpoint of each object. Waits for the disk.
    pub(super) fn checkpoint_all(&self) {
        for object in self.all_objects() {
            checkpoint(&object);
        }
    }

    /// Drops idle objects, except those that are kept. The next open finds their pages on disk.
    pub(super) fn retire_idle(&self) {
        let save = |object: Arc<Object>| {
            checkpoint(&object);
            object.id()
        };
        let saved: BTreeSet<_> = self.retirable().into_iter().map(save).collect();
        // A complete one that was saved just now is kept from here on.
        let idle = self.retirable().into_iter().map(|object| object.id());
        let ids: BTreeSet<_> = idle.filter(|id| saved.contains(id)).collect();
        // An object is dropped only if it is still idle and has no other reference. Otherwise a new
        // object of the same version would find the store locked. References to slots are taken
        // under this lock only.
        lock(&self.objects).retain(|_, slot| {
            let object = lock(&slot.object);
            let is_free = object.as_ref().is_none_or(|object| {
                ids.contains(&object.id())
                    && object.snapshot().is_idle
                    && Arc::strong_count(object) == 1
            });
            !(is_free && Arc::strong_count(slot) == 1)
        });
    }

    /// Returns the idle objects that are not kept.
    fn retirable(&self) -> Vec<Arc<Object>> {
        let (mut idle, mut kept) = (Vec::new(), Vec::new());
        for (key, slot) in lock(&self.objects).iter() {
            let Some(object) = slot.object() else { continue };
            let snapshot = object.snapshot();
            if snapshot.is_idle {
                if self.is_kept(key, &snapshot) { &mut kept } else { &mut idle }.push(object);
            }
        }
        kept.sort_by_key(|object| Reverse(object.id()));
        if self.cache.dir().is_some() {
            idle.extend(kept.drain(MAX_KEPT.min(kept.len())..));
        } else if self.cache.is_short() {
            idle.extend(kept.pop());
        }
        // The disk keeps the blocks of a removed file until it is closed.
        idle.extend(kept.extract_if(.., |object| object.store().is_removed()));
        for object in kept {
            object.unpin_if_idle();
        }
        idle
    }

    /// Whether an object is kept as long as the kernel has a reference to its inode, although it is
    /// idle: it is complete, and would have to come again, or to be verified again.
    fn is_kept(&self, (path, version): &(RemotePath, FileVersion), snapshot: &Snapshot) -> bool {
        let is_of_use = match self.cache.dir() {
            None => snapshot.is_complete,
            Some(_) => snapshot.is_durable && self.config.verify == Verify::Leaf,
        };
        is_of_use
            && matches!(version, FileVersion::Etag(_))
            && lock(&self.inodes).number(path, Some(version), Kind::File).is_some()
    }
}

fn checkpoint(object: &Object) {
    // The object logs errors itself.
    let _ = object.checkpoint();
}
