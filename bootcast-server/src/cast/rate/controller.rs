//! Turns the losses of members into the rate of a cast.
//!
//! Loss alone says little: 1 % at random would bring any control that follows it to a crawl. What
//! counts is loss above a baseline, the least loss of recent intervals. If the median shows it, all
//! members share a bottleneck; if the worst twentieth does, their machines or links are too slow.
//! The rate then follows what they still received.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bootcast_proto::BitRate;

use super::panel::PanelSummary;

/// Window over which the minimum loss is taken as the path's own (not caused by our rate).
const BASE_TIME: Duration = Duration::from_secs(10);

/// Upper bound of that baseline; loss above it always counts as congestion.
const BASE_MAX: f64 = 0.1;

/// Median loss above the baseline that counts as shared congestion.
const SHARED_EXCESS: f64 = 0.02;

/// Average loss of the worst twentieth above the baseline, and average drops in their sockets, that
/// count as congestion of a slow group.
const GROUP_EXCESS: f64 = 0.05;
const GROUP_DROPS: f64 = 0.1;

/// An excess must also be this many standard deviations of random loss. The baseline is the least
/// of forty samples, some two deviations below the mean, and chance must not reach the excess for
/// hours.
const CHANCE: f64 = 5.0;

/// Drops in a single interval above this pause the growth until the next intervals explain them.
const DROPS_ONCE: f64 = 0.2;

/// Average drops above this mean that a machine takes hardly more than now.
const DROPS_SEEN: f64 = 0.02;

/// Share of the estimated throughput to send after shared and after group congestion.
const SHARED_MARGIN: f64 = 0.95;
const GROUP_MARGIN: f64 = 0.97;

/// Smallest factor by which one group congestion lowers the rate.
const GROUP_STEP: f64 = 0.5;

/// Growth factors per interval: before the first congestion; then below the last throughput, near
/// it, and above it.
const FIRST_GROWTH: f64 = 2.0;
const OPENING_GROWTH: f64 = 4.0;
const LATER_GROWTH: f64 = 1.25;
const NEAR_GROWTH: f64 = 1.01;
const BEYOND_GROWTH: f64 = 1.05;

/// Range that counts as near, as shares of the last throughput.
const NEAR: (f64, f64) = (0.95, 1.05);

/// From this share of the last throughput on, it no longer limits the growth.
const FAR: f64 = 1.25;

/// Time without congestion after which the last throughput is forgotten.
const CEILING_TIME: Duration = Duration::from_secs(10);

/// How long losses that did not fall with the rate count as not caused by it.
const PROVEN_TIME: Duration = Duration::from_secs(30);

/// Bounds on such losses: smaller ones are indistinguishable from chance; larger ones that all
/// members share always count as congestion. A few members may lose any share, for a bad cable.
const PROVABLE: f64 = 0.02;
const PROVEN_MAX: f64 = 0.3;

/// How many reductions in a row must change nothing, and the factor within which the loss counts as
/// unchanged. It must also stay above the middle between old and expected loss.
const TRIALS: u32 = 2;
const UNCHANGED: f64 = 1.25;

/// Share of a guessed ceiling that a cast falls to where nobody reports. A network whose edge is ten
/// times slower than its head carries it.
const CAUTIOUS_SHARE: f64 = 0.1;

/// Share of an invented ceiling that a cast begins with. What it sends before the first reports
/// come, in some 10 ms, is then less than half a megabyte.
const FIRST_SHARE: f64 = 0.3;

/// The most that a cast begins with where the interface told its speed: what it sends before the
/// first reports come is then some 3 MB.
const FIRST_BITS: f64 = 1e9;

/// The least rate where the operator named the ceiling: a share of it, and bits per second.
const FLOOR_SHARE: f64 = 0.01;
const FLOOR_BITS: f64 = 1e6;

/// The least rate where the ceiling is a guess. A guess says nothing of the path behind the
/// interface, so that no share of it may be the floor.
const GUESSED_FLOOR_BITS: f64 = 256e3;

/// What an opening found to get through is tried again after this time. The opening is a few
/// hundredths of a second long, and something else may have been the matter then.
const OPENING_CEILING_TIME: Duration = Duration::from_secs(1);

/// Where the ceiling of all casts comes from, and so how far it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CeilingSource {
    /// The operator named it and vouches for the path: casts begin at it.
    Operator,
    /// The interface told its speed. The path behind it may be slower.
    Interface,
    /// Nothing is known: it is invented.
    Assumption,
}

