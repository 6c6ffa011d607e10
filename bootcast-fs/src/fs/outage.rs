//! Cached answers while the server is away, for names that the kernel still refers to.
//!
//! If the server has stopped, its host refuses connections and requests fail at once. If the server
//! hangs or its link is down, each request lasts until its time-out. So after the first time-out, a
//! background task probes the root directory. If the root times out too, lookups of known names get
//! the cached attributes at once, until a probe is answered. If the root answers, only that one
//! name hangs, for example below a mount point of the served directory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bootcast_proto::RemotePath;
use bootcast_proto::api::Attributes;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{Fs, ROOT, lock};
use crate::io::{ControlError, now};
use crate::log_limit;

/// Time-out of requests for which a cached answer exists, and of probes. It is the longest delay of
/// the first lookup (docs/SEMANTICS.md, "While the server is away").
const REVALIDATE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that fails after at least this time counts as timed out. The kernel reports some
/// time-outs as errors, such as EHOSTUNREACH without an ARP answer; refusals come faster.
const SLOW_FAILURE: Duration = Duration::from_secs(1);
/// Time-out of the first probe. Shorter, because a server that only has one hung file system
/// answers for its root within milliseconds.
const FIRST_PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two probes of a server that does not answer.
const PROBE_PAUSE: Duration = Duration::from_millis(500);

/// State of the server as seen by requests.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// Whether a request and a probe timed out, and no probe was answered since.
    pub(super) is_silent: AtomicBool,
    /// Whether a task probes the server.
    is_probing: AtomicBool,
    /// Whether the mount began without the server, which has not answered yet.
    pub(super) has_begun_without: AtomicBool,
}

impl Fs {
    /// Asks the server whether the `known` attributes of `path` still hold, and returns the present
    /// ones.
    ///
    /// Returns `known` while the server is away or overloaded, so that complete files stay
    /// reachable through directories and links. The open of an incomplete file waits for the server
    /// itself.
    pub(super) async fn revalidate(
        self: &Arc<Self>,
        path: &RemotePath,
        known: Attributes,
    ) -> Result<Attributes, ControlError> {
        if self.outage.is_silent.load(Ordering::Relaxed) {
            return Ok(known);
        }
        let request = self.control.attributes_unless(path, known.etag.as_ref());
        let error = match self.ask_for_a_while(request).await {
            Ok(changed) => return Ok(changed.unwrap_or(known)),
            Err(error) if error.is_temporary() => error,
            Err(error) => return Err(error),
        };
        if let Some(more) = log_limit::allow("server away", "") {
            warn!(
                %path, %error,
                "the server does not answer: showing cached names and attributes{more}"
            );
        }
        Ok(known)
    }

    /// Asks for the attributes of a path. Waits no longer than is worth it if the cache may answer.
    pub(super) async fn ask_once(
        self: &Arc<Self>,
        path: &RemotePath,
    ) -> Result<Attributes, ControlError> {
        self.ask_for_a_while(self.control.attributes(path)).await
    }

    /// Waits for an answer up to a time-out. Begins to probe the server if it does not answer.
    pub(super) async fn ask_for_a_while<T>(
        self: &Arc<Self>,
        request: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ControlError> {
        let start = now();
        let answer = timeout(REVALIDATE_TIMEOUT, request).await;
        let answer = answer.unwrap_or_else(|_| Err(self.control.unanswered()));
        let is_unreachable = matches!(answer, Err(ControlError::Unreachable { .. }));
        if is_unreachable && now().saturating_duration_since(start) >= SLOW_FAILURE {
            self.probe();
        }
        answer
    }

    /// Begins as a mount whose server does not answer. Must be called within the runtime.
    pub fn begin_without_server(self: &Arc<Self>) {
        self.outage.has_begun_without.store(true, Ordering::Relaxed);
        self.outage.is_silent.store(true, Ordering::Relaxed);
        self.probe();
    }

    /// Starts a task that probes the server until it answers, unless there is one. The outage lasts
    /// from the first probe that times out until one is answered.
    fn probe(self: &Arc<Self>) {
        if self.outage.is_probing.swap(true, Ordering::Relaxed) {
            return;
        }
        let fs = self.clone();
        tokio::spawn(async move {
            let mut stopping = fs.stopping.subscribe();
            tokio::select! {
                () = fs.wait_for_answer() => {}
                _ = stopping.wait_for(|stopping| *stopping) => return,
            }
            if fs.outage.is_silent.swap(false, Ordering::Relaxed)
                && let Some(more) = log_limit::allow("answers again", "")
            {
                info!(server = fs.control.server(), "the server answers again{more}");
            }
            fs.outage.has_begun_without.store(false, Ordering::Relaxed);
            fs.outage.is_probing.store(false, Ordering::Relaxed);
        });
    }

    /// Probes the server until it answers, be it with an error.
    async fn wait_for_answer(&self) {
        let root = lock(&self.inodes).find(ROOT).cloned();
        let Some(root) = root else { return };
        let mut patience = FIRST_PROBE_TIMEOUT;
        loop {
            let request = self.control.attributes_unless(&root.path, root.attributes.etag.as_ref());
            match timeout(patience, request).await {
                Err(_) | Ok(Err(ControlError::Unreachable { .. })) => {}
                Ok(_) => return,
            }
            self.outage.is_silent.store(true, Ordering::Relaxed);
            patience = REVALIDATE_TIMEOUT;
            sleep(PROBE_PAUSE).await;
        }
    }
}
