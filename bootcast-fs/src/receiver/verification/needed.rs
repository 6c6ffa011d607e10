//! Leaf lists that are needed, and when to request each.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Time for a leaf list to come in the cast after the stream has passed its segment, before it is
/// requested. docs/PROTOCOL.md, "Leaf lists".
pub(super) const CAST_PATIENCE: Duration = Duration::from_millis(200);

/// Time for a leaf list to come in the cast while a reader waits for a leaf that has arrived. The
/// list was sent before the leaf. If it was lost, its second copy is sent after the segment.
pub(super) const READER_PATIENCE: Duration = Duration::from_millis(50);

/// Time for a leaf list to come in the cast after the first leaf of a segment that the stream does
/// not seem to leave.
pub(super) const STREAM_PATIENCE: Duration = Duration::from_secs(2);

/// Time after which a list is requested again that lacked the value of a leaf.
pub(super) const UNKNOWN_PAUSE: Duration = Duration::from_secs(10);

/// Time after which a list that a reader waits for is requested once more, on another connection.
/// If a packet got lost, TCP takes at least 10 ms to repeat it (RFC 8985, section 7.2), mostly
/// 200 ms.
pub(super) const REPEAT_PAUSE: Duration = Duration::from_millis(3);

/// State of a list that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Leaves of the segment arrived. The time is not decided yet.
    Arrived,
    /// A reader waits for a leaf. The time is not decided yet.
    Wanted,
    /// The list lacked the value of a leaf that arrived. The time is not decided yet.
    Incomplete,
    /// Due at this time, or earlier if the stream passes the segment.
    Passing(Instant),
    /// Due at this time.
    At(Instant),
    /// The list was requested for a reader, and will be once more at this time.
    Repeat(Instant),
    /// The list was requested.
    Requested,
}

/// Needed leaf lists, by segment.
#[derive(Debug, Default)]
pub(super) struct Needed {
    lists: BTreeMap<u64, Due>,
    /// Lists whose time is not decided.
    undecided: BTreeSet<u64>,
    /// Lists that are [`Due::Passing`].
    passing: BTreeSet<u64>,
    /// Lists that readers wait for.
    wanted: BTreeSet<u64>,
    /// Times of lists that are [`Due::Passing`], [`Due::At`] or [`Due::Repeat`].
    timers: BTreeSet<(Instant, u64)>,
    /// Highest segment of which a leaf arrived.
    newest: u64,
    /// Whether the cast brings leaf lists.
    is_in_cast: bool,
}

impl Needed {
    /// Sets whether the cast brings leaf lists, so that they need not be requested at once.
    pub(super) fn set_in_cast(&mut self, is_in_cast: bool) {
        self.is_in_cast = is_in_cast;
    }

    /// Whether the cast brings leaf lists.
    pub(super) fn is_in_cast(&self) -> bool {
        self.is_in_cast
    }

    /// Whether no list is needed.
    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Whether this list is needed.
    pub(super) fn contains(&self, segment: u64) -> bool {
        self.lists.contains_key(&segment)
    }

    /// Adds the list of a segment of which leaves arrived. `is_wanted`: a reader waits for one,
    /// which may not have arrived yet.
    pub(super) fn add(&mut self, segment: u64, is_wanted: bool) {
        self.newest = self.newest.max(segment);
        let due = if is_wanted { Due::Wanted } else { Due::Arrived };
        if is_wanted {
            self.wanted.insert(segment);
        }
        match self.lists.get(&segment) {
            None => self.set(segment, due),
            Some(Due::Arrived | Due::Passing(_)) if is_wanted => self.set(segment, due),
            // Otherwise each further leaf would put the request off.
            Some(_) => {}
        }
    }

    fn is_requested(&self, segment: u64) -> bool {
        matches!(self.lists.get(&segment), Some(Due::Repeat(_) | Due::Requested))
    }

    /// Adds a list that came without the value of a leaf that arrived.
    pub(super) fn add_incomplete(&mut self, segment: u64) {
        self.set(segment, Due::Incomplete);
    }

    /// Removes a list that came, or is of no more use.
    pub(super) fn remove(&mut self, segment: u64) {
        if let Some(before) = self.lists.remove(&segment) {
            self.unlink(segment, before);
            self.wanted.remove(&segment);
        }
    }

