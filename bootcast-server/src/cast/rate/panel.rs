//! Evaluates the members' counters of the last interval. Members may send any numbers. So each
//! counts once per interval and for no more than was sent, and of two or more members the worst
//! never counts.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bootcast_proto::Token;
use bootcast_proto::api::Report;

/// Most members whose counters are kept. Only members that ignore the beacons exceed it.
const MEMBERS_MAX: usize = 256;

/// Fewest datagrams in a sample. Fewer are added to the next ones.
const SAMPLE_MIN: u64 = 32;

/// Number of intervals over which network loss is averaged (2 s), and the fewest that suffice.
const NET_INTERVALS: usize = 8;
const NET_INTERVALS_MIN: usize = 4;

/// Number of intervals over which drops in sockets are averaged (3 s): a machine that is busy for a
/// moment is not too slow.
const DROPS_INTERVALS: usize = 12;

/// Silence after which a member's counters start again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);

/// 1 / this is the fraction of members left out as outliers.
const WORST_SHARE: usize = 20;

/// Losses of the members, as shares of what was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct PanelSummary {
    /// Median loss in the network, in this interval.
    pub(super) median: f64,
    /// Median of the lesser loss of this interval and the one before; `None` until both are known.
    /// Datagrams that were late, or a moment in which a machine did not run, show in only one of
    /// them.
    pub(super) twice: Option<f64>,
    /// Loss of the worst twentieth, in this interval: all others stay below it.
    pub(super) worst: f64,
    /// Average loss of the worst twentieth; `None` until enough intervals are known.
    pub(super) worst_average: Option<f64>,
    /// Drops in sockets of the worst twentieth, in this interval.
    pub(super) drops: f64,
    /// Average drops in sockets of the worst twentieth.
    pub(super) worst_drops: f64,
    /// Share that the worst twentieth received, on average.
    pub(super) delivered: f64,
    /// Median number of datagrams in a member's interval. The fewer, the more is due to chance.
    pub(super) datagrams: u64,
    /// Datagrams that the server had sent when the newest of these was: the median. 0: not known.
    pub(super) seen: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    sent: u64,
    /// Datagrams of these that the network lost.
    net: u64,
    /// Datagrams of these that a socket dropped.
    drops: u64,
}

#[derive(Debug, Default)]
struct Member {
    /// Counters of the last report that counted, and its time.
    told: Counters,
    at: Option<Instant>,
    /// Datagrams that the server had sent then, as the member saw it.
    seen: u64,
    samples: VecDeque<Sample>,
    /// Whether the last sample has not been evaluated yet.
    is_fresh: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    sent: u64,
    received: u64,
    drops: u64,
}

impl Counters {
    /// Growth since `before`; `None` if any counter fell.
    fn since(self, before: Self) -> Option<Self> {
        Some(Self {
            sent: self.sent.checked_sub(before.sent)?,
            received: self.received.checked_sub(before.received)?,
            drops: self.drops.checked_sub(before.drops)?,
        })
    }
}

/// What a report is held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// Datagrams that were sent in the last seconds, and so can have been counted.
    pub(super) recently: u64,
    /// Time between two reports of a member.
    pub(super) interval: Duration,
    /// Nothing that was sent before this counts.
    pub(super) since: Option<Since>,
}

/// A change of the rate that makes older losses meaningless.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since {
    /// Datagrams that were sent before.
    pub(super) sent: u64,
    /// Members that do not tell which datagrams they count are believed from then on.
    pub(super) patience: Instant,
}

impl Since {
    /// Whether a sample of so many datagrams, the last of which has this number, began later.
    fn admits(&self, datagrams: u64, last: u64, now: Instant) -> bool {
        let first = last.saturating_sub(datagrams);
        if last == 0 { self.patience <= now } else { first >= self.sent }
    }
}

#[derive(Debug, Default)]
pub(super) struct Panel {
    members: BTreeMap<Token, Member>,
}

