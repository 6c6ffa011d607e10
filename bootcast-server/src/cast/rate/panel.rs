//! Evaluates the members' counters of the last interval.
//!
//! Members may send any numbers. Therefore each member counts once per interval, and for no more
//! datagrams than were sent. Of two or more members the worst is left out.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bootcast_proto::Token;
use bootcast_proto::api::Report;

/// Most members whose counters are kept. More report only if they ignore the panel that beacons
/// state.
const MAX_MEMBERS: usize = 256;

/// Fewest datagrams in a sample. If fewer were sent, they are counted with the next ones.
const MIN_SAMPLE_DATAGRAMS: u64 = 32;

/// Number of intervals over which network loss is averaged: 2 s.
const LOSS_INTERVALS: usize = 8;

/// Fewest intervals of network loss that make an average.
const MIN_LOSS_INTERVALS: usize = 4;

/// Number of intervals over which drops in sockets are averaged: 3 s. A machine that is busy for a
/// moment is not too slow.
const DROPS_INTERVALS: usize = 12;

/// Silence after which a member's counters start again.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(5);

/// 1 / this is the fraction of members left out as outliers.
const OUTLIER_DIVISOR: usize = 20;

/// Losses of the panel, as shares of the datagrams sent. "The worst twentieth" stands for the 95th
/// percentile: the loss that all but a twentieth of the members do not exceed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct PanelSummary {
    /// Median network loss in this interval.
    pub(super) median: f64,
    /// Median of each member's lesser network loss of this interval and the one before; `None`
    /// until most members have both. Late datagrams, or a moment in which a machine did not run,
    /// raise the loss of only one of them.
    pub(super) sustained_median: Option<f64>,
    /// Network loss of the worst twentieth in this interval.
    pub(super) worst: f64,
    /// Average network loss of the worst twentieth; `None` until most members have enough
    /// intervals.
    pub(super) worst_average: Option<f64>,
    /// Drops in sockets of the worst twentieth in this interval.
    pub(super) worst_drops: f64,
    /// Average drops in sockets of the worst twentieth.
    pub(super) worst_drops_average: f64,
    /// Share that the worst twentieth received, on average.
    pub(super) delivered: f64,
    /// Median number of datagrams sent in a member's interval. The fewer, the larger is the part of
    /// chance in the losses.
    pub(super) datagrams: u64,
    /// Median of the newest datagram that each report counts, numbered from the start of the cast;
    /// 0 if not known.
    pub(super) seen: u64,
}

impl PanelSummary {
    /// Asserts that losses are shares, whatever numbers members state.
    fn assert_invariants(&self) {
        let losses = [self.median, self.worst, self.worst_drops, self.worst_drops_average];
        let averages = [self.sustained_median, self.worst_average, Some(self.delivered)];
        let mut shares = losses.into_iter().chain(averages.into_iter().flatten());
        debug_assert!(shares.all(|share| (0.0..=1.0).contains(&share)), "{self:?}");
    }
}

/// Datagrams of one member in one interval.
#[derive(Clone, Copy, Debug)]
struct Sample {
    sent: u64,
    /// Datagrams of these that the network lost.
    lost: u64,
    /// Datagrams of these that a socket dropped.
    drops: u64,
}

/// Counters and samples of one member.
#[derive(Debug, Default)]
struct Member {
    /// Counters of the last accepted report.
    counters: Counters,
    /// Time of that report.
    reported_at: Option<Instant>,
    /// Newest datagram that it counts; 0 if not known.
    seen: u64,
    /// Samples of the last [`DROPS_INTERVALS`], oldest first.
    samples: VecDeque<Sample>,
    /// Whether the last sample has not been evaluated yet.
    is_fresh: bool,
}

/// Counters in a report, since the start of the membership.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    sent: u64,
    received: u64,
    drops: u64,
}

