//! Cached answers while the server is away, for names that the kernel still refers to.
//!
//! If the server has stopped, its host refuses connections and requests fail at once. If the server
//! hangs or its link is down, each request lasts until its time-out. So after the first time-out,
//! lookups of known names get the cached attributes at once. A background task probes the server
//! until it answers again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bootcast_proto::RemotePath;
use bootcast_proto::api::Attributes;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{Fs, ROOT, lock};
use crate::io::{ControlError, now};
use crate::quiet;

/// Time-out of requests for which a cached answer exists, and of probes. docs/SEMANTICS.md promises
/// it as the longest delay of the first lookup ("Caching").
const REVALIDATE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that fails after at least this time counts as timed out. The kernel reports some
/// time-outs as errors, such as EHOSTUNREACH without an ARP answer; refusals come faster.
const SLOW_FAILURE: Duration = Duration::from_secs(1);
/// Pause between two probes of a server that does not answer.
const PROBE_PAUSE: Duration = Duration::from_millis(500);

/// State of the server as seen by requests.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// Whether a request timed out and no probe was answered since.
    is_silent: AtomicBool,
}

impl Fs {
    /// Asks the server whether the `known` attributes of `path` still hold, and returns the present
    /// ones.
    ///
    /// Returns `known` while the server is away or overloaded, so that complete files stay
    /// reachable through directories and links. The open of an incomplete file waits for the server itself.
    pub(super) async fn revalidate(
        self: &Arc<Self>,
        path: &RemotePath,
        known: Attributes,
    ) -> Result<Attributes, ControlError> {
        if self.outage.is_silent.load(Ordering::Relaxed) {
            return Ok(known);
        }
        let start = now();
        let request = self.control.attributes_unless(path, known.etag.as_ref());
        let error = match timeout(REVALIDATE_TIMEOUT, request).await {
            Ok(Ok(changed)) => return Ok(changed.unwrap_or(known)),
            Ok(Err(error)) if error.is_temporary() => error,
            Ok(Err(error)) => return Err(error),
            Err(_) => self.control.unanswered(),
        };
        let is_unreachable = matches!(error, ControlError::Unreachable { .. });
        if is_unreachable && now().saturating_duration_since(start) >= SLOW_FAILURE {
            self.begin_outage();
        }
        if let Some(more) = quiet::allow("server away", "") {
            warn!(%path, %error, "the server is away: showing cached names and attributes{more}");
        }
        Ok(known)
    }

    /// Records that requests time out, and starts a task that ends the outage when a probe is
    /// answered. Does nothing during an outage.
    fn begin_outage(self: &Arc<Self>) {
        if !self.outage.is_silent.swap(true, Ordering::Relaxed) {
            let fs = self.clone();
            tokio::spawn(async move {
                let mut stopping = fs.stopping.subscribe();
                tokio::select! {
                    () = fs.wait_for_answer() => {}
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                }
                fs.outage.is_silent.store(false, Ordering::Relaxed);
                if let Some(more) = quiet::allow("answers again", "") {
                    info!(server = fs.control.server(), "the server answers again{more}");
                }
            });
        }
    }

    /// Probes the server until it answers, be it with an error.
    async fn wait_for_answer(&self) {
        let root = lock(&self.inodes).find(ROOT).cloned();
        let Some(root) = root else { return };
        loop {
            sleep(PROBE_PAUSE).await;
            let request = self.control.attributes_unless(&root.path, root.attributes.etag.as_ref());
            match timeout(REVALIDATE_TIMEOUT, request).await {
                Err(_) | Ok(Err(ControlError::Unreachable { .. })) => {}
                Ok(_) => return,
            }
        }
    }
}
