//! Manifests and content ids in memory.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bootcast_proto::manifest::ContentId;
use bootcast_proto::{Manifest, RemotePath};
use lru::LruCache;
use tokio::sync::watch;
use tokio::time::Instant;

use super::ManifestResult;
use crate::source::{HashProgress, Lead, VersionKey};

/// Upper bound of the leaf values that are kept: 64 MiB, for 32 GiB of files. The manifest that was
/// used last is kept whatever its size.
const LEAVES_MAX: u64 = 1 << 21;

/// Bound of the kept leaf values up to which manifests are added that nobody asked for. The rest of
/// [`LEAVES_MAX`] is left to what requests ask for.
const LEAVES_AHEAD_MAX: u64 = LEAVES_MAX / 2;

/// Minimum number of leaf values that a manifest counts for, so that the number of manifests is
/// bounded too.
const LEAVES_MIN: u64 = 64;

/// Maximum number of content ids that are remembered. They outlive the leaf values in memory, so
/// that joins do not load these again and again.
const IDS_MAX: NonZeroUsize = NonZeroUsize::new(1 << 14).expect("not 0");

/// A manifest, or the work on it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// `None` while the file is being hashed.
    pub(super) result: watch::Receiver<Option<ManifestResult>>,
    /// Values that are known meanwhile.
    pub(super) progress: Arc<HashProgress>,
    /// Lead of the hasher over the stream.
    pub(super) lead: Arc<Lead>,
    /// When to try the leaves again that cannot be read; `None` while there are none.
    pub(super) retry_at: Option<Instant>,
}

impl Entry {
    /// Creates the entry of a manifest that is known.
    pub(super) fn known(manifest: Arc<Manifest>) -> Self {
        let progress = Arc::new(HashProgress::finished(*manifest.tree()));
        let lead = Arc::new(Lead::closed(manifest.tree().size()));
        Self { result: watch::channel(Some(Ok(manifest))).1, progress, lead, retry_at: None }
    }

    fn manifest(&self) -> Option<Arc<Manifest>> {
        self.result.borrow().as_ref()?.as_ref().ok().cloned()
    }

    /// Returns the number of leaf values that the entry counts for; 0 while the file is being
    /// hashed.
    fn leaves(&self) -> u64 {
        let leaves = match &*self.result.borrow() {
            Some(Ok(manifest)) => manifest.tree().leaves(),
            // Parts of the file cannot be read.
            Some(Err(_)) => self.progress.tree().leaves(),
            None => return 0,
        };
        leaves.max(LEAVES_MIN)
    }
}

/// Manifests that are being computed, those that were used recently, and content ids.
#[derive(Debug)]
pub(super) struct Memory {
    /// Each entry with the number of leaf values that it was counted for.
    manifests: LruCache<VersionKey, (Entry, u64)>,
    /// Sum of the leaf values that the entries were counted for.
    leaves: u64,
    ids: LruCache<VersionKey, ContentId>,
    /// Versions whose manifests [`super::Manifests::when_known`] waits for.
    pub(super) awaited: HashSet<(RemotePath, VersionKey)>,
}

impl Default for Memory {
    fn default() -> Self {
        let (manifests, ids) = (LruCache::unbounded(), LruCache::new(IDS_MAX));
        Self { manifests, leaves: 0, ids, awaited: HashSet::new() }
    }
}

impl Memory {
    /// Returns an entry, which counts as used.
    pub(super) fn entry(&mut self, key: &VersionKey) -> Option<Entry> {
        self.manifests.get(key).map(|(entry, _)| entry.clone())
    }

    /// Returns the lead of an entry, which does not count as used.
    pub(super) fn lead(&self, key: &VersionKey) -> Option<&Arc<Lead>> {
        Some(&self.manifests.peek(key)?.0.lead)
    }

    /// Returns a manifest that is known. It does not count as used.
    pub(super) fn manifest(&self, key: &VersionKey) -> Option<Arc<Manifest>> {
        self.manifests.peek(key)?.0.manifest()
    }

    /// Whether there is an entry of this version.
    pub(super) fn contains(&self, key: &VersionKey) -> bool {
        self.manifests.contains(key)
    }

    /// Returns the content id of a version, if it is known.
    pub(super) fn content_id(&mut self, key: &VersionKey) -> Option<ContentId> {
        let id = self.ids.get(key).copied();
        id.or_else(|| Some(self.manifest(key)?.id()))
    }

    /// Adds or replaces an entry.
    pub(super) fn insert(&mut self, key: VersionKey, entry: Entry) {
        self.remove(&key);
        let leaves = entry.leaves();
        self.leaves += leaves;
        self.manifests.put(key, (entry, leaves));
        self.evict();
    }

    /// Counts an entry anew, because its result is known by now.
    pub(super) fn recount(&mut self, key: &VersionKey) {
        let Some((entry, counted)) = self.manifests.peek_mut(key) else { return };
        let leaves = entry.leaves();
        self.leaves = self.leaves + leaves - std::mem::replace(counted, leaves);
        self.evict();
    }

