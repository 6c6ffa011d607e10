//! Leaves that processes of this machine tell each other. docs/SEMANTICS.md, "One copy for several
//! mounts".

use std::collections::BTreeMap;
use std::ops::Range;

use bootcast_proto::ContentTree;
use bootcast_proto::manifest::SEGMENT_LEAVES;

use super::{LeafBits, Verification, index};

/// Verified leaves already reported to one follower.
#[derive(Debug, Default)]
pub(in crate::receiver) struct ToldLeaves {
    /// For each segment, whether all of its leaves were told.
    whole: Vec<bool>,
    /// Leaves that were told of other segments.
    open: BTreeMap<u64, LeafBits>,
}

impl Verification {
    /// Returns verified leaves that were not told yet, in runs. `None` if a leaf that was told is
    /// not verified any more.
    pub(in crate::receiver) fn news(&self, told: &mut ToldLeaves) -> Option<Vec<Range<u64>>> {
        told.whole.resize(index(self.tree.segments()), false);
        let mut runs = Vec::new();
        for (segment, (was_whole, is_whole)) in
            (0..).zip(told.whole.iter_mut().zip(self.is_verified.iter().copied()))
        {
            match (*was_whole, is_whole) {
                (true, false) => return None,
                (false, true) => {
                    let before = told.open.remove(&segment).unwrap_or_default();
                    push_runs(&mut runs, segment, all(self.tree, segment).without(before));
                    *was_whole = true;
                }
                (true, true) | (false, false) => {}
            }
        }
        let verified = |segment: &u64| self.open.get(segment).map(|known| known.verified);
        let is_kept = |(segment, before): (&u64, &LeafBits)| {
            before.without(verified(segment).unwrap_or_default()).is_empty()
        };
        if !told.open.iter().all(is_kept) {
            return None;
        }
        for (segment, known) in self.open.iter().filter(|(_, known)| !known.verified.is_empty()) {
            let before = told.open.insert(*segment, known.verified).unwrap_or_default();
            push_runs(&mut runs, *segment, known.verified.without(before));
        }
        Some(runs)
    }

    /// Handles leaves that another process has stored and verified.
    pub(in crate::receiver) fn handle_told(&mut self, leaves: &Range<u64>) {
        let mut rest = leaves.clone();
        while !rest.is_empty() {
            let segment = rest.start / SEGMENT_LEAVES;
            let end = rest.end.min(self.tree.leaves_of(segment).end);
            let (first, count) = (rest.start % SEGMENT_LEAVES, end - rest.start);
            if !self.is_verified[index(segment)] {
                let known = self.open_segment(segment);
                known.arrived.insert_all(first, count);
                known.verified.insert_all(first, count);
                for leaf in rest.start..end {
                    self.wanted.remove(&leaf);
                }
                self.offer(segment, false);
                self.close_if_verified(segment);
            }
            rest.start = end;
        }
        self.assert_invariants();
    }
}

/// Returns all leaves of a segment.
fn all(tree: ContentTree, segment: u64) -> LeafBits {
    let leaves = tree.leaves_of(segment);
    let mut bits = LeafBits::default();
    bits.insert_all(0, leaves.end - leaves.start);
    bits
}

/// Adds the leaves of a segment to runs of leaves of the file.
fn push_runs(runs: &mut Vec<Range<u64>>, segment: u64, leaves: LeafBits) {
    let mut left = leaves;
    while let Some(first) = left.first() {
        let count = left.run_from(first);
        let start = segment * SEGMENT_LEAVES + first;
        match runs.last_mut().filter(|run| run.end == start) {
            Some(run) => run.end += count,
            None => runs.push(start..start + count),
        }
        let mut taken = LeafBits::default();
        taken.insert_all(first, count);
        left = left.without(taken);
    }
}
