//! Tracks which leaves of a version are verified: their bytes have the hash that the content has.
//! docs/SEMANTICS.md, "Verification".
//!
//! ```text
//! content id --proves--> segment list --proves--> leaf list --proves--> 16 KiB of the file
//! ```
//!
//! A page that arrived need not come again, but only a verified leaf may be read. Leaf lists come
//! in the cast, and over HTTP where they did not. Until the server knows the content id, lists are
//! *provisional*: taken from the control connection unproven, and compared with the id once it is
//! there. A leaf with wrong bytes is fetched over HTTP, and stored only when it is right.

mod check;
mod dropped;
mod leaf_bits;
mod lists;
mod needed;
mod requests;
mod reuse;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests;
mod told;
mod whole_segments;
mod wrong_leaves;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootcast_proto::manifest::{
    ContentId, ContentTree, LEAF_BYTES, SEGMENT_BYTES, SEGMENT_LEAVES, UNKNOWN, Value,
};

use check::CHECK_LEAVES;
pub use check::{Check, Finding, Replacement};
use leaf_bits::LeafBits;
pub use lists::{Learned, ListRequest, ListsError};
use lists::{Lists, Offer};
pub use reuse::Piece;
use reuse::Reuse;
pub(super) use told::ToldLeaves;
use whole_segments::WholeSegments;
use wrong_leaves::WrongLeaves;

/// Pause before wrong leaves are fetched again of which nothing came.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Time for which a leaf that the server sent wrong over HTTP fails its readers. Then it is fetched
/// again.
const REFUTED_TIME: Duration = Duration::from_secs(10);

/// Leaves of one segment, of which not all are verified.
#[derive(Clone, Debug, Default)]
struct Segment {
    /// Leaves of which all pages arrived.
    arrived: LeafBits,
    verified: LeafBits,
    /// Leaves that are being hashed.
    checking: LeafBits,
    /// Leaves with wrong bytes.
    wrong: LeafBits,
    /// Leaves whose value the server does not know, because it could not read them.
    unknown: LeafBits,
    /// Whether the segment was checked as a whole, and some of its bytes are wrong.
    is_refuted: bool,
}

impl Segment {
    /// Leaves that can be checked once their values are known.
    fn unchecked(&self) -> LeafBits {
        self.unverified().without(self.checking).without(self.wrong).without(self.unknown)
    }

    /// Leaves that arrived and are not verified.
    fn unverified(&self) -> LeafBits {
        self.arrived.without(self.verified)
    }
}

/// Why bytes will not be verified for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server sends bytes that are not those of the content")]
pub struct Refuted;

/// Verified leaves of one version.
#[derive(Debug)]
pub(super) struct Verification {
    tree: ContentTree,
    lists: Lists,
    /// Segments with leaves that arrived, of which not all are verified.
    open: BTreeMap<u64, Segment>,
    /// For each segment, whether all of its leaves are verified.
    is_verified: Vec<bool>,
    /// Number of segments of which all leaves are verified.
    verified: u64,
    /// Number of such segments at the start of the file.
    verified_start: u64,
    /// Segments with a known leaf list and unchecked leaves.
    ready: BTreeSet<u64>,
    /// Leaves that readers wait for.
    wanted: BTreeSet<u64>,
    /// Wanted leaves that can be checked, before all others.
    urgent: BTreeSet<u64>,
    /// Number of checks in flight.
    checks: u32,
    /// Segments that are checked as a whole.
    whole: WholeSegments,
    wrong: WrongLeaves,
    /// Leaves that the server sent wrong over HTTP too, and when that was.
    refuted: BTreeMap<u64, Instant>,
    /// Number of leaves that arrived wrong.
    wrong_total: u64,
    /// Rises whenever leaves may have other bytes than before.
    round: u32,
    /// Segments that an older version may have leaves of; `None` without one.
    reuse: Option<Reuse>,
}

