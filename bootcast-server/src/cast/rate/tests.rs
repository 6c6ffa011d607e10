//! The control of a cast whose members report as clients do.
#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use super::*;

const WIRE: u64 = 1538;
const TICK: Duration = Duration::from_millis(1);

/// A cast that always has something to send, and members that report every interval.
struct Lab {
    control: RateControl,
    now: Instant,
    /// Behind this many bits per second the rest is lost.
    through: f64,
    members: Vec<Report>,
    /// Members that would report, of the server's knowledge.
    reporters: usize,
    /// Bytes that were too few for a datagram.
    rest: u64,
    /// What each member got, where that is no whole number of datagrams.
    received: f64,
}

impl Lab {
    fn new(source: CeilingSource, members: usize) -> Self {
        let now = Instant::now();
        let control = RateControl::new("1gbit".parse().unwrap(), source, None, WIRE, now);
        let members = vec![Report::default(); members];
        Self { control, now, through: 1e12, members, reporters: 1, rest: 0, received: 0.0 }
    }

    /// Runs for so many intervals.
    fn run(&mut self, intervals: u32) {
        self.run_for(INTERVAL * intervals);
    }

    /// Runs for this time. Members report as often as the beacons ask for, each at a time of its
    /// own.
    fn run_for(&mut self, time: Duration) {
        for tick in 0..time.as_millis() {
            self.now += TICK;
            let rate = self.control.rate();
            let bytes = self.rest + rate.bytes_in(TICK);
            let sent = bytes / WIRE;
            self.rest = bytes % WIRE;
            self.control.on_sent(sent, self.now);
            self.control.end_opening(self.reporters, self.now);
            let share = (self.through / to_f64(rate.bits_per_second())).min(1.0);
            self.received += to_f64(sent) * share;
            for report in &mut self.members {
                report.sent += sent;
                report.received = rounded(self.received);
                report.seen = report.sent;
            }
            let interval = u128::from(self.control.pace(1).interval_ms);
            for (number, report) in self.members.clone().iter().enumerate() {
                if (tick + 7 * number as u128).is_multiple_of(interval) {
                    let token = Token::from_random(number as u128);
                    self.control.handle_report(&token, report, self.now);
                }
            }
        }
    }

