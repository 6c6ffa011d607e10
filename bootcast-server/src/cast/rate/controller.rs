//! Turns the losses of members into the rate of a cast.
//!
//! Loss alone says little: 1 % at random would bring any control that follows it to a crawl. What
//! counts is loss above a baseline, the least loss of recent intervals. If the median exceeds it,
//! all members share a bottleneck. If only the worst twentieth does, their machines or links are
//! too slow. The rate then follows what they still received.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bootcast_proto::BitRate;

use super::panel::PanelSummary;

/// Window over which the minimum loss is taken as the path's own (not caused by our rate).
const BASELINE_WINDOW: Duration = Duration::from_secs(10);

/// Upper bound of that baseline. More loss counts as congestion until trials prove that it does not
/// depend on the rate.
const BASELINE_MAX_LOSS: f64 = 0.1;

/// Median loss above the baseline that counts as shared congestion.
const SHARED_EXCESS: f64 = 0.02;

/// Average loss of the worst twentieth above the baseline that counts as congestion of a slow
/// group.
const GROUP_EXCESS: f64 = 0.05;

/// Average drops in the sockets of the worst twentieth that count as congestion of a slow group.
const GROUP_DROPS: f64 = 0.1;

/// Standard deviations of random loss that an excess must also reach. The baseline is the least of
/// forty samples, some two deviations below the mean. Chance must not reach the excess for hours.
const MIN_DEVIATIONS: f64 = 5.0;

/// Drops of the worst twentieth in a single interval that pause growth, until later intervals show
/// whether they last.
const SUDDEN_DROPS: f64 = 0.2;

/// Average drops of the worst twentieth above which a machine is taken as nearly saturated, so that
/// the rate grows slowly.
const SATURATION_DROPS: f64 = 0.02;

/// Share of the estimated throughput to send at after shared congestion.
const SHARED_MARGIN: f64 = 0.95;

/// The same after congestion of a slow group.
const GROUP_MARGIN: f64 = 0.97;

/// Least share of the sent rate that counts as a slow group's throughput, so that one reduction
/// hardly more than halves the rate.
const GROUP_MIN_DELIVERED: f64 = 0.5;

/// Growth factor per interval before the first congestion.
const STARTUP_GROWTH: f64 = 2.0;

/// Growth factor per interval in an opening before the first congestion, up to
/// [`INTERFACE_START_BITS`].
const OPENING_GROWTH: f64 = 4.0;

/// Growth factor per interval after congestion: below [`NEAR`], from [`FAR`] on, or with no known
/// bottleneck.
const NORMAL_GROWTH: f64 = 1.25;

/// Growth factor per interval while the rate is [`NEAR`] the bottleneck.
const NEAR_GROWTH: f64 = 1.01;

/// Growth factor per interval above [`NEAR`] and below [`FAR`].
const BEYOND_GROWTH: f64 = 1.05;

/// Range of rates near the bottleneck, as multiples of its throughput.
const NEAR: (f64, f64) = (0.95, 1.05);

/// Multiple of the bottleneck's throughput from which on it no longer limits growth.
const FAR: f64 = 1.25;

/// Time without congestion after which a bottleneck is forgotten.
const BOTTLENECK_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for a bottleneck that an opening found. It is short because an opening takes a few
/// hundredths of a second, in which something else may have caused the losses.
const OPENING_BOTTLENECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for which losses that did not fall with the rate are tolerated.
const PROVEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Difference that a reduction must make to the expected loss for its trial to count. A smaller one
/// cannot be told from chance.
const TRIAL_MIN_DIFFERENCE: f64 = 0.02;

/// Largest median loss that a trial can prove harmless; more always counts as congestion. A slow
/// group may lose any share, because of a bad cable.
const PROVEN_MAX_LOSS: f64 = 0.3;

/// Number of reductions in a row that must leave the loss unchanged before it is tolerated.
const TRIAL_REDUCTIONS: u32 = 2;

/// Factor below which the loss counts as unchanged by a reduction. The loss must also stay above
/// the midpoint between the earlier and the expected loss.
const UNCHANGED_FACTOR: f64 = 1.25;

/// Share of a guessed ceiling that a cast falls to if no member reports. A network whose edge is
/// ten times slower than its head carries it.
const UNREPORTED_SHARE: f64 = 0.1;

/// Share of an assumed ceiling at which a cast starts. It sends less than half a megabyte before
/// the first reports, in some 10 ms (docs/adr/0012).
const ASSUMED_START_SHARE: f64 = 0.3;

