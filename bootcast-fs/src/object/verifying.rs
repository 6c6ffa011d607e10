//! Verification of stored bytes: checks of leaves, the hashes for them, and leaves that arrived
//! wrong.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootcast_proto::manifest::{UNKNOWN, Value};
use bootcast_proto::{ContentId, PageHash};
use tracing::warn;

use super::{Inner, Object, Ready, with_buffer};
use crate::cache::is_no_room;
use crate::receiver::{Check, Finding, HashRequest, Learned, ListRequest, Replacement};
use crate::{log_limit, panics};

/// Checking of the leaves of one object. Each object has at most one at a time.
///
/// Dropping it, also by a panic, lets another one begin.
#[derive(Debug)]
pub struct Verifying {
    object: Arc<Object>,
    /// Whether [`Self::wait`] found nothing to check, so that another one may have begun.
    is_over: bool,
}

impl Verifying {
    /// Lets leaves accumulate for `delay`, unless some must be checked at once. Returns `false` if
    /// there is nothing to check. Then this is over.
    pub fn wait(&mut self, delay: Duration, now: impl Fn() -> Instant) -> bool {
        if self.is_over {
            return false;
        }
        let accumulates =
            |inner: &mut Inner| !inner.is_shut_down && !inner.receiver.must_check(now());
        let lock = self.object.lock();
        let mut inner = panics::wait_while(&self.object.check_now, lock, delay, accumulates);
        self.is_over = !inner.needs_check();
        inner.in_background.is_verifying = !self.is_over;
        !self.is_over
    }

    /// Checks some leaves, those that readers wait for first. Calls `answer` with the reads that
    /// this completes. Returns `false` if there is nothing to check for now.
    pub fn step(&mut self, answer: impl FnOnce(Vec<Ready>), now: impl FnOnce() -> Instant) -> bool {
        if self.is_over {
            return false;
        }
        let check = self.object.next_check();
        if let Some(check) = &check {
            answer(self.object.check_leaves(check, now));
        }
        check.is_some()
    }
}

impl Drop for Verifying {
    fn drop(&mut self) {
        if !self.is_over {
            self.object.lock().in_background.is_verifying = false;
        }
    }
}

/// Why a request for hashes brought none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListsFailure {
    /// A reason that may pass. The server asks for this pause, or for none.
    Retry(Duration),
    /// The server no longer has this version.
    Stale,
}

impl Inner {
    /// Whether there are leaves to check, and the program does not end.
    fn needs_check(&self) -> bool {
        !self.is_shut_down && self.receiver.has_check()
    }
}

impl Object {
    /// Begins checking if there are leaves to check. Returns `None` if something checks them
    /// already, which hurries if it must.
    #[must_use]
    pub fn begin_verifying(self: &Arc<Self>, now: Instant) -> Option<Verifying> {
        let mut inner = self.lock();
        if !inner.needs_check() {
            return None;
        }
        if inner.in_background.is_verifying {
            if inner.receiver.must_check(now) {
                self.check_now.notify_one();
            }
            return None;
        }
        inner.in_background.is_verifying = true;
        Some(Verifying { object: self.clone(), is_over: false })
    }

    /// Returns leaves to check; `None` if there are none, or if the program ends. A file that the
    /// cache kept can take minutes, for which an end must not wait.
    fn next_check(&self) -> Option<Check> {
        let mut inner = self.lock();
        if inner.is_shut_down { None } else { inner.receiver.poll_check() }
    }

    /// Hashes stored leaves. A hole is not read: the kernel would fill its cache with zeros.
    /// Returns the reads that can be answered.
    fn check_leaves(&self, check: &Check, now: impl FnOnce() -> Instant) -> Vec<Ready> {
        let bytes = check.bytes();
        if self.store().is_hole(&bytes) {
            return self.handle_finding(check, Ok(check.examine_zeros()), None, now());
        }
        let len = usize::try_from(bytes.end - bytes.start).expect("at most a segment");
        with_buffer(len, |buffer| {
            let read = self.store().read_exact_at(buffer, bytes.start);
            let finding = read.map(|()| check.examine(buffer));
            self.handle_finding(check, finding, Some(buffer), now())
        })
    }

    /// Handles the result of a check of `bytes`; `None` for those of a hole. Returns the reads that
    /// can be answered.
    fn handle_finding(
        &self,
        check: &Check,
        finding: io::Result<Finding>,
        bytes: Option<&[u8]>,
        now: Instant,
    ) -> Vec<Ready> {
        let mut inner = self.lock();
        match finding {
            Ok(finding) => {
                if let Finding::Wrong(wrong) = &finding {
                    self.log_wrong(&inner, wrong);
                }
                if let Some(bytes) = bytes {
                    inner.receiver.handle_checked_bytes(check, &finding, bytes, now);
                }
                inner.receiver.handle_check_result(check, &finding, now);
            }
            Err(error) => self.store_failed(&mut inner, error.to_string()),
        }
        self.take_answerable(&mut inner)
    }

    fn log_wrong(&self, inner: &Inner, leaves: &[u64]) {
        let Some(first) = leaves.first() else { return };
        let (path, count) = (&self.key.path, leaves.len());
        if let Some(more) = log_limit::allow("wrong bytes", path) {
            let senders = inner.receiver.senders_of_leaf(*first);
            warn!(
                %path, first, count, ?senders,
                "leaves arrived, or were cached, with wrong bytes{more}"
            );
        }
    }