impl Counters {
    /// Returns the growth since `before`; `None` if any counter fell.
    fn since(self, before: Self) -> Option<Self> {
        Some(Self {
            sent: self.sent.checked_sub(before.sent)?,
            received: self.received.checked_sub(before.received)?,
            drops: self.drops.checked_sub(before.drops)?,
        })
    }
}

/// State of the cast that a report is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReportContext {
    /// Datagrams sent in the last seconds: the most that a report can count.
    pub(super) recently_sent: u64,
    /// Time between two reports of a member.
    pub(super) interval: Duration,
    /// Last change of the rate that makes earlier losses meaningless.
    pub(super) cutoff: Option<Cutoff>,
}

/// Change of the rate that makes the losses before it meaningless.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cutoff {
    /// Datagrams that were sent before the change.
    pub(super) sent: u64,
    /// Reports without `seen` are ignored until then.
    pub(super) until: Instant,
}

impl Cutoff {
    /// Whether a sample of `datagrams` datagrams was sent after the change. `seen` is the newest of
    /// them; 0 if not known.
    fn admits(&self, datagrams: u64, seen: u64, now: Instant) -> bool {
        let first = seen.saturating_sub(datagrams);
        if seen == 0 { self.until <= now } else { first >= self.sent }
    }
}

/// Members that report counters.
#[derive(Debug, Default)]
pub(super) struct Panel {
    members: BTreeMap<Token, Member>,
}

impl Panel {
    /// Takes over the counters of a member, at most once per interval.
    pub(super) fn handle_report(
        &mut self,
        token: &Token,
        report: &Report,
        context: &ReportContext,
        now: Instant,
    ) {
        if report.sent == 0 || !self.has_room_for(token, now) {
            return;
        }
        let Report { sent, received, drops, .. } = *report;
        let counters = Counters { sent, received, drops };
        let member = self.members.entry(token.clone()).or_default();
        // A little less than an interval, because reports are not that punctual.
        if member.reported_at.is_some_and(|at| now < at + context.interval * 3 / 4) {
            return;
        }
        let growth = counters.since(member.counters);
        if growth.is_some_and(|it| it.sent < MIN_SAMPLE_DATAGRAMS) {
            return;
        }
        let datagrams = growth.map_or(0, |it| it.sent);
        let is_recent = member.reported_at.is_none_or(|at| now < at + MEMBER_TIMEOUT);
        (member.counters, member.reported_at, member.seen) = (counters, Some(now), report.seen);
        // A bottleneck lets some datagrams through. A path that loses all of them is blocked at any
        // rate, so such a sample says nothing about the rate.
        let is_usable = |it: &Counters| {
            let is_present =
                context.cutoff.is_none_or(|cutoff| cutoff.admits(datagrams, report.seen, now));
            it.sent <= context.recently_sent && it.received > 0 && is_recent && is_present
        };
        let Some(growth) = growth.filter(is_usable) else { return };
        let missing = growth.sent.saturating_sub(growth.received);
        let drops = growth.drops.min(missing);
        member.samples.push_back(Sample { sent: growth.sent, lost: missing - drops, drops });
        if member.samples.len() > DROPS_INTERVALS {
            member.samples.pop_front();
        }
        member.is_fresh = true;
        debug_assert!(self.members.len() <= MAX_MEMBERS, "the panel would grow without end");
    }

    /// Whether the member's counters are kept or can be. Makes room by forgetting silent members.
    fn has_room_for(&mut self, token: &Token, now: Instant) -> bool {
        if self.members.len() >= MAX_MEMBERS && !self.members.contains_key(token) {
            let is_alive =
                |member: &Member| member.reported_at.is_some_and(|at| now < at + MEMBER_TIMEOUT);
            self.members.retain(|_, member| is_alive(member));
        }
        self.members.len() < MAX_MEMBERS || self.members.contains_key(token)
    }

    /// Forgets a member.
    pub(super) fn forget(&mut self, token: &Token) {
        self.members.remove(token);
    }

    /// Drops all samples, because they say nothing about the new rate.
    pub(super) fn forget_samples(&mut self) {
        for member in self.members.values_mut() {
            member.samples.clear();
            member.is_fresh = false;
        }
    }

