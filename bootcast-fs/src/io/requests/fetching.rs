//! Fetching a part of a file over HTTP, and its result.

use std::time::Duration;

use tracing::{debug, warn};

use super::Job;
use super::fetch::fetch;
use crate::io::now;
use crate::log_limit;
use crate::receiver::{Fetch, FetchError};

impl Job {
    /// Fetches `part` and passes the result to the object.
    pub(super) async fn fetch(self, part: Fetch) {
        let ending = Ending { job: &self, id: part.id, is_ended: false };
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
        ending.end(result);
    }
}

/// Ends a fetch. Dropped before that, also by a panic, it has the bytes fetched again.
struct Ending<'a> {
    job: &'a Job,
    /// Identifier of the fetch.
    id: u64,
    is_ended: bool,
}

impl Ending<'_> {
    /// Passes the result to the object.
    fn end(mut self, result: Result<(), FetchError>) {
        self.pass(result);
    }

    fn pass(&mut self, result: Result<(), FetchError>) {
        self.is_ended = true;
        self.job.answer(self.job.object.handle_fetch_end(self.id, result, now()));
        self.job.attend();
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.is_ended {
            self.pass(Err(FetchError::Retry { after: Duration::ZERO }));
        }
    }
}
