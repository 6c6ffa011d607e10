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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(250);

    /// Members that got all of many datagrams, as far as is known.
    const MANY: View = View {
        median: 0.0,
        twice: None,
        worst: 0.0,
        worst_average: None,
        drops: 0.0,
        worst_drops: 0.0,
        delivered: 1.0,
        datagrams: 20_000,
    };

    /// A controller whose members all lose the same, but for a slow group.
    struct Lab {
        controller: Controller,
        now: Instant,
    }

    fn rate(text: &str) -> BitRate {
        text.parse().unwrap()
    }

    impl Lab {
        fn new(start: Start) -> Self {
            let now = Instant::now();
            Self { controller: Controller::new(rate("1gbit"), start, now), now }
        }

        fn mbit(&self) -> f64 {
            self.controller.rate / 1e6
        }

        /// An interval in which all lose this.
        fn lose(&mut self, lost: f64) -> f64 {
            self.lose_more(lost, lost, 0.0)
        }

        /// An interval like those before in which half of the members lose `median`, and a twentieth `worst` and `drops`.
        fn lose_more(&mut self, median: f64, worst: f64, drops: f64) -> f64 {
            self.now += INTERVAL;
            let view = View {
                median,
                twice: Some(median),
                worst,
                worst_average: Some(worst),
                drops,
                worst_drops: drops,
                delivered: 1.0 - worst - drops,
                datagrams: 20_000,
            };
            self.controller.update(&view, Usage::Full, self.now);
            self.mbit()
        }

        /// An interval through a narrow place, with some losses at random.
        fn through(&mut self, mbit: f64, random: f64) -> f64 {
            let fits = (mbit / self.mbit()).min(1.0);
            self.lose(1.0 - fits * (1.0 - random))
        }
    }

    fn near(left: f64, right: f64) -> bool {
        (left / right - 1.0).abs() < 0.005
    }

    #[test]
    fn a_guessed_ceiling_is_approached_by_doubling_and_a_named_one_is_where_it_begins() {
        let mut lab = Lab::new(Start::Cautious);
        let rates: Vec<_> = (0..5).map(|_| lab.lose(0.0).round()).collect();
        assert_eq!((lab.mbit(), rates), (1000.0, vec![200.0, 400.0, 800.0, 1000.0, 1000.0]));
        assert!(near(Lab::new(Start::Ceiling).lose(0.0), 1000.0));
        assert_eq!(lab.controller.last_good(), None);
    }

    #[test]
    fn random_losses_change_nothing_up_to_a_tenth_and_a_little() {
        for percent in [1.0, 5.0, 10.0, 11.9] {
            let mut lab = Lab::new(Start::Ceiling);
            for _ in 0..100 {
                assert!(near(lab.lose(percent / 100.0), 1000.0), "{percent}%");
            }
        }
    }

    #[test]
    fn losses_by_chance_of_few_datagrams_change_nothing_and_those_of_a_narrow_place_do() {
        // 20 Mbit/s are some 400 datagrams in an interval.
        let few = |lost| View { median: lost, twice: Some(lost), datagrams: 400, ..MANY };
        for (usual, unusual, expected) in
            [(0.03, 0.08, 1000.0), (0.07, 0.14, 1000.0), (0.0, 0.5, 475.0)]
        {
            let mut lab = Lab::new(Start::Ceiling);
            for lost in [usual, unusual] {
                lab.now += INTERVAL;
                lab.controller.update(&few(lost), Usage::Full, lab.now);
            }
            assert!(near(lab.mbit(), expected), "{usual} {unusual}: {}", lab.mbit());
        }
        let mut lab = Lab::new(Start::Ceiling);
        lab.lose(0.03);
        assert!(lab.lose(0.08) < 950.0, "no chance of 20 000");
    }

    #[test]
    fn what_is_lost_in_one_interval_only_is_waited_for() {
        for view in [View { median: 0.5, twice: Some(0.0), ..MANY }, View { drops: 0.5, ..MANY }] {
            let mut lab = Lab::new(Start::Cautious);
            lab.now += INTERVAL;
            lab.controller.update(&MANY, Usage::Rested, lab.now);
            lab.now += INTERVAL;
            lab.controller.update(&view, Usage::Full, lab.now);
            assert!(near(lab.mbit(), 100.0), "{view:?}");
            assert!(near(lab.lose(0.0), 200.0), "{view:?}");
        }
    }

    #[test]
    fn after_the_rate_was_doubled_one_interval_tells_enough() {
        let mut lab = Lab::new(Start::Cautious);
        assert!(near(lab.lose(0.0), 200.0));
        lab.now += INTERVAL;
        lab.controller.update(&View { median: 0.5, ..MANY }, Usage::Full, lab.now);
        assert!(near(lab.mbit(), 95.0), "{}", lab.mbit());
    }

    #[test]
    fn near_what_got_through_a_single_bad_interval_costs_a_step_back_and_no_more() {
        let mut lab = Lab::new(Start::Ceiling);
        lab.lose(0.0);
        assert!(near(lab.through(300.0, 0.0), 285.0));
        (0..8).for_each(|_| assert!(lab.lose(0.0) < 310.0));
        let once = View { median: 0.9, twice: Some(0.0), ..MANY };
        for _ in 0..10 {
            lab.now += INTERVAL;
            lab.controller.update(&once, Usage::Full, lab.now);
            assert!(near(lab.mbit(), 285.0), "{}", lab.mbit());
        }
        (0..12).for_each(|_| assert!(lab.lose(0.0) < 340.0));
        lab.controller.update(&once, Usage::Full, lab.now);
        assert!(lab.mbit() > 315.0, "too far above what got through: that was narrow");
    }

    #[test]
    fn what_was_lost_before_a_step_back_says_nothing_of_the_rate_after_it() {
        let mut lab = Lab::new(Start::Ceiling);
        lab.lose(0.0);
        lab.through(300.0, 0.0);
        (0..8).for_each(|_| assert!(lab.lose(0.0) < 310.0));
        for (median, twice) in [(0.034, 0.0), (0.036, 0.034)] {
            lab.now += INTERVAL;
            let view = View { median, twice: Some(twice), ..MANY };
            lab.controller.update(&view, Usage::Full, lab.now);
            assert!(near(lab.mbit(), 285.0), "{}", lab.mbit());
        }
        assert!(near(lab.lose(0.0), 287.85));
    }

    #[test]
    fn while_machines_drop_a_little_the_rate_grows_slowly_and_what_got_through_is_remembered() {
        let mut lab = Lab::new(Start::Ceiling);
        lab.lose(0.0);
        assert!(near(lab.lose_more(0.0, 0.0, 0.5), 485.0));
        lab.lose(0.0);
        let drop_a_little = |lab: &mut Lab| {
            lab.now += INTERVAL;
            let view = View { drops: 0.04, worst_drops: 0.04, ..MANY };
            lab.controller.update(&view, Usage::Full, lab.now);
        };
        (0..50).for_each(|_| drop_a_little(&mut lab));
        assert!(near(lab.mbit(), 485.0 * 1.01_f64.powi(50)), "{}", lab.mbit());
    }

    #[test]
    fn what_all_share_brings_the_rate_to_what_gets_through_at_once() {
        let mut lab = Lab::new(Start::Ceiling);
        lab.lose(0.01);
        assert!(near(lab.through(300.0, 0.01), 285.0));
        assert!(near(lab.lose(0.5), 285.0), "sent at the old rate yet");
        assert!(near(lab.lose(0.01), 287.85), "near what got through");
        assert_eq!(lab.controller.last_good(), Some(lab.controller.rate()));
    }

    #[test]
    fn a_narrow_place_is_filled_and_hardly_overfilled() {
        let mut lab = Lab::new(Start::Cautious);
        for _ in 0..8 {
            lab.through(300.0, 0.01);
        }
        let (mut sent, mut least) = (0.0, f64::MAX);
        for _ in 0..400 {
            let rate = lab.through(300.0, 0.01);
            least = least.min(rate);
            sent += rate / 400.0;
        }
        assert!((285.0..320.0).contains(&sent) && least > 250.0, "{sent} on average, {least}");
    }

    #[test]
    fn what_was_narrow_for_a_while_is_found_to_be_wide_again() {
        let mut lab = Lab::new(Start::Ceiling);
        for _ in 0..20 {
            lab.through(300.0, 0.0);
        }
        let intervals = (0..200).take_while(|_| lab.through(1e9, 0.0) < 999.0).count();
        assert!(intervals < 32, "{intervals}");
    }

    #[test]
    fn a_slow_group_is_followed_by_halves_and_a_single_interval_of_it_is_not_known() {
        let mut lab = Lab::new(Start::Ceiling);
        lab.lose(0.0);
        assert!(near(lab.lose_more(0.0, 0.8, 0.0), 485.0));
        lab.lose_more(0.0, 0.8, 0.0);
        assert!(near(lab.lose_more(0.0, 0.6, 0.0), 235.225));
        let mut lab = Lab::new(Start::Ceiling);
        lab.now += INTERVAL;
        let view = View { worst: 0.8, delivered: 0.2, ..MANY };
        lab.controller.update(&view, Usage::Full, lab.now);
        assert!(near(lab.mbit(), 1000.0), "too little is known of the average");
    }

    #[test]
    fn machines_that_drop_a_tenth_on_average_are_a_slow_group() {
        let mut lab = Lab::new(Start::Ceiling);
        assert!(near(lab.lose_more(0.0, 0.0, 0.09), 1000.0));
        assert!(near(lab.lose_more(0.0, 0.0, 0.2), 776.0));
    }

    #[test]
    fn losses_that_do_not_fall_with_the_rate_are_none_of_it() {
        for (median, worst, drops) in [(0.2, 0.2, 0.0), (0.0, 0.2, 0.0), (0.0, 0.0, 0.2)] {
            let mut lab = Lab::new(Start::Ceiling);
            lab.lose(0.0);
            let mut rates: Vec<_> = (0..400).map(|_| lab.lose_more(median, worst, drops)).collect();
            rates.sort_by(f64::total_cmp);
            assert!(rates[0] > 500.0, "{rates:?}");
            assert!(near(rates[40], 1000.0), "{rates:?}");
        }
    }

    #[test]
    fn losses_that_grow_or_are_many_are_never_believed_to_be_harmless() {
        let mut lab = Lab::new(Start::Ceiling);
        lab.lose(0.0);
        (0..40).for_each(|_| assert!(lab.lose(0.4) <= 1000.0));
        assert!(lab.mbit() < 20.0, "{}", lab.mbit());
        let mut lab = Lab::new(Start::Ceiling);
        lab.lose(0.0);
        for lost in [0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.25, 0.25] {
            lab.lose(lost);
        }
        assert!(lab.mbit() < 500.0, "{}", lab.mbit());
    }

    #[test]
    fn a_cast_that_is_held_up_by_something_else_does_not_grow() {
        let mut lab = Lab::new(Start::Cautious);
        lab.now += INTERVAL;
        let view = MANY;
        lab.controller.update(&view, Usage::HeldUp(0.5), lab.now);
        lab.controller.update(&view, Usage::Rested, lab.now);
        assert!(near(lab.mbit(), 100.0));
    }

    #[test]
    fn what_gets_through_is_counted_from_what_was_sent_and_not_from_what_might_have_been() {
        let lose = |usage| {
            let mut lab = Lab::new(Start::Ceiling);
            lab.lose(0.0);
            let view = View { median: 0.5, twice: Some(0.5), ..MANY };
            lab.controller.update(&view, usage, lab.now);
            lab.mbit()
        };
        assert!(near(lose(Usage::Full), 475.0) && near(lose(Usage::Rested), 475.0));
        assert!(near(lose(Usage::HeldUp(0.2)), 95.0));
    }

    #[test]
    fn an_earlier_casts_good_rate_is_begun_with_and_left_slowly() {
        let mut lab = Lab::new(Start::LastGood(rate("300mbit")));
        assert!(near(lab.mbit(), 300.0));
        assert!(near(lab.lose(0.0), 303.0));
        assert!(near(lab.lose(0.0), 306.0));
    }

    #[test]
    fn nothing_brings_the_rate_below_the_floor() {
        for (ceiling, floor) in [("1gbit", 10.0), ("50mbit", 1.0), ("500kbit", 0.5)] {
            let mut lab = Lab::new(Start::Ceiling);
            lab.controller = Controller::new(rate(ceiling), Start::Ceiling, lab.now);
            let mut least = f64::MAX;
            for round in 0..100 {
                least = least.min(lab.lose(if round % 4 == 0 { 0.0 } else { 1.0 }));
            }
            assert!(near(least, floor), "{ceiling}: {least}");
        }
    }

    proptest! {
        #[test]
        fn whatever_members_lose_the_rate_is_between_floor_and_ceiling(
            views in proptest::collection::vec((0.0..=1.0, 0.0..=1.0, 0.0..=1.0, -1.0..2.0, 0u64..4000, any::<u64>()), 0..200),
            cautious: bool,
        ) {
            let mut lab = Lab::new(if cautious { Start::Cautious } else { Start::Ceiling });
            for (median, worst, drops, usage, pause_ms, datagrams) in views {
                lab.now += Duration::from_millis(pause_ms);
                let view = View {
                    median, twice: Some(median), worst, worst_average: Some(worst), drops, worst_drops: drops,
                    delivered: 1.0 - worst, datagrams,
                };
                let usage = match usage {
                    ..0.0 => Usage::Rested,
                    1.0.. => Usage::Full,
                    share => Usage::HeldUp(share),
                };
                lab.controller.update(&view, usage, lab.now);
                prop_assert!((10.0..=1000.0).contains(&lab.mbit()), "{}", lab.mbit());
            }
        }
    }
}