impl Verification {
    /// Creates the state of a version of which nothing is verified. `id` is its content id if it is
    /// known.
    pub(super) fn new(tree: ContentTree, id: Option<ContentId>) -> Self {
        Self {
            tree,
            lists: Lists::new(tree, id),
            open: BTreeMap::new(),
            is_verified: vec![false; index(tree.segments())],
            verified: 0,
            verified_start: 0,
            ready: BTreeSet::new(),
            wanted: BTreeSet::new(),
            urgent: BTreeSet::new(),
            checks: 0,
            whole: WholeSegments::default(),
            wrong: WrongLeaves::default(),
            refuted: BTreeMap::new(),
            wrong_total: 0,
            round: 0,
            reuse: None,
        }
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        assert!(
            self.verified <= self.tree.segments(),
            "{} segments of {} are verified",
            self.verified,
            self.tree.segments()
        );
        debug_assert!(
            self.ready.iter().all(|segment| {
                self.open.get(segment).is_some_and(|known| !known.unchecked().is_empty())
            }),
            "a segment is checked of which nothing is to be checked"
        );
        debug_assert!(
            self.open.keys().all(|segment| !self.is_verified[index(*segment)]),
            "a segment is verified, but some of its leaves are not"
        );
        let after = self.is_verified.get(index(self.verified_start));
        assert!(
            self.verified_start <= self.verified && after != Some(&true),
            "{} segments at the start are verified, or more",
            self.verified_start
        );
    }

    /// Handles bytes that arrived and are stored. `holds` tells whether all bytes of a range have.
    pub(super) fn handle_arrived(
        &mut self,
        bytes: &Range<u64>,
        holds: impl Fn(&Range<u64>) -> bool,
    ) {
        self.arrive(bytes, holds, true);
    }

    /// Handles bytes that arrived by the zero map. The stream has not reached them, so their leaf
    /// lists are not due yet.
    pub(super) fn handle_zeros_arrived(
        &mut self,
        bytes: &Range<u64>,
        holds: impl Fn(&Range<u64>) -> bool,
    ) {
        self.arrive(bytes, holds, false);
    }

    /// `are_lists_due`: the leaf lists of these bytes should be here by now, or soon.
    fn arrive(
        &mut self,
        bytes: &Range<u64>,
        holds: impl Fn(&Range<u64>) -> bool,
        are_lists_due: bool,
    ) {
        let mut rest = self.leaves_of(bytes);
        while !rest.is_empty() {
            let segment = rest.start / SEGMENT_LEAVES;
            let leaves = rest.start..rest.end.min(self.tree.leaves_of(segment).end);
            rest.start = leaves.end;
            if self.is_verified[index(segment)] {
                continue;
            }
            let arrived = self.arrived_of(&leaves, &holds);
            let more = arrived.without(self.arrived_before(segment));
            if !more.is_empty() {
                self.open_segment(segment).arrived.insert_set(more);
                // Once for all of them: a file that the cache kept has many.
                self.offer(segment, are_lists_due);
            }
        }
        self.assert_invariants();
    }

    /// Returns those of some leaves of one segment of which all bytes are stored.
    fn arrived_of(&self, leaves: &Range<u64>, holds: impl Fn(&Range<u64>) -> bool) -> LeafBits {
        let mut arrived = LeafBits::default();
        let bit = |leaf| leaf % SEGMENT_LEAVES;
        if holds(&self.bytes_of(leaves)) {
            arrived.insert_all(bit(leaves.start), leaves.end - leaves.start);
            return arrived;
        }
        for leaf in leaves.clone().filter(|leaf| holds(&self.tree.leaf(*leaf))) {
            arrived.insert(bit(leaf));
        }
        arrived
    }

    fn arrived_before(&self, segment: u64) -> LeafBits {
        self.open.get(&segment).map_or(LeafBits::default(), |known| known.arrived)
    }

