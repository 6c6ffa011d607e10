//! Segments that consist of zeros by the zero map. Their leaf lists do not come in the cast, and
//! are not needed: all leaves are hashed, and the segment's value proves them together.
//! docs/PROTOCOL.md, "The zero map".

use std::ops::Range;

use bootcast_proto::ZeroMap;
use bootcast_proto::manifest::{ContentTree, SEGMENT_LEAVES, Value};

use super::check::Check;
use super::{Verification, index};

/// Segments that are checked as a whole.
#[derive(Debug, Default)]
pub(super) struct WholeSegments {
    /// For each segment, whether it consists of zeros by the map. Empty without a map.
    zeros: Vec<bool>,
    /// Whether only those are checked that readers wait for.
    is_lazy: bool,
}

impl WholeSegments {
    fn new(tree: ContentTree, map: &ZeroMap, is_lazy: bool) -> Self {
        let mut zeros = vec![false; index(tree.segments())];
        for run in map.runs() {
            let is_last = run.end == tree.leaves();
            let end = if is_last { tree.segments() } else { run.end / SEGMENT_LEAVES };
            let start = run.start.div_ceil(SEGMENT_LEAVES).min(end);
            zeros[index(start)..index(end)].fill(true);
        }
        Self { zeros, is_lazy }
    }

    fn contains(&self, segment: u64) -> bool {
        self.zeros.get(index(segment)) == Some(&true)
    }
}

impl Verification {
    /// Handles the zero map, before any of its pages arrive. `is_lazy`: segments of zeros are
    /// checked only if somebody reads them.
    pub(in super::super) fn handle_zero_map(&mut self, map: &ZeroMap, is_lazy: bool) {
        if map.leaves() == self.tree.leaves() {
            self.whole = WholeSegments::new(self.tree, map, is_lazy);
        }
    }

    /// Checks segments of zeros from now on whether somebody reads them or not.
    pub(in super::super) fn check_all(&mut self) {
        if std::mem::take(&mut self.whole.is_lazy) {
            self.offer_whole_segments();
        }
    }

    /// Makes segments of zeros checkable, after the values of all segments became known.
    pub(super) fn offer_whole_segments(&mut self) {
        let zeros: Vec<_> =
            self.open.keys().copied().filter(|segment| self.whole.contains(*segment)).collect();
        for segment in zeros {
            self.offer(segment, false);
        }
    }

    /// Whether this segment without a leaf list is to be checked as a whole. `is_wanted`: a reader
    /// waits for one of its leaves.
    pub(super) fn is_checkable_as_whole(&self, segment: u64, is_wanted: bool) -> bool {
        let leaves = self.tree.leaves_of(segment);
        let is_ready = self.open.get(&segment).is_some_and(|known| {
            !known.is_refuted && known.unchecked().len() == leaves.end - leaves.start
        });
        is_ready
            && self.whole.contains(segment)
            && self.lists.has_segments()
            && (is_wanted || !self.whole.is_lazy)
    }

    /// Begins the check of a whole segment.
    pub(super) fn begin_whole_check(&mut self, segment: u64) -> Option<Check> {
        let leaves = self.tree.leaves_of(segment);
        let known = self.open.get_mut(&segment)?;
        known.checking.insert_all(0, leaves.end - leaves.start);
        self.ready.remove(&segment);
        self.checks += 1;
        Some(Check { tree: self.tree, leaves, values: None, round: self.round })
    }

    /// Handles the values of all leaves of a segment, as they are stored. If they are wrong, the
    /// leaf list shows which.
    pub(super) fn handle_whole_checked(&mut self, leaves: &Range<u64>, values: &[Value]) {
        let segment = leaves.start / SEGMENT_LEAVES;
        let is_right = self.lists.handle_computed(segment, values);
        if let Some(known) = self.open.get_mut(&segment) {
            known.checking = super::LeafBits::default();
            if is_right {
                known.verified.insert_all(0, leaves.end - leaves.start);
            } else {
                known.is_refuted = true;
            }
        }
        if is_right {
            while let Some(leaf) = self.wanted.range(leaves.clone()).next().copied() {
                self.wanted.remove(&leaf);
            }
        }
        self.take_offers();
        self.offer(segment, true);
    }
}
