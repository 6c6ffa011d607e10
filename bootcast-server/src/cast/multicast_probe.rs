//! Multicast probe: a beacon and a few pages, sent now and then by a cast whose members are all
//! deaf. They fetch the file over HTTP, keep listening, and return to multicast when pages arrive.
//! A beacon alone would prove only that the repair port is open, so pages follow it.
//! docs/PROTOCOL.md, "What the server does for deaf members".

use std::time::{Duration, Instant};

use bootcast_proto::PageRange;
use bootcast_proto::limits::PROBE_PAGES;

use super::members::Members;

/// Time between two probes.
const INTERVAL: Duration = Duration::from_secs(5);

/// Schedules the probes of one cast.
#[derive(Debug)]
pub(super) struct MulticastProbe {
    /// When the next beacon is due.
    next_beacon: Instant,
    /// Number of pages that are still to be sent after the last beacon.
    pages_due: u32,
    /// End of the next run of pages; 0 stands for the end of the file. Probes proceed from the end
    /// of the file to its beginning, because members fetch it from the beginning, and pages that
    /// they hold already prove less.
    end: u32,
    pages_sent: u64,
}

impl MulticastProbe {
    pub(super) fn new(now: Instant) -> Self {
        Self { next_beacon: now, pages_due: 0, end: 0, pages_sent: 0 }
    }

    /// Returns when a beacon or a page is due; `None` while any member receives datagrams, because
    /// the cast then sends anyway.
    pub(super) fn poll_at(&self, members: &Members) -> Option<Instant> {
        let are_all_deaf = members.receivers() == 0 && members.deaf() > 0;
        let last_beacon = self.next_beacon.checked_sub(INTERVAL);
        let at = if self.pages_due > 0 { last_beacon } else { Some(self.next_beacon) };
        at.filter(|_| are_all_deaf)
    }

    /// Starts a new interval. Drops the pages that are still to be sent.
    pub(super) fn restart(&mut self, now: Instant) {
        self.next_beacon = now + INTERVAL;
        self.pages_due = 0;
    }

    /// Starts the pages of a probe whose beacon was sent.
    pub(super) fn on_beacon(&mut self, now: Instant) {
        self.restart(now);
        self.pages_due = PROBE_PAGES;
    }

    /// Whether the next datagram of a probe is its beacon.
    pub(super) fn is_beacon_next(&self) -> bool {
        self.pages_due == 0
    }

    /// Returns the next pages that follow the last beacon, at most `budget`. The file has `pages`
    /// pages.
    pub(super) fn poll_pages(&mut self, pages: u32, budget: u32) -> Option<PageRange> {
        if self.pages_due == 0 || pages == 0 {
            return None;
        }
        let end = if self.end == 0 { pages } else { self.end };
        let count = self.pages_due.min(budget).min(end);
        (self.end, self.pages_due) = (end - count, self.pages_due - count);
        assert!(end <= pages, "a probe sends pages up to {end} of a file of {pages}");
        debug_assert!(self.pages_due <= PROBE_PAGES, "a probe sends {} pages", self.pages_due);
        let range = PageRange::new(self.end, end);
        self.pages_sent += u64::from(range.len());
        Some(range)
    }

    /// Returns the number of pages sent by all probes.
    pub(super) fn pages_sent(&self) -> u64 {
        self.pages_sent
    }
}
