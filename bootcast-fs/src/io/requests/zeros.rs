//! The zero map: requesting it, and taking the pages that it shows.

use std::time::Duration;

use bootcast_proto::ZeroMap;
use bootcast_proto::manifest::ContentTree;
use tracing::debug;

use super::Job;
use crate::io::control::ControlError;
use crate::io::now;

impl Job {
    /// Requests the zero map and takes its pages.
    pub(super) async fn zero_map(self) {
        match self.request_zero_map().await {
            Ok(map) => {
                let (object, answers) = (self.object.clone(), self.context.answers.clone());
                let take = move || {
                    object.take_zeros(&map, |reads| answers.queue(&object, reads), now);
                };
                // Fails only if the runtime ends, and with it the program.
                let _ = tokio::task::spawn_blocking(take).await;
            }
            Err(after) => self.object.handle_no_zeros(after, now()),
        }
        self.attend();
    }

    /// Returns the zero map. Otherwise the pause that the server asks for before the next request.
    async fn request_zero_map(&self) -> Result<ZeroMap, Duration> {
        let path = &self.object.key().path;
        let snapshot = self.object.snapshot();
        let (Some(etag), Some(size)) = (snapshot.etag, snapshot.size) else {
            return Err(Duration::ZERO);
        };
        let leaves = ContentTree::new(size).leaves();
        let map = self.context.control.zero_map(path, &etag, leaves).await;
        map.map_err(|error| {
            debug!(%path, %error, "no zero map");
            match error {
                ControlError::Refused { retry_after, .. } => retry_after,
                _ => Duration::ZERO,
            }
        })
    }
}