    fn set(&mut self, segment: u64, due: Due) {
        if let Some(before) = self.lists.insert(segment, due) {
            self.unlink(segment, before);
        }
        match due {
            Due::Arrived | Due::Wanted | Due::Incomplete => {
                self.undecided.insert(segment);
            }
            Due::Passing(at) => {
                self.passing.insert(segment);
                self.timers.insert((at, segment));
            }
            Due::At(at) | Due::Repeat(at) => {
                self.timers.insert((at, segment));
            }
            Due::Requested => {}
        }
    }

    fn unlink(&mut self, segment: u64, due: Due) {
        match due {
            Due::Arrived | Due::Wanted | Due::Incomplete => {
                self.undecided.remove(&segment);
            }
            Due::Passing(at) => {
                self.passing.remove(&segment);
                self.timers.remove(&(at, segment));
            }
            Due::At(at) | Due::Repeat(at) => {
                self.timers.remove(&(at, segment));
            }
            Due::Requested => {}
        }
    }

    /// Decides when to request lists: those that the cast brings are waited for.
    fn decide(&mut self, now: Instant) {
        let is_passed = |segment: u64| !self.is_in_cast || segment < self.newest;
        let passed: Vec<_> = if self.is_in_cast {
            self.passing.range(..self.newest).copied().collect()
        } else {
            self.passing.iter().copied().collect()
        };
        let patience = |patience| if self.is_in_cast { patience } else { Duration::ZERO };
        let (of_stream, of_reader) = (patience(CAST_PATIENCE), patience(READER_PATIENCE));
        let decided: Vec<_> = (self.undecided.iter())
            .map(|segment| match self.lists[segment] {
                Due::Wanted => (*segment, Due::At(now + of_reader)),
                Due::Incomplete => (*segment, Due::At(now + UNKNOWN_PAUSE)),
                _ if is_passed(*segment) => (*segment, Due::At(now + of_stream)),
                _ => (*segment, Due::Passing(now + STREAM_PATIENCE)),
            })
            .chain(passed.into_iter().map(|segment| (segment, Due::At(now + of_stream))))
            .collect();
        for (segment, due) in decided {
            self.set(segment, due);
        }
        debug_assert!(self.undecided.is_empty(), "a list would never be requested");
        debug_assert!(
            self.timers.len() <= self.lists.len(),
            "a timer of a list that is not needed"
        );
    }

    /// Returns the run of segments whose lists to request now, at most `most`: one that a reader
    /// waits for, else the one that is due longest, and those behind it. They count as requested.
    /// `is_for_readers`: only those that readers wait for.
    pub(super) fn poll(
        &mut self,
        now: Instant,
        most: u64,
        is_for_readers: bool,
    ) -> Option<Range<u64>> {
        self.decide(now);
        let (_, longest) = *self.timers.first().filter(|(at, _)| *at <= now)?;
        let is_due = |segment: &u64| self.time_of(*segment).is_some_and(|at| at <= now);
        let wanted = self.wanted.iter().copied().find(is_due);
        let first = wanted.or_else(|| (!is_for_readers).then_some(longest))?;
        let run = first..first + (first..first + most).take_while(is_due).count() as u64;
        for segment in run.clone() {
            let is_repeated = matches!(self.lists.get(&segment), Some(Due::Repeat(_)));
            let is_first = self.wanted.contains(&segment) && !is_repeated;
            let repeat_at = is_first.then(|| now + REPEAT_PAUSE);
            self.set(segment, repeat_at.map_or(Due::Requested, Due::Repeat));
        }
        Some(run)
    }

    /// Handles the end of a request. Lists that did not come are due again.
    pub(super) fn handle_answer(&mut self, segments: &Range<u64>, now: Instant) {
        for segment in segments.clone() {
            if self.is_requested(segment) {
                self.set(segment, Due::At(now));
            }
        }
    }

    /// Returns the time of a list that has one.
    fn time_of(&self, segment: u64) -> Option<Instant> {
        match self.lists.get(&segment)? {
            Due::At(at) | Due::Passing(at) | Due::Repeat(at) => Some(*at),
            Due::Arrived | Due::Wanted | Due::Incomplete | Due::Requested => None,
        }
    }

    /// When [`Self::poll`] is due, as far as it is decided.
    pub(super) fn poll_timeout(&self, is_for_readers: bool) -> Option<Instant> {
        if is_for_readers {
            return self.wanted.iter().filter_map(|segment| self.time_of(*segment)).min();
        }
        self.timers.first().map(|(at, _)| *at)
    }
}
