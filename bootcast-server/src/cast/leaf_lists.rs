//! Leaf lists of one cast: decides which of them go out, and when. docs/PROTOCOL.md, "Leaf lists".

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::manifest::SEGMENT_BYTES;
use bootcast_proto::wire::LeafSpan;
use bootcast_proto::{Geometry, Manifest, PageIndex, PageRange, RangeMap};

/// Time for which lists that were sent are not sent again ahead of demanded pages.
const RECENT: Duration = Duration::from_secs(1);

/// Maximum number of segments whose lists go out ahead of demanded pages within [`RECENT`]. At the
/// default page size these are 4.5 Mbit/s.
const MAX_RECENT: usize = 64;

/// Number of demanded pages of one want that bring the lists of one more segment: as many as the
/// lists have datagrams at the default page size.
const PAGES_PER_SEGMENT: u32 = 6;

/// Leaf lists of one cast.
#[derive(Debug)]
pub(super) struct LeafLists {
    geometry: Geometry,
    /// Values of the file; `None` until they are known.
    manifest: Option<Arc<Manifest>>,
    /// Segment that the stream is in, whose lists went out ahead of it.
    visit: Option<Visit>,
    /// Lists that go out before the next page of the stream.
    queue: VecDeque<LeafSpan>,
    /// Segments that the stream passed before the manifest was known.
    missed: BTreeSet<u32>,
    /// Lists of such a segment, which is no longer in `missed`.
    late: VecDeque<LeafSpan>,
    /// Whether a batch of pages went out since the last late list.
    is_late_list_due: bool,
    /// Lists that go out before demanded pages.
    demanded: VecDeque<LeafSpan>,
    /// Since when `demanded` has not been empty.
    demanded_since: Option<Instant>,
    /// Segments whose lists the stream brought lately.
    streamed: Recent,
    /// Segments whose lists went out for demanded pages lately.
    on_demand: Recent,
    /// Time of the last call that added lists.
    changed_at: Instant,
}

/// The stream's stay in one segment.
#[derive(Clone, Copy, Debug)]
struct Visit {
    segment: u32,
    /// Page after the last one that was sent.
    next: PageIndex,
}

impl LeafLists {
    /// Creates the state of a cast whose manifest is not known.
    pub(super) fn new(geometry: Geometry, now: Instant) -> Self {
        Self {
            geometry,
            manifest: None,
            visit: None,
            queue: VecDeque::new(),
            missed: BTreeSet::new(),
            late: VecDeque::new(),
            is_late_list_due: false,
            demanded: VecDeque::new(),
            demanded_since: None,
            streamed: Recent::default(),
            on_demand: Recent::default(),
            changed_at: now,
        }
    }

    /// Takes over the manifest. Lists go out from now on. Ignores a manifest of another size, and
    /// one of a single leaf, which needs no list. Returns whether the manifest is new.
    pub(super) fn handle_manifest(&mut self, manifest: Arc<Manifest>, now: Instant) -> bool {
        let tree = manifest.tree();
        let is_of_file = tree.size() == self.geometry.size();
        debug_assert!(is_of_file, "the manifest of another file is attached");
        let is_new = self.manifest.is_none() && is_of_file && tree.leaves() > 1;
        if is_new {
            self.manifest = Some(manifest);
            self.changed_at = now;
        }
        self.assert_invariants();
        is_new
    }

    /// Returns the pages that consist of zeros, as far as the manifest tells.
    pub(super) fn zero_pages(&self) -> RangeMap<()> {
        let zeros = self.manifest.as_ref().map(|manifest| manifest.zeros());
        zeros.map_or_else(RangeMap::default, |zeros| zeros.pages(&self.geometry))
    }

    /// Encodes the datagram of a list that was handed out.
    pub(super) fn encode(&self, list: LeafSpan) -> Option<Vec<u8>> {
        list.encode(self.manifest.as_ref()?)
    }

