//! Keep-alive beacons for a cast whose members all fetch the file over HTTP: they listen on, and
//! return to multicast when a datagram arrives. docs/PROTOCOL.md, "Unicast".

use std::time::{Duration, Instant};

use super::members::Members;

/// Time between two such beacons.
const INTERVAL: Duration = Duration::from_secs(5);

/// Decides when a cast whose members all fetch over HTTP sends a beacon.
#[derive(Debug)]
pub(super) struct Recall {
    next: Instant,
}

impl Recall {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now }
    }

    /// When the next beacon is due; `None` while any member receives datagrams, because the cast
    /// then sends anyway.
    pub(super) fn poll_at(&self, members: &Members) -> Option<Instant> {
        (members.hearing() == 0 && members.unicast() > 0).then_some(self.next)
    }

    /// Restarts the interval: a beacon was sent, or the last receiving member is gone.
    pub(super) fn begin(&mut self, now: Instant) {
        self.next = now + INTERVAL;
    }
}