impl CeilingSource {
    /// The least rate of a cast, in bits per second.
    fn floor(self, line: f64) -> f64 {
        match self {
            Self::Operator => (line * FLOOR_SHARE).max(FLOOR_BITS),
            Self::Interface | Self::Assumption => GUESSED_FLOOR_BITS,
        }
    }

    /// The rate of a cast that knows of no other, in bits per second.
    fn first_rate(self, line: f64) -> f64 {
        match self {
            Self::Operator => line,
            Self::Interface => FIRST_BITS,
            Self::Assumption => line * FIRST_SHARE,
        }
    }
}

/// How much of its rate a cast used in an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Usage {
    /// All of it.
    Full,
    /// Less, because there was nothing to send at times.
    Rested,
    /// This share, although there was always something to send: other casts or the machine left no
    /// more.
    Limited(f64),
}

/// Throughput at the last congestion.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    rate: f64,
    /// It is forgotten then, unless there is congestion again.
    until: Instant,
}

/// How far a cast is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// In its first moments: a look is a few milliseconds long.
    Opening,
    UnderWay,
}

/// Which members are congested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Congestion {
    Shared,
    Group,
}

/// A reduction under observation: later losses show whether it helped.
#[derive(Clone, Copy, Debug)]
struct Trial {
    congestion: Congestion,
    /// Number of reductions in a row, and the rate before the first.
    number: u32,
    rate: f64,
    /// Loss before the reduction.
    lost: f64,
    /// Loss to expect if the rate was the cause.
    expected: f64,
}

/// Losses that the rate does not cause.
#[derive(Clone, Copy, Debug, Default)]
struct Tolerated {
    /// Network loss: median, and that of the worst twentieth.
    median: f64,
    worst: f64,
    /// Drops in sockets of the worst twentieth.
    drops: f64,
}

impl Tolerated {
    /// Whether the median loss shows shared congestion.
    fn is_exceeded_by(&self, lost: f64, summary: &PanelSummary) -> bool {
        lost > self.median + excess(SHARED_EXCESS, lost, summary.datagrams)
    }

    /// Whether the average losses of the worst twentieth show a congested group.
    fn is_exceeded_for_a_group(&self, summary: &PanelSummary) -> bool {
        let is_lossy = summary
            .worst_average
            .is_some_and(|lost| lost > self.worst + excess(GROUP_EXCESS, lost, summary.datagrams));
        is_lossy || summary.worst_drops > self.drops + GROUP_DROPS
    }

    /// Whether this interval alone would show congestion, which is not enough evidence.
    fn may_be_exceeded(&self, summary: &PanelSummary) -> bool {
        self.is_exceeded_by(summary.median, summary) || summary.drops > self.drops + DROPS_ONCE
    }
}

/// Excess that a loss must have to count: `least`, or more if chance explains as much with so few
/// datagrams.
fn excess(least: f64, lost: f64, datagrams: u64) -> f64 {
    let deviation = (lost * (1.0 - lost) / to_f64(datagrams.max(1))).sqrt();
    least.max(CHANCE * deviation)
}

/// Losses that trials have shown not to depend on the rate.
#[derive(Clone, Copy, Debug)]
struct Proven {
    losses: Tolerated,
    until: Instant,
}

#[derive(Debug)]
pub(super) struct Controller {
    /// Ceiling of the interface and lower bound of the rate. All rates are in bits per second.
    line: f64,
    floor: f64,
    rate: f64,
    ceiling: Option<Ceiling>,
    was_congested: bool,
    /// Losses of recent intervals: median and worst twentieth.
    bases: VecDeque<(Instant, f64, f64)>,
    /// The last look doubled the rate, or there was none: a loss thereafter needs no second
    /// interval to be believed.
    has_doubled: bool,
    phase: Phase,
    /// The rate where the first moments go by without a report.
    unheard: f64,
    /// The next look sees what was sent at another rate: members do not tell which they count.
    skips: bool,
    trial: Option<Trial>,
    proven: Option<Proven>,
}

impl Controller {
    /// `last_good`: what got through to the members of an earlier cast, after congestion.
    pub(super) fn new(
        ceiling: BitRate,
        source: CeilingSource,
        last_good: Option<BitRate>,
        now: Instant,
    ) -> Self {
        let line = bits(ceiling);
        let floor = source.floor(line).min(line);
        let rate = last_good.map_or_else(|| source.first_rate(line), bits);
        let is_opening = source != CeilingSource::Operator;
        // An opening tries more than that in no time.
        let is_known = last_good.is_some() && !is_opening;
        let mut controller = Self {
            line,
            floor,
            rate: rate.clamp(floor, line),
            ceiling: None,
            was_congested: is_known,
            bases: VecDeque::new(),
            has_doubled: is_opening,
            phase: if is_opening { Phase::Opening } else { Phase::UnderWay },
            unheard: last_good.map_or(line * CAUTIOUS_SHARE, bits).clamp(floor, line),
            skips: false,
            trial: None,
            proven: None,
        };
        if is_known {
            controller.note_ceiling(controller.rate, now);
        }
        controller
    }