    /// Evaluates the members that reported since the last call; `None` if none did.
    pub(super) fn summary(&mut self) -> Option<PanelSummary> {
        let fresh: Vec<&mut Member> =
            self.members.values_mut().filter(|member| member.is_fresh).collect();
        if fresh.is_empty() {
            return None;
        }
        let ranked = |of: fn(&Member) -> f64| {
            let mut shares: Vec<f64> = fresh.iter().map(|member| of(member)).collect();
            shares.sort_unstable_by(f64::total_cmp);
            shares
        };
        let latest = ranked(|it| it.average(1, |sample| sample.lost));
        let average = ranked(|it| it.average(LOSS_INTERVALS, |sample| sample.lost));
        let latest_drops = ranked(|it| it.average(1, |sample| sample.drops));
        let average_drops = ranked(Member::average_drops);
        let missing = ranked(|it| it.average(LOSS_INTERVALS, |sample| sample.lost + sample.drops));
        let sustained = ranked(Member::sustained_loss);
        let mut datagrams: Vec<u64> = fresh.iter().map(|it| it.datagrams()).collect();
        datagrams.sort_unstable();
        let mut seen: Vec<u64> = fresh.iter().map(|it| it.seen).collect();
        seen.sort_unstable();
        let middle = (fresh.len() - 1) / 2;
        let most_have = |intervals| {
            fresh.iter().filter(|it| it.samples.len() >= intervals).count() * 2 > fresh.len()
        };
        let summary = PanelSummary {
            median: latest[middle],
            sustained_median: most_have(2).then(|| sustained[middle]),
            worst: worst(&latest),
            worst_average: most_have(MIN_LOSS_INTERVALS).then(|| worst(&average)),
            worst_drops: worst(&latest_drops),
            worst_drops_average: worst(&average_drops),
            delivered: 1.0 - worst(&missing),
            datagrams: datagrams[middle],
            // The upper median: of two members, one with old reports must not stop the growth.
            seen: seen[seen.len() / 2],
        };
        for member in fresh {
            member.is_fresh = false;
        }
        summary.assert_invariants();
        Some(summary)
    }
}

impl Member {
    /// Returns the share of the datagrams of the last `intervals` intervals that `count` counts.
    fn average(&self, intervals: usize, count: fn(&Sample) -> u64) -> f64 {
        let samples = || self.samples.iter().rev().take(intervals);
        share(samples().map(count).sum(), samples().map(|sample| sample.sent).sum())
    }

    /// Returns the lesser network loss of the last two intervals.
    fn sustained_loss(&self) -> f64 {
        let latest = self.samples.iter().rev().take(2);
        latest.map(|sample| share(sample.lost, sample.sent)).fold(1.0, f64::min)
    }

    /// Returns the number of datagrams sent in the last interval.
    fn datagrams(&self) -> u64 {
        self.samples.back().map_or(0, |sample| sample.sent)
    }

    /// Returns the average drops in sockets. Missing intervals count as without drops, so that only
    /// long or large drops prove a machine too slow.
    fn average_drops(&self) -> f64 {
        let shares = self.samples.iter().map(|sample| share(sample.drops, sample.sent));
        shares.sum::<f64>() / to_f64(DROPS_INTERVALS as u64)
    }
}

/// Returns the value that all but the worst twentieth do not exceed. Of 2 to 39 members one is left
/// out: rounding favours speed.
fn worst(ranked: &[f64]) -> f64 {
    let left_out = (ranked.len() / OUTLIER_DIVISOR).max(1);
    let rank = ranked.len().saturating_sub(left_out + 1);
    ranked.get(rank).copied().unwrap_or_default()
}

fn share(part: u64, whole: u64) -> f64 {
    to_f64(part) / to_f64(whole.max(1))
}