    /// Handles pages that got other borders, or a store that was read from disk: every leaf is
    /// checked again.
    pub(super) fn handle_restored(&mut self, holds: impl Fn(&Range<u64>) -> bool) {
        self.round = self.round.wrapping_add(1);
        self.open.clear();
        self.ready.clear();
        self.urgent.clear();
        self.checks = 0;
        self.wrong.remove_all(&(0..self.tree.leaves()));
        self.refuted.clear();
        self.is_verified.fill(false);
        (self.verified, self.verified_start) = (0, 0);
        self.handle_arrived(&(0..self.tree.size()), holds);
    }

    /// Makes the unchecked leaves of a segment checkable if their values are known, or requests
    /// these if they are due or a reader waits.
    fn offer(&mut self, segment: u64, is_list_due: bool) {
        let Some(known) = self.open.get_mut(&segment) else { return };
        let wanted = self.wanted.range(self.tree.leaves_of(segment));
        if let Some(values) = self.lists.values(segment) {
            let unchecked = known.unchecked();
            if !unchecked.is_empty() {
                self.ready.insert(segment);
                let is_unchecked = |leaf: &&u64| unchecked.contains(**leaf % SEGMENT_LEAVES);
                self.urgent.extend(wanted.filter(is_unchecked));
                return;
            }
            self.ready.remove(&segment);
            let lacks_value = !known.unverified().and(known.unknown).is_empty();
            if !lacks_value || !known.checking.is_empty() {
                return;
            }
            debug_assert!(values.contains(&UNKNOWN), "a value is known and unknown at once");
            known.unknown = LeafBits::default();
            self.lists.refresh(segment);
        } else {
            let unchecked = known.unchecked();
            if unchecked.is_empty() {
                return;
            }
            let is_unchecked = |leaf: &&u64| unchecked.contains(**leaf % SEGMENT_LEAVES);
            let wanted: Vec<_> = wanted.filter(is_unchecked).copied().collect();
            let is_wanted = !wanted.is_empty();
            if self.is_checkable_as_whole(segment, is_wanted) {
                self.ready.insert(segment);
                self.urgent.extend(wanted.first());
            } else if is_list_due || is_wanted {
                self.lists.need(segment, is_wanted);
            }
        }
    }

    /// Returns the leaves of a segment that is not verified.
    fn open_segment(&mut self, segment: u64) -> &mut Segment {
        let unknown = || self.lists.values(segment).map_or(LeafBits::default(), |it| unknown(it));
        self.open
            .entry(segment)
            .or_insert_with(|| Segment { unknown: unknown(), ..Segment::default() })
    }

    /// Handles a leaf list that became known.
    fn take_list(&mut self, segment: u64) {
        if let Some(reuse) = &mut self.reuse {
            reuse.handle_list(segment);
        }
        let open = self.open.get_mut(&segment);
        if let (Some(known), Some(values)) = (open, self.lists.values(segment)) {
            known.unknown = unknown(values);
        }
        self.offer(segment, true);
    }

    /// Whether all of these bytes are verified. Ignores bytes behind the end of the file.
    pub(super) fn has_verified(&self, bytes: &Range<u64>) -> bool {
        self.leaves_of(bytes).all(|leaf| self.is_leaf_verified(leaf))
    }

    fn is_leaf_verified(&self, leaf: u64) -> bool {
        let segment = leaf / SEGMENT_LEAVES;
        let in_open = || {
            let known = self.open.get(&segment);
            known.is_some_and(|known| known.verified.contains(leaf % SEGMENT_LEAVES))
        };
        self.is_verified[index(segment)] || in_open()
    }

    /// Whether every byte of the file is verified, and by the content id.
    pub(super) fn is_complete(&self) -> bool {
        self.verified == self.tree.segments() && self.lists.is_proven()
    }

    /// Returns the length of the verified part at the start of the file, in bytes.
    pub(super) fn contiguous(&self) -> u64 {
        let verified = self.open.get(&self.verified_start).map_or(0, |it| it.verified.run_from(0));
        self.tree.leaf(self.verified_start * SEGMENT_LEAVES + verified).start
    }

