//! Fetching a part of a file over HTTP, and its result.

use tracing::{debug, warn};

use super::Job;
use super::fetch::fetch;
use crate::io::now;
use crate::receiver::{Fetch, FetchError};
use crate::{log_limit, panics};

impl Job {
    /// Fetches `part` and passes the result to the object.
    pub(super) async fn fetch(self, part: Fetch) {
        panics::provoke("fetch", &self.object.key().path);
        let (path, control) = (&self.object.key().path, &self.context.control);
        let result = fetch(control, &self.object, &part, |reads| self.answer(reads)).await;
        let bytes = part.bytes;
        match &result {
            Ok(()) => debug!(%path, ?bytes, "fetched"),
            Err(FetchError::Retry { .. }) if self.object.snapshot().fetch_failures == 0 => {
                if let Some(more) = log_limit::allow("cannot fetch yet", "") {
                    warn!(%path, "cannot fetch over HTTP yet, trying again{more}");
                }
            }
            Err(error) => debug!(%path, ?bytes, ?error, "not fetched"),
        }
        self.answer(self.object.handle_fetch_end(part.id, result, now()));
        self.attend();
    }
}
