//! Signs of life for a cast that reaches none of its members. They fetch the file over HTTP, listen
//! on, and return to multicast when pages arrive. docs/PROTOCOL.md, "Unicast".

use std::time::{Duration, Instant};

use bootcast_proto::PageRange;

use super::members::Members;

/// Time between two beacons.
const INTERVAL: Duration = Duration::from_secs(5);
/// Pages that follow each beacon: it proves only that the repair port is open. Members return to
/// multicast after eight new ones in a row.
const PAGES: u32 = 16;

/// Decides when a cast that reaches nobody sends a beacon and a few pages.
#[derive(Debug)]
pub(super) struct MulticastProbe {
    next: Instant,
    /// Pages that follow the last beacon and were not sent yet.
    owed: u32,
    /// The next pages end here. They are taken from the end of the file, because members fetch it
    /// from the beginning: what they have already tells them less.
    end: u32,
    pages_sent: u64,
}

impl MulticastProbe {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, owed: 0, end: 0, pages_sent: 0 }
    }

    /// When something is due; `None` while any member receives datagrams, because the cast then
    /// sends anyway.
    pub(super) fn poll_at(&self, members: &Members) -> Option<Instant> {
        let is_alone = members.hearing() == 0 && members.unreached() > 0;
        // The pages are due since the beacon.
        let at = if self.owed > 0 { self.next.checked_sub(INTERVAL) } else { Some(self.next) };
        at.filter(|_| is_alone)
    }

    /// Restarts the interval: the last receiving member is gone.
    pub(super) fn begin(&mut self, now: Instant) {
        self.next = now + INTERVAL;
        self.owed = 0;
    }

    /// A beacon was sent.
    pub(super) fn on_beacon(&mut self, now: Instant) {
        self.begin(now);
        self.owed = PAGES;
    }

    /// Whether a beacon is what is due.
    pub(super) fn owes_beacon(&self) -> bool {
        self.owed == 0
    }

    /// The pages that follow the last beacon, of a file of so many.
    pub(super) fn poll_pages(&mut self, pages: u32, budget: u32) -> Option<PageRange> {
        if self.owed == 0 || pages == 0 {
            return None;
        }
        let end = if self.end == 0 { pages } else { self.end };
        let count = self.owed.min(budget).min(end);
        (self.end, self.owed) = (end - count, self.owed - count);
        let range = PageRange::new(self.end, end);
        self.pages_sent += u64::from(range.len());
        Some(range)
    }

    /// Pages sent by this.
    pub(super) fn pages_sent(&self) -> u64 {
        self.pages_sent
    }
}