    /// Number of verified bytes.
    pub(super) fn verified_bytes(&self) -> u64 {
        let Some(last) = self.tree.leaves().checked_sub(1) else { return 0 };
        let open: u64 = self.open.values().map(|segment| segment.verified.len()).sum();
        let mut bytes = self.verified * SEGMENT_BYTES + open * LEAF_BYTES;
        // The last leaf and the last segment may be shorter than the others.
        let last_segment = self.tree.segments() - 1;
        if self.is_verified[index(last_segment)] {
            let range = self.tree.segment(last_segment);
            bytes -= SEGMENT_BYTES - (range.end - range.start);
        } else if self.is_leaf_verified(last) {
            let range = self.tree.leaf(last);
            bytes -= LEAF_BYTES - (range.end - range.start);
        }
        bytes
    }

    /// Extends a range to whole leaves: all of them must have arrived before any byte is read.
    pub(super) fn whole_leaves(&self, bytes: &Range<u64>) -> Range<u64> {
        let end = bytes.end.min(self.tree.size());
        if bytes.start >= end {
            return end..end;
        }
        bytes.start / LEAF_BYTES * LEAF_BYTES
            ..end.next_multiple_of(LEAF_BYTES).min(self.tree.size())
    }

    /// Handles a reader that waits for these bytes: they are checked before others, their lists are
    /// requested soon, and if they are wrong they are fetched before others.
    pub(super) fn handle_read(&mut self, bytes: &Range<u64>) {
        for leaf in self.leaves_of(bytes) {
            if !self.is_leaf_verified(leaf) {
                self.wanted.insert(leaf);
                self.wrong.want(leaf);
                let segment = leaf / SEGMENT_LEAVES;
                if !self.is_checkable_as_whole(segment, true) {
                    self.lists.handle_read(segment);
                }
                self.offer(segment, true);
            }
        }
    }

    /// Returns why these bytes will not be verified, if that is so.
    pub(super) fn refuted(&self, bytes: &Range<u64>) -> Option<Refuted> {
        let leaves = self.leaves_of(bytes);
        (self.refuted.range(leaves).next().is_some()).then_some(Refuted)
    }

    /// Returns leaves to check next: those that readers wait for, then the lowest ones.
    pub(super) fn poll_check(&mut self) -> Option<Check> {
        let first = self.first_checkable()?;
        let segment = first / SEGMENT_LEAVES;
        let Some(values) = self.lists.values(segment).cloned() else {
            return self.begin_whole_check(segment);
        };
        let known = self.open.get_mut(&segment)?;
        let run = known.unchecked().run_from(first % SEGMENT_LEAVES).min(CHECK_LEAVES);
        let leaves = first..first + run;
        known.checking.insert_all(first % SEGMENT_LEAVES, run);
        if known.unchecked().is_empty() {
            self.ready.remove(&segment);
        }
        self.checks += 1;
        Some(Check { tree: self.tree, leaves, values: Some(values), round: self.round })
    }

    fn first_checkable(&mut self) -> Option<u64> {
        while let Some(leaf) = self.urgent.pop_first() {
            let segment = leaf / SEGMENT_LEAVES;
            let known = self.open.get(&segment).filter(|_| self.ready.contains(&segment));
            if known.is_some_and(|known| known.unchecked().contains(leaf % SEGMENT_LEAVES)) {
                return Some(leaf);
            }
        }
        let segment = *self.ready.first()?;
        Some(segment * SEGMENT_LEAVES + self.open.get(&segment)?.unchecked().first()?)
    }

