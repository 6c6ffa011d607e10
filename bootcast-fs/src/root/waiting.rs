//! The search for the root of a mount. While the server does not answer, the mount asks again, or
//! begins with the names that the cache remembers.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{Root, RootError};
use crate::cache::Names;
use crate::io::{Control, now};
use crate::log_limit;
use crate::mount::options::Offline;
use crate::mount::{MountError, MountRequest};
use crate::receiver::REQUEST_BACKOFF;

/// Time for which the server is asked before the mount begins with what the cache holds. A server
/// that restarts is back within it.
const OFFLINE_AFTER: Duration = Duration::from_secs(5);

/// Least time that the server gets for one answer if the cache may serve.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// Search for the root directory of a mount.
pub(crate) struct Search<'a> {
    pub(crate) control: &'a Control,
    pub(crate) request: &'a MountRequest,
    /// Names that the cache remembers; `None` if it is in memory.
    pub(crate) names: Option<&'a Names>,
}

impl Search<'_> {
    /// Asks the server until it answers or `retry=` is over. Returns the root that the cache
    /// remembers if the server does not answer. Calls `on_wait` after each attempt without an
    /// answer.
    pub(crate) async fn run(&self, mut on_wait: impl FnMut()) -> Result<Root, MountError> {
        let start = now();
        let is_remembered = self.remembered().await.is_some();
        let mut failures = 0;
        loop {
            let patience = is_remembered.then(|| patience(now().saturating_duration_since(start)));
            let error = match self.attempt(patience).await {
                Ok(root) => return Ok(root),
                Err(RootError::Failed(error)) => return Err(error),
                Err(RootError::Away(error)) => error,
            };
            let pause = REQUEST_BACKOFF.pause(failures);
            let waited = now().saturating_duration_since(start);
            let is_last = waited + pause >= self.request.options.retry_limit();
            if (is_last || waited >= OFFLINE_AFTER)
                && let Some(root) = self.remembered().await
            {
                warn!(%error, "mounting what the cache holds, because the server does not answer");
                return Ok(root);
            }
            if is_last {
                return Err(MountError::failed(&error));
            }
            if let Some(more) = log_limit::allow("waiting to mount", &error) {
                info!(%error, "the server does not answer: trying again{more}");
            }
            on_wait();
            sleep(pause).await;
            failures += 1;
        }
    }

    /// Asks the server once. Waits for the answer no longer than `patience`.
    async fn attempt(&self, patience: Option<Duration>) -> Result<Root, RootError> {
        let ask = Root::ask(self.control, self.request);
        let Some(patience) = patience else { return ask.await };
        match timeout(patience, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(RootError::Away(self.control.unanswered())),
        }
    }

    /// Whether the cache may serve instead of the server. Pinned files are proven by hashes that
    /// only the server has, and the cache remembers directories but not what else there was.
    fn may_be_remembered(&self) -> bool {
        let options = &self.request.options;
        let is_pinned = options.pins.is_some() || options.b3.is_some();
        let names_directory = !is_pinned && !options.is_single_file();
        options.offline == Offline::Allowed && names_directory && self.names.is_some()
    }

    /// Returns the root that the cache remembers.
    async fn remembered(&self) -> Option<Root> {
        if !self.may_be_remembered() {
            return None;
        }
        let (names, path) = (self.names?.clone(), self.request.source.path.clone());
        let find = move || names.root(&path).map(|attributes| (path, attributes));
        let (path, attributes) = tokio::task::spawn_blocking(find).await.ok()??;
        let attributes = Some(attributes);
        Some(Root { path, attributes, pins: None, is_remembered: true })
    }
}

/// Returns how long an attempt waits for the server, `waited` after the first one began, if the
/// cache remembers the root.
fn patience(waited: Duration) -> Duration {
    OFFLINE_AFTER.saturating_sub(waited).max(LEAST_PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_gets_what_is_left_before_the_cache_may_serve_and_a_second_then() {
        let waited = [0, 3, 5, 100].map(Duration::from_secs);
        assert_eq!(waited.map(|waited| patience(waited).as_secs()), [5, 2, 1, 1]);
    }
}
