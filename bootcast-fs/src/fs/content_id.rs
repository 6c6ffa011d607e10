//! Content ids as extended attributes. docs/SEMANTICS.md, "Content ids".

use bootcast_proto::ContentId;
use tracing::warn;

use super::{FileVersion, Fs, FsError, shutting_down};
use crate::log_limit;
use crate::proof::content_id;

/// Name of the extended attribute.
pub const CONTENT_ID_ATTRIBUTE: &[u8] = b"user.bootcast.b3";

impl Fs {
    /// Returns the content id of a regular file: the pinned one, or else what the server states.
    /// Waits for the server, as calls of this mount wait.
    pub async fn content_id(&self, ino: u64) -> Result<ContentId, FsError> {
        let node = self.node(ino)?;
        let Some(FileVersion::Etag(etag)) = &node.version else {
            return Err(FsError::NoAttribute);
        };
        if let Some(pins) = &self.config.pins {
            return pins.get(&node.path).ok_or(FsError::Access);
        }
        if let Some(id) = self.control.stated_id(&node.path, etag) {
            return Ok(id);
        }
        let mut stopping = self.stopping.subscribe();
        let stated = tokio::select! {
            stated = content_id(&self.control, &node.path, self.config.wait_limit) => stated,
            _ = stopping.wait_for(|stopping| *stopping) => return Err(shutting_down()),
        };
        let (present, id) = stated.map_err(|failure| {
            if let Some(more) = log_limit::allow("no content id", &failure) {
                warn!(path = %node.path, "the server states no content id: {failure}{more}");
            }
            FsError::from(failure)
        })?;
        if present == *etag { Ok(id) } else { Err(FsError::Stale) }
    }
}
