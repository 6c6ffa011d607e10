//! The control of a cast whose members report as clients do.
#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use super::*;

const WIRE: u64 = 1514;
const TICK: Duration = Duration::from_millis(1);

/// A cast that always has something to send, and members that report every interval.
struct Lab {
    control: RateControl,
    now: Instant,
    /// Behind this many bits per second the rest is lost.
    through: f64,
    members: Vec<Report>,
}

impl Lab {
    fn new(start: Start, members: usize) -> Self {
        let now = Instant::now();
        let control = RateControl::new("1gbit".parse().unwrap(), start, WIRE, now);
        Self { control, now, through: 1e12, members: vec![Report::default(); members] }
    }

    /// Runs for so many intervals; members take their turns within each.
    fn run(&mut self, intervals: u32) {
        let ticks = INTERVAL.as_millis();
        for tick in 0..u128::from(intervals) * ticks {
            self.now += TICK;
            let rate = self.control.rate();
            let sent = rate.bytes_in(TICK) / WIRE;
            self.control.on_sent(sent, self.now);
            let share = (self.through / to_f64(rate.bits_per_second())).min(1.0);
            for report in &mut self.members {
                report.sent += sent;
                report.received = scaled(report.sent, share, report.received, sent);
            }
            for (number, report) in self.members.clone().iter().enumerate() {
                if (tick + 7 * number as u128).is_multiple_of(ticks) {
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

/// What came of `sent` more, where this share gets through.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of a test")]
fn scaled(_total: u64, share: f64, received: u64, sent: u64) -> u64 {
    received + (to_f64(sent) * share).round() as u64
}

#[test]
fn a_cast_finds_the_ceiling_within_two_seconds_and_stays() {
    for members in [1, 3, 40] {
        let mut lab = Lab::new(Start::Cautious, members);
        lab.run(8);
        assert!(lab.mbit() > 999.0, "{members}: {}", lab.mbit());
        lab.run(40);
        assert!(lab.mbit() > 999.0);
    }
}

#[test]
fn a_cast_finds_a_narrow_place_within_two_seconds_and_goes_on_when_it_is_wide() {
    for members in [1, 3, 40] {
        let mut lab = Lab::new(Start::Ceiling, members);
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
    let mut lab = Lab::new(Start::Cautious, 0);
    lab.run(40);
    assert!((99.9..100.1).contains(&lab.mbit()));
}

#[test]
fn members_that_hear_nothing_say_nothing_of_the_rate() {
    let mut lab = Lab::new(Start::Ceiling, 1);
    lab.through = 0.0;
    lab.members[0].unicast = true;
    lab.run(40);
    assert!(lab.mbit() > 999.0);
}

#[test]
fn a_member_that_lies_slows_none_but_itself_and_that_to_the_floor() {
    for (members, expected) in [(1, 10.0), (2, 1000.0), (5, 1000.0)] {
        let mut lab = Lab::new(Start::Ceiling, members);
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
    let mut control = Lab::new(Start::Ceiling, 0).control;
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
