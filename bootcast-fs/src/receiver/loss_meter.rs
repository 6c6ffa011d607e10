//! Counts what was sent and received from beacon to beacon, and decides when the panel reports it.
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

/// Counters of a cast since this client joined it, by its newest beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CastCounts {
    /// Rate at which the server sends, in kbit/s.
    pub rate_kbps: u32,
    /// Datagrams that the server sent.
    pub sent: u64,
    /// Datagrams of these that arrived.
    pub received: u64,
}

/// Counters of one membership, from which the server learns the loss rate, and its part in the
/// panel.
///
/// Only datagrams between two beacons are reported: of those after the newest beacon, the number
/// sent is unknown.
#[derive(Debug, Default)]
pub(super) struct LossMeter {
    /// Counts since the join. `sent` is that of the newest beacon.
    current: Counts,
    /// Counts at the first beacon of this membership.
    first: Option<Counts>,
    /// Counts at the newest beacon.
    newest: Counts,
    /// Rate of the newest beacon, in kbit/s.
    rate_kbps: u32,
    /// Counts in the last report, and its time.
    reported: Counts,
    reported_at: Option<Instant>,
    due: Option<Instant>,
    /// Whether the newest beacon puts this member in the panel.
    is_chosen: bool,
}

impl LossMeter {
    /// Starts a membership.
    pub(super) fn begin(&mut self) {
        *self = Self::default();
    }

    /// Counts a received page or symbol.
    pub(super) fn received(&mut self) {
        self.current.received += 1;
    }

    /// Counts datagrams that the sockets had no room for.
    pub(super) fn dropped(&mut self, datagrams: u64) {
        self.current.drops += datagrams;
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
        self.current.sent = pace.sent;
        self.newest = self.current;
        self.rate_kbps = pace.rate_kbps;
        let first = self.first.get_or_insert(self.current);
        debug_assert!(
            first.received <= self.newest.received && first.drops <= self.newest.drops,
            "the newest beacon came before the first"
        );
        self.is_chosen = is_chosen;
        let interval = Duration::from_millis(pace.interval_ms.into());
        if !is_chosen || interval.is_zero() {
            self.due = None;
        } else if self.due.is_none() && self.counts().sent > self.reported.sent {
            self.due =
                Some(self.reported_at.map_or_else(|| now + draw(interval), |at| at + interval));
        }
    }

    /// Datagrams that the server sent, by the newest beacon.
    pub(super) fn sent(&self) -> u64 {
        self.current.sent
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

    /// Counters for the user; `None` before the first beacon.
    pub(super) fn cast_counts(&self) -> Option<CastCounts> {
        self.first?;
        let Counts { sent, received, .. } = self.counts();
        Some(CastCounts { rate_kbps: self.rate_kbps, sent, received })
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
    pub(super) fn add_to(&mut self, report: &mut Report, now: Instant) {
        let asks = !report.needs.is_empty() || !report.bulk.is_empty();
        if asks && !self.is_chosen {
            return;
        }
        self.reported = self.counts();
        self.reported_at = Some(now);
        self.due = None;
        let Counts { sent, received, drops } = self.reported;
        debug_assert!(
            received <= self.current.received && drops <= self.current.drops,
            "more is reported than came"
        );
        (report.sent, report.received, report.drops) = (sent, received, drops);
        report.seen = self.newest.sent;
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use bootcast_proto::Share;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn beacon(meter: &mut LossMeter, sent: u64, is_chosen: bool, now: Instant) {
        let pace = Pace { sent, rate_kbps: 1000, panel: Share(1), interval_ms: 250 };
        meter.beacon(&pace, is_chosen, |longest| longest / 2, now);
    }

    fn reported(meter: &mut LossMeter, now: Instant) -> (u64, u64, u64) {
        let mut report = Report::default();
        meter.add_to(&mut report, now);
        (report.sent, report.received, report.drops)
    }

    #[test]
    fn what_is_told_lies_between_the_first_beacon_and_the_newest() {
        let now = Instant::now();
        let mut meter = LossMeter::default();
        meter.received();
        assert_eq!(reported(&mut meter, now), (0, 0, 0));
        beacon(&mut meter, 1000, false, now);
        for _ in 0..3 {
            meter.received();
        }
        meter.dropped(2);
        beacon(&mut meter, 1005, false, now);
        meter.received();
        meter.dropped(1);
        assert_eq!(reported(&mut meter, now), (5, 3, 2));
        meter.begin();
        beacon(&mut meter, 9, false, now);
        assert_eq!(reported(&mut meter, now), (0, 0, 0));
    }

    #[test]
    fn a_chosen_member_reports_once_an_interval_while_something_is_sent() {
        let mut now = Instant::now();
        let mut meter = LossMeter::default();
        beacon(&mut meter, 10, true, now);
        assert_eq!(meter.due(), None, "nothing was sent between two beacons");
        beacon(&mut meter, 20, true, now);
        assert_eq!(meter.due(), Some(now + 125 * MS));
        now += 125 * MS;
        assert!(meter.is_due(now));
        assert_eq!(reported(&mut meter, now), (10, 0, 0));
        assert_eq!(meter.due(), None);
        beacon(&mut meter, 20, true, now + 25 * MS);
        assert_eq!(meter.due(), None, "nothing was sent since");
        beacon(&mut meter, 21, true, now + 50 * MS);
        assert_eq!(meter.due(), Some(now + 250 * MS));
        beacon(&mut meter, 22, false, now + 75 * MS);
        assert_eq!(meter.due(), None, "others are chosen");
    }

    #[test]
    fn who_is_not_chosen_tells_what_it_lacks_without_counters() {
        let now = Instant::now();
        let reported = |is_chosen, needs: &[(u32, u8)], bulk: &[(u32, u32)]| {
            let mut meter = LossMeter::default();
            beacon(&mut meter, 10, is_chosen, now);
            beacon(&mut meter, 20, is_chosen, now);
            let (needs, bulk) = (needs.to_vec(), bulk.to_vec());
            let mut report = Report { needs, bulk, ..Report::default() };
            meter.add_to(&mut report, now);
            report.sent
        };
        assert_eq!((reported(false, &[(1, 1)], &[]), reported(false, &[], &[(1, 1)])), (0, 0));
        assert_eq!((reported(true, &[(1, 1)], &[]), reported(true, &[], &[(1, 1)])), (10, 10));
        assert_eq!(reported(false, &[], &[]), 10, "a lease that is renewed");
    }

    #[test]
    fn a_server_that_wants_no_panel_or_counts_backwards_gets_none() {
        let now = Instant::now();
        let mut meter = LossMeter::default();
        beacon(&mut meter, u64::MAX, true, now);
        beacon(&mut meter, 0, true, now);
        assert_eq!((meter.due(), reported(&mut meter, now)), (None, (0, 0, 0)));
        let silent = Pace { sent: u64::MAX, ..Pace::default() };
        meter.beacon(&silent, true, |longest| longest, now);
        assert_eq!(meter.due(), None);
    }
}
