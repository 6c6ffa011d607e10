//! Lists of hashes: which are known, which are proven, and which to request.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootcast_proto::manifest::{ContentId, ContentTree, UNKNOWN, Value};

use super::index;
use super::leaf_bits::LeafBits;
use super::needed::Needed;
use crate::receiver::retry::Retry;

/// Maximum number of segments in one request: 128 KiB of leaf values, for 64 MiB of the file.
const REQUEST_SEGMENTS: u64 = 16;

/// Maximum number of requests for leaf lists at the same time.
const REQUESTS: u32 = 8;

/// Lists to request from the server. docs/PROTOCOL.md, "Manifest".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListRequest {
    /// The values of all segments, and the content id.
    Segments,
    /// The values of all leaves of these segments.
    Leaves(Range<u64>),
}

/// Why lists are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListsError {
    /// The list has another number of values than the file has parts.
    #[error("the server's list of hashes does not fit the size of its file")]
    Length,
    /// The list is not that of the content id.
    #[error("the server's lists of hashes contradict each other")]
    Contradiction,
    /// The server has another content than the expected one.
    #[error("the server has the content {0}")]
    OtherContent(ContentId),
}

/// Maximum number of leaf lists that are kept although nothing is to be checked by them: 8 MiB.
const MAX_LISTS: usize = 1024;

/// Hashes that became known, to keep with the bytes. Nothing may prove them yet: who reads them
/// later must check them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The values of all segments.
    Segments(Arc<[Value]>),
    /// The values of the leaves of this segment.
    Leaves(u64, Arc<[Value]>),
}

/// A change of what is known of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// Its leaf list became known.
    Known(u64),
    /// The leaf list that was known is not that of the content.
    Refuted(u64),
    /// The values of all segments became known, and proven.
    Segments,
}

/// A leaf list of which some values came in the cast.
#[derive(Debug)]
struct Parts {
    values: Vec<Value>,
    present: LeafBits,
}

/// Hashes of the content that are known, and those that are needed.
#[derive(Debug)]
pub(super) struct Lists {
    tree: ContentTree,
    id: Option<ContentId>,
    /// Values of all segments, proven by the content id.
    segments: Option<Arc<[Value]>>,
    /// Whether the content id will never be known, and lists that nothing proves are enough.
    is_unprovable: bool,
    /// Leaf lists that are in use.
    known: BTreeMap<u64, Arc<[Value]>>,
    /// Maximum number of known lists that are not needed at present.
    most: usize,
    /// Segment after the last one whose list was forgotten.
    forget_from: u64,
    /// Leaf lists that come in the cast.
    parts: BTreeMap<u64, Parts>,
    /// Segment values that follow from leaf lists that nothing proves yet, also forgotten ones.
    provisional: BTreeMap<u64, Value>,
    needed: Needed,
    /// Number of requests for leaf lists that are not answered.
    requests: u32,
    is_requesting_segments: bool,
    leaves_retry: Retry,
    segments_retry: Retry,
    offers: VecDeque<Offer>,
    learned: VecDeque<Learned>,
}

impl Lists {
    pub(super) fn new(tree: ContentTree, id: Option<ContentId>) -> Self {
        let mut lists = Self {
            tree,
            id: None,
            segments: None,
            is_unprovable: false,
            known: BTreeMap::new(),
            most: MAX_LISTS,
            forget_from: 0,
            parts: BTreeMap::new(),
            provisional: BTreeMap::new(),
            needed: Needed::default(),
            requests: 0,
            is_requesting_segments: false,
            leaves_retry: Retry::default(),
            segments_retry: Retry::default(),
            offers: VecDeque::new(),
            learned: VecDeque::new(),
        };
        if let Some(id) = id {
            lists.adopt(id);
        }
        lists
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        assert!(self.segments.is_none() || self.id.is_some(), "values that no content id proves");
        assert!(
            self.segments.is_none() || self.provisional.is_empty(),
            "leaf lists are provisional although the content id is known"
        );
        debug_assert!(
            self.known.keys().all(|segment| !self.needed.contains(*segment)),
            "a list is requested that is known"
        );
        assert!(self.requests <= REQUESTS, "{} requests for leaf lists", self.requests);
    }

