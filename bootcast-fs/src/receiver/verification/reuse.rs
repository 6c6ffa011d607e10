//! Chooses the leaves that an older version of the file may have, segment by segment.
//!
//! ```text
//! todo --the older list has the segment's value--> listed --leaves copied--> done
//!   '----else----> awaited --list came-----------------^
//! ```
//!
//! A leaf of the older version is the same if its value is, as the hashes that the older version's
//! bytes came with say. Nothing proves them, so each leaf is verified before it is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootcast_proto::manifest::{ContentTree, SEGMENT_LEAVES, UNKNOWN, Value};

use super::leaf_bits::LeafBits;
use super::{CHECK_LEAVES, Check, Verification, index};

/// Maximum number of segments whose lists are requested, or known and not used yet: 256 MiB of the
/// file, or 512 KiB of lists.
const LISTS_AHEAD: usize = 64;

/// Maximum number of ranges that are remembered as stored otherwise during one piece. With more,
/// all of its leaves are checked as usual.
const MAX_DISTURBED: usize = 64;

/// Time without progress after which the older version counts as of no use.
const PATIENCE: Duration = Duration::from_secs(10);

/// A segment to compare with an older version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    tree: ContentTree,
    segment: u64,
    /// Value of the segment, if it is proven.
    proven: Option<Value>,
    /// Values of its leaves, if they are known.
    values: Option<Arc<[Value]>>,
    /// Leaves that did not arrive.
    lacking: LeafBits,
    round: u32,
}

impl Piece {
    /// Returns the number of the segment.
    pub fn segment(&self) -> u64 {
        self.segment
    }

    /// Returns the values of the leaves; `None` if they are not known, so that only whole segments
    /// can be compared.
    pub fn values(&self) -> Option<&[Value]> {
        self.values.as_deref()
    }

    /// Takes leaves off that are no longer missing.
    pub fn take_off(&mut self, leaves: &[u64]) {
        let first = self.segment * SEGMENT_LEAVES;
        for leaf in leaves {
            self.lacking.remove(leaf - first);
        }
    }

    /// Whether an older version with these leaf values has the whole segment.
    pub fn is_equal(&self, older: &[Value]) -> bool {
        let leaves = self.tree.leaves_of(self.segment);
        older.len() as u64 == leaves.end - leaves.start
            && self.proven == Some(self.tree.segment_value(self.segment, older))
    }

    /// Returns the missing leaves that an older version with these leaf values has, in runs.
    pub fn equal_leaves(&self, older: &[Value]) -> Vec<Check> {
        let Some(values) = &self.values else { return Vec::new() };
        let mut equal = LeafBits::default();
        for (leaf, (value, older)) in (0..).zip(values.iter().zip(older)) {
            if value == older && *value != UNKNOWN {
                equal.insert(leaf);
            }
        }
        let mut left = equal.and(self.lacking);
        let first = self.segment * SEGMENT_LEAVES;
        let mut runs = Vec::new();
        while let Some(start) = left.first() {
            let run = left.run_from(start).min(CHECK_LEAVES);
            (start..start + run).for_each(|leaf| left.remove(leaf));
            runs.push(Check {
                tree: self.tree,
                leaves: first + start..first + start + run,
                values: Some(values.clone()),
                round: self.round,
            });
        }
        runs
    }
}

/// Segments of a version of which an older version may have leaves.
#[derive(Debug)]
pub(super) struct Reuse {
    /// Segments that are not compared yet.
    todo: BTreeSet<u64>,
    /// Segments whose lists were requested.
    awaited: BTreeSet<u64>,
    /// Segments whose lists are known, and of which nothing is copied yet.
    listed: BTreeSet<u64>,
    /// Segment that is being compared or copied.
    current: Option<u64>,
    /// Bytes that were stored otherwise since the current piece began.
    disturbed: Vec<Range<u64>>,
    /// Leaves that were stored from the older version and are right, by segment.
    right: BTreeMap<u64, LeafBits>,
    /// Number of leaves in `right`, over all that were ever there.
    reused: u64,
    progress: Instant,
}

impl Reuse {
    fn is_over(&self) -> bool {
        self.todo.is_empty()
            && self.awaited.is_empty()
            && self.listed.is_empty()
            && self.current.is_none()
    }

    /// Whether bytes of this range were stored otherwise since the current piece began.
    fn is_disturbed(&self, bytes: &Range<u64>) -> bool {
        let overlaps = |it: &Range<u64>| it.start < bytes.end && bytes.start < it.end;
        self.disturbed.len() == MAX_DISTURBED || self.disturbed.iter().any(overlaps)
    }

    /// Whether more lists may be requested.
    fn has_room(&self) -> bool {
        self.awaited.len() + self.listed.len() < LISTS_AHEAD
    }

