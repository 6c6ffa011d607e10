//! From what members get to the rate at which a cast sends.
//!
//! Losses alone say little: 1 % at random would bring every control that follows them to a crawl. So what counts is loss above
//! what there was at best of late, for half of the members (something that all share is too narrow) or for a twentieth (their
//! machines or links are too slow); and what follows is the rate at which they were still getting something.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bootcast_proto::BitRate;

use super::panel::View;

/// Losses that there were at best within this time are not of the rate ..
const BASE_TIME: Duration = Duration::from_secs(10);

/// .. unless they are more than this.
const BASE_MAX: f64 = 0.1;

/// So much more loss for half of the members means that all are held up.
const SHARED_EXCESS: f64 = 0.02;

/// So much more for a twentieth of them, on average, that these are; and so much dropped by their sockets.
const GROUP_EXCESS: f64 = 0.05;
const GROUP_DROPS: f64 = 0.1;

/// An excess must be so many standard deviations of what chance makes of a loss: the base is the least of forty samples, some two
/// of them below the mean, and the excess must not be reached by chance in hours.
const CHANCE: f64 = 5.0;

/// More than this that sockets dropped in a single interval is waited for.
const DROPS_ONCE: f64 = 0.2;

/// Where sockets drop more than this on average, a machine takes no more, or hardly more.
const DROPS_SEEN: f64 = 0.02;

/// Of what seems to get through, this share is sent after either.
const SHARED_MARGIN: f64 = 0.95;
const GROUP_MARGIN: f64 = 0.97;

/// For a slow group the rate falls to this share of itself at a time, at most.
const GROUP_STEP: f64 = 0.5;

/// Growth in an interval: until the first congestion; later below what got through then, near it, and above.
const FIRST_GROWTH: f64 = 2.0;
const LATER_GROWTH: f64 = 1.25;
const NEAR_GROWTH: f64 = 1.01;
const BEYOND_GROWTH: f64 = 1.05;

/// Near: from this share of what got through to that one.
const NEAR: (f64, f64) = (0.95, 1.05);

/// From this share of it on, it is none any more.
const FAR: f64 = 1.25;

/// What got through is forgotten after so long without congestion.
const CEILING_TIME: Duration = Duration::from_secs(10);

/// Losses that did not fall with the rate are believed to be none of it for so long.
const PROVEN_TIME: Duration = Duration::from_secs(30);

/// Smaller ones are not told from chance, and larger ones are never believed to be harmless.
const PROVABLE: f64 = 0.02;
const PROVEN_MAX: f64 = 0.3;

/// It takes so many reductions in a row that changed nothing, where nothing is: not a quarter more, nor less by half of what
/// was to be expected.
const TRIALS: u32 = 2;
const UNCHANGED: f64 = 1.25;

/// The share of the ceiling that a cast begins with where nobody vouches for more.
const CAUTIOUS_SHARE: f64 = 0.1;

/// Nothing brings a cast below this share of the ceiling, nor below this rate.
const FLOOR_SHARE: f64 = 0.01;
const FLOOR_BITS: f64 = 1e6;

/// What a cast begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cast) enum Start {
    /// The ceiling: the operator named it and vouches for it.
    Ceiling,
    /// A tenth of it: it is a guess.
    Cautious,
    /// What got through to the members of an earlier cast, after congestion.
    LastGood(BitRate),
}

/// What a cast made of its rate in an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Usage {
    /// It sent what it might.
    Full,
    /// It had nothing to send at times.
    Rested,
    /// It always had something to send, but this share of the rate is all that the others, or the machine, left to it.
    HeldUp(f64),
}

/// What got through at the last congestion.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    rate: f64,
    at: Instant,
}

/// Who was held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Congestion {
    Shared,
    Group,
}

/// A rate was lowered; the losses of the next intervals will tell whether that was of any use.
#[derive(Clone, Copy, Debug)]
struct Trial {
    congestion: Congestion,
    /// How many in a row it is, and the rate before the first.
    number: u32,
    rate: f64,
    /// Losses before.
    lost: f64,
    /// Losses that are left if the rate was their cause.
    expected: f64,
}

