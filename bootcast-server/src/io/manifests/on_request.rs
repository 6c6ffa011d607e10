//! Values of single segments, ahead of the thread that hashes the file from its start.

use std::ops::Range;
use std::sync::Arc;

use bootcast_proto::RemotePath;

use super::{ManifestError, Manifests, PoolError};
use crate::source::{self, HashProgress, OpenFile};

/// Maximum number of threads that hash single segments. Each takes some milliseconds for one, from
/// the page cache.
pub(super) const THREADS: usize = 4;

/// Maximum number of segments that one request has hashed: 16 MiB.
const MAX_SEGMENTS: u64 = 4;

impl Manifests {
    /// Hashes the first of these segments if the first one is not hashed. They then show in
    /// `progress`. If all threads are busy for long, they do not.
    pub async fn hash_first(
        &self,
        path: &RemotePath,
        open: OpenFile,
        progress: &Arc<HashProgress>,
        segments: Range<u64>,
    ) -> Result<(), ManifestError> {
        if progress.has(segments.start) {
            return Ok(());
        }
        let end = segments.end.min(segments.start + MAX_SEGMENTS).min(progress.tree().segments());
        let (progress, segments) = (Arc::clone(progress), segments.start..end);
        let hash = move || source::hash_segments(&open, &progress, segments);
        match self.segment_hashers.run(path, hash).await {
            Ok(result) => Ok(result.map_err(Arc::new)?),
            Err(PoolError::Exhausted) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