    /// Handles that the list of a segment became known.
    pub(super) fn handle_list(&mut self, segment: u64) {
        if self.awaited.remove(&segment) || self.todo.remove(&segment) {
            self.listed.insert(segment);
        }
    }

    /// Handles that a segment needs nothing more.
    pub(super) fn handle_verified(&mut self, segment: u64) {
        self.todo.remove(&segment);
        self.awaited.remove(&segment);
        self.listed.remove(&segment);
    }

    /// Forgets which leaves of a segment are right, because its list was not.
    pub(super) fn handle_refuted(&mut self, segment: u64) {
        self.right.remove(&segment);
    }
}

impl Verification {
    /// Begins taking leaves from an older version.
    pub(in crate::receiver) fn begin_reuse(&mut self, now: Instant) {
        let is_open = |segment: &u64| !self.is_verified[index(*segment)];
        let lacks = |segment: &u64| !self.lacking(*segment).is_empty();
        let (known, todo): (BTreeSet<u64>, _) = (0..self.tree.segments())
            .filter(is_open)
            .filter(lacks)
            .partition(|segment| self.lists.values(*segment).is_some());
        self.reuse = Some(Reuse {
            todo,
            awaited: BTreeSet::new(),
            listed: known,
            current: None,
            disturbed: Vec::new(),
            right: BTreeMap::new(),
            reused: 0,
            progress: now,
        });
    }

    /// Stops taking leaves from an older version. Returns how many it had.
    pub(in crate::receiver) fn end_reuse(&mut self) -> u64 {
        self.reuse.take().map_or(0, |reuse| reuse.reused)
    }

    /// Whether leaves are taken from an older version.
    pub(in crate::receiver) fn is_reusing(&self) -> bool {
        self.reuse.is_some()
    }

    /// Whether the older version has nothing more, or does not get used for too long.
    pub(in crate::receiver) fn is_reuse_over(&self, now: Instant) -> bool {
        self.reuse.as_ref().is_none_or(|reuse| reuse.is_over() || reuse.progress + PATIENCE <= now)
    }

    /// When [`Self::is_reuse_over`] changes by time alone.
    pub(in crate::receiver) fn reuse_timeout(&self) -> Option<Instant> {
        self.reuse.as_ref().map(|reuse| reuse.progress + PATIENCE)
    }

    /// Returns the leaves of a segment that did not arrive.
    fn lacking(&self, segment: u64) -> LeafBits {
        let leaves = self.tree.leaves_of(segment);
        let mut lacking = LeafBits::default();
        lacking.insert_all(0, leaves.end - leaves.start);
        self.open.get(&segment).map_or(lacking, |known| lacking.without(known.arrived))
    }

    /// Whether [`Self::poll_piece`] has something to do.
    pub(in crate::receiver) fn has_piece(&self) -> bool {
        self.reuse.as_ref().is_some_and(|reuse| {
            let can_compare = !reuse.todo.is_empty() && reuse.has_room() && self.may_compare();
            reuse.current.is_none() && (!reuse.listed.is_empty() || can_compare)
        })
    }

    /// Whether the values of the segments are known, or will not be for a while.
    fn may_compare(&self) -> bool {
        self.lists.is_proven() || self.lists.has_waited_for_segments()
    }

    /// Returns the next segment to compare with the older version: one that readers wait for, else
    /// the lowest.
    pub(in crate::receiver) fn poll_piece(&mut self) -> Option<Piece> {
        while self.has_piece() {
            let segment = self.next_segment()?;
            let values = self.lists.values(segment).cloned();
            let proven = self.lists.segment_value(segment);
            let reuse = self.reuse.as_mut()?;
            reuse.handle_verified(segment);
            if values.is_none() && proven.is_none() {
                self.await_list(segment);
                continue;
            }
            reuse.current = Some(segment);
            reuse.disturbed.clear();
            let lacking = self.lacking(segment);
            let (tree, round) = (self.tree, self.round);
            return Some(Piece { tree, segment, proven, values, lacking, round });
        }
        None
    }

    fn next_segment(&self) -> Option<u64> {
        let reuse = self.reuse.as_ref()?;
        let mut wanted = self.wanted.iter().map(|leaf| leaf / SEGMENT_LEAVES);
        let is_next = |segment: &u64| {
            reuse.listed.contains(segment) || self.may_compare() && reuse.todo.contains(segment)
        };
        wanted.find(is_next).or_else(|| reuse.listed.first().or(reuse.todo.first()).copied())
    }