impl Panel {
    /// Takes over the counters of a member.
    pub(super) fn handle_report(
        &mut self,
        token: &Token,
        report: &Report,
        expected: &Expected,
        now: Instant,
    ) {
        if report.sent == 0 || !self.has_room_for(token, now) {
            return;
        }
        let Report { sent, received, drops, .. } = *report;
        let told = Counters { sent, received, drops };
        let member = self.members.entry(token.clone()).or_default();
        // A little less than an interval, because reports are not that punctual.
        if member.at.is_some_and(|at| now < at + expected.interval * 3 / 4) {
            return;
        }
        let since = told.since(member.told);
        if since.is_some_and(|it| it.sent < SAMPLE_MIN) {
            return;
        }
        let since_sent = since.map_or(0, |it| it.sent);
        let is_recent = member.at.is_none_or(|at| now < at + FORGOTTEN_AFTER);
        (member.told, member.at, member.seen) = (told, Some(now), report.seen);
        // A narrow path lets something through. One that lets nothing through is closed at any
        // rate.
        let tells = |it: &Counters| {
            let is_present =
                expected.since.is_none_or(|it| it.admits(since_sent, report.seen, now));
            it.sent <= expected.recently && it.received > 0 && is_recent && is_present
        };
        let Some(since) = since.filter(tells) else { return };
        let lost = since.sent.saturating_sub(since.received);
        let drops = since.drops.min(lost);
        member.samples.push_back(Sample { sent: since.sent, net: lost - drops, drops });
        if member.samples.len() > DROPS_INTERVALS {
            member.samples.pop_front();
        }
        member.is_fresh = true;
    }

    fn has_room_for(&mut self, token: &Token, now: Instant) -> bool {
        if self.members.len() >= MEMBERS_MAX && !self.members.contains_key(token) {
            let is_alive = |member: &Member| member.at.is_some_and(|at| now < at + FORGOTTEN_AFTER);
            self.members.retain(|_, member| is_alive(member));
        }
        self.members.len() < MEMBERS_MAX || self.members.contains_key(token)
    }

    /// Forgets a member.
    pub(super) fn forget(&mut self, token: &Token) {
        self.members.remove(token);
    }

    /// Drops all samples, because the rate has changed.
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
        let latest = ranked(|it| it.last(1, |sample| sample.net));
        let average = ranked(|it| it.last(NET_INTERVALS, |sample| sample.net));
        let latest_drops = ranked(|it| it.last(1, |sample| sample.drops));
        let drops = ranked(Member::drops);
        let lost = ranked(|it| it.last(NET_INTERVALS, |sample| sample.net + sample.drops));
        let twice = ranked(Member::twice);
        let mut datagrams: Vec<u64> = fresh.iter().map(|it| it.datagrams()).collect();
        datagrams.sort_unstable();
        let mut seen: Vec<u64> = fresh.iter().map(|it| it.seen).collect();
        seen.sort_unstable();
        let middle = (fresh.len() - 1) / 2;
        let are_known = |intervals| {
            fresh.iter().filter(|it| it.samples.len() >= intervals).count() * 2 > fresh.len()
        };
        let summary = PanelSummary {
            median: latest[middle],
            twice: are_known(2).then(|| twice[middle]),
            worst: worst(&latest),
            worst_average: are_known(NET_INTERVALS_MIN).then(|| worst(&average)),
            drops: worst(&latest_drops),
            worst_drops: worst(&drops),
            delivered: 1.0 - worst(&lost),
            datagrams: datagrams[middle],
            // Of two members one cannot keep the rate down.
            seen: seen[seen.len() / 2],
        };
        for member in fresh {
            member.is_fresh = false;
        }
        Some(summary)
    }
}

impl Member {
    /// Share lost in the way `lost`, of what was sent in the last `intervals` intervals.
    fn last(&self, intervals: usize, lost: fn(&Sample) -> u64) -> f64 {
        let samples = || self.samples.iter().rev().take(intervals);
        share(samples().map(lost).sum(), samples().map(|sample| sample.sent).sum())
    }

