//! The control by what a panel might tell, on a virtual clock.

use proptest::prelude::*;

use super::*;

const INTERVAL: Duration = Duration::from_millis(250);

/// Members that got all of many datagrams, as far as is known.
const MANY: PanelSummary = PanelSummary {
    median: 0.0,
    twice: None,
    worst: 0.0,
    worst_average: None,
    drops: 0.0,
    worst_drops: 0.0,
    delivered: 1.0,
    datagrams: 20_000,
    seen: 0,
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

    /// An interval in which all lose this.
    fn lose(&mut self, lost: f64) -> f64 {
        self.lose_more(lost, lost, 0.0)
    }

    /// An interval like those before in which half of the members lose `median`, and a twentieth
    /// `worst` and `drops`.
    fn lose_more(&mut self, median: f64, worst: f64, drops: f64) -> f64 {
        self.now += INTERVAL;
        let summary = PanelSummary {
            median,
            twice: Some(median),
            worst,
            worst_average: Some(worst),
            drops,
            worst_drops: drops,
            delivered: 1.0 - worst - drops,
            datagrams: 20_000,
            seen: 0,
        };
        self.controller.update(&summary, Usage::Full, true, self.now);
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
    let mut lab = Lab::new(CeilingSource::Assumption);
    let rates: Vec<_> = (0..5).map(|_| lab.lose(0.0).round()).collect();
    assert_eq!((lab.mbit(), rates), (1000.0, vec![600.0, 1000.0, 1000.0, 1000.0, 1000.0]));
    assert!(near(Lab::new(CeilingSource::Operator).lose(0.0), 1000.0));
    assert_eq!(lab.controller.last_good(), None);
}

#[test]
fn random_losses_change_nothing_up_to_a_tenth_and_a_little() {
    for percent in [1.0, 5.0, 10.0, 11.9] {
        let mut lab = Lab::new(CeilingSource::Operator);
        for _ in 0..100 {
            assert!(near(lab.lose(percent / 100.0), 1000.0), "{percent}%");
        }
    }
}

#[test]
fn losses_by_chance_of_few_datagrams_change_nothing_and_those_of_a_narrow_place_do() {
    // 20 Mbit/s are some 400 datagrams in an interval.
    let few = |lost| PanelSummary { median: lost, twice: Some(lost), datagrams: 400, ..MANY };
    for (usual, unusual, expected) in
        [(0.03, 0.08, 1000.0), (0.07, 0.14, 1000.0), (0.0, 0.5, 475.0)]
    {
        let mut lab = Lab::new(CeilingSource::Operator);
        for lost in [usual, unusual] {
            lab.now += INTERVAL;
            lab.controller.update(&few(lost), Usage::Full, true, lab.now);
        }
        assert!(near(lab.mbit(), expected), "{usual} {unusual}: {}", lab.mbit());
    }
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.03);
    assert!(lab.lose(0.08) < 950.0, "no chance of 20 000");
}

#[test]
fn what_is_lost_in_one_interval_only_is_waited_for() {
    for summary in [
        PanelSummary { median: 0.5, twice: Some(0.0), ..MANY },
        PanelSummary { drops: 0.5, ..MANY },
    ] {
        let mut lab = Lab::new(CeilingSource::Assumption);
        lab.now += INTERVAL;
        lab.controller.update(&MANY, Usage::Rested, true, lab.now);
        lab.now += INTERVAL;
        lab.controller.update(&summary, Usage::Full, true, lab.now);
        assert!(near(lab.mbit(), 300.0), "{summary:?}");
        assert!(near(lab.lose(0.0), 600.0), "{summary:?}");
    }
}

#[test]
fn after_the_rate_was_doubled_one_interval_tells_enough() {
    let mut lab = Lab::new(CeilingSource::Assumption);
    assert!(near(lab.lose(0.0), 600.0));
    lab.now += INTERVAL;
    lab.controller.update(&PanelSummary { median: 0.5, ..MANY }, Usage::Full, true, lab.now);
    assert!(near(lab.mbit(), 285.0), "{}", lab.mbit());
}

