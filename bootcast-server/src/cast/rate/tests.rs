//! Rate control of a cast whose members report as clients do, on a virtual clock.
#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use super::*;

const WIRE: u64 = 1538;
const TICK: Duration = Duration::from_millis(1);

/// A cast that always has something to send, with members that report every interval.
struct Lab {
    control: RateControl,
    now: Instant,
    /// Bandwidth of the path, in bits per second. Datagrams beyond it are lost.
    bandwidth: f64,
    /// Last report of each member.
    members: Vec<Report>,
    /// Number of members that report, as far as the server knows.
    reporters: usize,
    /// Bytes left over that were too few for a datagram.
    spare_bytes: u64,
    /// Datagrams that each member received, with fractions.
    received: f64,
}

impl Lab {
    fn new(source: CeilingSource, members: usize) -> Self {
        let now = Instant::now();
        let control = RateControl::new("1gbit".parse().unwrap(), source, None, WIRE, now);
        let members = vec![Report::default(); members];
        Self { control, now, bandwidth: 1e12, members, reporters: 1, spare_bytes: 0, received: 0.0 }
    }

    /// Runs for this number of intervals.
    fn run(&mut self, intervals: u32) {
        self.run_for(INTERVAL * intervals);
    }

    /// Runs for this time. Members report as often as the beacons demand, each at its own time.
    fn run_for(&mut self, time: Duration) {
        for tick in 0..time.as_millis() {
            self.now += TICK;
            let rate = self.control.rate();
            let bytes = self.spare_bytes + rate.bytes_in(TICK);
            let sent = bytes / WIRE;
            self.spare_bytes = bytes % WIRE;
            self.control.on_sent(sent, self.now);
            self.control.end_opening(self.reporters, self.now);
            let share = (self.bandwidth / to_f64(rate.bits_per_second())).min(1.0);
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
fn an_opening_finds_a_bottleneck_of_a_tenth_of_the_ceiling() {
    for members in [1, 3, 12] {
        let mut lab = Lab::new(CeilingSource::Interface, members);
        lab.bandwidth = 100e6;
        lab.run_for(Duration::from_millis(100));
        assert!((85.0..105.0).contains(&lab.mbit()), "{members}: {}", lab.mbit());
        lab.run(20);
        assert!((80.0..130.0).contains(&lab.mbit()), "{members}: {}", lab.mbit());
        assert!(lab.control.last_good().is_some());
    }
}

#[test]
fn the_floor_below_an_assumed_ceiling_is_low_enough_for_a_slow_path() {
    let mut lab = Lab::new(CeilingSource::Assumption, 2);
    lab.bandwidth = 1e6;
    lab.run(12);
    assert!((0.3..2.5).contains(&lab.mbit()), "{}", lab.mbit());
}

#[test]
fn an_opening_without_reports_ends_at_a_tenth_of_the_ceiling() {
    let mut lab = Lab::new(CeilingSource::Interface, 0);
    lab.run_for(Duration::from_millis(240));
    assert!(lab.mbit() > 999.0);
    lab.run_for(Duration::from_millis(20));
    assert!((99.9..100.1).contains(&lab.mbit()));
    let mut lab = Lab::new(CeilingSource::Interface, 0);
    lab.reporters = 0;
    lab.run_for(TICK);
    assert!((99.9..100.1).contains(&lab.mbit()), "at once if all members are plain");
}

#[test]
fn an_opening_starts_at_the_last_good_rate_and_tries_higher_ones() {
    let (line, known) = ("1gbit".parse().unwrap(), "200mbit".parse().ok());
    for (reporters, bandwidth, expected) in [(1, 1e12, 1000.0), (1, 200e6, 190.0), (0, 1e12, 200.0)]
    {
        let mut lab = Lab::new(CeilingSource::Interface, reporters);
        lab.control = RateControl::new(line, CeilingSource::Interface, known, WIRE, lab.now);
        assert!((199.0..201.0).contains(&lab.mbit()));
        lab.bandwidth = bandwidth;
        lab.run_for(Duration::from_millis(300));
        let rate = lab.mbit();
        assert!((expected * 0.95..=expected * 1.01).contains(&rate), "{bandwidth}: {rate}");
    }
}

#[test]
fn late_reports_do_not_raise_the_rate() {
    let mut lab = Lab::new(CeilingSource::Assumption, 1);
    // Nothing is lost, but a long queue delays the beacons.
    lab.run_for(Duration::from_millis(5));
    let seen = lab.control.sent;
    lab.members.clear();
    lab.run_for(Duration::from_millis(95));
    let report = Report { sent: seen, received: seen, seen, ..Report::default() };
    lab.control.handle_report(&Token::from_random(1), &report, lab.now);
    assert!((299.9..300.1).contains(&lab.mbit()), "{}", lab.mbit());
}

#[test]
fn a_member_with_late_reports_does_not_stop_growth_for_another() {
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
fn a_cast_finds_a_bottleneck_within_two_seconds_and_grows_once_it_is_gone() {
    for members in [1, 3, 40] {
        let mut lab = Lab::new(CeilingSource::Operator, members);
        lab.bandwidth = 300e6;
        lab.run(8);
        assert!((240.0..330.0).contains(&lab.mbit()), "{members}: {}", lab.mbit());
        lab.bandwidth = 1e12;
        lab.run(60);
        assert!(lab.mbit() > 999.0, "{members}: {}", lab.mbit());
    }
}

#[test]
fn without_reports_the_rate_stays() {
    let mut lab = Lab::new(CeilingSource::Assumption, 0);
    lab.run(40);
    assert!((99.9..100.1).contains(&lab.mbit()));
}

#[test]
fn members_that_use_unicast_do_not_affect_the_rate() {
    let mut lab = Lab::new(CeilingSource::Operator, 1);
    lab.bandwidth = 0.0;
    lab.members[0].unicast = true;
    lab.run(40);
    assert!(lab.mbit() > 999.0);
}

#[test]
fn a_lying_member_can_slow_only_a_cast_of_its_own_and_not_below_the_floor() {
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
fn the_panel_has_two_dozen_members_and_all_casts_share_it() {
    let mut control = Lab::new(CeilingSource::Operator, 0).control;
    let panel_size = |control: &RateControl, members: u32| {
        f64::from(control.pace(members as usize).panel.0) / 65536.0 * f64::from(members)
    };
    assert_eq!(control.pace(24).panel, Share::ALL);
    assert!((24.0..26.0).contains(&panel_size(&control, 10_000)));
    assert_eq!(control.pace(1).interval_ms, 250);
    control.share_panel(3);
    assert!((8.0..9.0).contains(&panel_size(&control, 10_000)));
    control.share_panel(400);
    assert!((1.0..2.0).contains(&panel_size(&control, 10_000)));
    assert_eq!(control.pace(1).interval_ms, 4250);
}