    /// Waits for the list of a segment, which is requested.
    fn await_list(&mut self, segment: u64) {
        let is_wanted = self.wanted.range(self.tree.leaves_of(segment)).next().is_some();
        self.lists.need(segment, is_wanted);
        if let Some(reuse) = &mut self.reuse {
            reuse.awaited.insert(segment);
        }
    }

    /// Handles the comparison of a segment whose list was not known: the older version's list, if
    /// it is that of the segment.
    pub(in crate::receiver) fn handle_compared(
        &mut self,
        segment: u64,
        list: Option<&[Value]>,
        now: Instant,
    ) {
        let Some(reuse) = self.reuse.as_mut().filter(|it| it.current == Some(segment)) else {
            return;
        };
        (reuse.current, reuse.progress) = (None, now);
        if self.is_verified[index(segment)] {
            return;
        }
        if self.lists.values(segment).is_some() {
            reuse.listed.insert(segment);
        } else {
            reuse.awaited.insert(segment);
            let taken = list.is_some_and(|list| self.lists.take(segment, list).is_ok());
            if !taken {
                self.await_list(segment);
            }
        }
        self.take_offers();
    }

    /// Handles that the leaves of a segment were copied, as far as the older version has them.
    pub(in crate::receiver) fn handle_piece_over(&mut self, segment: u64, now: Instant) {
        if let Some(reuse) = self.reuse.as_mut().filter(|it| it.current == Some(segment)) {
            (reuse.current, reuse.progress) = (None, now);
        }
    }

    /// Handles leaves that were read from the older version and stored, except those that are
    /// `wrong`. Returns the others, in runs.
    pub(in crate::receiver) fn handle_reused(
        &mut self,
        check: &Check,
        wrong: &[u64],
    ) -> Vec<Range<u64>> {
        let segment = check.leaves.start / SEGMENT_LEAVES;
        let is_current = check.round == self.round && self.is_current(check);
        let Some(reuse) = self.reuse.as_mut().filter(|_| is_current) else { return Vec::new() };
        let right = reuse.right.entry(segment).or_default();
        let mut runs: Vec<Range<u64>> = Vec::new();
        for leaf in check.leaves.clone().filter(|leaf| !wrong.contains(leaf)) {
            reuse.reused += u64::from(right.insert(leaf % SEGMENT_LEAVES));
            match runs.last_mut().filter(|run| run.end == leaf) {
                Some(run) => run.end += 1,
                None => runs.push(leaf..leaf + 1),
            }
        }
        runs
    }

    /// Records bytes that were not stored from the older version.
    pub(in crate::receiver) fn record_stored(&mut self, bytes: &Range<u64>) {
        let Some(reuse) = self.reuse.as_mut().filter(|reuse| reuse.current.is_some()) else {
            return;
        };
        if let Some(last) = reuse.disturbed.last_mut().filter(|last| last.end == bytes.start) {
            last.end = bytes.end;
        } else if reuse.disturbed.len() < MAX_DISTURBED {
            reuse.disturbed.push(bytes.clone());
        }
    }

    /// Whether all leaves around these bytes were stored from the older version and are right.
    pub(in crate::receiver) fn has_reused(&self, bytes: &Range<u64>) -> bool {
        let Some(reuse) = &self.reuse else { return false };
        self.leaves_of(bytes).all(|leaf| {
            let right = reuse.right.get(&(leaf / SEGMENT_LEAVES));
            right.is_some_and(|right| right.contains(leaf % SEGMENT_LEAVES))
        })
    }

    /// Takes leaves for verified that were found right and have arrived. They are checked as usual
    /// if some of their bytes may have been stored otherwise meanwhile, or are `in_flight`.
    pub(in crate::receiver) fn handle_right(
        &mut self,
        leaves: &Range<u64>,
        in_flight: impl Fn(&Range<u64>) -> bool,
    ) {
        let Some(reuse) = &self.reuse else { return };
        for leaf in leaves.clone() {
            let (segment, bit) = (leaf / SEGMENT_LEAVES, leaf % SEGMENT_LEAVES);
            let bytes = self.tree.leaf(leaf);
            let Some(known) = self.open.get_mut(&segment) else { continue };
            if known.unchecked().contains(bit) && !in_flight(&bytes) && !reuse.is_disturbed(&bytes)
            {
                known.verified.insert(bit);
                self.wanted.remove(&leaf);
            }
        }
        let segment = leaves.start / SEGMENT_LEAVES;
        self.offer(segment, true);
        self.close_if_verified(segment);
        self.assert_invariants();
    }

    /// Returns the bytes of consecutive leaves.
    pub(in crate::receiver) fn bytes_of(&self, leaves: &Range<u64>) -> Range<u64> {
        self.tree.leaf(leaves.start).start..self.tree.leaf(leaves.end - 1).end
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests;
