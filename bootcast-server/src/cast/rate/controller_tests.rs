//! The controller with made-up summaries of a panel, on a virtual clock.

use proptest::prelude::*;

use super::*;

const INTERVAL: Duration = Duration::from_millis(250);

/// A first interval of many datagrams, of which all arrived.
const MANY: PanelSummary = PanelSummary {
    median: 0.0,
    sustained_median: None,
    worst: 0.0,
    worst_average: None,
    worst_drops: 0.0,
    worst_drops_average: 0.0,
    delivered: 1.0,
    datagrams: 20_000,
    seen: 0,
};

/// A controller, with a summary for each interval.
struct Lab {
    controller: Controller,
    now: Instant,
}

fn rate(text: &str) -> BitRate {
    text.parse().unwrap()
}

impl Lab {
    fn new(source: CeilingSource) -> Self {
        let now = Instant::now();
        let mut controller = Controller::new(rate("1gbit"), source, None, now);
        controller.end_opening(true);
        Self { controller, now }
    }

    fn with_last_good(text: &str) -> Self {
        let (now, known) = (Instant::now(), Some(rate(text)));
        let controller = Controller::new(rate("1gbit"), CeilingSource::Operator, known, now);
        Self { controller, now }
    }

    fn mbit(&self) -> f64 {
        self.controller.rate / 1e6
    }

    /// Runs an interval in which the network loses this share for every member. Returns the new
    /// rate in Mbit/s.
    fn lose(&mut self, loss: f64) -> f64 {
        self.lose_in_group(loss, loss, 0.0)
    }

    /// Runs an interval with this median loss, in which the worst twentieth loses `worst` in the
    /// network and `drops` in sockets. The averages are the same. Returns the new rate in Mbit/s.
    fn lose_in_group(&mut self, median: f64, worst: f64, drops: f64) -> f64 {
        self.now += INTERVAL;
        let summary = PanelSummary {
            median,
            sustained_median: Some(median),
            worst,
            worst_average: Some(worst),
            worst_drops: drops,
            worst_drops_average: drops,
            delivered: 1.0 - worst - drops,
            datagrams: 20_000,
            seen: 0,
        };
        self.controller.update(&summary, Usage::Full, true, self.now);
        self.mbit()
    }

    /// Runs an interval through a bottleneck of `mbit` Mbit/s, with random losses. Returns the new
    /// rate in Mbit/s.
    fn send_through(&mut self, mbit: f64, random_loss: f64) -> f64 {
        let passed = (mbit / self.mbit()).min(1.0);
        self.lose(1.0 - passed * (1.0 - random_loss))
    }
}

fn near(left: f64, right: f64) -> bool {
    (left / right - 1.0).abs() < 0.005
}

#[test]
fn an_assumed_ceiling_is_approached_by_doubling_and_a_named_one_is_the_start() {
    let mut lab = Lab::new(CeilingSource::Assumption);
    let rates: Vec<_> = (0..5).map(|_| lab.lose(0.0).round()).collect();
    assert_eq!((lab.mbit(), rates), (1000.0, vec![600.0, 1000.0, 1000.0, 1000.0, 1000.0]));
    assert!(near(Lab::new(CeilingSource::Operator).lose(0.0), 1000.0));
    assert_eq!(lab.controller.last_good(), None);
}

#[test]
fn constant_losses_of_up_to_a_tenth_and_a_little_more_change_nothing() {
    for percent in [1.0, 5.0, 10.0, 11.9] {
        let mut lab = Lab::new(CeilingSource::Operator);
        for _ in 0..100 {
            assert!(near(lab.lose(percent / 100.0), 1000.0), "{percent}%");
        }
    }
}