    /// Queues the lists of the segments that a want names, as far as it may bring them.
    pub(super) fn handle_want(&mut self, want: &Want, now: Instant) {
        if self.manifest.is_none() {
            return;
        }
        let pages = want.now.iter().chain(&want.later);
        let pages = pages.filter_map(|&run| self.in_file(run));
        let pages: Vec<_> = pages.take(MAX_RECENT).collect();
        let demanded = pages.iter().fold(0_u32, |sum, run| sum.saturating_add(run.len()));
        let mut allowed = 1 + demanded / PAGES_PER_SEGMENT;
        let segments = pages.iter().flat_map(|run| {
            let last = PageIndex(run.end.0.saturating_sub(1));
            self.segment_of_first_byte(run.start)..=self.segment_of(last)
        });
        let segments: Vec<_> = segments.take(MAX_RECENT).collect();
        for segment in segments {
            let is_known =
                self.streamed.contains(segment, now) || self.on_demand.contains(segment, now);
            if is_known || allowed == 0 || self.on_demand.len() >= MAX_RECENT {
                continue;
            }
            allowed -= 1;
            self.on_demand.insert(segment, now);
            self.demanded.extend(self.lists_of(segment));
            self.demanded_since.get_or_insert(now);
        }
        self.assert_invariants();
    }

    /// Returns the next list that goes out before demanded pages.
    pub(super) fn poll_demanded(&mut self) -> Option<LeafSpan> {
        let list = self.demanded.pop_front();
        if self.demanded.is_empty() {
            self.demanded_since = None;
        }
        list
    }

    /// Returns since when [`Self::poll_demanded`] has had lists; `None` while it has none.
    pub(super) fn demanded_since(&self) -> Option<Instant> {
        self.demanded_since
    }

    /// Returns the number of lists that go out before demanded pages.
    pub(super) fn demanded(&self) -> u32 {
        u32::try_from(self.demanded.len()).unwrap_or(u32::MAX)
    }

    /// Returns the next list that is queued.
    pub(super) fn poll_queued(&mut self) -> Option<LeafSpan> {
        self.queue.pop_front()
    }

    /// Returns the next list that goes out before the page at `position`. This is the page that the
    /// stream sends now, or `None` if it sends none.
    pub(super) fn poll_stream(
        &mut self,
        position: Option<PageIndex>,
        now: Instant,
    ) -> Option<LeafSpan> {
        self.manifest.as_ref()?;
        if let Some(position) = position.filter(|_| self.queue.is_empty()) {
            self.enter(position, now);
        }
        if let Some(list) = self.queue.pop_front() {
            return Some(list);
        }
        let is_late_list_due = std::mem::take(&mut self.is_late_list_due);
        if position.is_none() || is_late_list_due { self.poll_late() } else { None }
    }

    /// Returns the earliest time at which [`Self::poll_stream`] has lists that wait for no page. It
    /// may be past.
    pub(super) fn poll_at(&self) -> Option<Instant> {
        let is_empty = self.queue.is_empty() && self.late.is_empty() && self.missed.is_empty();
        (self.manifest.is_some() && !is_empty).then_some(self.changed_at)
    }

    /// Returns how many pages from `position` on may go out before the lists of another segment.
    pub(super) fn pages_until_list(&self, position: PageIndex) -> u32 {
        if self.manifest.is_none() || position.0 >= self.geometry.pages() {
            return u32::MAX;
        }
        let end = (u64::from(self.segment_of(position)) + 1) * SEGMENT_BYTES;
        // Nothing is left where the stream has sent the last page. That page may be shorter, so
        // that it ends in this segment although a full one would not.
        let pages = (end / self.page_size()).saturating_sub(u64::from(position.0));
        u32::try_from(pages).unwrap_or(u32::MAX).max(1)
    }

    /// Records pages of the stream. `next` is the page that it sends next, the number of pages
    /// while it rests.
    pub(super) fn on_pages(&mut self, run: PageRange, next: PageIndex, now: Instant) {
        if run.is_empty() {
            return;
        }
        let last = PageIndex(run.end.0 - 1);
        if self.manifest.is_none() {
            self.missed.extend(self.segment_of_first_byte(run.start)..=self.segment_of(last));
            return;
        }
        self.is_late_list_due = true;
        if let Some(visit) = &mut self.visit {
            visit.next = run.end;
            let segment = visit.segment;
            let goes_on = next >= run.end
                && next.0 < self.geometry.pages()
                && self.segment_of(next) == segment;
            if !goes_on {
                self.leave(now);
            }
        }
        self.assert_invariants();
    }

    /// Begins anew because the stream does. `queue` keeps no lists.
    pub(super) fn restart(&mut self) {
        self.visit = None;
        self.queue.clear();
    }