/// Highest rate at which a cast starts if the interface stated its speed, in bits per second. It
/// sends some 3 MB before the first reports, in some 30 ms (docs/adr/0007).
const INTERFACE_START_BITS: f64 = 1e9;

/// Lower bound of the rate if the operator named the ceiling, as a share of the ceiling.
const FLOOR_SHARE: f64 = 0.01;

/// The same in bits per second; the higher of the two holds.
const FLOOR_BITS: f64 = 1e6;

/// Lower bound of the rate if the ceiling is a guess, in bits per second. A guess says nothing
/// about the path behind the interface, so the bound does not depend on it.
const GUESSED_FLOOR_BITS: f64 = 256e3;

/// Source of the ceiling of all casts. It decides at which rate casts start and how far they may
/// fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CeilingSource {
    /// The operator named the ceiling and vouches for the path: casts start at it.
    Operator,
    /// The ceiling follows from the interface's speed. The path behind it may be slower.
    Interface,
    /// The interface states no speed, so the ceiling is an assumption.
    Assumption,
}

impl CeilingSource {
    /// Returns the lower bound of a cast's rate. All rates are in bits per second.
    fn floor(self, ceiling: f64) -> f64 {
        match self {
            Self::Operator => (ceiling * FLOOR_SHARE).max(FLOOR_BITS),
            Self::Interface | Self::Assumption => GUESSED_FLOOR_BITS,
        }
    }

    /// Returns the rate at which a cast starts if no earlier cast found a better one.
    fn start_rate(self, ceiling: f64) -> f64 {
        match self {
            Self::Operator => ceiling,
            Self::Interface => INTERFACE_START_BITS,
            Self::Assumption => ceiling * ASSUMED_START_SHARE,
        }
    }
}

/// Part of its rate that a cast used in an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Usage {
    /// All of it.
    Full,
    /// Less, because the cast had nothing to send at times.
    Idle,
    /// This share, although the cast always had something to send: other casts or the machine left
    /// no more.
    Limited(f64),
}

/// Throughput that members received at the last congestion.
#[derive(Clone, Copy, Debug)]
struct Bottleneck {
    rate: f64,
    /// When it is forgotten, unless there is congestion again.
    until: Instant,
}

/// Phase of a cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The ceiling is a guess, and the rate is updated every few milliseconds.
    Opening,
    /// The rate is updated four times a second, or less often with many casts.
    Steady,
}

/// Members that a congestion affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Congestion {
    /// All members, by the median.
    Shared,
    /// A slow group, by the worst twentieth.
    Group,
}

/// Reduction of the rate whose effect on the loss is not known yet.
#[derive(Clone, Copy, Debug)]
struct Trial {
    congestion: Congestion,
    /// Number of reductions in a row.
    reductions: u32,
    /// Rate before the first of them, to be restored if they change nothing.
    earlier_rate: f64,
    /// Loss before the last reduction.
    earlier_loss: f64,
    /// Loss to expect after it if the rate was the cause.
    expected_loss: f64,
}

/// Losses that the rate does not cause, as shares.
#[derive(Clone, Copy, Debug, Default)]
struct Tolerated {
    /// Median network loss.
    median: f64,
    /// Network loss of the worst twentieth.
    worst: f64,
    /// Drops in sockets of the worst twentieth.
    drops: f64,
}

impl Tolerated {
    /// Whether a median loss shows shared congestion.
    fn is_exceeded_by(&self, loss: f64, summary: &PanelSummary) -> bool {
        loss > self.median + min_excess(SHARED_EXCESS, loss, summary.datagrams)
    }

    /// Whether the average losses of the worst twentieth show congestion of a slow group.
    fn is_exceeded_by_group(&self, summary: &PanelSummary) -> bool {
        let is_lossy = summary.worst_average.is_some_and(|loss| {
            loss > self.worst + min_excess(GROUP_EXCESS, loss, summary.datagrams)
        });
        is_lossy || summary.worst_drops_average > self.drops + GROUP_DROPS
    }

    /// Whether this interval alone would show congestion, which is not enough evidence.
    fn may_be_exceeded(&self, summary: &PanelSummary) -> bool {
        self.is_exceeded_by(summary.median, summary)
            || summary.worst_drops > self.drops + SUDDEN_DROPS
    }
}

/// Returns the least excess over the baseline that counts: `least`, or more if chance explains that
/// much with so few datagrams.
fn min_excess(least: f64, loss: f64, datagrams: u64) -> f64 {
    let deviation = (loss * (1.0 - loss) / to_f64(datagrams.max(1))).sqrt();
    least.max(MIN_DEVIATIONS * deviation)
}