    /// Whether [`Self::poll_check`] has something.
    pub(super) fn has_check(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether a reader waits for leaves that can be checked.
    pub(super) fn has_urgent_check(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// Handles the result of a check.
    pub(super) fn handle_checked(&mut self, check: &Check, finding: &Finding, now: Instant) {
        if check.round != self.round {
            return;
        }
        assert!(self.checks > 0, "a check ends that did not begin");
        self.checks -= 1;
        match finding {
            Finding::Wrong(wrong) => self.handle_leaves_checked(check, wrong, now),
            Finding::Values(values) => self.handle_whole_checked(&check.leaves, values),
        }
        self.close_if_verified(check.leaves.start / SEGMENT_LEAVES);
        self.forget_lists();
        self.assert_invariants();
    }

    /// Forgets leaf lists that nothing is checked by, if there are many: random reads touch every
    /// segment of a large file, and complete none.
    fn forget_lists(&mut self) {
        if self.reuse.is_some() {
            return;
        }
        let is_in_use = |known: &Segment| !known.checking.is_empty() || !known.wrong.is_empty();
        self.lists.forget_unneeded(|segment| {
            let mut wanted = self.wanted.range(self.tree.leaves_of(segment));
            self.ready.contains(&segment)
                || self.open.get(&segment).is_some_and(is_in_use)
                || wanted.next().is_some()
        });
    }

    /// Whether a check is of the bytes that there are now, and used the leaf list that is known.
    pub(super) fn is_current(&self, check: &Check) -> bool {
        let list = self.lists.values(check.leaves.start / SEGMENT_LEAVES);
        let list = list.filter(|_| check.round == self.round);
        list.zip(check.values.as_ref()).is_some_and(|(list, used)| Arc::ptr_eq(list, used))
    }

    /// Handles leaves that were compared with their values.
    fn handle_leaves_checked(&mut self, check: &Check, wrong: &[u64], now: Instant) {
        let segment = check.leaves.start / SEGMENT_LEAVES;
        let is_current = self.is_current(check);
        let Some(known) = self.open.get_mut(&segment) else { return };
        for leaf in check.leaves.clone() {
            let bit = leaf % SEGMENT_LEAVES;
            known.checking.remove(bit);
            if !is_current {
                continue;
            }
            if wrong.contains(&leaf) {
                known.wrong.insert(bit);
                self.wrong.add(leaf, self.wanted.contains(&leaf), now);
                self.wrong_total += 1;
            } else {
                known.verified.insert(bit);
                self.wanted.remove(&leaf);
            }
        }
        self.offer(segment, true);
    }

    /// Forgets the leaves of a segment if all are verified.
    fn close_if_verified(&mut self, segment: u64) {
        let leaves = self.tree.leaves_of(segment);
        let is_whole = |known: &Segment| known.verified.len() == leaves.end - leaves.start;
        if self.open.get(&segment).is_some_and(is_whole) {
            self.open.remove(&segment);
            self.ready.remove(&segment);
            self.is_verified[index(segment)] = true;
            self.verified += 1;
            while self.is_verified.get(index(self.verified_start)) == Some(&true) {
                self.verified_start += 1;
            }
            self.lists.handle_verified(segment);
            if let Some(reuse) = &mut self.reuse {
                reuse.handle_verified(segment);
            }
            if self.verified == self.tree.segments() {
                self.lists.hurry();
            }
        }
    }

    /// Returns wrong leaves to fetch over HTTP; `None` until [`Self::poll_timeout`].
    pub(super) fn poll_replacement(&mut self, now: Instant) -> Option<Replacement> {
        let leaves = self.wrong.poll(CHECK_LEAVES, now)?;
        // The list of a segment is kept until all of its leaves are right.
        let values = self.lists.values(leaves.start / SEGMENT_LEAVES)?.clone();
        let values = Some(values);
        Some(Replacement(Check { tree: self.tree, leaves, values, round: self.round }))
    }

    /// Handles the result of fetching wrong leaves: those that are wrong again, the others being
    /// stored. `None`: nothing came.
    pub(super) fn handle_replaced(
        &mut self,
        replacement: &Replacement,
        wrong: Option<&[u64]>,
        now: Instant,
    ) {
        self.wrong.handle_end();
        let Check { leaves, .. } = &replacement.0;
        let segment = leaves.start / SEGMENT_LEAVES;
        let is_current = self.is_current(&replacement.0);
        for leaf in leaves.clone() {
            // Otherwise the leaf is checked anew, whatever was stored.
            if self.wrong.remove(leaf) && is_current {
                self.handle_replaced_leaf(leaf, wrong.map(|wrong| wrong.contains(&leaf)), now);
            }
        }
        self.close_if_verified(segment);
        self.assert_invariants();
    }

    fn handle_replaced_leaf(&mut self, leaf: u64, is_wrong: Option<bool>, now: Instant) {
        let is_wanted = self.wanted.contains(&leaf);
        match is_wrong {
            Some(false) => {
                self.refuted.remove(&leaf);
                self.wanted.remove(&leaf);
                if let Some(known) = self.open.get_mut(&(leaf / SEGMENT_LEAVES)) {
                    known.wrong.remove(leaf % SEGMENT_LEAVES);
                    known.verified.insert(leaf % SEGMENT_LEAVES);
                }
            }
            Some(true) => {
                self.wrong.add(leaf, is_wanted, now + REFUTED_TIME);
                self.refuted.insert(leaf, now);
            }
            None => self.wrong.add(leaf, is_wanted, now + RETRY_PAUSE),
        }
    }

    /// Whether something is to be done without a datagram: a check, a request, or their result.
    pub(super) fn is_busy(&self) -> bool {
        self.has_check() || self.checks > 0 || !self.wrong.is_empty() || self.lists.is_busy()
    }

    /// Acts on lists that became known or turned out to be wrong.
    fn take_offers(&mut self) {
        while let Some(offer) = self.lists.poll_offer() {
            match offer {
                Offer::Known(segment) => self.take_list(segment),
                Offer::Refuted(segment) => self.check_again(segment),
                Offer::Segments => self.offer_whole_segments(),
            }
        }
        self.assert_invariants();
    }

    /// Takes the verification of a segment back: the list that it was checked against is wrong.
    fn check_again(&mut self, segment: u64) {
        let leaves = self.tree.leaves_of(segment);
        if std::mem::take(&mut self.is_verified[index(segment)]) {
            self.verified -= 1;
            self.verified_start = self.verified_start.min(segment);
            let mut known = Segment::default();
            known.arrived.insert_all(0, leaves.end - leaves.start);
            self.open.insert(segment, known);
        } else if let Some(known) = self.open.get_mut(&segment) {
            (known.verified, known.wrong) = (LeafBits::default(), LeafBits::default());
        }
        self.wrong.remove_all(&leaves);
        if let Some(reuse) = &mut self.reuse {
            reuse.handle_refuted(segment);
        }
        self.offer(segment, true);
    }

    /// Ends the failure of leaves that are fetched again.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.refuted.retain(|_, since| *since + REFUTED_TIME > now);
    }

    /// When [`Self::poll_request`], [`Self::poll_replacement`] or [`Self::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let refuted = self.refuted.values().min().map(|since| *since + REFUTED_TIME);
        let lists = self.lists.poll_timeout(self.has_enough_to_check());
        let own = [lists, self.wrong.poll_timeout(), refuted];
        own.into_iter().flatten().min()
    }

    /// Returns the number of leaves that arrived wrong.
    pub(super) fn wrong_total(&self) -> u64 {
        self.wrong_total
    }

    /// Returns the division of the file.
    pub(super) fn tree(&self) -> &ContentTree {
        &self.tree
    }

    /// Returns the leaves that have at least one of these bytes.
    fn leaves_of(&self, bytes: &Range<u64>) -> Range<u64> {
        let end = bytes.end.min(self.tree.size());
        if bytes.start >= end {
            return 0..0;
        }
        bytes.start / LEAF_BYTES..end.div_ceil(LEAF_BYTES)
    }
}

/// Returns the leaves of a segment whose values are not known.
fn unknown(values: &[Value]) -> LeafBits {
    let mut unknown = LeafBits::default();
    for (leaf, _) in (0..).zip(values).filter(|(_, value)| **value == UNKNOWN) {
        unknown.insert(leaf);
    }
    unknown
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("at most the leaves or bytes that are in memory")
}
