//! Small files that come with a bundle, or over HTTP. docs/SEMANTICS.md, "Small files".

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bootcast_proto::bundle::BundleInfo;
use bootcast_proto::{Etag, RemotePath};
use tokio::sync::oneshot;

use super::bundles::{Found, Place, is_sound, read_index};
use super::{Fs, lock};
use crate::cache::{Cache, ObjectKey, SmallFile};
use crate::io::{SmallAnswer, now, seed};
use crate::object::{Object, Unread, Waiter};
use crate::receiver::{Fill, FillPolicy, Verify};

/// Time that an open waits for the bundle alone. Then the file is asked for over HTTP as well.
const PATIENCE: Duration = Duration::from_millis(50);

/// Time that an open waits for the bundle after the server has refused the file over HTTP, because
/// other hosts want it too. After this time it joins the cast of this single file. The server may
/// hold an answer about a bundle back for 750 ms, and then has to send it.
const PATIENCE_AMONG_MANY: Duration = Duration::from_secs(2);

/// Time that the index of a bundle may take. Opens do not wait for so long.
const INDEX_TIMEOUT: Duration = Duration::from_secs(5);

/// A reader of a bundle, within this program.
struct BundleReader(oneshot::Sender<Option<Vec<u8>>>);

impl Waiter for BundleReader {
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>) {
        // Fails if nobody waits any more.
        let _ = self.0.send(outcome.ok().map(<[u8]>::to_vec));
    }

    fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}

impl Fs {
    /// Returns a small file from a bundle or over HTTP, whichever comes first. Returns `None` if
    /// its cast should be joined.
    pub(super) async fn small_file(
        self: &Arc<Self>,
        path: &RemotePath,
        etag: &Etag,
        size: u64,
    ) -> Option<SmallAnswer> {
        if self.config.fill == FillPolicy::Never {
            return self.control.small_file(path, etag, size).await;
        }
        let mut is_late = false;
        let answer = {
            let mut bundled = std::pin::pin!(self.bundled(path, etag, size));
            let early = tokio::time::timeout(PATIENCE, &mut bundled).await;
            is_late |= early.is_err();
            match early {
                Ok(Some(file)) => return Some(SmallAnswer::Bundled(file)),
                Ok(None) => self.control.small_file(path, etag, size).await,
                Err(_) => tokio::select! {
                    Some(file) = &mut bundled => return Some(SmallAnswer::Bundled(file)),
                    answer = self.control.small_file(path, etag, size) => answer,
                },
            }
        };
        let is_wanted = matches!(answer, Some(SmallAnswer::Wanted));
        self.note_open(path, is_wanted);
        if !is_wanted {
            if is_late {
                self.note_late(path, etag, false);
            }
            return answer;
        }
        let bundled = self.bundled(path, etag, size);
        let bundled = tokio::time::timeout(PATIENCE_AMONG_MANY, bundled).await;
        if bundled.is_err() {
            self.note_late(path, etag, true);
        }
        bundled.ok().flatten().map(SmallAnswer::Bundled).or(answer)
    }

    /// Takes a small file from a bundle. Returns `None` if no bundle has it. Gives the bundle up if
    /// it fails.
    async fn bundled(
        self: &Arc<Self>,
        path: &RemotePath,
        etag: &Etag,
        size: u64,
    ) -> Option<SmallFile> {
        let mut changes = self.bundles_changed.subscribe();
        let (object, place) = loop {
            changes.mark_unchanged();
            match lock(&self.bundles).find(path, etag, now()) {
                Found::In(object, place) => break (object, place),
                Found::Maybe => {}
                Found::No => return None,
            }
            changes.changed().await.ok()?;
        };
        let Place { bytes, id, .. } = place;
        let bytes = self.read_bundle(&object, bytes).await;
        let Some(file) = bytes.and_then(|bytes| SmallFile::new(bytes, size, id)) else {
            self.give_up_bundle(path, &object);
            return None;
        };
        if self.config.verify == Verify::Leaf {
            // The server's hashes have proven the index.
            id.inspect(|id| self.control.remember_id(path, etag, *id));
        }
        let next = lock(&self.bundles).handle_taken(path, &object);
        if let (Some(next), Some(directory)) = (next, path.parent()) {
            match directory.join(&next) {
                Ok(next) => self.ask_for_bundle(next),
                Err(_) => lock(&self.bundles).handle_none(&directory, now()),
            }
        }
        Some(file)
    }

