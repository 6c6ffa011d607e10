//! Leaves with wrong bytes, and when to fetch each over HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Instant;

use bootcast_proto::manifest::SEGMENT_LEAVES;

/// Maximum number of fetches at the same time.
const FETCHES: u32 = 4;

/// Wrong leaves, by their number in the file.
#[derive(Debug, Default)]
pub(super) struct WrongLeaves {
    /// Time at which each may be fetched; `None` while it is being fetched.
    leaves: BTreeMap<u64, Option<Instant>>,
    timers: BTreeSet<(Instant, u64)>,
    /// Leaves that readers wait for, before all others.
    wanted: BTreeSet<u64>,
    /// Number of fetches in flight.
    fetches: u32,
}

impl WrongLeaves {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// Adds a leaf that may be fetched from `at` on.
    pub(super) fn add(&mut self, leaf: u64, is_wanted: bool, at: Instant) {
        self.remove(leaf);
        self.leaves.insert(leaf, Some(at));
        self.timers.insert((at, leaf));
        if is_wanted {
            self.wanted.insert(leaf);
        }
    }

    /// Handles a reader that waits for a leaf.
    pub(super) fn want(&mut self, leaf: u64) {
        if self.leaves.contains_key(&leaf) {
            self.wanted.insert(leaf);
        }
    }

    /// Removes a leaf, because it is right or must be checked again. Returns whether it was being
    /// fetched.
    pub(super) fn remove(&mut self, leaf: u64) -> bool {
        self.wanted.remove(&leaf);
        match self.leaves.remove(&leaf) {
            Some(Some(at)) => {
                self.timers.remove(&(at, leaf));
                false
            }
            Some(None) => true,
            None => false,
        }
    }

    /// Removes the leaves of a range.
    pub(super) fn remove_all(&mut self, leaves: &Range<u64>) {
        let own: Vec<_> = self.leaves.range(leaves.clone()).map(|(leaf, _)| *leaf).collect();
        for leaf in own {
            self.remove(leaf);
        }
    }

    /// Returns consecutive leaves of one segment to fetch now, at most `most`. They count as being
    /// fetched until [`Self::handle_end`].
    pub(super) fn poll(&mut self, most: u64, now: Instant) -> Option<Range<u64>> {
        if self.fetches >= FETCHES {
            return None;
        }
        let is_due =
            |leaf: &u64| self.leaves.get(leaf).copied().flatten().is_some_and(|at| at <= now);
        let wanted = self.wanted.iter().copied().find(|leaf| is_due(leaf));
        let first = wanted
            .or_else(|| self.timers.first().filter(|(at, _)| *at <= now).map(|(_, leaf)| *leaf))?;
        let end = (first + most).min((first / SEGMENT_LEAVES + 1) * SEGMENT_LEAVES);
        let run = first..first + (first..end).take_while(is_due).count() as u64;
        for leaf in run.clone() {
            self.remove(leaf);
            self.leaves.insert(leaf, None);
        }
        self.fetches += 1;
        Some(run)
    }

    /// Handles the end of a fetch. Its leaves are added again, or removed.
    pub(super) fn handle_end(&mut self) {
        assert!(self.fetches > 0, "a fetch ends that did not begin");
        self.fetches -= 1;
    }

    /// When [`Self::poll`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().filter(|_| self.fetches < FETCHES).map(|(at, _)| *at)
    }
}
