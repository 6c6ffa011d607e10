//! Answers from memory while the server is away, for names that the kernel still refers to.
//!
//! A server that is gone refuses connections, which costs a request nothing. One that hangs, or
//! whose link is down, lets each request wait for its time-out. So after the first time-out known
//! names are answered at once, and a task in the background looks when the server answers again.

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

/// Time that the server has to answer where something is known that can be shown instead.
const PATIENCE: Duration = Duration::from_secs(5);
/// A failure that took longer than this is a time-out (of the network: no route, no ARP answer).
const SLOW_FAILURE: Duration = Duration::from_secs(1);
/// Pause between two looks whether the server answers again.
const PROBE_PAUSE: Duration = Duration::from_millis(500);

/// Whether the server lets requests time out.
#[derive(Debug, Default)]
pub(super) struct Absence {
    is_silent: AtomicBool,
}

impl Fs {
    /// Asks for the attributes of something that is known. While the server is away, what is known
    /// is the answer: directories and links lead on to files that are here completely, and the open
    /// of a file that is not waits by itself.
    pub(super) async fn ask_again(
        self: &Arc<Self>,
        path: &RemotePath,
        known: Attributes,
    ) -> Result<Attributes, ControlError> {
        if self.absence.is_silent.load(Ordering::Relaxed) {
            return Ok(known);
        }
        let begun = now();
        let asked = self.control.attributes_unless(path, known.etag.as_ref());
        let error = match timeout(PATIENCE, asked).await {
            Ok(Ok(news)) => return Ok(news.unwrap_or(known)),
            Ok(Err(error)) if error.is_temporary() => error,
            Ok(Err(error)) => return Err(error),
            Err(_) => self.control.unanswered(),
        };
        let is_unreachable = matches!(error, ControlError::Unreachable { .. });
        if is_unreachable && now().saturating_duration_since(begun) >= SLOW_FAILURE {
            self.fall_silent();
        }
        if let Some(more) = quiet::allow("known", "") {
            warn!(%path, %error, "the server is away: what is known is shown{more}");
        }
        Ok(known)
    }

    /// Notes that requests time out, until one is answered.
    fn fall_silent(self: &Arc<Self>) {
        if !self.absence.is_silent.swap(true, Ordering::Relaxed) {
            let fs = self.clone();
            tokio::spawn(async move {
                let mut stopping = fs.stopping.subscribe();
                tokio::select! {
                    () = fs.wait_for_answer() => {}
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                }
                fs.absence.is_silent.store(false, Ordering::Relaxed);
                if let Some(more) = quiet::allow("answers again", "") {
                    info!(server = fs.control.server(), "the server answers again{more}");
                }
            });
        }
    }

    /// Returns once the server answers, whatever it says.
    async fn wait_for_answer(&self) {
        let root = lock(&self.inodes).find(ROOT).cloned();
        let Some(root) = root else { return };
        loop {
            sleep(PROBE_PAUSE).await;
            let asked = self.control.attributes_unless(&root.path, root.attributes.etag.as_ref());
            match timeout(PATIENCE, asked).await {
                Err(_) | Ok(Err(ControlError::Unreachable { .. })) => {}
                Ok(_) => return,
            }
        }
    }
}
