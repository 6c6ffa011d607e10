//! Fetching a part of a file over HTTP, and its result.

use tracing::{debug, warn};

use super::Job;
use super::fetch::fetch;
use crate::io::now;
use crate::log_limit;
use crate::receiver::{Fetch, FetchError};

impl Job {
    /// Fetches `part` and passes the result to the object.
    pub(super) async fn fetch(self, part: Fetch) {
        let (path, control) = (&self.object.key().path, &self.context.control);
        let result = fetch(control, &self.object, &part, |reads| self.answer(reads)).await;
        let Fetch { id, bytes } = part;
        match &result {
            Ok(()) => debug!(%path, ?bytes, "fetched"),
            Err(FetchError::Retry { .. }) if self.object.fetch_failures() == 0 => {
                if let Some(more) = log_limit::allow("cannot fetch yet", "") {
                    warn!(%path, "cannot fetch over HTTP yet, trying again{more}");
                }
            }
            Err(error) => debug!(%path, ?bytes, ?error, "not fetched"),
        }
        self.answer(self.object.fetch_ended(id, result, now()));
        self.attend();
    }
}