    /// Drops everything that is to be sent along with the stream, because no member listens.
    pub(super) fn drop_stream(&mut self) {
        self.restart();
        self.missed.clear();
        self.late.clear();
    }

    /// Drops the lists that go out before demanded pages, because no member is left.
    pub(super) fn drop_demanded(&mut self) {
        self.demanded.clear();
        self.demanded_since = None;
    }

    /// Queues the lists of the segment of this page, unless the stream is in this segment already.
    fn enter(&mut self, position: PageIndex, now: Instant) {
        let segment = self.segment_of(position);
        if self.visit.is_some_and(|it| it.segment == segment && it.next <= position) {
            return;
        }
        if self.visit.is_some() {
            self.leave(now);
        }
        self.visit = Some(Visit { segment, next: position });
        self.missed.remove(&segment);
        self.enqueue(segment, now);
    }

    /// Queues the second copy of the lists, because the stream leaves their segment.
    fn leave(&mut self, now: Instant) {
        if let Some(visit) = self.visit.take() {
            self.enqueue(visit.segment, now);
        }
    }

    fn enqueue(&mut self, segment: u32, now: Instant) {
        self.queue.extend(self.lists_of(segment));
        self.streamed.insert(segment, now);
        self.changed_at = now;
    }

    /// Returns the next list of the segments that the stream passed too early.
    fn poll_late(&mut self) -> Option<LeafSpan> {
        if self.late.is_empty() {
            let segment = self.missed.pop_first()?;
            self.late = self.lists_of(segment);
        }
        self.late.pop_front()
    }

    /// Returns all lists of a segment.
    fn lists_of(&self, segment: u32) -> VecDeque<LeafSpan> {
        let Some(manifest) = &self.manifest else { return VecDeque::new() };
        let page_size = self.geometry.page_size().get();
        LeafSpan::all_of(manifest.tree(), segment, page_size).collect()
    }

    /// Returns the segment that a page ends in.
    fn segment_of(&self, page: PageIndex) -> u32 {
        let end = (u64::from(page.0) + 1) * self.page_size();
        segment_at(end.min(self.geometry.size()).saturating_sub(1))
    }

    /// Returns the segment that a page begins in.
    fn segment_of_first_byte(&self, page: PageIndex) -> u32 {
        segment_at(u64::from(page.0) * self.page_size())
    }

    fn page_size(&self) -> u64 {
        self.geometry.page_size().get().into()
    }

    /// Returns those pages of a range that the file has; `None` if there are none.
    fn in_file(&self, pages: PageRange) -> Option<PageRange> {
        let pages = PageRange::new(pages.start.0, pages.end.0.min(self.geometry.pages()));
        (!pages.is_empty()).then_some(pages)
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        let queued = self.queue.len() + self.late.len() + self.demanded.len();
        assert!(self.manifest.is_some() || queued == 0, "lists are queued without their values");
        assert!(
            self.demanded.is_empty() == self.demanded_since.is_none(),
            "since when lists wait is not known: the driver would spin or sleep"
        );
        debug_assert!(self.on_demand.len() <= MAX_RECENT, "demand brings too many lists");
    }
}

fn segment_at(byte: u64) -> u32 {
    u32::try_from(byte / SEGMENT_BYTES).expect("a file has less than 2^32 pages of 64 KiB")
}

/// Segments whose lists were queued within [`RECENT`], at most [`MAX_RECENT`] of them.
#[derive(Debug, Default)]
struct Recent {
    /// Time and segment, oldest first.
    entries: VecDeque<(Instant, u32)>,
}

impl Recent {
    /// Records a segment. Forgets the oldest one if there are too many.
    fn insert(&mut self, segment: u32, now: Instant) {
        self.forget_before(now);
        if self.entries.len() >= MAX_RECENT {
            self.entries.pop_front();
        }
        self.entries.push_back((now, segment));
    }

    /// Whether the segment was recorded lately.
    fn contains(&mut self, segment: u32, now: Instant) -> bool {
        self.forget_before(now);
        self.entries.iter().any(|&(_, recorded)| recorded == segment)
    }

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn forget_before(&mut self, now: Instant) {
        while self.entries.front().is_some_and(|&(at, _)| at + RECENT <= now) {
            self.entries.pop_front();
        }
    }
}

#[cfg(test)]
#[path = "leaf_lists_tests.rs"]
mod tests;