    /// Whether the cast is in its first moments.
    pub(super) fn is_opening(&self) -> bool {
        self.phase == Phase::Opening
    }

    /// The first moments are over. Where nobody reported, nothing is known but what an earlier cast
    /// learned.
    pub(super) fn end_opening(&mut self, is_heard: bool) {
        self.phase = Phase::UnderWay;
        self.has_doubled = false;
        self.skips = false;
        if !is_heard {
            self.rate = self.rate.min(self.unheard);
        }
    }

    /// Whether the next look may raise the rate, if all goes well.
    pub(super) fn may_grow(&self) -> bool {
        self.rate < self.line && !(self.is_opening() && self.was_congested)
    }

    /// So much gets through, as far as is known now.
    fn note_ceiling(&mut self, rate: f64, now: Instant) {
        let time = if self.is_opening() { OPENING_CEILING_TIME } else { CEILING_TIME };
        self.ceiling = Some(Ceiling { rate, until: now + time });
    }

    /// Rate at present.
    pub(super) fn rate(&self) -> BitRate {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between the floor and the ceiling, both positive and of 64 bits"
        )]
        BitRate::from_bits_per_second(self.rate as u64).expect("the floor is at least a bit")
    }

    /// Rate for later casts to start at; `None` if only the ceiling ever limited this cast.
    pub(super) fn last_good(&self) -> Option<BitRate> {
        (self.was_congested && self.rate < self.line).then(|| self.rate())
    }

    /// Follows what members got in the last interval. `is_timely`: they got it at the present rate.
    /// `true`: what was told before says nothing of the rate from now on.
    pub(super) fn update(
        &mut self,
        summary: &PanelSummary,
        usage: Usage,
        is_timely: bool,
        now: Instant,
    ) -> bool {
        if std::mem::take(&mut self.skips) {
            return true;
        }
        self.proven = self.proven.filter(|proven| now < proven.until);
        self.ceiling = self.ceiling.filter(|ceiling| now < ceiling.until);
        let tolerated = self.tolerated(summary, now);
        if self.judge(summary, now) {
            return true;
        }
        let sent = match usage {
            Usage::Full | Usage::Rested => self.rate,
            Usage::Limited(share) => self.rate * share,
        };
        let believed = if self.has_doubled { Some(summary.median) } else { summary.twice };
        self.has_doubled = false;
        if let Some(lost) = believed.filter(|lost| tolerated.is_exceeded_by(*lost, summary)) {
            // What is lost at any rate is not known yet in the first moments.
            let tolerated = if self.is_opening() { 0.0 } else { tolerated.median };
            let through = sent * (1.0 - lost) / (1.0 - tolerated);
            let lost = (lost, tolerated);
            self.skips = summary.seen == 0;
            self.lower(Congestion::Shared, sent, (through, SHARED_MARGIN), lost, now);
            return true;
        }
        if !self.is_opening() && tolerated.is_exceeded_for_a_group(summary) {
            let through = sent * summary.delivered.max(GROUP_STEP);
            let lost = (1.0 - summary.delivered, tolerated.worst);
            self.skips = summary.seen == 0;
            self.lower(Congestion::Group, sent, (through, GROUP_MARGIN), lost, now);
            return true;
        }
        if tolerated.may_be_exceeded(summary) {
            self.wait(summary.seen == 0, now);
        } else if usage == Usage::Full && is_timely && self.may_grow() {
            self.grow(summary.worst_drops > tolerated.drops + DROPS_SEEN, now);
        }
        false
    }

    /// Losses that the rate does not cause: the least of recent intervals, or proven ones.
    fn tolerated(&mut self, summary: &PanelSummary, now: Instant) -> Tolerated {
        self.bases.push_back((now, summary.median, summary.worst));
        while self.bases.front().is_some_and(|&(at, ..)| at + BASE_TIME <= now) {
            self.bases.pop_front();
        }
        let least = |of: fn(&(Instant, f64, f64)) -> f64| {
            self.bases.iter().map(of).fold(BASE_MAX, f64::min)
        };
        let proven = self.proven.map_or_else(Tolerated::default, |proven| proven.losses);
        Tolerated {
            median: least(|base| base.1).max(proven.median),
            worst: least(|base| base.2).max(proven.worst),
            drops: proven.drops,
        }
    }

    /// Whether the reduction was in vain. Then restores the rate and tolerates the losses.
    fn judge(&mut self, summary: &PanelSummary, now: Instant) -> bool {
        let Some(trial) = self.trial else { return false };
        let lost = match trial.congestion {
            Congestion::Shared => match summary.twice {
                Some(lost) => lost,
                None => return false,
            },
            Congestion::Group if summary.worst_average.is_none() => return false,
            Congestion::Group => 1.0 - summary.delivered,
        };
        let in_vain = trial.lost - trial.expected > PROVABLE
            && (f64::midpoint(trial.lost, trial.expected)..trial.lost * UNCHANGED).contains(&lost)
            && (trial.congestion == Congestion::Group || lost <= PROVEN_MAX);
        if in_vain && trial.number < TRIALS {
            return false;
        }
        self.trial = None;
        if !in_vain {
            return false;
        }
        let before = self.proven.map_or_else(Tolerated::default, |proven| proven.losses);
        let median = match trial.congestion {
            Congestion::Shared => lost,
            Congestion::Group => 0.0,
        };
        let losses = Tolerated {
            median: before.median.max(median),
            worst: before.worst.max(summary.worst_average.unwrap_or_default()).max(summary.worst),
            drops: before.drops.max(1.0 - summary.delivered),
        };
        self.proven = Some(Proven { losses, until: now + PROVEN_TIME });
        self.rate = trial.rate;
        self.ceiling = None;
        self.skips = summary.seen == 0;
        true
    }

    fn lower(
        &mut self,
        congestion: Congestion,
        sent: f64,
        (through, margin): (f64, f64),
        (lost, base): (f64, f64),
        now: Instant,
    ) {
        let before = self.rate;
        self.rate = (through * margin).clamp(self.floor, self.line);
        self.note_ceiling(through, now);
        self.was_congested = true;
        // Throughput of a bottleneck does not depend on the rate sent into it.
        let expected = (1.0 - (1.0 - lost) * sent / self.rate).max(base.min(lost));
        let earlier = self.trial.filter(|trial| trial.congestion == congestion);
        let (number, rate) = earlier.map_or((1, before), |trial| (trial.number + 1, trial.rate));
        self.trial = Some(Trial { congestion, number, rate, lost, expected });
    }

    /// Waits for the next intervals to explain a large loss. Near the last throughput the cause is
    /// plausible, and the rate drops below it at once.
    fn wait(&mut self, skips: bool, now: Instant) {
        if let Some(ceiling) = self.ceiling.as_mut().filter(|it| self.rate < it.rate * NEAR.1) {
            ceiling.until = now + CEILING_TIME;
            let calm = (ceiling.rate * NEAR.0).max(self.floor);
            if calm < self.rate {
                // The next interval contains datagrams sent at the higher rate, so it must not be
                // used as an estimate.
                (self.rate, self.skips) = (calm, skips);
            }
        }
    }

    /// Raises the rate. `is_full`: machines hardly take more, so throughput grows at most slowly.
    fn grow(&mut self, is_full: bool, now: Instant) {
        if let Some(ceiling) = self.ceiling.as_mut().filter(|_| is_full) {
            ceiling.until = now + CEILING_TIME;
        }
        let rate = match self.ceiling {
            // Twice and twice again, while that is no more than what an opening may begin with.
            None if !self.was_congested && self.is_opening() => {
                (self.rate * FIRST_GROWTH).max((self.rate * OPENING_GROWTH).min(FIRST_BITS))
            }
            None if !self.was_congested => self.rate * FIRST_GROWTH,
            Some(Ceiling { rate, .. }) if self.rate < rate * NEAR.0 => {
                (self.rate * LATER_GROWTH).min(rate * NEAR.0)
            }
            Some(Ceiling { rate, .. }) if is_full || self.rate < rate * NEAR.1 => {
                self.rate * NEAR_GROWTH
            }
            Some(Ceiling { rate, .. }) if self.rate < rate * FAR => self.rate * BEYOND_GROWTH,
            None | Some(_) => self.rate * LATER_GROWTH,
        };
        self.has_doubled = !self.was_congested && self.rate < self.line;
        self.rate = rate.min(self.line);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate or a count, to a few digits")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

fn bits(rate: BitRate) -> f64 {
    to_f64(rate.bits_per_second())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
#[path = "controller_tests.rs"]
mod tests;
