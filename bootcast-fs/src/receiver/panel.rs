//! Counts what was sent and received from beacon to beacon, and decides when to report it.
//! docs/PROTOCOL.md, "Rate".

use std::time::{Duration, Instant};

use bootcast_proto::api::Report;
use bootcast_proto::wire::Pace;

/// Counts of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Sent by the server: pages and symbols.
    sent: u64,
    /// Received here, useful or not.
    received: u64,
    /// Dropped by this machine's sockets.
    drops: u64,
}

/// Counters of one membership, and its part in the panel.
///
/// Only datagrams between two beacons are reported: of those after the newest beacon, the number
/// sent is unknown.
#[derive(Debug, Default)]
pub(super) struct Panel {
    /// Counts since the join. `sent` is that of the newest beacon.
    now: Counts,
    /// Counts at the first beacon of this membership.
    first: Option<Counts>,
    /// Counts at the newest beacon.
    newest: Counts,
    /// Counts in the last report.
    told: Counts,
    told_at: Option<Instant>,
    due: Option<Instant>,
    /// Whether the newest beacon puts this member in the panel.
    is_chosen: bool,
}

impl Panel {
    /// Starts a membership.
    pub(super) fn begin(&mut self) {
        *self = Self::default();
    }

    /// Counts a received page or symbol.
    pub(super) fn received(&mut self) {
        self.now.received += 1;
    }

    /// Counts datagrams that the sockets had no room for.
    pub(super) fn dropped(&mut self, datagrams: u64) {
        self.now.drops += datagrams;
    }

    /// Handles a beacon newer than all before. `is_chosen` puts this member in the panel. `draw`
    /// returns a random time up to its argument, so that members do not report all at once.
    pub(super) fn beacon(
        &mut self,
        pace: &Pace,
        is_chosen: bool,
        draw: impl FnOnce(Duration) -> Duration,
        now: Instant,
    ) {
        self.now.sent = pace.sent;
        self.newest = self.now;
        let first = self.first.get_or_insert(self.now);
        debug_assert!(
            first.received <= self.newest.received && first.drops <= self.newest.drops,
            "the newest beacon came before the first"
        );
        self.is_chosen = is_chosen;
        let interval = Duration::from_millis(pace.interval_ms.into());
        if !is_chosen || interval.is_zero() {
            self.due = None;
        } else if self.due.is_none() && self.counts().sent > self.told.sent {
            self.due = Some(self.told_at.map_or_else(|| now + draw(interval), |at| at + interval));
        }
    }

    /// Datagrams that the server sent, by the newest beacon.
    pub(super) fn sent(&self) -> u64 {
        self.now.sent
    }

    /// Counts from the first beacon to the newest.
    fn counts(&self) -> Counts {
        let Some(first) = self.first else { return Counts::default() };
        Counts {
            sent: self.newest.sent.saturating_sub(first.sent),
            received: self.newest.received - first.received,
            drops: self.newest.drops - first.drops,
        }
    }

    /// Whether a report of counters is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// When a report of counters is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Adds the counters to a report that is being sent, for whatever reason.
    ///
    /// Leaves them out of needs of members outside the panel: members with heavy loss report often
    /// and would count for more than they are.
    pub(super) fn tell(&mut self, report: &mut Report, now: Instant) {
        let asks = !report.needs.is_empty() || !report.bulk.is_empty();
        if asks && !self.is_chosen {
            return;
        }
        self.told = self.counts();
        self.told_at = Some(now);
        self.due = None;
        let Counts { sent, received, drops } = self.told;
        debug_assert!(
            received <= self.now.received && drops <= self.now.drops,
            "more is reported than came"
        );
        (report.sent, report.received, report.drops) = (sent, received, drops);
        report.seen = self.newest.sent;
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn beacon(panel: &mut Panel, sent: u64, is_chosen: bool, now: Instant) {
        let pace = Pace { sent, rate_kbps: 1000, panel: 1, interval_ms: 250 };
        panel.beacon(&pace, is_chosen, |longest| longest / 2, now);
    }

    fn told(panel: &mut Panel, now: Instant) -> (u64, u64, u64) {
        let mut report = Report::default();
        panel.tell(&mut report, now);
        (report.sent, report.received, report.drops)
    }

    #[test]
    fn what_is_told_lies_between_the_first_beacon_and_the_newest() {
        let now = Instant::now();
        let mut panel = Panel::default();
        panel.received();
        assert_eq!(told(&mut panel, now), (0, 0, 0));
        beacon(&mut panel, 1000, false, now);
        for _ in 0..3 {
            panel.received();
        }
        panel.dropped(2);
        beacon(&mut panel, 1005, false, now);
        panel.received();
        panel.dropped(1);
        assert_eq!(told(&mut panel, now), (5, 3, 2));
        panel.begin();
        beacon(&mut panel, 9, false, now);
        assert_eq!(told(&mut panel, now), (0, 0, 0));
    }

    #[test]
    fn a_chosen_member_reports_once_an_interval_while_something_is_sent() {
        let mut now = Instant::now();
        let mut panel = Panel::default();
        beacon(&mut panel, 10, true, now);
        assert_eq!(panel.due(), None, "nothing was sent between two beacons");
        beacon(&mut panel, 20, true, now);
        assert_eq!(panel.due(), Some(now + 125 * MS));
        now += 125 * MS;
        assert!(panel.is_due(now));
        assert_eq!(told(&mut panel, now), (10, 0, 0));
        assert_eq!(panel.due(), None);
        beacon(&mut panel, 20, true, now + 25 * MS);
        assert_eq!(panel.due(), None, "nothing was sent since");
        beacon(&mut panel, 21, true, now + 50 * MS);
        assert_eq!(panel.due(), Some(now + 250 * MS));
        beacon(&mut panel, 22, false, now + 75 * MS);
        assert_eq!(panel.due(), None, "others are chosen");
    }

    #[test]
    fn who_is_not_chosen_tells_what_it_lacks_without_counters() {
        let now = Instant::now();
        let told = |is_chosen, needs: &[(u32, u8)], bulk: &[(u32, u32)]| {
            let mut panel = Panel::default();
            beacon(&mut panel, 10, is_chosen, now);
            beacon(&mut panel, 20, is_chosen, now);
            let (needs, bulk) = (needs.to_vec(), bulk.to_vec());
            let mut report = Report { needs, bulk, ..Report::default() };
            panel.tell(&mut report, now);
            report.sent
        };
        assert_eq!((told(false, &[(1, 1)], &[]), told(false, &[], &[(1, 1)])), (0, 0));
        assert_eq!((told(true, &[(1, 1)], &[]), told(true, &[], &[(1, 1)])), (10, 10));
        assert_eq!(told(false, &[], &[]), 10, "a lease that is renewed");
    }

    #[test]
    fn a_server_that_wants_no_panel_or_counts_backwards_gets_none() {
        let now = Instant::now();
        let mut panel = Panel::default();
        beacon(&mut panel, u64::MAX, true, now);
        beacon(&mut panel, 0, true, now);
        assert_eq!((panel.due(), told(&mut panel, now)), (None, (0, 0, 0)));
        let silent = Pace { sent: u64::MAX, ..Pace::default() };
        panel.beacon(&silent, true, |longest| longest, now);
        assert_eq!(panel.due(), None);
    }
}
