//! Content ids that the server stated. They are not proven.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bootcast_proto::{ContentId, Etag, RemotePath};

/// Maximum number of files whose content id is remembered: a few hundred KiB.
const MAX_FILES: usize = 1024;

/// The latest version of each path whose content id is known.
#[derive(Clone, Debug, Default)]
pub(super) struct StatedIds(Arc<Mutex<BTreeMap<RemotePath, (Etag, ContentId)>>>);

impl StatedIds {
    /// Remembers the content id of a version, instead of those of other versions of the path.
    pub(super) fn remember(&self, path: &RemotePath, etag: &Etag, id: ContentId) {
        let mut ids = self.lock();
        if !ids.contains_key(path) && ids.len() >= MAX_FILES {
            // Any of them: whoever needs it asks the server again.
            ids.pop_first();
        }
        ids.insert(path.clone(), (etag.clone(), id));
        debug_assert!(ids.len() <= MAX_FILES, "{}", ids.len());
    }

    /// Takes note that the server has this version of the path, and no other one any more.
    pub(super) fn forget_others(&self, path: &RemotePath, etag: &Etag) {
        let mut ids = self.lock();
        if ids.get(path).is_some_and(|(known, _)| known != etag) {
            ids.remove(path);
        }
    }

    /// Returns the content id of the version that the server had last, if it is known.
    pub(super) fn latest(&self, path: &RemotePath) -> Option<ContentId> {
        self.lock().get(path).map(|(_, id)| *id)
    }

    /// Returns the content id of a version, if it is known.
    pub(super) fn get(&self, path: &RemotePath, etag: &Etag) -> Option<ContentId> {
        self.lock().get(path).filter(|(known, _)| known == etag).map(|(_, id)| *id)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RemotePath, (Etag, ContentId)>> {
        // A panic cannot leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(number: usize) -> RemotePath {
        RemotePath::decode(&number.to_string()).unwrap()
    }

    #[test]
    fn a_content_id_belongs_to_one_version_of_a_path() {
        let (ids, first, second) =
            (StatedIds::default(), Etag::new("1").unwrap(), Etag::new("2").unwrap());
        let (old, new) = (ContentId::from_bytes([1; 32]), ContentId::from_bytes([2; 32]));
        ids.remember(&path(1), &first, old);
        assert_eq!(ids.get(&path(1), &first), Some(old));
        assert_eq!(ids.get(&path(1), &second), None);
        assert_eq!(ids.get(&path(2), &first), None);
        ids.remember(&path(1), &second, new);
        assert_eq!(ids.get(&path(1), &second), Some(new));
        assert_eq!(ids.get(&path(1), &first), None);
        ids.forget_others(&path(1), &second);
        assert_eq!(ids.latest(&path(1)), Some(new));
        ids.forget_others(&path(1), &first);
        assert_eq!(ids.latest(&path(1)), None);
    }

    #[test]
    fn the_number_of_content_ids_is_limited() {
        let (ids, etag) = (StatedIds::default(), Etag::new("1").unwrap());
        for number in 0..MAX_FILES + 10 {
            ids.remember(&path(number), &etag, ContentId::from_bytes([0; 32]));
            assert!(ids.get(&path(number), &etag).is_some());
        }
        assert_eq!(ids.lock().len(), MAX_FILES);
    }
}