    /// Sets when the leaves that cannot be read are tried again.
    pub(super) fn set_retry_at(&mut self, key: &VersionKey, at: Instant) {
        if let Some((entry, _)) = self.manifests.peek_mut(key) {
            entry.retry_at = Some(at);
        }
    }

    /// Removes an entry. Its content id stays known.
    pub(super) fn remove(&mut self, key: &VersionKey) {
        if let Some((_, counted)) = self.manifests.pop(key) {
            self.leaves -= counted;
        }
    }

    /// Removes an entry, and forgets its content id.
    pub(super) fn forget(&mut self, key: &VersionKey) {
        self.remove(key);
        self.ids.pop(key);
    }

    /// Remembers a content id.
    pub(super) fn remember_id(&mut self, key: VersionKey, id: ContentId) {
        self.ids.put(key, id);
    }

    /// Adds a manifest that nobody asked for, unless there is an entry or the room for such
    /// manifests is used up.
    pub(super) fn add_ahead(&mut self, key: VersionKey, manifest: Manifest) {
        let leaves = manifest.tree().leaves().max(LEAVES_MIN);
        if self.leaves.saturating_add(leaves) <= LEAVES_AHEAD_MAX && !self.contains(&key) {
            self.insert(key, Entry::known(Arc::new(manifest)));
        }
    }

    /// Removes the manifests that were not used for longest, until the others fit. Keeps those that
    /// are being computed, and the one that was used last.
    fn evict(&mut self) {
        while self.leaves > LEAVES_MAX {
            let mut oldest_first = self.manifests.iter().rev();
            let oldest = oldest_first.find(|(_, (_, counted))| *counted > 0);
            let oldest = oldest.filter(|(_, (_, counted))| *counted < self.leaves);
            let Some(key) = oldest.map(|(key, _)| *key) else { return };
            self.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use bootcast_proto::manifest::{ContentTree, LEAF_BYTES};

    use super::*;

    fn key(number: u64) -> VersionKey {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        VersionKey::from_bytes(bytes)
    }

    fn manifest(leaves: u64) -> Manifest {
        let values = vec![[1; 32]; usize::try_from(leaves).unwrap()];
        Manifest::new(ContentTree::new(leaves * LEAF_BYTES), values)
    }

    fn entry(leaves: u64) -> Entry {
        Entry::known(Arc::new(manifest(leaves)))
    }

    #[test]
    fn the_manifests_that_were_not_used_for_longest_make_room() {
        let mut memory = Memory::default();
        for number in 0..4 {
            memory.insert(key(number), entry(LEAVES_MAX / 4));
        }
        assert!(memory.entry(&key(0)).is_some(), "it is used now");
        memory.insert(key(4), entry(LEAVES_MAX / 4));
        let kept: Vec<_> = (0..5).map(|number| memory.contains(&key(number))).collect();
        assert_eq!(kept, [true, false, true, true, true]);
        memory.insert(key(5), entry(LEAVES_MAX + 1));
        assert_eq!((memory.manifests.len(), memory.leaves), (1, LEAVES_MAX + 1));
        memory.insert(key(6), entry(1));
        assert_eq!((memory.manifests.len(), memory.leaves), (1, LEAVES_MIN));
    }

    #[test]
    fn the_number_of_manifests_is_bounded_also_of_empty_files() {
        let mut memory = Memory::default();
        for number in 0..LEAVES_MAX / LEAVES_MIN + 10 {
            memory.insert(key(number), entry(number % 2));
        }
        assert_eq!(memory.manifests.len() as u64, LEAVES_MAX / LEAVES_MIN);
    }

    #[test]
    fn a_manifest_that_is_being_computed_counts_from_its_result_on_and_is_kept_before() {
        let mut memory = Memory::default();
        let (sender, result) = watch::channel(None);
        let progress = Arc::new(HashProgress::finished(ContentTree::new(0)));
        let lead = Arc::new(Lead::closed(0));
        memory.insert(key(0), Entry { result, progress, lead, retry_at: None });
        for number in 1..9 {
            memory.insert(key(number), entry(LEAVES_MAX / 2));
        }
        assert!(memory.contains(&key(0)) && memory.manifest(&key(0)).is_none());
        sender.send_replace(Some(Ok(Arc::new(manifest(1)))));
        memory.recount(&key(0));
        assert!(!memory.contains(&key(0)), "it was not used for longest");
        memory.forget(&key(8));
        assert_eq!(memory.leaves, LEAVES_MAX / 2);
    }

    #[test]
    fn what_nobody_asked_for_takes_half_of_the_room() {
        let mut memory = Memory::default();
        for number in 0..5 {
            memory.add_ahead(key(number), manifest(LEAVES_MAX / 8));
        }
        assert_eq!(memory.leaves, LEAVES_AHEAD_MAX);
        memory.remove(&key(0));
        memory.add_ahead(key(4), manifest(LEAVES_MAX / 8));
        assert!(memory.contains(&key(4)), "there is room again");
    }
}
