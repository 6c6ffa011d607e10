//! Requests for hashes, and what is done with hashes that come.

use std::time::{Duration, Instant};

use bootcast_proto::manifest::{ContentId, Value};

use super::{ListRequest, ListsError, Verification, index};
use crate::receiver::Learned;

/// Number of checkable segments from which on leaf lists are requested only for readers: 256 MiB of
/// the file, which take some 100 ms to check.
pub(super) const ENOUGH_SEGMENTS: usize = 64;

impl Verification {
    /// Returns lists to request from the server; `None` until [`Self::poll_timeout`].
    pub(in crate::receiver) fn poll_request(&mut self, now: Instant) -> Option<ListRequest> {
        self.lists.poll_request(now, self.has_enough_to_check())
    }

    /// Whether the known leaf lists are enough to go on with. Those of a large file that the cache
    /// kept would take much memory, and the time of the first reader.
    pub(super) fn has_enough_to_check(&self) -> bool {
        self.ready.len() >= ENOUGH_SEGMENTS
    }

    /// Handles the content id that the server named.
    pub(in crate::receiver) fn handle_id(&mut self, id: ContentId) -> Result<(), ListsError> {
        self.lists.handle_id(id)?;
        self.take_offers();
        Ok(())
    }

    /// Handles the answer to a request. It may have less than was requested: the server still
    /// hashes the rest.
    pub(in crate::receiver) fn handle_lists(
        &mut self,
        request: &ListRequest,
        values: &[Value],
        now: Instant,
    ) -> Result<(), ListsError> {
        let result = match request {
            ListRequest::Segments => self.lists.handle_segments(values, now),
            ListRequest::Leaves(segments) => self.lists.handle_leaves(segments, values, now),
        };
        self.take_offers();
        result
    }

    /// Like [`Self::handle_lists`], of an answer that names no content id, because the server still
    /// hashed the file.
    pub(in crate::receiver) fn handle_early_lists(
        &mut self,
        request: &ListRequest,
        values: &[Value],
        now: Instant,
    ) -> Result<(), ListsError> {
        let result = self.lists.handle_early(request, values, now);
        self.take_offers();
        result
    }

    /// Handles a part of a leaf list that came in the cast: `values` from the leaf `first` of
    /// `segment` on. Returns whether it is of use.
    pub(in crate::receiver) fn handle_cast_leaves(
        &mut self,
        segment: u64,
        first: u64,
        values: &[Value],
    ) -> bool {
        if segment >= self.tree.segments() || self.is_verified[index(segment)] {
            return false;
        }
        let is_new = self.lists.handle_part(segment, first, values);
        self.take_offers();
        is_new
    }

    /// Handles that the content id will never be known. If all leaves are verified, this is
    /// accepted from here on, and `true` is returned.
    pub(in crate::receiver) fn accept_unproven(&mut self) -> bool {
        let is_verified = self.verified == self.tree.segments();
        if is_verified {
            self.lists.accept_unproven();
        }
        is_verified
    }

    /// Handles hashes that an earlier use left. Returns whether they are proven; otherwise nothing
    /// changes.
    pub(in crate::receiver) fn handle_stored_lists(
        &mut self,
        request: &ListRequest,
        values: &[Value],
        now: Instant,
    ) -> bool {
        let is_proven = self.lists.handle_stored(request, values, now);
        self.take_offers();
        is_proven
    }

    /// Handles a request that failed for a reason that may pass. The server asks for a pause of
    /// `after` at least.
    pub(in crate::receiver) fn handle_request_failed(
        &mut self,
        request: &ListRequest,
        after: Duration,
        now: Instant,
    ) {
        self.lists.handle_failed(request, after, now);
    }

    /// Sets whether the present cast brings leaf lists, so that they are not requested at once.
    pub(in crate::receiver) fn set_lists_in_cast(&mut self, is_in_cast: bool) {
        self.lists.set_in_cast(is_in_cast);
    }

    /// Returns hashes that became known since the last call, to keep with the bytes.
    pub(in crate::receiver) fn poll_learned(&mut self) -> Option<Learned> {
        self.lists.poll_learned()
    }
}
