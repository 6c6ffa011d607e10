//! Leaf lists: which cast they belong to.

use std::sync::Arc;
use std::time::Instant;

use bootcast_proto::wire::LeafSpan;
use bootcast_proto::{Etag, Manifest, RemotePath, Token};

use super::{CastId, Scheduler};

impl Scheduler {
    /// Records that a member of this cast asked for leaf lists.
    pub fn request_leaves(&mut self, id: CastId, token: &Token) {
        if let Some(running) = self.casts.get_mut(&id) {
            running.cast.request_leaves(token);
        }
    }

    /// Attaches the manifest of a version to the cast of this version, if one runs.
    pub fn handle_manifest(
        &mut self,
        path: &RemotePath,
        etag: &Etag,
        manifest: Arc<Manifest>,
        now: Instant,
    ) {
        let running = self.by_path.get(path).and_then(|id| self.casts.get_mut(id));
        if let Some(running) = running.filter(|running| running.etag == *etag) {
            running.cast.handle_manifest(manifest, now);
        }
    }

    /// Encodes the datagram of a list that this cast handed out; `None` if the cast has ended.
    pub fn encode_leaf_list(&self, id: CastId, list: LeafSpan) -> Option<Vec<u8>> {
        self.casts.get(&id)?.cast.encode_leaf_list(list)
    }
}
