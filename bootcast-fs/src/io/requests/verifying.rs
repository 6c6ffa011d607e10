//! Verification: hashing of stored leaves, requests for hashes, and leaves that arrived wrong.

use std::time::Duration;

use bootcast_proto::ContentId;
use bootcast_proto::manifest::Value;
use tracing::debug;

use super::Job;
use crate::io::SegmentRange;
use crate::io::control::ControlError;
use crate::io::now;
use crate::object::{ListsFailure, Object, Reusing, Verifying};
use crate::receiver::{FetchError, HashRequest, ListRequest, Replacement};

/// Time for which leaves accumulate, unless some must be checked at once: some 30 at 1 Gbit/s. Each
/// check costs a read and two locks, however few leaves it has.
const VERIFY_DELAY: Duration = Duration::from_millis(4);

/// Makes a checkpoint of an object that just became complete. Waits for the disk.
fn save_if_complete(object: &Object) {
    if !object.has_all_pages() {
        return;
    }
    let snapshot = object.snapshot();
    if snapshot.is_complete && !snapshot.is_durable {
        // The object logs what went wrong.
        let _ = object.checkpoint();
    }
}

impl Job {
    /// Checks leaves until none is left. For a thread that may block.
    pub(super) fn verify(self, mut verifying: Verifying) {
        while verifying.wait(VERIFY_DELAY, now) {
            while verifying.step(|reads| self.answer(reads), now) {}
        }
        save_if_complete(&self.object);
        self.attend();
    }

    /// Copies leaves from an older version until it has no more, or hashes are missing. For a
    /// thread that may block.
    pub(super) fn reuse(self, mut reusing: Reusing) {
        while reusing.step(|reads| self.answer(reads), now) {}
        save_if_complete(&self.object);
        self.attend();
    }

    /// Gets hashes, from the cache if an earlier use left them there, else from the server.
    pub(super) async fn lists(self, request: ListRequest) {
        let object = self.object.clone();
        let wanted = request.clone();
        let load = move || object.take_stored_lists(&wanted, now());
        if !tokio::task::spawn_blocking(load).await.unwrap_or(false) {
            let result = self.request_lists(&request).await;
            self.answer(self.object.handle_lists(&request, result, now()));
            let object = self.object.clone();
            // Fails only if the runtime ends. A later use then asks the server again.
            let save = move || {
                object.save_lists();
                save_if_complete(&object);
            };
            let _ = tokio::task::spawn_blocking(save).await;
        }
        self.attend();
    }

    async fn request_lists(
        &self,
        request: &ListRequest,
    ) -> Result<(Option<ContentId>, Vec<Value>), ListsFailure> {
        let path = &self.object.key().path;
        let segments = match request {
            ListRequest::Segments => None,
            ListRequest::Leaves(segments) => {
                Some(SegmentRange { first: segments.start, last: segments.end - 1 })
            }
        };
        match self.context.control.known_manifest(path, segments).await {
            Ok(list) if self.object.snapshot().etag.as_ref() == Some(&list.etag) => {
                Ok((list.id, list.values))
            }
            Ok(_) | Err(ControlError::Refused { status: 404 | 410, .. }) => {
                Err(ListsFailure::Stale)
            }
            Err(error) => {
                debug!(%path, %error, "no hashes");
                let after = match error {
                    ControlError::Refused { retry_after, .. } => retry_after,
                    _ => Duration::ZERO,
                };
                Err(ListsFailure::Retry(after))
            }
        }
    }

    /// Gets the hashes of pages from the server.
    pub(super) async fn page_hashes(self, request: HashRequest) {
        let (path, mut hashes) = (&self.object.key().path, None);
        // Only a plain server names no version, and has no hashes.
        if let Some(etag) = self.object.snapshot().etag {
            let answer = self.context.control.page_hashes(path, &etag, &request).await;
            hashes = answer.inspect_err(|error| debug!(%path, %error, "no page hashes")).ok();
        }
        self.object.handle_page_hashes(&request, hashes, now());
        self.attend();
    }

    /// Fetches leaves that arrived wrong over HTTP.
    pub(super) async fn replace(self, leaves: Replacement) {
        let fetched = self.fetch_leaves(&leaves).await;
        let bytes = fetched.as_ref().ok().map(Vec::as_slice);
        self.answer(self.object.store_replacement(&leaves, bytes, now()));
        if fetched == Err(FetchError::Changed) {
            self.answer(self.object.handle_version_gone());
        }
        self.attend();
    }

    /// Returns the bytes that the server sends for these leaves.
    async fn fetch_leaves(&self, leaves: &Replacement) -> Result<Vec<u8>, FetchError> {
        let (path, wanted) = (&self.object.key().path, leaves.bytes());
        let etag = self.object.snapshot().etag.ok_or(FetchError::Changed)?;
        let mut response = self.context.control.file_range(path, &wanted, &etag).await?;
        let len = usize::try_from(wanted.end - wanted.start).expect("about a MiB");
        let mut bytes = Vec::with_capacity(len);
        while let Ok(Some(piece)) = response.chunk().await {
            bytes.extend_from_slice(&piece[..piece.len().min(len - bytes.len())]);
        }
        let is_whole = bytes.len() == len;
        is_whole.then_some(bytes).ok_or(FetchError::Retry { after: Duration::ZERO })
    }
}