/// Losses that are none of the rate.
#[derive(Clone, Copy, Debug, Default)]
struct Harmless {
    /// In the network: of half of the members, and of all but a twentieth.
    median: f64,
    worst: f64,
    /// In sockets, of all but a twentieth.
    drops: f64,
}

impl Harmless {
    /// Whether half of the members lose so much that all must be held up.
    fn is_exceeded_by(&self, lost: f64, view: &View) -> bool {
        lost > self.median + excess(SHARED_EXCESS, lost, view.datagrams)
    }

    /// Whether a twentieth of them loses that much on average.
    fn is_exceeded_for_a_group(&self, view: &View) -> bool {
        let is_lossy = view
            .worst_average
            .is_some_and(|lost| lost > self.worst + excess(GROUP_EXCESS, lost, view.datagrams));
        is_lossy || view.worst_drops > self.drops + GROUP_DROPS
    }

    /// Whether either was so in this interval, which alone says little.
    fn may_be_exceeded(&self, view: &View) -> bool {
        self.is_exceeded_by(view.median, view) || view.drops > self.drops + DROPS_ONCE
    }
}

/// How much more than usual a loss must be that counts: `least`, or more where it is a share of so few datagrams that chance may do
/// as much.
fn excess(least: f64, lost: f64, datagrams: u64) -> f64 {
    let deviation = (lost * (1.0 - lost) / to_f64(datagrams.max(1))).sqrt();
    least.max(CHANCE * deviation)
}

/// Losses that are none of the rate, by trial.
#[derive(Clone, Copy, Debug)]
struct Proven {
    losses: Harmless,
    until: Instant,
}

#[derive(Debug)]
pub(super) struct Controller {
    /// Of the interface, and the least: bits per second, as all rates here.
    line: f64,
    floor: f64,
    rate: f64,
    ceiling: Option<Ceiling>,
    was_congested: bool,
    /// Losses of the last intervals: median and worst.
    bases: VecDeque<(Instant, f64, f64)>,
    /// The last look doubled the rate: a loss thereafter needs no second interval to be believed.
    has_doubled: bool,
    /// The next look sees what was sent at another rate.
    skips: bool,
    trial: Option<Trial>,
    proven: Option<Proven>,
}

impl Controller {
    pub(super) fn new(ceiling: BitRate, start: Start, now: Instant) -> Self {
        let line = bits(ceiling);
        let floor = (line * FLOOR_SHARE).max(FLOOR_BITS).min(line);
        let (rate, known) = match start {
            Start::Ceiling => (line, None),
            Start::Cautious => (line * CAUTIOUS_SHARE, None),
            Start::LastGood(rate) => (bits(rate), Some(Ceiling { rate: bits(rate), at: now })),
        };
        Self {
            line,
            floor,
            rate: rate.clamp(floor, line),
            ceiling: known,
            was_congested: known.is_some(),
            bases: VecDeque::new(),
            has_doubled: false,
            skips: false,
            trial: None,
            proven: None,
        }
    }