    /// Takes the content id. A file of one segment or one leaf needs no lists above it: the value
    /// of the whole file is the content id.
    fn adopt(&mut self, id: ContentId) {
        self.id = Some(id);
        if self.tree.segments() <= 1 {
            let values: Vec<_> = (0..self.tree.segments()).map(|_| *id.as_bytes()).collect();
            self.adopt_segments(values.into());
        }
        if self.tree.leaves() == 1 {
            self.learn(0, [*id.as_bytes()].into());
        }
    }

    fn adopt_segments(&mut self, values: Arc<[Value]>) {
        for (segment, value) in std::mem::take(&mut self.provisional) {
            if values[index(segment)] != value {
                self.known.remove(&segment);
                self.offers.push_back(Offer::Refuted(segment));
            }
        }
        self.learned.push_back(Learned::Segments(values.clone()));
        self.segments = Some(values);
        self.offers.push_back(Offer::Segments);
        let whole: Vec<_> = self.parts.keys().copied().collect();
        for segment in whole {
            self.take_parts(segment);
        }
    }

    fn learn(&mut self, segment: u64, values: Arc<[Value]>) {
        self.learned.push_back(Learned::Leaves(segment, values.clone()));
        self.know(segment, values);
    }

    /// Takes a leaf list that is right, or provisional.
    fn know(&mut self, segment: u64, values: Arc<[Value]>) {
        self.known.insert(segment, values);
        self.needed.remove(segment);
        self.parts.remove(&segment);
        self.offers.push_back(Offer::Known(segment));
    }

    /// Sets whether the cast brings leaf lists, so that they need not be requested at once.
    pub(super) fn set_in_cast(&mut self, is_in_cast: bool) {
        self.needed.set_in_cast(is_in_cast);
    }

    /// Returns the leaf list of a segment that its leaves may be checked against.
    pub(super) fn values(&self, segment: u64) -> Option<&Arc<[Value]>> {
        self.known.get(&segment)
    }

    /// Returns the value of a segment, if it is proven.
    pub(super) fn segment_value(&self, segment: u64) -> Option<Value> {
        self.segments.as_ref().map(|segments| segments[index(segment)])
    }

    /// Whether the values of the segments were asked for and did not come, because the server still
    /// hashes the file.
    pub(super) fn has_waited_for_segments(&self) -> bool {
        self.segments_retry.has_failed()
    }

    /// Handles leaves that arrived and cannot be checked without their list. `is_wanted`: a reader
    /// waits for one of them.
    pub(super) fn need(&mut self, segment: u64, is_wanted: bool) {
        if !self.known.contains_key(&segment) {
            self.needed.add(segment, is_wanted);
        }
    }

    /// Handles a reader that waits for a leaf of a segment, which need not have arrived. Its list
    /// is requested at the same time as the leaf, unless the cast brings it.
    pub(super) fn handle_read(&mut self, segment: u64) {
        if !self.known.contains_key(&segment) && !self.needed.is_in_cast() {
            self.needed.add(segment, true);
        }
    }

    /// Forgets a list without the value of a leaf that arrived. It is requested again later.
    pub(super) fn refresh(&mut self, segment: u64) {
        self.known.remove(&segment);
        self.provisional.remove(&segment);
        self.needed.add_incomplete(segment);
    }