#[test]
fn losses_of_few_datagrams_must_exceed_chance_to_lower_the_rate() {
    // 20 Mbit/s are some 400 datagrams in an interval.
    let few =
        |loss| PanelSummary { median: loss, sustained_median: Some(loss), datagrams: 400, ..MANY };
    for (usual, unusual, expected) in
        [(0.03, 0.08, 1000.0), (0.07, 0.14, 1000.0), (0.0, 0.5, 475.0)]
    {
        let mut lab = Lab::new(CeilingSource::Operator);
        for loss in [usual, unusual] {
            lab.now += INTERVAL;
            lab.controller.update(&few(loss), Usage::Full, true, lab.now);
        }
        assert!(near(lab.mbit(), expected), "{usual} {unusual}: {}", lab.mbit());
    }
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.03);
    assert!(lab.lose(0.08) < 950.0, "not by chance with 20 000 datagrams");
}

#[test]
fn losses_in_a_single_interval_pause_growth_without_lowering_the_rate() {
    for summary in [
        PanelSummary { median: 0.5, sustained_median: Some(0.0), ..MANY },
        PanelSummary { worst_drops: 0.5, ..MANY },
    ] {
        let mut lab = Lab::new(CeilingSource::Assumption);
        lab.now += INTERVAL;
        lab.controller.update(&MANY, Usage::Idle, true, lab.now);
        lab.now += INTERVAL;
        lab.controller.update(&summary, Usage::Full, true, lab.now);
        assert!(near(lab.mbit(), 300.0), "{summary:?}");
        assert!(near(lab.lose(0.0), 600.0), "{summary:?}");
    }
}

#[test]
fn after_doubling_one_interval_of_losses_lowers_the_rate() {
    let mut lab = Lab::new(CeilingSource::Assumption);
    assert!(near(lab.lose(0.0), 600.0));
    lab.now += INTERVAL;
    lab.controller.update(&PanelSummary { median: 0.5, ..MANY }, Usage::Full, true, lab.now);
    assert!(near(lab.mbit(), 285.0), "{}", lab.mbit());
}

#[test]
fn near_the_bottleneck_a_single_bad_interval_lowers_the_rate_just_below_it() {
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.0);
    assert!(near(lab.send_through(300.0, 0.0), 285.0));
    (0..8).for_each(|_| assert!(lab.lose(0.0) < 310.0));
    let once = PanelSummary { median: 0.9, sustained_median: Some(0.0), ..MANY };
    for _ in 0..10 {
        lab.now += INTERVAL;
        lab.controller.update(&once, Usage::Full, true, lab.now);
        assert!(near(lab.mbit(), 285.0), "{}", lab.mbit());
    }
    (0..12).for_each(|_| assert!(lab.lose(0.0) < 340.0));
    lab.controller.update(&once, Usage::Full, true, lab.now);
    assert!(lab.mbit() > 315.0, "too far above the bottleneck for it to be the cause");
}

#[test]
fn losses_from_before_a_step_back_do_not_lower_the_rate_again() {
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.0);
    lab.send_through(300.0, 0.0);
    (0..8).for_each(|_| assert!(lab.lose(0.0) < 310.0));
    for (median, sustained_median) in [(0.034, 0.0), (0.036, 0.034)] {
        lab.now += INTERVAL;
        let summary = PanelSummary { median, sustained_median: Some(sustained_median), ..MANY };
        lab.controller.update(&summary, Usage::Full, true, lab.now);
        assert!(near(lab.mbit(), 285.0), "{}", lab.mbit());
    }
    assert!(near(lab.lose(0.0), 287.85));
}

#[test]
fn what_an_opening_found_is_tried_again_after_a_second_also_after_a_bad_interval() {
    let page = include_str!("../../../../docs/PROTOCOL.md");
    assert!(page.contains("What got through is tried again after 1 s instead of 10."));
    let now = Instant::now();
    let controller = Controller::new(rate("1gbit"), CeilingSource::Assumption, None, now);
    let mut lab = Lab { controller, now };
    assert!(lab.controller.is_opening());
    lab.lose(0.5);
    lab.lose(0.0);
    let found_until = lab.controller.bottleneck.expect("congestion").until;
    let once = PanelSummary { median: 0.9, sustained_median: Some(0.0), ..MANY };
    lab.controller.update(&once, Usage::Full, true, lab.now);
    let until = lab.controller.bottleneck.expect("the bottleneck is remembered").until;
    assert!(found_until < until, "the bad interval counts");
    assert_eq!(until, lab.now + OPENING_BOTTLENECK_TIMEOUT);
}