#[expect(clippy::cast_precision_loss, reason = "shares, to a few digits")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(250);

    /// A panel of members that report once per interval.
    struct Lab {
        panel: Panel,
        now: Instant,
        /// Last report of each member.
        reports: BTreeMap<u128, Report>,
        cutoff: Option<Cutoff>,
    }

    impl Lab {
        fn new() -> Self {
            let (panel, reports) = (Panel::default(), BTreeMap::new());
            Self { panel, now: Instant::now(), reports, cutoff: None }
        }

        /// Sends the next report of a member: of 1000 datagrams the network lost `lost` and the
        /// socket dropped `drops`.
        fn report(&mut self, member: u128, lost: u64, drops: u64) {
            let report = self.reports.entry(member).or_default();
            report.sent += 1000;
            report.received += 1000 - lost - drops;
            report.drops += drops;
            let report = report.clone();
            self.send_report(member, &report);
        }

        fn send_report(&mut self, member: u128, report: &Report) {
            let token = Token::from_random(member);
            let context =
                ReportContext { recently_sent: 20_000, interval: INTERVAL, cutoff: self.cutoff };
            self.panel.handle_report(&token, report, &context, self.now);
        }

        /// Ends the interval and evaluates it.
        fn summary(&mut self) -> Option<PanelSummary> {
            self.now += INTERVAL;
            self.panel.summary()
        }
    }

    fn near(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-9
    }

    #[test]
    fn drops_in_sockets_are_not_network_losses() {
        let mut lab = Lab::new();
        lab.report(1, 30, 200);
        let summary = lab.summary().unwrap();
        assert!(
            near(summary.median, 0.03)
                && near(summary.worst, 0.03)
                && near(summary.delivered, 0.77)
        );
        assert!(near(summary.worst_drops, 0.2));
        assert!(near(summary.worst_drops_average, 0.2 / 12.0), "one interval of twelve");
        assert_eq!(lab.summary(), None, "no report since");
        lab.report(1, 0, 600);
        let summary = lab.summary().unwrap();
        assert!(near(summary.worst_drops, 0.6) && near(summary.worst_drops_average, 0.8 / 12.0));
    }

    #[test]
    fn sustained_loss_is_the_lesser_of_two_intervals() {
        let mut lab = Lab::new();
        lab.report(1, 10, 0);
        assert_eq!(lab.summary().unwrap().sustained_median, None, "one interval only");
        for (lost, sustained) in [(300, 0.01), (0, 0.0), (20, 0.0), (30, 0.02), (25, 0.025)] {
            lab.report(1, lost, 0);
            let summary = lab.summary().unwrap();
            assert!(near(summary.sustained_median.unwrap(), sustained), "{lost}: {summary:?}");
            assert_eq!(summary.datagrams, 1000);
        }
    }

    #[test]
    fn an_interval_in_which_nothing_arrived_does_not_count() {
        let mut lab = Lab::new();
        lab.report(1, 10, 0);
        assert!(lab.summary().is_some());
        lab.report(1, 1000, 0);
        assert_eq!(lab.summary(), None);
        lab.report(1, 10, 0);
        assert!(near(lab.summary().unwrap().sustained_median.unwrap(), 0.01));
    }

    #[test]
    fn two_of_forty_members_are_left_out_and_three_are_not() {
        let mut lab = Lab::new();
        for round in 1..=4 {
            for member in 0..40 {
                let lost = if member < 2 { 900 } else { 10 };
                lab.report(member, lost, 0);
            }
            let summary = lab.summary().unwrap();
            assert!(near(summary.worst, 0.01) && near(summary.delivered, 0.99), "{summary:?}");
            assert_eq!(summary.worst_average.is_some(), round == 4);
        }
        for member in 0..40 {
            lab.report(member, if member < 3 { 900 } else { 10 }, 0);
        }
        let summary = lab.summary().unwrap();
        assert!(near(summary.worst, 0.9) && near(summary.median, 0.01));
    }

    #[test]
    fn the_worst_of_two_or_more_members_is_left_out() {
        for others in [1, 2, 5, 18] {
            let mut lab = Lab::new();
            lab.report(0, 999, 0);
            (1..=others).for_each(|member| lab.report(member, 0, 0));
            let summary = lab.summary().unwrap();
            assert!(near(summary.median, 0.0) && near(summary.worst, 0.0), "{others}: {summary:?}");
        }
    }

    #[test]
    fn impossible_counters_do_not_count() {
        let mut lab = Lab::new();
        let report = |sent, received, drops| Report { sent, received, drops, ..Report::default() };
        for absurd in [
            report(u64::MAX, 0, 0),
            report(0, u64::MAX, u64::MAX),
            report(20_001, 0, 0),
            report(31, 0, 0),
        ] {
            lab.send_report(1, &absurd);
            assert_eq!(lab.summary(), None, "{absurd:?}");
        }
        let mut lab = Lab::new();
        lab.send_report(1, &report(1000, u64::MAX, u64::MAX));
        let summary = lab.summary().unwrap();
        assert!(near(summary.worst, 0.0) && near(summary.delivered, 1.0));
        // Counters that fall start again.
        lab.send_report(1, &report(2000, 100, 0));
        assert_eq!(lab.summary(), None);
        lab.send_report(1, &report(3000, 1000, 500));
        assert!(near(lab.summary().unwrap().delivered, 0.95), "of the two valid samples");
    }

    #[test]
    fn datagrams_sent_before_the_rate_changed_do_not_count() {
        let mut lab = Lab::new();
        let report = |sent, received, seen| Report { sent, received, seen, ..Report::default() };
        let until = lab.now + 4 * INTERVAL;
        lab.cutoff = Some(Cutoff { sent: 5000, until });
        for (sent, received, seen, counts) in [
            (1000, 100, 5999, false),
            (2000, 1100, 6999, true),
            (3000, 1200, u64::MAX, true),
            (4000, 2100, 0, false),
            (5000, 2200, 0, true),
        ] {
            lab.send_report(1, &report(sent, received, seen));
            assert_eq!(lab.summary().is_some(), counts, "{sent} {seen}");
        }
    }

    #[test]
    fn a_flood_of_reports_counts_once_per_interval() {
        let mut lab = Lab::new();
        for _ in 0..10 {
            lab.report(1, 900, 0);
        }
        assert_eq!(lab.panel.members.values().map(|it| it.samples.len()).sum::<usize>(), 1);
    }

    #[test]
    fn the_number_of_members_is_bounded_and_silent_ones_make_room() {
        let mut lab = Lab::new();
        (0..1000).for_each(|member| lab.report(member, 0, 0));
        assert_eq!(lab.panel.members.len(), MAX_MEMBERS);
        lab.now += MEMBER_TIMEOUT;
        lab.report(2000, 0, 0);
        assert_eq!(lab.panel.members.len(), 1);
        lab.panel.forget(&Token::from_random(2000));
        assert!(lab.panel.members.is_empty());
    }

    proptest! {
        #[test]
        fn every_share_is_between_0_and_1_for_any_counters(
            reports in proptest::collection::vec(
                (0u128..4, any::<(u64, u64, u64)>(), 0u32..10_000), 1..60,
            ),
        ) {
            let mut lab = Lab::new();
            for (member, (sent, received, drops), scale) in reports {
                let scaled = |number: u64| number % u64::from(scale.max(1));
                let (sent, received) = (scaled(sent), scaled(received));
                lab.send_report(member, &Report { sent, received, drops, ..Report::default() });
                if let Some(summary) = lab.summary() {
                    let PanelSummary { median, worst, worst_drops, delivered, .. } = summary;
                    let average_drops = summary.worst_drops_average;
                    let sustained = summary.sustained_median.unwrap_or(0.0);
                    let average = summary.worst_average.unwrap_or(0.0);
                    for share in [
                        median, sustained, worst, average, worst_drops, average_drops, delivered,
                    ] {
                        prop_assert!((0.0..=1.0 + 1e-9).contains(&share), "{:?}", summary);
                    }
                }
            }
        }
    }
}