/// Losses that trials have shown not to depend on the rate.
#[derive(Clone, Copy, Debug)]
struct Proven {
    losses: Tolerated,
    /// When they count as congestion again.
    until: Instant,
}

/// Congestion control of one cast. All rates are in bits per second.
#[derive(Debug)]
pub(super) struct Controller {
    /// Upper bound of the rate: the ceiling of the interface.
    ceiling: f64,
    /// Lower bound of the rate.
    floor: f64,
    rate: f64,
    bottleneck: Option<Bottleneck>,
    /// Whether this cast, or the earlier one whose rate it continues, met congestion.
    was_congested: bool,
    /// Losses of the intervals in [`BASELINE_WINDOW`]: median and worst twentieth.
    recent_losses: VecDeque<(Instant, f64, f64)>,
    /// Whether the last update doubled the rate, or an opening has just begun. A loss in the next
    /// interval alone is then enough evidence of congestion.
    has_doubled: bool,
    phase: Phase,
    /// Upper bound of the rate after an opening in which no member reported.
    unreported_rate: f64,
    /// Whether to ignore the next interval: it contains datagrams sent at another rate, and members
    /// do not state which datagrams they count.
    skips_next: bool,
    trial: Option<Trial>,
    proven: Option<Proven>,
}

impl Controller {
    /// Creates the controller of a new cast. `last_good` is the rate that congestion left to an
    /// earlier cast.
    pub(super) fn new(
        ceiling: BitRate,
        source: CeilingSource,
        last_good: Option<BitRate>,
        now: Instant,
    ) -> Self {
        let ceiling = bits(ceiling);
        let floor = source.floor(ceiling).min(ceiling);
        let rate = last_good.map_or_else(|| source.start_rate(ceiling), bits);
        let is_opening = source != CeilingSource::Operator;
        // An opening tries higher rates at once, whatever an earlier cast found.
        let is_known = last_good.is_some() && !is_opening;
        let mut controller = Self {
            ceiling,
            floor,
            rate: rate.clamp(floor, ceiling),
            bottleneck: None,
            was_congested: is_known,
            recent_losses: VecDeque::new(),
            has_doubled: is_opening,
            phase: if is_opening { Phase::Opening } else { Phase::Steady },
            unreported_rate: last_good
                .map_or(ceiling * UNREPORTED_SHARE, bits)
                .clamp(floor, ceiling),
            skips_next: false,
            trial: None,
            proven: None,
        };
        if is_known {
            controller.record_bottleneck(controller.rate, now);
        }
        controller.assert_invariants();
        controller
    }

    /// Asserts what holds between any two calls. Losses that members state cannot break it.
    fn assert_invariants(&self) {
        // A cast must neither stand still nor send faster than the interface may. No comparison is
        // true for a number that is none.
        assert!(
            0.0 < self.floor && self.floor <= self.rate && self.rate <= self.ceiling,
            "a rate of {} bit/s is outside {} to {}",
            self.rate,
            self.floor,
            self.ceiling
        );
        debug_assert!(
            self.trial
                .is_none_or(|trial| { (self.floor..=self.ceiling).contains(&trial.earlier_rate) }),
            "a trial would restore a rate out of range: {:?}",
            self.trial
        );
    }

    /// Whether the cast is in its opening.
    pub(super) fn is_opening(&self) -> bool {
        self.phase == Phase::Opening
    }

    /// Ends the opening. Without reports the rate falls to what an earlier cast found, or else to a
    /// cautious share of the ceiling.
    pub(super) fn end_opening(&mut self, has_reports: bool) {
        self.phase = Phase::Steady;
        self.has_doubled = false;
        self.skips_next = false;
        if !has_reports {
            self.rate = self.rate.min(self.unreported_rate);
        }
        self.assert_invariants();
    }

    /// Whether an update without losses may raise the rate.
    pub(super) fn may_grow(&self) -> bool {
        self.rate < self.ceiling && !(self.is_opening() && self.was_congested)
    }

    /// Records the throughput that members received at a congestion.
    fn record_bottleneck(&mut self, rate: f64, now: Instant) {
        self.bottleneck = Some(Bottleneck { rate, until: now + self.bottleneck_timeout() });
    }

    /// Returns how long the bottleneck is remembered after congestion.
    fn bottleneck_timeout(&self) -> Duration {
        if self.is_opening() { OPENING_BOTTLENECK_TIMEOUT } else { BOTTLENECK_TIMEOUT }
    }