#[test]
fn while_sockets_drop_a_little_the_rate_grows_slowly_and_the_bottleneck_is_remembered() {
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.0);
    assert!(near(lab.lose_in_group(0.0, 0.0, 0.5), 485.0));
    lab.lose(0.0);
    let drop_a_little = |lab: &mut Lab| {
        lab.now += INTERVAL;
        let summary = PanelSummary { worst_drops: 0.04, worst_drops_average: 0.04, ..MANY };
        lab.controller.update(&summary, Usage::Full, true, lab.now);
    };
    (0..50).for_each(|_| drop_a_little(&mut lab));
    assert!(near(lab.mbit(), 485.0 * 1.01_f64.powi(50)), "{}", lab.mbit());
}

#[test]
fn shared_congestion_lowers_the_rate_to_the_throughput_at_once() {
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.01);
    assert!(near(lab.send_through(300.0, 0.01), 285.0));
    assert!(near(lab.lose(0.5), 285.0), "still datagrams sent at the earlier rate");
    assert!(near(lab.lose(0.01), 287.85), "slow growth near the bottleneck");
    assert_eq!(lab.controller.last_good(), Some(lab.controller.rate()));
}

#[test]
fn the_rate_stays_close_to_a_bottleneck() {
    let mut lab = Lab::new(CeilingSource::Assumption);
    for _ in 0..8 {
        lab.send_through(300.0, 0.01);
    }
    let (mut sent, mut least) = (0.0, f64::MAX);
    for _ in 0..400 {
        let rate = lab.send_through(300.0, 0.01);
        least = least.min(rate);
        sent += rate / 400.0;
    }
    assert!((285.0..320.0).contains(&sent) && least > 250.0, "{sent} on average, {least}");
}

#[test]
fn the_rate_returns_to_the_ceiling_once_a_bottleneck_is_gone() {
    let mut lab = Lab::new(CeilingSource::Operator);
    for _ in 0..20 {
        lab.send_through(300.0, 0.0);
    }
    let intervals = (0..200).take_while(|_| lab.send_through(1e9, 0.0) < 999.0).count();
    assert!(intervals < 32, "{intervals}");
}

#[test]
fn a_slow_group_halves_the_rate_at_most_and_needs_an_average() {
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.0);
    assert!(near(lab.lose_in_group(0.0, 0.8, 0.0), 485.0));
    lab.lose_in_group(0.0, 0.8, 0.0);
    assert!(near(lab.lose_in_group(0.0, 0.6, 0.0), 235.225));
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.now += INTERVAL;
    let summary = PanelSummary { worst: 0.8, delivered: 0.2, ..MANY };
    lab.controller.update(&summary, Usage::Full, true, lab.now);
    assert!(near(lab.mbit(), 1000.0), "no average yet");
}

#[test]
fn average_drops_of_a_tenth_are_congestion_of_a_slow_group() {
    let mut lab = Lab::new(CeilingSource::Operator);
    assert!(near(lab.lose_in_group(0.0, 0.0, 0.09), 1000.0));
    assert!(near(lab.lose_in_group(0.0, 0.0, 0.2), 776.0));
}

#[test]
fn losses_that_do_not_fall_with_the_rate_are_tolerated() {
    for (median, worst, drops) in [
        (0.2, 0.2, 0.0),
        (0.0, 0.2, 0.0),
        (0.0, 0.0, 0.2),
        // Two members with bad cables: one more than is left out.
        (0.0, 0.5, 0.0),
        (0.01, 0.9, 0.0),
    ] {
        let mut lab = Lab::new(CeilingSource::Operator);
        lab.lose(0.0);
        let mut rates: Vec<_> = (0..400).map(|_| lab.lose_in_group(median, worst, drops)).collect();
        rates.sort_by(f64::total_cmp);
        assert!(rates[0] > if worst > 0.3 { 200.0 } else { 500.0 }, "{rates:?}");
        assert!(near(rates[40], 1000.0), "{rates:?}");
    }
}