    /// Takes hashes that an earlier use left with the bytes. Returns whether they are those of
    /// `request`; otherwise the server must be asked. Waits for the disk.
    pub fn take_stored_lists(&self, request: &ListRequest, now: Instant) -> bool {
        let Some(values) = self.stored_lists(request) else { return false };
        let take = |request: &ListRequest, values: &[Value]| {
            self.lock().receiver.handle_stored_lists(request, values, now)
        };
        if take(request, &values) {
            return true;
        }
        // The values of the segments prove those of leaves. Their own request may be slower.
        let segments = ListRequest::Segments;
        *request != segments
            && self.stored_lists(&segments).is_some_and(|values| take(&segments, &values))
            && take(request, &values)
    }

    /// Returns hashes that an earlier use left with the bytes, if they may be those of `request`.
    /// They are checked like those of the server.
    fn stored_lists(&self, request: &ListRequest) -> Option<Vec<Value>> {
        let tree = self.lock().receiver.tree()?;
        let stored = self.store().leaf_values()?;
        let values = match request {
            ListRequest::Segments => stored.segments(&tree),
            ListRequest::Leaves(segments) => stored.leaves(&tree, segments),
        };
        values.ok().filter(|values| !values.contains(&UNKNOWN))
    }

    /// Handles the answer to a request for hashes. Returns the reads that it ends.
    #[must_use]
    pub fn handle_lists(
        &self,
        request: &ListRequest,
        result: Result<(Option<ContentId>, Vec<Value>), ListsFailure>,
        now: Instant,
    ) -> Vec<Ready> {
        let mut inner = self.lock();
        match result {
            Ok((id, values)) => inner.receiver.handle_lists(request, id, &values, now),
            Err(ListsFailure::Retry(after)) => {
                inner.receiver.handle_lists_failed(request, after, now);
            }
            Err(ListsFailure::Stale) => inner.receiver.handle_version_gone(),
        }
        if let Some(failure) = inner.receiver.failure()
            && let Some(more) = log_limit::allow("no hashes", failure)
        {
            warn!(path = %self.key.path, "cannot verify: {failure}{more}");
        }
        self.take_answerable(&mut inner)
    }

    /// Keeps hashes that became known with the bytes. Waits for the disk.
    pub fn save_lists(&self) {
        while let Some(learned) = self.next_learned() {
            let Some(stored) = self.store().leaf_values() else { continue };
            let tree = self.lock().receiver.tree();
            // Without them, the server is asked again.
            let _ = match (learned, tree) {
                (Learned::Leaves(segment, values), _) => stored.save_leaves(segment, &values),
                (Learned::Segments(values), Some(tree)) => stored.save_segments(&tree, &values),
                (Learned::Segments(_), None) => Ok(()),
            };
        }
    }

    fn next_learned(&self) -> Option<Learned> {
        self.lock().receiver.poll_learned()
    }

    /// Handles that the server no longer has the version. Returns the reads that this ends.
    #[must_use]
    pub fn handle_version_gone(&self) -> Vec<Ready> {
        let mut inner = self.lock();
        inner.receiver.handle_version_gone();
        self.take_answerable(&mut inner)
    }

    /// Handles the answer to a request for page hashes. `None`: it failed.
    pub fn handle_page_hashes(
        &self,
        request: &HashRequest,
        hashes: Option<Vec<PageHash>>,
        now: Instant,
    ) {
        self.lock().receiver.handle_page_hashes(request, hashes, now);
    }

    /// Stores those of the wrong leaves that were fetched whose bytes are right. `None`: nothing
    /// came. Returns the reads that can be answered.
    #[must_use]
    pub fn store_replacement(
        &self,
        leaves: &Replacement,
        bytes: Option<&[u8]>,
        now: Instant,
    ) -> Vec<Ready> {
        let _alone = self.begin_writing();
        let stored = bytes.map(|bytes| self.store_right_leaves(leaves, bytes)).transpose();
        let mut inner = self.lock();
        let wrong = stored.unwrap_or_else(|error| {
            // Without room, nothing came: they are fetched again.
            if !is_no_room(&error) || !self.store().may_drop() {
                self.store_failed(&mut inner, error.to_string());
            }
            None
        });
        if let Some((bytes, wrong)) = bytes.zip(wrong.as_ref()) {
            inner.receiver.handle_fetched_leaves(leaves, wrong, bytes, now);
        }
        inner.receiver.handle_replaced(leaves, wrong.as_deref(), now);
        self.take_answerable(&mut inner)
    }

    /// Returns the leaves that are wrong.
    fn store_right_leaves(&self, leaves: &Replacement, bytes: &[u8]) -> io::Result<Vec<u64>> {
        let start = leaves.bytes().start;
        let (wrong, right) = leaves.examine(bytes);
        for range in right {
            let at = |position: u64| usize::try_from(position - start).expect("within the bytes");
            let own = &bytes[at(range.start)..at(range.end)];
            let mut stored = self.store().write_run(&mut [IoSlice::new(own)], range.start);
            if stored.as_ref().is_err_and(is_no_room) {
                self.drop_oldest(own.len() as u64);
                stored = self.store().write_run(&mut [IoSlice::new(own)], range.start);
            }
            stored?;
        }
        Ok(wrong)
    }
}

#[cfg(test)]
mod list_tests;
#[cfg(test)]
mod tests;