#[test]
fn near_what_got_through_a_single_bad_interval_costs_a_step_back_and_no_more() {
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.0);
    assert!(near(lab.through(300.0, 0.0), 285.0));
    (0..8).for_each(|_| assert!(lab.lose(0.0) < 310.0));
    let once = PanelSummary { median: 0.9, twice: Some(0.0), ..MANY };
    for _ in 0..10 {
        lab.now += INTERVAL;
        lab.controller.update(&once, Usage::Full, true, lab.now);
        assert!(near(lab.mbit(), 285.0), "{}", lab.mbit());
    }
    (0..12).for_each(|_| assert!(lab.lose(0.0) < 340.0));
    lab.controller.update(&once, Usage::Full, true, lab.now);
    assert!(lab.mbit() > 315.0, "too far above what got through: that was narrow");
}

#[test]
fn what_was_lost_before_a_step_back_says_nothing_of_the_rate_after_it() {
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.0);
    lab.through(300.0, 0.0);
    (0..8).for_each(|_| assert!(lab.lose(0.0) < 310.0));
    for (median, twice) in [(0.034, 0.0), (0.036, 0.034)] {
        lab.now += INTERVAL;
        let summary = PanelSummary { median, twice: Some(twice), ..MANY };
        lab.controller.update(&summary, Usage::Full, true, lab.now);
        assert!(near(lab.mbit(), 285.0), "{}", lab.mbit());
    }
    assert!(near(lab.lose(0.0), 287.85));
}

#[test]
fn while_machines_drop_a_little_the_rate_grows_slowly_and_what_got_through_is_remembered() {
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.0);
    assert!(near(lab.lose_more(0.0, 0.0, 0.5), 485.0));
    lab.lose(0.0);
    let drop_a_little = |lab: &mut Lab| {
        lab.now += INTERVAL;
        let summary = PanelSummary { drops: 0.04, worst_drops: 0.04, ..MANY };
        lab.controller.update(&summary, Usage::Full, true, lab.now);
    };
    (0..50).for_each(|_| drop_a_little(&mut lab));
    assert!(near(lab.mbit(), 485.0 * 1.01_f64.powi(50)), "{}", lab.mbit());
}

#[test]
fn what_all_share_brings_the_rate_to_what_gets_through_at_once() {
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.01);
    assert!(near(lab.through(300.0, 0.01), 285.0));
    assert!(near(lab.lose(0.5), 285.0), "sent at the old rate yet");
    assert!(near(lab.lose(0.01), 287.85), "near what got through");
    assert_eq!(lab.controller.last_good(), Some(lab.controller.rate()));
}

#[test]
fn a_narrow_place_is_filled_and_hardly_overfilled() {
    let mut lab = Lab::new(CeilingSource::Assumption);
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
    let mut lab = Lab::new(CeilingSource::Operator);
    for _ in 0..20 {
        lab.through(300.0, 0.0);
    }
    let intervals = (0..200).take_while(|_| lab.through(1e9, 0.0) < 999.0).count();
    assert!(intervals < 32, "{intervals}");
}

#[test]
fn a_slow_group_is_followed_by_halves_and_a_single_interval_of_it_is_not_known() {
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.0);
    assert!(near(lab.lose_more(0.0, 0.8, 0.0), 485.0));
    lab.lose_more(0.0, 0.8, 0.0);
    assert!(near(lab.lose_more(0.0, 0.6, 0.0), 235.225));
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.now += INTERVAL;
    let summary = PanelSummary { worst: 0.8, delivered: 0.2, ..MANY };
    lab.controller.update(&summary, Usage::Full, true, lab.now);
    assert!(near(lab.mbit(), 1000.0), "too little is known of the average");
}

#[test]
fn machines_that_drop_a_tenth_on_average_are_a_slow_group() {
    let mut lab = Lab::new(CeilingSource::Operator);
    assert!(near(lab.lose_more(0.0, 0.0, 0.09), 1000.0));
    assert!(near(lab.lose_more(0.0, 0.0, 0.2), 776.0));
}