    /// Returns the next request; `None` until [`Self::poll_timeout`]. With `is_for_readers`, only
    /// one for leaf lists that readers wait for, because enough others are known.
    pub(super) fn poll_request(
        &mut self,
        now: Instant,
        is_for_readers: bool,
    ) -> Option<ListRequest> {
        let is_due = self.segments_retry.is_due(now);
        if !self.is_proven() && !self.is_requesting_segments && is_due {
            self.is_requesting_segments = true;
            return Some(ListRequest::Segments);
        }
        if self.requests >= REQUESTS || !self.leaves_retry.is_due(now) {
            return None;
        }
        let segments = self.needed.poll(now, REQUEST_SEGMENTS, is_for_readers)?;
        self.requests += 1;
        self.assert_invariants();
        Some(ListRequest::Leaves(segments))
    }

    /// Handles a request that failed for a reason that may pass.
    pub(super) fn handle_failed(&mut self, request: &ListRequest, after: Duration, now: Instant) {
        match request {
            ListRequest::Segments => {
                self.is_requesting_segments = false;
                self.segments_retry.failed(after, now);
            }
            ListRequest::Leaves(segments) => {
                self.end_request(segments, now);
                self.leaves_retry.failed(after, now);
            }
        }
    }

    fn end_request(&mut self, segments: &Range<u64>, now: Instant) {
        assert!(self.requests > 0, "an answer to no request");
        self.requests -= 1;
        self.needed.handle_answer(segments, now);
    }

    /// Handles the content id that the server named.
    pub(super) fn handle_id(&mut self, id: ContentId) -> Result<(), ListsError> {
        match self.id {
            Some(known) if known != id => return Err(ListsError::OtherContent(id)),
            Some(_) => {}
            None => self.adopt(id),
        }
        self.assert_invariants();
        Ok(())
    }

    /// Handles the values of all segments. While the server hashes the file, it does not know the
    /// content id, and perhaps not all values.
    pub(super) fn handle_segments(
        &mut self,
        values: &[Value],
        now: Instant,
    ) -> Result<(), ListsError> {
        self.is_requesting_segments = false;
        let Some(id) = self.id else {
            self.segments_retry.failed(Duration::ZERO, now);
            return Ok(());
        };
        self.take_segments(id, values)
    }

    /// Takes the values of all segments, if the content id proves them.
    fn take_segments(&mut self, id: ContentId, values: &[Value]) -> Result<(), ListsError> {
        if values.len() as u64 != self.tree.segments() {
            return Err(ListsError::Length);
        }
        if self.tree.content_id(values) != id {
            return Err(ListsError::Contradiction);
        }
        if self.segments.is_none() {
            self.adopt_segments(values.into());
        }
        self.assert_invariants();
        Ok(())
    }

    /// Handles an answer that names no content id. A later answer to another request may have named
    /// it before this one came, and lists that contradict it are out of date: they are requested
    /// again.
    pub(super) fn handle_early(
        &mut self,
        request: &ListRequest,
        values: &[Value],
        now: Instant,
    ) -> Result<(), ListsError> {
        match request {
            ListRequest::Leaves(segments)
                if self.segments.is_none() || self.prove(segments, values).is_some() =>
            {
                self.handle_leaves(segments, values, now)
            }
            ListRequest::Leaves(_) | ListRequest::Segments => {
                self.handle_failed(request, Duration::ZERO, now);
                Ok(())
            }
        }
    }

    /// Handles the answer to a request for the leaf lists of `segments`. It may cover fewer of
    /// them.
    pub(super) fn handle_leaves(
        &mut self,
        segments: &Range<u64>,
        values: &[Value],
        now: Instant,
    ) -> Result<(), ListsError> {
        self.end_request(segments, now);
        if values.is_empty() {
            self.leaves_retry.failed(Duration::ZERO, now);
        } else {
            self.leaves_retry = Retry::default();
        }
        let mut rest = values;
        for segment in segments.clone() {
            let leaves = self.tree.leaves_of(segment);
            let count = index(leaves.end - leaves.start);
            if rest.is_empty() {
                break;
            }
            let (own, others) = rest.split_at_checked(count).ok_or(ListsError::Length)?;
            self.take(segment, own)?;
            rest = others;
        }
        self.assert_invariants();
        if rest.is_empty() { Ok(()) } else { Err(ListsError::Length) }
    }

