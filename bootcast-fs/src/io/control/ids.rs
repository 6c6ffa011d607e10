//! Content ids that the server stated. Nothing proves them.

use bootcast_proto::{ContentId, Etag, RemotePath};

use super::Control;

impl Control {
    /// Returns the content id that the server stated for a version, in the answer to a join or with
    /// a manifest.
    pub fn stated_id(&self, path: &RemotePath, etag: &Etag) -> Option<ContentId> {
        self.stated_ids.get(path, etag)
    }

    /// Returns the content id that the server stated for the version of the latest join.
    pub fn latest_stated_id(&self, path: &RemotePath) -> Option<ContentId> {
        self.stated_ids.latest(path)
    }

    /// Records a content id that the server stated to an earlier mount.
    pub fn remember_id(&self, path: &RemotePath, etag: &Etag, id: ContentId) {
        self.stated_ids.remember(path, etag, id);
    }
}