    /// At present.
    pub(super) fn rate(&self) -> BitRate {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between the floor and the ceiling, both positive and of 64 bits"
        )]
        BitRate::from_bits_per_second(self.rate as u64).expect("the floor is at least a bit")
    }

    /// What later casts may begin with; `None` where nothing but the ceiling ever held this one up.
    pub(super) fn last_good(&self) -> Option<BitRate> {
        (self.was_congested && self.rate < self.line).then(|| self.rate())
    }

    /// Follows what members got in the last interval. `true`: what was told before says nothing of the rate from now on.
    pub(super) fn update(&mut self, view: &View, usage: Usage, now: Instant) -> bool {
        if std::mem::take(&mut self.skips) {
            return true;
        }
        self.proven = self.proven.filter(|proven| now < proven.until);
        self.ceiling = self.ceiling.filter(|ceiling| now < ceiling.at + CEILING_TIME);
        let harmless = self.harmless(view, now);
        if self.judge(view, now) {
            return true;
        }
        let sent = match usage {
            Usage::Full | Usage::Rested => self.rate,
            Usage::HeldUp(share) => self.rate * share,
        };
        let believed = if self.has_doubled { Some(view.median) } else { view.twice };
        self.has_doubled = false;
        if let Some(lost) = believed.filter(|lost| harmless.is_exceeded_by(*lost, view)) {
            let through = sent * (1.0 - lost) / (1.0 - harmless.median);
            let lost = (lost, harmless.median);
            self.lower(Congestion::Shared, sent, (through, SHARED_MARGIN), lost, now);
            return true;
        }
        if harmless.is_exceeded_for_a_group(view) {
            let through = sent * view.delivered.max(GROUP_STEP);
            let lost = (1.0 - view.delivered, harmless.worst);
            self.lower(Congestion::Group, sent, (through, GROUP_MARGIN), lost, now);
            return true;
        }
        if harmless.may_be_exceeded(view) {
            self.wait(now);
        } else if usage == Usage::Full {
            self.grow(view.worst_drops > harmless.drops + DROPS_SEEN, now);
        }
        false
    }

    /// What members lose whatever the rate: the least of late, or what is proven.
    fn harmless(&mut self, view: &View, now: Instant) -> Harmless {
        self.bases.push_back((now, view.median, view.worst));
        while self.bases.front().is_some_and(|&(at, ..)| at + BASE_TIME <= now) {
            self.bases.pop_front();
        }
        let least = |of: fn(&(Instant, f64, f64)) -> f64| {
            self.bases.iter().map(of).fold(BASE_MAX, f64::min)
        };
        let proven = self.proven.map_or_else(Harmless::default, |proven| proven.losses);
        Harmless {
            median: least(|base| base.1).max(proven.median),
            worst: least(|base| base.2).max(proven.worst),
            drops: proven.drops,
        }
    }

    /// Whether lowering the rate was in vain: then it is what it was before, and the losses are nothing to react to.
    fn judge(&mut self, view: &View, now: Instant) -> bool {
        let Some(trial) = self.trial else { return false };
        let lost = match trial.congestion {
            Congestion::Shared => match view.twice {
                Some(lost) => lost,
                None => return false,
            },
            Congestion::Group if view.worst_average.is_none() => return false,
            Congestion::Group => 1.0 - view.delivered,
        };
        let in_vain = trial.lost - trial.expected > PROVABLE
            && (f64::midpoint(trial.lost, trial.expected)..trial.lost * UNCHANGED).contains(&lost)
            && lost <= PROVEN_MAX;
        if in_vain && trial.number < TRIALS {
            return false;
        }
        self.trial = None;
        if !in_vain {
            return false;
        }
        let before = self.proven.map_or_else(Harmless::default, |proven| proven.losses);
        let losses = Harmless {
            median: before.median.max(view.median),
            worst: before.worst.max(view.worst_average.unwrap_or_default()).max(view.worst),
            drops: before.drops.max(1.0 - view.delivered),
        };
        self.proven = Some(Proven { losses, until: now + PROVEN_TIME });
        self.rate = trial.rate;
        self.ceiling = None;
        self.skips = true;
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
        self.ceiling = Some(Ceiling { rate: through, at: now });
        self.was_congested = true;
        self.skips = true;
        // What gets through a narrow place does not depend on what is sent into it.
        let expected = (1.0 - (1.0 - lost) * sent / self.rate).max(base.min(lost));
        let earlier = self.trial.filter(|trial| trial.congestion == congestion);
        let (number, rate) = earlier.map_or((1, before), |trial| (trial.number + 1, trial.rate));
        self.trial = Some(Trial { congestion, number, rate, lost, expected });
    }

    /// Much was lost in a single interval: the next ones tell why. Near what got through before, the reason may be guessed.
    fn wait(&mut self, now: Instant) {
        if let Some(ceiling) = self.ceiling.as_mut().filter(|it| self.rate < it.rate * NEAR.1) {
            ceiling.at = now;
            let calm = (ceiling.rate * NEAR.0).max(self.floor);
            if calm < self.rate {
                // What the next look sees was sent at the higher rate in part: of that it must not be concluded what gets through.
                (self.rate, self.skips) = (calm, true);
            }
        }
    }

    /// `is_full`: machines seem to take no more. Then what gets through is what did, or little more.
    fn grow(&mut self, is_full: bool, now: Instant) {
        if let Some(ceiling) = self.ceiling.as_mut().filter(|_| is_full) {
            ceiling.at = now;
        }
        let rate = match self.ceiling {
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
