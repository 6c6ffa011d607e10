//! Scheduled events of the simulation. Its clock jumps from one event to the next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Scheduled events, earliest first. Simultaneous events stay in the order of scheduling.
#[derive(Debug)]
pub(super) struct EventQueue<T> {
    entries: BinaryHeap<Reverse<Entry<T>>>,
    /// Number of events scheduled so far.
    scheduled: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at: Instant,
    /// Position in the order of scheduling.
    number: u64,
    event: T,
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

impl<T> EventQueue<T> {
    /// Creates an empty queue.
    pub(super) fn new() -> Self {
        Self { entries: BinaryHeap::new(), scheduled: 0 }
    }

    /// Schedules `event` for the time `at`.
    pub(super) fn schedule(&mut self, at: Instant, event: T) {
        self.entries.push(Reverse(Entry { at, number: self.scheduled, event }));
        self.scheduled += 1;
    }

    /// Removes and returns the next event.
    pub(super) fn pop(&mut self) -> Option<(Instant, T)> {
        self.entries.pop().map(|Reverse(entry)| (entry.at, entry.event))
    }
}
