//! The objects of a mount: opens of the same version share one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bootcast_proto::RemotePath;
use bootcast_proto::api::Kind;
use tracing::warn;

use super::{FileVersion, Fs, FsError, Server, lock};
use crate::cache::{Cache, ObjectKey};
use crate::io::{now, seed};
use crate::object::Object;
use crate::quiet;

/// The objects of a mount, by version.
pub(super) type Objects = HashMap<(RemotePath, FileVersion), Arc<Slot>>;

/// The place of one version's object.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Held while an object is made, which waits for the disk: so that only opens of the same
    /// version wait for it too.
    making: Mutex<()>,
    object: Mutex<Option<Arc<Object>>>,
}

impl Slot {
    fn object(&self) -> Option<Arc<Object>> {
        lock(&self.object).clone()
    }
}

/// An open in progress. It is undone when dropped, because its caller may die at any moment.
pub(super) struct PendingOpen {
    fs: Arc<Fs>,
    /// The opened object; `None` once the open has completed.
    object: Option<Arc<Object>>,
}

impl PendingOpen {
    pub(super) fn object(&self) -> &Object {
        self.object.as_ref().expect("only keep() takes it, and the open with it")
    }

    /// Completes the open. From now on a release ends it.
    pub(super) fn keep(mut self) -> Arc<Object> {
        self.object.take().expect("only keep() takes it, and the open with it")
    }
}

impl Drop for PendingOpen {
    fn drop(&mut self) {
        if let Some(object) = &self.object {
            self.fs.give_back(object);
        }
    }
}

impl Fs {
    /// Opens the object of this version; all opens of a version share one. Reads the disk.
    pub(super) fn acquire(
        self: &Arc<Self>,
        path: &RemotePath,
        version: &FileVersion,
        size: Option<u64>,
    ) -> Result<PendingOpen, FsError> {
        let key = (path.clone(), version.clone());
        let slot = lock(&self.objects).entry(key).or_default().clone();
        let making = lock(&slot.making);
        // A failed object stays with the opens it has; a new open gets a new object.
        let shared = slot.object().filter(|object| !object.is_failed());
        let object = if let Some(shared) = shared {
            shared
        } else {
            if let (Server::Plain(names), FileVersion::Plain(begun)) = (&self.server, version) {
                lock(names).begin(path, *begun)?;
            }
            let object = Arc::new(self.create(path, version, size)?);
            *lock(&slot.object) = Some(object.clone());
            object
        };
        // Before the slot is let go, which keeps the object from being retired.
        object.open();
        drop(making);
        self.intake.attend(&object);
        Ok(PendingOpen { fs: self.clone(), object: Some(object) })
    }

    fn create(
        &self,
        path: &RemotePath,
        version: &FileVersion,
        size: Option<u64>,
    ) -> Result<Object, FsError> {
        let key = self.key(path, version);
        let store = self.cache.open(&key).map_err(|error| {
            if let Some(more) = quiet::allow("cannot open the cache", &error) {
                warn!(%path, %error, "cannot open the cache{more}");
            }
            FsError::Io(error.to_string())
        })?;
        let (timing, fill) = (self.config.timing, self.config.fill);
        let object = Object::new(key, store, size, timing, fill, seed());
        Ok(object.with_unicast(self.config.unicast))
    }

    fn key(&self, path: &RemotePath, version: &FileVersion) -> ObjectKey {
        let etag = match version {
            FileVersion::Etag(etag) => Some(etag.clone()),
            FileVersion::Plain(_) => None,
        };
        ObjectKey { server: self.control.server().to_owned(), path: path.clone(), etag }
    }

    /// Ends one open of an object.
    pub(super) fn give_back(&self, object: &Arc<Object>) {
        object.close(now());
        self.intake.attend(object);
    }

    /// Looks up the object of this version.
    pub(super) fn object(&self, path: &RemotePath, version: &FileVersion) -> Option<Arc<Object>> {
        lock(&self.objects).get(&(path.clone(), version.clone()))?.object()
    }

    pub(super) fn all_objects(&self) -> Vec<Arc<Object>> {
        let mut objects: Vec<_> =
            lock(&self.objects).values().filter_map(|slot| slot.object()).collect();
        // Failed objects may be known only by open handles.
        objects.extend(self.handles.iter().map(|handle| handle.value().clone()));
        objects.sort_by_key(|object| object.id());
        objects.dedup_by_key(|object| object.id());
        objects
    }

    /// Ends the waits of dead readers, and waits that began before `deadline`.
    pub(super) fn reap(&self, deadline: Option<Instant>) {
        for object in self.all_objects() {
            object.reap(deadline);
        }
    }

    /// Saves to disk which pages of each object are held.
    pub(super) fn checkpoint_all(&self) {
        for object in self.all_objects() {
            checkpoint(&object);
        }
    }

    /// Drops objects that nobody uses. Disk objects can be found again; memory objects live as long
    /// as the kernel remembers their inode.
    pub(super) fn retire_idle(&self) {
        let idle: Vec<_> = lock(&self.objects)
            .iter()
            .filter_map(|(key, slot)| Some((key, slot.object()?)))
            .filter(|(key, object)| self.is_retirable(key, object))
            .map(|(_, object)| object)
            .collect();
        for object in idle {
            checkpoint(&object);
        }
        // Drops an object only if it is still idle and nothing else refers to it. A store that is
        // opened twice would be locked for the second user. Slots are taken under this lock only.
        lock(&self.objects).retain(|key, slot| {
            let object = lock(&slot.object);
            let is_free = object.as_ref().is_none_or(|object| {
                self.is_retirable(key, object) && Arc::strong_count(object) == 1
            });
            !(is_free && Arc::strong_count(slot) == 1)
        });
    }

    fn is_retirable(&self, (path, version): &(RemotePath, FileVersion), object: &Object) -> bool {
        let is_kept = matches!(self.cache, Cache::Memory)
            && object.is_complete()
            && matches!(version, FileVersion::Etag(_))
            && lock(&self.inodes).number(path, Some(version), Kind::File).is_some();
        object.is_idle() && !is_kept
    }
}

fn checkpoint(object: &Object) {
    // The object logs what went wrong.
    let _ = object.checkpoint();
}
