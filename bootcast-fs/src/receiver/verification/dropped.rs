//! Leaves whose bytes are dropped, because the cache has no room for them.

use std::ops::Range;

use bootcast_proto::manifest::SEGMENT_LEAVES;

use super::{Segment, Verification, index};

impl Verification {
    /// Handles bytes that count as missing from now on: the leaves around them are not verified any
    /// more. Returns `false`, and does nothing, while one of these leaves is being checked.
    pub(in super::super) fn drop_bytes(&mut self, bytes: &Range<u64>) -> bool {
        let leaves = self.leaves_of(bytes);
        if leaves.clone().any(|leaf| self.is_checking(leaf)) {
            return false;
        }
        for leaf in leaves {
            self.drop_leaf(leaf);
        }
        self.assert_invariants();
        true
    }

    fn is_checking(&self, leaf: u64) -> bool {
        let known = self.open.get(&(leaf / SEGMENT_LEAVES));
        known.is_some_and(|known| known.checking.contains(leaf % SEGMENT_LEAVES))
    }

    fn drop_leaf(&mut self, leaf: u64) {
        let (segment, bit) = (leaf / SEGMENT_LEAVES, leaf % SEGMENT_LEAVES);
        if std::mem::take(&mut self.is_verified[index(segment)]) {
            self.reopen(segment);
        }
        if let Some(known) = self.open.get_mut(&segment) {
            known.arrived.remove(bit);
            known.verified.remove(bit);
            known.wrong.remove(bit);
            if known.unchecked().is_empty() {
                self.ready.remove(&segment);
            }
        }
        self.wrong.remove(leaf);
        self.refuted.remove(&leaf);
        self.urgent.remove(&leaf);
    }

    /// Tracks the leaves of a segment again of which all were verified.
    fn reopen(&mut self, segment: u64) {
        let leaves = self.tree.leaves_of(segment);
        self.verified -= 1;
        self.verified_start = self.verified_start.min(segment);
        let mut known = Segment::default();
        known.arrived.insert_all(0, leaves.end - leaves.start);
        known.verified = known.arrived;
        self.open.insert(segment, known);
    }
}