    /// Lesser network loss of the last two intervals.
    fn twice(&self) -> f64 {
        let latest = self.samples.iter().rev().take(2);
        latest.map(|sample| share(sample.net, sample.sent)).fold(1.0, f64::min)
    }

    /// Datagrams sent in the last interval.
    fn datagrams(&self) -> u64 {
        self.samples.back().map_or(0, |sample| sample.sent)
    }

    /// Average drops in sockets. Missing intervals count as good ones: it takes long, or much, to
    /// prove a machine too slow.
    fn drops(&self) -> f64 {
        let shares = self.samples.iter().map(|sample| share(sample.drops, sample.sent));
        shares.sum::<f64>() / to_f64(DROPS_INTERVALS as u64)
    }
}

/// Value that all but the worst twentieth stay below, rounded in favour of speed: of two or more
/// members one is left out.
fn worst(ranked: &[f64]) -> f64 {
    let left_out = (ranked.len() / WORST_SHARE).max(1);
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

    struct Lab {
        panel: Panel,
        now: Instant,
        told: BTreeMap<u128, Report>,
        since: Option<Since>,
    }

    impl Lab {
        fn new() -> Self {
            let (panel, told) = (Panel::default(), BTreeMap::new());
            Self { panel, now: Instant::now(), told, since: None }
        }

        /// Next report of a member: of 1000 datagrams the network lost `net` and the socket dropped
        /// `drops`.
        fn report(&mut self, member: u128, net: u64, drops: u64) {
            let report = self.told.entry(member).or_default();
            report.sent += 1000;
            report.received += 1000 - net - drops;
            report.drops += drops;
            let report = report.clone();
            self.tell(member, &report);
        }

        fn tell(&mut self, member: u128, report: &Report) {
            let token = Token::from_random(member);
            let expected = Expected { recently: 20_000, interval: INTERVAL, since: self.since };
            self.panel.handle_report(&token, report, &expected, self.now);
        }

        fn summary(&mut self) -> Option<PanelSummary> {
            self.now += INTERVAL;
            self.panel.summary()
        }
    }

    fn near(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-9
    }

    #[test]
    fn drops_of_sockets_are_no_losses_of_the_network() {
        let mut lab = Lab::new();
        lab.report(1, 30, 200);
        let summary = lab.summary().unwrap();
        assert!(
            near(summary.median, 0.03)
                && near(summary.worst, 0.03)
                && near(summary.delivered, 0.77)
        );
        assert!(near(summary.drops, 0.2) && near(summary.worst_drops, 0.2 / 12.0), "one of twelve");
        assert_eq!(lab.summary(), None, "nobody said anything since");
        lab.report(1, 0, 600);
        let summary = lab.summary().unwrap();
        assert!(near(summary.drops, 0.6) && near(summary.worst_drops, 0.8 / 12.0));
    }

    #[test]
    fn what_was_only_late_is_lost_in_no_two_intervals() {
        let mut lab = Lab::new();
        lab.report(1, 10, 0);
        assert_eq!(lab.summary().unwrap().twice, None, "of one interval");
        for (net, twice) in [(300, 0.01), (0, 0.0), (20, 0.0), (30, 0.02), (25, 0.025)] {
            lab.report(1, net, 0);
            let summary = lab.summary().unwrap();
            assert!(near(summary.twice.unwrap(), twice), "{net}: {summary:?}");
            assert_eq!(summary.datagrams, 1000);
        }
    }

    #[test]
    fn intervals_in_which_nothing_at_all_came_say_nothing_of_the_rate() {
        let mut lab = Lab::new();
        lab.report(1, 10, 0);
        assert!(lab.summary().is_some());
        lab.report(1, 1000, 0);
        assert_eq!(lab.summary(), None);
        lab.report(1, 10, 0);
        assert!(near(lab.summary().unwrap().twice.unwrap(), 0.01));
    }

    #[test]
    fn of_forty_members_two_may_be_as_bad_as_they_like() {
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
    fn one_of_few_does_not_decide_for_the_others_and_a_single_one_for_itself() {
        for others in [1, 2, 5, 18] {
            let mut lab = Lab::new();
            lab.report(0, 999, 0);
            (1..=others).for_each(|member| lab.report(member, 0, 0));
            let summary = lab.summary().unwrap();
            assert!(near(summary.median, 0.0) && near(summary.worst, 0.0), "{others}: {summary:?}");
        }
    }

    #[test]
    fn numbers_that_cannot_be_count_for_nothing() {
        let mut lab = Lab::new();
        let report = |sent, received, drops| Report { sent, received, drops, ..Report::default() };
        for absurd in [
            report(u64::MAX, 0, 0),
            report(0, u64::MAX, u64::MAX),
            report(20_001, 0, 0),
            report(31, 0, 0),
        ] {
            lab.tell(1, &absurd);
            assert_eq!(lab.summary(), None, "{absurd:?}");
        }
        let mut lab = Lab::new();
        lab.tell(1, &report(1000, u64::MAX, u64::MAX));
        let summary = lab.summary().unwrap();
        assert!(near(summary.worst, 0.0) && near(summary.delivered, 1.0));
        // Counters that fall start again.
        lab.tell(1, &report(2000, 100, 0));
        assert_eq!(lab.summary(), None);
        lab.tell(1, &report(3000, 1000, 500));
        assert!(near(lab.summary().unwrap().delivered, 0.95), "of what counted");
    }

    #[test]
    fn what_was_sent_before_the_rate_changed_does_not_count() {
        let mut lab = Lab::new();
        let report = |sent, received, seen| Report { sent, received, seen, ..Report::default() };
        let patience = lab.now + 4 * INTERVAL;
        lab.since = Some(Since { sent: 5000, patience });
        for (sent, received, seen, counts) in [
            (1000, 100, 5999, false),
            (2000, 1100, 6999, true),
            (3000, 1200, u64::MAX, true),
            (4000, 2100, 0, false),
            (5000, 2200, 0, true),
        ] {
            lab.tell(1, &report(sent, received, seen));
            assert_eq!(lab.summary().is_some(), counts, "{sent} {seen}");
        }
    }

    #[test]
    fn a_flood_of_reports_counts_once_an_interval() {
        let mut lab = Lab::new();
        for _ in 0..10 {
            lab.report(1, 900, 0);
        }
        assert_eq!(lab.panel.members.values().map(|it| it.samples.len()).sum::<usize>(), 1);
    }

    #[test]
    fn however_many_report_few_are_remembered_and_those_make_room_in_time() {
        let mut lab = Lab::new();
        (0..1000).for_each(|member| lab.report(member, 0, 0));
        assert_eq!(lab.panel.members.len(), MEMBERS_MAX);
        lab.now += FORGOTTEN_AFTER;
        lab.report(2000, 0, 0);
        assert_eq!(lab.panel.members.len(), 1);
        lab.panel.forget(&Token::from_random(2000));
        assert!(lab.panel.members.is_empty());
    }

    proptest! {
        #[test]
        fn whatever_is_told_shares_are_shares(
            reports in proptest::collection::vec((0u128..4, any::<(u64, u64, u64)>(), 0u32..10_000), 1..60),
        ) {
            let mut lab = Lab::new();
            for (member, (sent, received, drops), scale) in reports {
                let scaled = |number: u64| number % u64::from(scale.max(1));
                let (sent, received) = (scaled(sent), scaled(received));
                lab.tell(member, &Report { sent, received, drops, ..Report::default() });
                if let Some(summary) = lab.summary() {
                    let PanelSummary { median, worst, drops, worst_drops, delivered, .. } = summary;
                    let (twice, average) = (summary.twice.unwrap_or(0.0), summary.worst_average.unwrap_or(0.0));
                    for share in [median, twice, worst, average, drops, worst_drops, delivered] {
                        prop_assert!((0.0..=1.0 + 1e-9).contains(&share), "{:?}", summary);
                    }
                }
            }
        }
    }
}