#[test]
fn losses_that_grow_or_are_too_high_are_never_tolerated() {
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.0);
    (0..40).for_each(|_| assert!(lab.lose(0.4) <= 1000.0));
    assert!(lab.mbit() < 20.0, "{}", lab.mbit());
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.0);
    for loss in [0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.25, 0.25] {
        lab.lose(loss);
    }
    assert!(lab.mbit() < 500.0, "{}", lab.mbit());
}

#[test]
fn the_rate_of_a_cast_that_does_not_use_it_does_not_grow() {
    let mut lab = Lab::new(CeilingSource::Assumption);
    lab.now += INTERVAL;
    let summary = MANY;
    lab.controller.update(&summary, Usage::Limited(0.5), true, lab.now);
    lab.controller.update(&summary, Usage::Idle, true, lab.now);
    assert!(near(lab.mbit(), 300.0));
}

#[test]
fn throughput_is_estimated_from_the_rate_that_was_really_sent() {
    let lose = |usage| {
        let mut lab = Lab::new(CeilingSource::Operator);
        lab.lose(0.0);
        let summary = PanelSummary { median: 0.5, sustained_median: Some(0.5), ..MANY };
        lab.controller.update(&summary, usage, true, lab.now);
        lab.mbit()
    };
    assert!(near(lose(Usage::Full), 475.0) && near(lose(Usage::Idle), 475.0));
    assert!(near(lose(Usage::Limited(0.2)), 95.0));
}

#[test]
fn a_cast_starts_at_the_last_good_rate_and_grows_slowly_from_it() {
    let mut lab = Lab::with_last_good("300mbit");
    assert!(near(lab.mbit(), 300.0));
    assert!(near(lab.lose(0.0), 303.0));
    assert!(near(lab.lose(0.0), 306.0));
}

#[test]
fn the_rate_never_falls_below_the_floor() {
    for (ceiling, floor) in [("1gbit", 10.0), ("50mbit", 1.0), ("500kbit", 0.5)] {
        let mut lab = Lab::new(CeilingSource::Operator);
        lab.controller = Controller::new(rate(ceiling), CeilingSource::Operator, None, lab.now);
        let mut least = f64::MAX;
        for round in 0..100 {
            least = least.min(lab.lose(if round % 4 == 0 { 0.0 } else { 1.0 }));
        }
        assert!(near(least, floor), "{ceiling}: {least}");
    }
}

proptest! {
    #[test]
    fn the_rate_stays_between_floor_and_ceiling_for_any_losses(
        intervals in proptest::collection::vec(
            (0.0..=1.0, 0.0..=1.0, 0.0..=1.0, -1.0..2.0, 0u64..4000, any::<u64>()), 0..200,
        ),
        is_assumed: bool,
    ) {
        let source =
            if is_assumed { CeilingSource::Assumption } else { CeilingSource::Operator };
        let mut lab = Lab::new(source);
        for (median, worst, drops, usage, pause_ms, datagrams) in intervals {
            lab.now += Duration::from_millis(pause_ms);
            let summary = PanelSummary {
                median,
                sustained_median: Some(median),
                worst,
                worst_average: Some(worst),
                worst_drops: drops,
                worst_drops_average: drops,
                delivered: 1.0 - worst,
                datagrams,
                seen: 0,
            };
            let usage = match usage {
                ..0.0 => Usage::Idle,
                1.0.. => Usage::Full,
                share => Usage::Limited(share),
            };
            lab.controller.update(&summary, usage, true, lab.now);
            let floor = if is_assumed { 0.256 } else { 10.0 };
            prop_assert!((floor..=1000.0).contains(&lab.mbit()), "{}", lab.mbit());
        }
    }
}
