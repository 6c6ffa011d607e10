//! A sign of life for members that hear nothing: who fetches the file itself goes on listening, and comes back when it
//! hears something. docs/PROTOCOL.md, "Unicast".

use std::time::{Duration, Instant};

use super::members::Members;

/// Between two beacons of a cast that all have left to themselves.
const INTERVAL: Duration = Duration::from_secs(5);

/// When a cast whose members all fetch the file themselves sends a beacon.
#[derive(Debug)]
pub(super) struct Recall {
    next: Instant,
}

impl Recall {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now }
    }

    /// When the next one is due; `None` while there is anybody else, who makes more noise than this.
    pub(super) fn poll_at(&self, members: &Members) -> Option<Instant> {
        (members.hearing() == 0 && members.unicast() > 0).then_some(self.next)
    }

    /// One was sent, or nobody is left but those who hear nothing.
    pub(super) fn begin(&mut self, now: Instant) {
        self.next = now + INTERVAL;
    }
}
