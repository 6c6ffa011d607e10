//! Events of the simulation, on a clock that jumps from one to the next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Planned events, earliest first. Simultaneous ones stay in the order of planning.
#[derive(Debug)]
pub(super) struct Agenda<T> {
    entries: BinaryHeap<Reverse<Entry<T>>>,
    planned: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at: Instant,
    number: u64,
    what: T,
}

impl<T> Entry<T> {
    fn key(&self) -> (Instant, u64) {
        (self.at, self.number)
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl<T> Agenda<T> {
    /// Creates an agenda without events.
    pub(super) fn new() -> Self {
        Self { entries: BinaryHeap::new(), planned: 0 }
    }

    /// Plans the event `what` for the time `at`.
    pub(super) fn plan(&mut self, at: Instant, what: T) {
        self.entries.push(Reverse(Entry { at, number: self.planned, what }));
        self.planned += 1;
    }

    /// Returns the next event.
    pub(super) fn pop(&mut self) -> Option<(Instant, T)> {
        self.entries.pop().map(|Reverse(entry)| (entry.at, entry.what))
    }
}