    /// Returns the present rate.
    pub(super) fn rate(&self) -> BitRate {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between the floor and the ceiling, both positive and of 64 bits"
        )]
        BitRate::from_bits_per_second(self.rate as u64).expect("the floor is at least a bit")
    }

    /// Returns the rate at which later casts can start. `None` if the cast never met congestion or
    /// is back at the ceiling.
    pub(super) fn last_good(&self) -> Option<BitRate> {
        (self.was_congested && self.rate < self.ceiling).then(|| self.rate())
    }

    /// Updates the rate from the losses of the last interval. `is_timely` says that the reports
    /// cover at least half of the datagrams sent at the present rate.
    ///
    /// Returns whether earlier samples say nothing about the new rate and must be dropped.
    pub(super) fn update(
        &mut self,
        summary: &PanelSummary,
        usage: Usage,
        is_timely: bool,
        now: Instant,
    ) -> bool {
        if std::mem::take(&mut self.skips_next) {
            return true;
        }
        self.proven = self.proven.filter(|proven| now < proven.until);
        self.bottleneck = self.bottleneck.filter(|bottleneck| now < bottleneck.until);
        let tolerated = self.tolerated(summary, now);
        if self.conclude_trial(summary, now) {
            return true;
        }
        let sent = match usage {
            Usage::Full | Usage::Idle => self.rate,
            Usage::Limited(share) => self.rate * share,
        };
        let loss = if self.has_doubled { Some(summary.median) } else { summary.sustained_median };
        self.has_doubled = false;
        if let Some(loss) = loss.filter(|loss| tolerated.is_exceeded_by(*loss, summary)) {
            // The baseline is not known yet in an opening.
            let baseline = if self.is_opening() { 0.0 } else { tolerated.median };
            let throughput = sent * (1.0 - loss) / (1.0 - baseline);
            let loss = (loss, baseline);
            self.skips_next = summary.seen == 0;
            self.lower(Congestion::Shared, sent, (throughput, SHARED_MARGIN), loss, now);
            return true;
        }
        if !self.is_opening() && tolerated.is_exceeded_by_group(summary) {
            let throughput = sent * summary.delivered.max(GROUP_MIN_DELIVERED);
            let loss = (1.0 - summary.delivered, tolerated.worst);
            self.skips_next = summary.seen == 0;
            self.lower(Congestion::Group, sent, (throughput, GROUP_MARGIN), loss, now);
            return true;
        }
        if tolerated.may_be_exceeded(summary) {
            self.step_back(summary.seen == 0, now);
        } else if usage == Usage::Full && is_timely && self.may_grow() {
            let is_saturated = summary.worst_drops_average > tolerated.drops + SATURATION_DROPS;
            self.grow(is_saturated, now);
        }
        false
    }

    /// Returns the losses that the rate does not cause: the least of recent intervals, or the
    /// proven ones if they are higher.
    fn tolerated(&mut self, summary: &PanelSummary, now: Instant) -> Tolerated {
        self.recent_losses.push_back((now, summary.median, summary.worst));
        while self.recent_losses.front().is_some_and(|&(at, ..)| at + BASELINE_WINDOW <= now) {
            self.recent_losses.pop_front();
        }
        let least = |of: fn(&(Instant, f64, f64)) -> f64| {
            self.recent_losses.iter().map(of).fold(BASELINE_MAX_LOSS, f64::min)
        };
        let proven = self.proven.map_or_else(Tolerated::default, |proven| proven.losses);
        Tolerated {
            median: least(|losses| losses.1).max(proven.median),
            worst: least(|losses| losses.2).max(proven.worst),
            drops: proven.drops,
        }
    }

    /// Ends the trial, if any, unless its loss is unchanged and more reductions are needed. If
    /// enough reductions left the loss unchanged, restores the rate before them, tolerates the loss
    /// and returns `true`.
    fn conclude_trial(&mut self, summary: &PanelSummary, now: Instant) -> bool {
        let Some(trial) = self.trial else { return false };
        let loss = match trial.congestion {
            Congestion::Shared => match summary.sustained_median {
                Some(loss) => loss,
                None => return false,
            },
            Congestion::Group if summary.worst_average.is_none() => return false,
            Congestion::Group => 1.0 - summary.delivered,
        };
        let midpoint = f64::midpoint(trial.earlier_loss, trial.expected_loss);
        let is_unchanged = trial.earlier_loss - trial.expected_loss > TRIAL_MIN_DIFFERENCE
            && (midpoint..trial.earlier_loss * UNCHANGED_FACTOR).contains(&loss)
            && (trial.congestion == Congestion::Group || loss <= PROVEN_MAX_LOSS);
        if is_unchanged && trial.reductions < TRIAL_REDUCTIONS {
            return false;
        }
        self.trial = None;
        if !is_unchanged {
            return false;
        }
        let before = self.proven.map_or_else(Tolerated::default, |proven| proven.losses);
        let median = match trial.congestion {
            Congestion::Shared => loss,
            Congestion::Group => 0.0,
        };
        let losses = Tolerated {
            median: before.median.max(median),
            worst: before.worst.max(summary.worst_average.unwrap_or_default()).max(summary.worst),
            drops: before.drops.max(1.0 - summary.delivered),
        };
        self.proven = Some(Proven { losses, until: now + PROVEN_TIMEOUT });
        self.rate = trial.earlier_rate;
        self.bottleneck = None;
        self.skips_next = summary.seen == 0;
        true
    }

    /// Lowers the rate to `margin` of the throughput that members received, and starts or continues
    /// a trial. `sent` is the rate that was really sent.
    fn lower(
        &mut self,
        congestion: Congestion,
        sent: f64,
        (throughput, margin): (f64, f64),
        (loss, baseline): (f64, f64),
        now: Instant,
    ) {
        let before = self.rate;
        self.rate = (throughput * margin).clamp(self.floor, self.ceiling);
        debug_assert!(self.rate <= before, "congestion raises the rate from {before} bit/s");
        self.record_bottleneck(throughput, now);
        self.was_congested = true;
        // Throughput of a bottleneck does not depend on the rate sent into it.
        let expected_loss = (1.0 - (1.0 - loss) * sent / self.rate).max(baseline.min(loss));
        let earlier = self.trial.filter(|trial| trial.congestion == congestion);
        let (reductions, earlier_rate) =
            earlier.map_or((1, before), |trial| (trial.reductions + 1, trial.earlier_rate));
        let earlier_loss = loss;
        let trial = Trial { congestion, reductions, earlier_rate, earlier_loss, expected_loss };
        self.trial = Some(trial);
        self.assert_invariants();
    }

    /// Reacts to a large loss in a single interval, which later intervals must confirm. Near the
    /// bottleneck congestion is a plausible cause, so the rate drops below the bottleneck at once.
    fn step_back(&mut self, skips_next: bool, now: Instant) {
        let timeout = self.bottleneck_timeout();
        if let Some(bottleneck) = self.bottleneck.as_mut().filter(|it| self.rate < it.rate * NEAR.1)
        {
            bottleneck.until = now + timeout;
            let below = (bottleneck.rate * NEAR.0).max(self.floor);
            if below < self.rate {
                // The next interval contains datagrams sent at the higher rate, so it must not be
                // used as an estimate.
                (self.rate, self.skips_next) = (below, skips_next);
            }
        }
        self.assert_invariants();
    }

    /// Raises the rate. While machines are nearly saturated, it grows slowly and the bottleneck is
    /// remembered.
    fn grow(&mut self, is_saturated: bool, now: Instant) {
        if let Some(bottleneck) = self.bottleneck.as_mut().filter(|_| is_saturated) {
            bottleneck.until = now + BOTTLENECK_TIMEOUT;
        }
        let rate = match self.bottleneck {
            // Quadruples up to the highest rate at which an opening may start, then doubles.
            None if !self.was_congested && self.is_opening() => (self.rate * STARTUP_GROWTH)
                .max((self.rate * OPENING_GROWTH).min(INTERFACE_START_BITS)),
            None if !self.was_congested => self.rate * STARTUP_GROWTH,
            Some(Bottleneck { rate, .. }) if self.rate < rate * NEAR.0 => {
                (self.rate * NORMAL_GROWTH).min(rate * NEAR.0)
            }
            Some(Bottleneck { rate, .. }) if is_saturated || self.rate < rate * NEAR.1 => {
                self.rate * NEAR_GROWTH
            }
            Some(Bottleneck { rate, .. }) if self.rate < rate * FAR => self.rate * BEYOND_GROWTH,
            None | Some(_) => self.rate * NORMAL_GROWTH,
        };
        self.has_doubled = !self.was_congested && self.rate < self.ceiling;
        debug_assert!(rate >= self.rate, "growth lowers the rate to {rate} bit/s");
        self.rate = rate.min(self.ceiling);
        self.assert_invariants();
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