    /// Handles the hashes that the cache has for a request, if they are proven, or are those that
    /// were used before. Returns whether they are; otherwise the request goes on.
    pub(super) fn handle_stored(
        &mut self,
        request: &ListRequest,
        values: &[Value],
        now: Instant,
    ) -> bool {
        match request {
            ListRequest::Segments => {
                let id = self.id;
                let is_proven = id.is_some_and(|id| self.take_segments(id, values).is_ok());
                self.is_requesting_segments &= !is_proven;
                is_proven
            }
            ListRequest::Leaves(segments) => {
                let Some(lists) = self.prove(segments, values) else { return false };
                self.end_request(segments, now);
                self.leaves_retry = Retry::default();
                for (segment, own) in lists {
                    if !self.known.contains_key(&segment) {
                        self.know(segment, own.into());
                    }
                }
                self.assert_invariants();
                true
            }
        }
    }

    /// Divides the leaf lists of all these segments, if each of them has the expected value.
    fn prove<'a>(
        &self,
        segments: &Range<u64>,
        values: &'a [Value],
    ) -> Option<Vec<(u64, &'a [Value])>> {
        let (mut rest, mut lists) = (values, Vec::new());
        for segment in segments.clone() {
            let leaves = self.tree.leaves_of(segment);
            let (own, others) = rest.split_at_checked(index(leaves.end - leaves.start))?;
            if self.tree.segment_value(segment, own) != self.expected_value(segment)? {
                return None;
            }
            lists.push((segment, own));
            rest = others;
        }
        rest.is_empty().then_some(lists)
    }

    /// Takes the leaf list of a segment from the control connection, or one that was proven.
    pub(super) fn take(&mut self, segment: u64, values: &[Value]) -> Result<(), ListsError> {
        if self.known.contains_key(&segment) {
            return Ok(());
        }
        let value = self.tree.segment_value(segment, values);
        match self.expected_value(segment) {
            Some(expected) if expected != value => return Err(ListsError::Contradiction),
            Some(_) => {}
            None => {
                self.provisional.insert(segment, value);
            }
        }
        self.learn(segment, values.into());
        Ok(())
    }

    /// Returns the value that the leaf list of a segment must have: the proven one, or else that of
    /// the list that leaves of it were checked against.
    fn expected_value(&self, segment: u64) -> Option<Value> {
        self.segment_value(segment).or_else(|| self.provisional.get(&segment).copied())
    }

    /// Whether the values of all segments are known, so that a segment can be checked as a whole.
    pub(super) fn has_segments(&self) -> bool {
        self.segments.is_some()
    }

    /// Handles values of all leaves of a segment that were computed from stored bytes. Returns
    /// whether they are those of the content. Then they are its leaf list.
    pub(super) fn handle_computed(&mut self, segment: u64, values: &[Value]) -> bool {
        let Some(segments) = &self.segments else { return false };
        let is_right = self.tree.segment_value(segment, values) == segments[index(segment)];
        if is_right && !self.known.contains_key(&segment) {
            self.learn(segment, values.into());
        }
        self.assert_invariants();
        is_right
    }

    /// Handles a part of a leaf list that came in the cast. Returns whether it is of use.
    pub(super) fn handle_part(&mut self, segment: u64, first: u64, values: &[Value]) -> bool {
        let leaves = self.tree.leaves_of(segment);
        let count = leaves.end - leaves.start;
        let end = first.saturating_add(values.len() as u64);
        if self.known.contains_key(&segment) || values.is_empty() || end > count {
            return false;
        }
        let empty = || Parts { values: vec![[0; 32]; index(count)], present: LeafBits::default() };
        let parts = self.parts.entry(segment).or_insert_with(empty);
        let mut is_new = false;
        for (leaf, value) in (first..end).zip(values) {
            if parts.present.insert(leaf) {
                parts.values[index(leaf)] = *value;
                is_new = true;
            }
        }
        self.take_parts(segment);
        is_new
    }

    /// Uses the parts of a leaf list if all came and it can be proven. If one of them is forged,
    /// the list is requested.
    fn take_parts(&mut self, segment: u64) {
        let (Some(segments), Some(parts)) = (&self.segments, self.parts.get(&segment)) else {
            return;
        };
        if parts.present.len() < parts.values.len() as u64 {
            return;
        }
        if self.tree.segment_value(segment, &parts.values) == segments[index(segment)] {
            let values = parts.values.as_slice().into();
            self.learn(segment, values);
        } else {
            self.parts.remove(&segment);
        }
    }

    /// Handles that all leaves of a segment are verified: its list is of no more use.
    pub(super) fn handle_verified(&mut self, segment: u64) {
        self.known.remove(&segment);
        self.needed.remove(segment);
        self.parts.remove(&segment);
    }

    /// Sets the maximum number of known lists that are not needed at present.
    #[cfg(test)]
    pub(super) fn set_most(&mut self, most: usize) {
        self.most = most;
    }

    /// Forgets lists if there are too many, except where `is_needed`. The cache has them, so that
    /// they can be had again. What they prove leaves by stays: the values of their segments. A
    /// list that lacks values will have another value, and stays until the content id is known.
    pub(super) fn forget_unneeded(&mut self, is_needed: impl Fn(u64) -> bool) {
        while self.known.len() > self.most {
            let from = self.forget_from;
            let lists = self.known.range(from..).chain(self.known.range(..from));
            let mut lists = lists.filter(|(_, values)| self.segments.is_some() || is_whole(values));
            let Some((&segment, _)) = lists.find(|(segment, _)| !is_needed(**segment)) else {
                return;
            };
            self.known.remove(&segment);
            self.forget_from = segment + 1;
        }
        self.assert_invariants();
    }

    /// Requests the content id soon, because nothing else is missing. The server knows it when it
    /// has read the file, which may be as soon as the stream.
    pub(super) fn hurry(&mut self) {
        self.segments_retry = Retry::default();
    }

    /// Handles that the content id will never be known: lists that nothing proves are enough.
    pub(super) fn accept_unproven(&mut self) {
        self.is_unprovable = self.segments.is_none();
        self.is_requesting_segments = false;
    }

    /// Returns hashes that became known since the last call.
    pub(super) fn poll_learned(&mut self) -> Option<Learned> {
        self.learned.pop_front()
    }

    /// Whether hashes are needed that did not come yet.
    pub(super) fn is_busy(&self) -> bool {
        !self.is_proven() || !self.needed.is_empty() || self.requests > 0
    }

    /// Returns the next change.
    pub(super) fn poll_offer(&mut self) -> Option<Offer> {
        self.offers.pop_front()
    }

    /// When [`Self::poll_request`] is due.
    pub(super) fn poll_timeout(&self, is_for_readers: bool) -> Option<Instant> {
        let segments = (!self.is_proven() && !self.is_requesting_segments)
            .then_some(self.segments_retry.at())
            .flatten();
        let leaves = self.needed.poll_timeout(is_for_readers);
        let leaves = leaves.filter(|_| self.requests < REQUESTS);
        let leaves = leaves.map(|at| self.leaves_retry.at().map_or(at, |retry| retry.max(at)));
        [segments, leaves].into_iter().flatten().min()
    }

    /// Whether the content id proves every list that was used.
    pub(super) fn is_proven(&self) -> bool {
        self.segments.is_some() || self.is_unprovable || self.tree.segments() == 0
    }
}

/// Whether a list has the values of all its leaves.
fn is_whole(values: &[Value]) -> bool {
    !values.contains(&UNKNOWN)
}