#[test]
fn losses_that_do_not_fall_with_the_rate_are_none_of_it() {
    for (median, worst, drops) in [
        (0.2, 0.2, 0.0),
        (0.0, 0.2, 0.0),
        (0.0, 0.0, 0.2),
        // Two bad cables.
        (0.0, 0.5, 0.0),
        (0.01, 0.9, 0.0),
    ] {
        let mut lab = Lab::new(CeilingSource::Operator);
        lab.lose(0.0);
        let mut rates: Vec<_> = (0..400).map(|_| lab.lose_more(median, worst, drops)).collect();
        rates.sort_by(f64::total_cmp);
        assert!(rates[0] > if worst > 0.3 { 200.0 } else { 500.0 }, "{rates:?}");
        assert!(near(rates[40], 1000.0), "{rates:?}");
    }
}

#[test]
fn losses_that_grow_or_are_many_are_never_believed_to_be_harmless() {
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.0);
    (0..40).for_each(|_| assert!(lab.lose(0.4) <= 1000.0));
    assert!(lab.mbit() < 20.0, "{}", lab.mbit());
    let mut lab = Lab::new(CeilingSource::Operator);
    lab.lose(0.0);
    for lost in [0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.25, 0.25] {
        lab.lose(lost);
    }
    assert!(lab.mbit() < 500.0, "{}", lab.mbit());
}

#[test]
fn a_cast_that_is_held_up_by_something_else_does_not_grow() {
    let mut lab = Lab::new(CeilingSource::Assumption);
    lab.now += INTERVAL;
    let summary = MANY;
    lab.controller.update(&summary, Usage::Limited(0.5), true, lab.now);
    lab.controller.update(&summary, Usage::Rested, true, lab.now);
    assert!(near(lab.mbit(), 300.0));
}

#[test]
fn what_gets_through_is_counted_from_what_was_sent_and_not_from_what_might_have_been() {
    let lose = |usage| {
        let mut lab = Lab::new(CeilingSource::Operator);
        lab.lose(0.0);
        let summary = PanelSummary { median: 0.5, twice: Some(0.5), ..MANY };
        lab.controller.update(&summary, usage, true, lab.now);
        lab.mbit()
    };
    assert!(near(lose(Usage::Full), 475.0) && near(lose(Usage::Rested), 475.0));
    assert!(near(lose(Usage::Limited(0.2)), 95.0));
}

#[test]
fn an_earlier_casts_good_rate_is_begun_with_and_left_slowly() {
    let mut lab = Lab::with_last_good("300mbit");
    assert!(near(lab.mbit(), 300.0));
    assert!(near(lab.lose(0.0), 303.0));
    assert!(near(lab.lose(0.0), 306.0));
}

#[test]
fn nothing_brings_the_rate_below_the_floor() {
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
    fn whatever_members_lose_the_rate_is_between_floor_and_ceiling(
        views in proptest::collection::vec((0.0..=1.0, 0.0..=1.0, 0.0..=1.0, -1.0..2.0, 0u64..4000, any::<u64>()), 0..200),
        cautious: bool,
    ) {
        let mut lab = Lab::new(if cautious { CeilingSource::Assumption } else { CeilingSource::Operator });
        for (median, worst, drops, usage, pause_ms, datagrams) in views {
            lab.now += Duration::from_millis(pause_ms);
            let summary = PanelSummary {
                median, twice: Some(median), worst, worst_average: Some(worst), drops, worst_drops: drops,
                delivered: 1.0 - worst, datagrams,
                seen: 0,
            };
            let usage = match usage {
                ..0.0 => Usage::Rested,
                1.0.. => Usage::Full,
                share => Usage::Limited(share),
            };
            lab.controller.update(&summary, usage, true, lab.now);
            let floor = if cautious { 0.256 } else { 10.0 };
            prop_assert!((floor..=1000.0).contains(&lab.mbit()), "{}", lab.mbit());
        }
    }
}