    /// Reads bytes of a bundle. Returns `None` if they cannot arrive.
    async fn read_bundle(
        &self,
        object: &Arc<Object>,
        bytes: std::ops::Range<u64>,
    ) -> Option<Vec<u8>> {
        if bytes.is_empty() {
            return Some(Vec::new());
        }
        let (sender, receiver) = oneshot::channel();
        let follow_up = object.read(bytes, Box::new(BundleReader(sender)), now());
        self.intake.follow_up(object, follow_up);
        receiver.await.ok().flatten()
    }

    /// Records the open of a small file that came otherwise. Asks for a bundle if the opens of its
    /// directory call for one.
    fn note_open(self: &Arc<Self>, path: &RemotePath, is_wanted: bool) {
        if self.control.has_bundles() && lock(&self.bundles).handle_open(path, is_wanted, now()) {
            self.ask_for_bundle(path.clone());
        }
    }

    /// Records that a file came sooner over HTTP than from its bundle, or that the bundle
    /// `is_overdue`, so that it is given up.
    fn note_late(&self, path: &RemotePath, etag: &Etag, is_overdue: bool) {
        let mut bundles = lock(&self.bundles);
        let Found::In(object, _) = bundles.find(path, etag, now()) else { return };
        let is_given_up = is_overdue || bundles.handle_late(path, &object);
        drop(bundles);
        if is_given_up {
            self.give_up_bundle(path, &object);
        }
    }

    /// Gives up the bundle that has this file. Its files are opened one by one from then on.
    fn give_up_bundle(&self, path: &RemotePath, object: &Arc<Object>) {
        // Several opens notice that it fails.
        let is_first = lock(&self.bundles).give_up(path, object, now());
        if is_first {
            self.close_object(object);
        }
    }

    /// Gets the bundle that has this file, in the background.
    fn ask_for_bundle(self: &Arc<Self>, path: RemotePath) {
        let fs = self.clone();
        tokio::spawn(async move {
            let Some(directory) = path.parent() else { return };
            let begun = fs.begin_bundle(&path, &directory).await;
            let unused = if let Some((info, object, files)) = begun {
                lock(&fs.bundles).add(&directory, info, object, files, now())
            } else {
                lock(&fs.bundles).handle_none(&directory, now());
                None
            };
            fs.bundles_changed.send_replace(());
            unused.inspect(|object| fs.close_object(object));
        });
    }

    /// Joins the bundle that has this file, and reads its index. Returns `None` if there is none,
    /// if it is here, or if its index does not come.
    async fn begin_bundle(
        self: &Arc<Self>,
        path: &RemotePath,
        directory: &RemotePath,
    ) -> Option<(BundleInfo, Arc<Object>, HashMap<Vec<u8>, Place>)> {
        let info = self.control.bundle(path).await.filter(is_sound)?;
        if lock(&self.bundles).has(directory, &info.name) {
            return None;
        }
        let object = self.open_bundle(directory.join(info.name.as_bytes()).ok()?, &info)?;
        let index = self.read_bundle(&object, 0..info.index);
        let index = tokio::time::timeout(INDEX_TIMEOUT, index).await.ok().flatten();
        let Some(files) = index.and_then(|text| read_index(&text, &info)) else {
            self.close_object(&object);
            return None;
        };
        Some((info, object, files))
    }

    /// Opens a bundle, whose bytes stay in memory. Returns `None` if the mount ends.
    fn open_bundle(self: &Arc<Self>, path: RemotePath, info: &BundleInfo) -> Option<Arc<Object>> {
        let (server, etag) = (self.control.server().to_owned(), Some(info.etag.clone()));
        let key = ObjectKey { server, path, etag, content: None };
        let store = Cache::Memory.open(&key).ok()?;
        let object =
            Object::new(key, store, Some(info.size), self.config.timing, Fill::Full, seed());
        let object = object.with_unicast(self.config.unicast).with_verify(self.config.verify);
        let object = Arc::new(object);
        object.open();
        {
            let mut bundles = lock(&self.bundles);
            // `stop` and `abandon` set this before they look for objects.
            if *self.stopping.borrow() {
                return None;
            }
            bundles.begin(&object);
        }
        self.intake.attend(&object);
        Some(object)
    }

    /// Gives bundles up that are not used any more.
    pub(super) fn tidy_bundles(&self) {
        let unused = lock(&self.bundles).tidy(now());
        for object in unused {
            self.close_object(&object);
        }
    }
}

#[cfg(test)]
mod tests;