    fn mbit(&self) -> f64 {
        to_f64(self.control.rate().bits_per_second()) / 1e6
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of a test")]
fn rounded(datagrams: f64) -> u64 {
    datagrams as u64
}

#[test]
fn an_opening_finds_the_ceiling_within_a_tenth_of_a_second() {
    for (source, members) in [
        (CeilingSource::Interface, 1),
        (CeilingSource::Assumption, 1),
        (CeilingSource::Assumption, 12),
    ] {
        let mut lab = Lab::new(source, members);
        lab.run_for(Duration::from_millis(100));
        assert!(lab.mbit() > 999.0, "{source:?}, {members}: {}", lab.mbit());
        lab.run(2);
        assert!(!lab.control.is_opening());
    }
}

#[test]
fn an_opening_finds_a_narrow_place_behind_a_guess_that_is_ten_times_too_high() {
    for members in [1, 3, 12] {
        let mut lab = Lab::new(CeilingSource::Interface, members);
        lab.through = 100e6;
        lab.run_for(Duration::from_millis(100));
        assert!((85.0..105.0).contains(&lab.mbit()), "{members}: {}", lab.mbit());
        lab.run(20);
        assert!((80.0..130.0).contains(&lab.mbit()), "{members}: {}", lab.mbit());
        assert!(lab.control.last_good().is_some());
    }
}

#[test]
fn no_share_of_an_invented_ceiling_is_the_floor() {
    let mut lab = Lab::new(CeilingSource::Assumption, 2);
    lab.through = 1e6;
    lab.run(12);
    assert!((0.3..2.5).contains(&lab.mbit()), "{}", lab.mbit());
}

#[test]
fn an_opening_in_which_nobody_reports_ends_at_a_tenth() {
    let mut lab = Lab::new(CeilingSource::Interface, 0);
    lab.run_for(Duration::from_millis(240));
    assert!(lab.mbit() > 999.0);
    lab.run_for(Duration::from_millis(20));
    assert!((99.9..100.1).contains(&lab.mbit()));
    let mut lab = Lab::new(CeilingSource::Interface, 0);
    lab.reporters = 0;
    lab.run_for(TICK);
    assert!((99.9..100.1).contains(&lab.mbit()), "where only plain members are there, at once");
}

#[test]
fn an_opening_begins_at_what_an_earlier_cast_learned_and_tries_more() {
    let (line, known) = ("1gbit".parse().unwrap(), "200mbit".parse().ok());
    for (reporters, through, expected) in [(1, 1e12, 1000.0), (1, 200e6, 190.0), (0, 1e12, 200.0)] {
        let mut lab = Lab::new(CeilingSource::Interface, reporters);
        lab.control = RateControl::new(line, CeilingSource::Interface, known, WIRE, lab.now);
        assert!((199.0..201.0).contains(&lab.mbit()));
        lab.through = through;
        lab.run_for(Duration::from_millis(300));
        let rate = lab.mbit();
        assert!((expected * 0.95..=expected * 1.01).contains(&rate), "{through}: {rate}");
    }
}

#[test]
fn reports_of_what_was_sent_long_ago_raise_nothing() {
    let mut lab = Lab::new(CeilingSource::Assumption, 1);
    // Everything comes, but a long queue delays the beacons by half a second.
    lab.run_for(Duration::from_millis(5));
    let seen = lab.control.sent;
    lab.members.clear();
    lab.run_for(Duration::from_millis(95));
    let report = Report { sent: seen, received: seen, seen, ..Report::default() };
    lab.control.handle_report(&Token::from_random(1), &report, lab.now);
    assert!((299.9..300.1).contains(&lab.mbit()), "{}", lab.mbit());
}

#[test]
fn a_member_whose_reports_are_old_does_not_keep_another_waiting() {
    let mut lab = Lab::new(CeilingSource::Assumption, 1);
    for _ in 0..20 {
        lab.run_for(Duration::from_millis(10));
        let report = Report { seen: 1, ..lab.members[0].clone() };
        lab.control.handle_report(&Token::from_random(9999), &report, lab.now);
    }
    assert!(lab.mbit() > 999.0, "{}", lab.mbit());
}

#[test]
fn a_cast_finds_the_ceiling_within_two_seconds_and_stays() {
    for members in [1, 3, 40] {
        let mut lab = Lab::new(CeilingSource::Assumption, members);
        lab.run(8);
        assert!(lab.mbit() > 999.0, "{members}: {}", lab.mbit());
        lab.run(40);
        assert!(lab.mbit() > 999.0);
    }
}

#[test]
fn a_cast_finds_a_narrow_place_within_two_seconds_and_goes_on_when_it_is_wide() {
    for members in [1, 3, 40] {
        let mut lab = Lab::new(CeilingSource::Operator, members);
        lab.through = 300e6;
        lab.run(8);
        assert!((240.0..330.0).contains(&lab.mbit()), "{members}: {}", lab.mbit());
        lab.through = 1e12;
        lab.run(60);
        assert!(lab.mbit() > 999.0, "{members}: {}", lab.mbit());
    }
}

#[test]
fn where_nobody_reports_the_rate_stays() {
    let mut lab = Lab::new(CeilingSource::Assumption, 0);
    lab.run(40);
    assert!((99.9..100.1).contains(&lab.mbit()));
}

#[test]
fn members_that_hear_nothing_say_nothing_of_the_rate() {
    let mut lab = Lab::new(CeilingSource::Operator, 1);
    lab.through = 0.0;
    lab.members[0].unicast = true;
    lab.run(40);
    assert!(lab.mbit() > 999.0);
}

#[test]
fn a_member_that_lies_slows_none_but_itself_and_that_to_the_floor() {
    for (members, expected) in [(1, 10.0), (2, 1000.0), (5, 1000.0)] {
        let mut lab = Lab::new(CeilingSource::Operator, members);
        let liar = Token::from_random(9999);
        let honest = members - 1;
        lab.members.truncate(honest);
        for _ in 0..400 {
            lab.run(1);
            let lie = Report { sent: lab.control.sent, received: 1, ..Report::default() };
            for _ in 0..10 {
                lab.control.handle_report(&liar, &lie, lab.now);
            }
        }
        let rate = lab.mbit();
        assert!(rate >= expected - 0.1, "{members} members: {rate}");
    }
}

#[test]
fn the_panel_has_two_dozen_members_of_however_many_and_all_casts_share_it() {
    let mut control = Lab::new(CeilingSource::Operator, 0).control;
    let chosen = |control: &RateControl, members: u32| {
        f64::from(control.pace(members as usize).panel) / 65536.0 * f64::from(members)
    };
    assert_eq!(control.pace(24).panel, u16::MAX);
    assert!((24.0..26.0).contains(&chosen(&control, 10_000)));
    assert_eq!(control.pace(1).interval_ms, 250);
    control.share_panel(3);
    assert!((8.0..9.0).contains(&chosen(&control, 10_000)));
    control.share_panel(400);
    assert!((1.0..2.0).contains(&chosen(&control, 10_000)));
    assert_eq!(control.pace(1).interval_ms, 4250);
}
