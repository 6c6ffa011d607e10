#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use bootcast_proto::PageIndex;
use bootcast_proto::wire::Pace;
use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const LEASE: Duration = Duration::from_secs(60);

fn beacon(number: u32, members: u32, permit: Share) -> Beacon {
    Beacon {
        number,
        position: PageIndex(0),
        members,
        permit,
        spread_ms: 200,
        pace: Pace::default(),
        windows: Vec::new(),
    }
}

fn reporter(member: u64, lease: Option<Duration>, now: Instant) -> Reporter {
    let mut reporter = Reporter::new(member);
    reporter.begin(&Token::from_random(member.into()), lease, now);
    reporter
}

#[test]
fn the_worked_example_of_a_hash_is_right() {
    // docs/PROTOCOL.md, "Which members a share means".
    let page = include_str!("../../../../docs/PROTOCOL.md");
    let token = "6f1ed002ab5595859014ebf0951522d9";
    let hash = hash(&Token::parse(token).unwrap());
    let line = page.lines().find(|line| line.trim_start().starts_with(token)).unwrap();
    let share = hash + 1;
    let end = format!("{hash}, of a share of {share} and not of one of {hash}");
    assert!(line.ends_with(&end), "{end}: {line}");
    assert!(line.contains(&format!("mixed {hash:04x}")), "{line}");
    let mut reporter = Reporter::new(1);
    reporter.begin(&Token::parse(token).unwrap(), None, Instant::now());
    assert!(reporter.is_within(Share(share)) && !reporter.is_within(Share(hash)));
}

#[test]
fn nobody_speaks_before_a_beacon_says_for_how_many() {
    let now = Instant::now();
    let mut reporter = reporter(1, None, now);
    assert!(!reporter.handle_timeout(true, now));
    assert_eq!(reporter.poll_timeout(), None);
}

#[test]
fn what_was_promised_while_waiting_is_not_asked_for() {
    let now = Instant::now();
    let mut reporter = reporter(1, None, now);
    reporter.beacon(&beacon(1, 100, Share::ALL), true, now);
    let due = reporter.poll_timeout().unwrap();
    assert!(!reporter.handle_timeout(false, due));
    assert_eq!(reporter.poll_timeout(), None);
}

#[test]
fn after_a_report_it_waits_for_a_beacon_and_for_twice_the_spread() {
    let now = Instant::now();
    let mut reporter = reporter(1, None, now);
    reporter.beacon(&beacon(1, 1, Share::ALL), true, now);
    let due = reporter.poll_timeout().unwrap();
    assert!(due <= now + 200 * MS);
    assert!(reporter.handle_timeout(true, due));
    assert!(!reporter.handle_timeout(true, due + 10 * LEASE));
    reporter.accepted(false, due);
    assert!(!reporter.handle_timeout(true, due + 1000 * MS));
    assert_eq!(reporter.poll_timeout(), None);
    reporter.beacon(&beacon(2, 1, Share::ALL), true, due + 25 * MS);
    assert_eq!(reporter.poll_timeout(), Some(due + 400 * MS));
    assert!(!reporter.handle_timeout(true, due + 400 * MS));
    let again = reporter.poll_timeout().unwrap();
    assert!(reporter.handle_timeout(true, again));
}

#[test]
fn what_a_report_brought_and_was_lost_is_asked_for_without_a_pause() {
    let now = Instant::now();
    let mut reporter = reporter(1, None, now);
    reporter.beacon(&beacon(1, 1, Share::ALL), true, now);
    let due = reporter.poll_timeout().unwrap();
    assert!(reporter.handle_timeout(true, due));
    reporter.accepted(false, due);
    reporter.beacon(&beacon(2, 1, Share::ALL), false, due + 5 * MS);
    assert_eq!(reporter.poll_timeout(), None);
    reporter.beacon(&beacon(3, 1, Share::ALL), true, due + 10 * MS);
    let again = reporter.poll_timeout().unwrap();
    assert!(again <= due + 210 * MS);
    assert!(reporter.handle_timeout(true, again));
}

#[test]
fn a_beacon_that_was_faster_than_the_answer_is_not_waited_for_again() {
    let now = Instant::now();
    let mut reporter = reporter(1, None, now);
    reporter.beacon(&beacon(1, 1, Share::ALL), true, now);
    let due = reporter.poll_timeout().unwrap();
    assert!(reporter.handle_timeout(true, due));
    reporter.beacon(&beacon(2, 1, Share::ALL), true, due + MS);
    assert_eq!(reporter.poll_timeout(), None);
    reporter.accepted(true, due + 2 * MS);
    let pause_end = due + 402 * MS;
    assert_eq!(reporter.poll_timeout(), Some(pause_end));
    assert!(!reporter.handle_timeout(true, pause_end));
    assert!(reporter.poll_timeout().unwrap() <= pause_end + 200 * MS);
}

#[test]
fn a_report_that_did_not_get_through_is_repeated() {
    let now = Instant::now();
    let mut reporter = reporter(1, None, now);
    reporter.beacon(&beacon(1, 1, Share::ALL), true, now);
    let due = reporter.poll_timeout().unwrap();
    assert!(reporter.handle_timeout(true, due));
    reporter.failed(due);
    assert_eq!(reporter.poll_timeout(), Some(due + RETRY));
}

#[test]
fn counters_alone_interrupt_no_wait_and_take_what_is_lacking_along() {
    let now = Instant::now();
    let mut reporter = reporter(1, None, now);
    assert!(reporter.begin_counters(false));
    assert!(reporter.is_in_flight() && !reporter.is_asking() && !reporter.begin_counters(false));
    assert!(reporter.counters_answered(true, now) && !reporter.counters_answered(true, now));
    reporter.beacon(&beacon(1, 100, Share::ALL), true, now);
    assert!(reporter.begin_counters(true));
    assert!(reporter.is_asking() && !reporter.counters_answered(true, now));
    reporter.accepted(false, now);
    assert!(reporter.begin_counters(true));
    assert!(!reporter.is_asking(), "it waits for what the last report brings");
    assert!(!reporter.handle_timeout(true, now + 10 * LEASE));
}

#[test]
fn the_permit_lets_its_share_of_the_members_speak() {
    let now = Instant::now();
    let speaks = |permit: Share| {
        let permitted = |member: &u64| {
            let mut reporter = reporter(*member, None, now);
            reporter.beacon(&beacon(1, 10_000, permit), true, now);
            reporter.poll_timeout().is_some()
        };
        (0..10_000).filter(permitted).count()
    };
    assert_eq!((speaks(Share::NONE), speaks(Share::ALL)), (0, 10_000));
    assert!((2300..2700).contains(&speaks(Share(16_384))));
}

#[test]
fn few_of_many_speak_early() {
    let now = Instant::now();
    let early = |member: &u64| {
        let mut reporter = reporter(*member, None, now);
        reporter.beacon(&beacon(1, 10_000, Share::ALL), true, now);
        reporter.poll_timeout().unwrap() < now + 100 * MS
    };
    // In a truncated exponential distribution with lambda = ln(10 000) + 1, one in 165 lies in
    // the first half.
    let early = (0..10_000).filter(early).count();
    assert!((30..100).contains(&early), "{early}");
}

#[test]
fn a_member_that_lacks_nothing_renews_its_lease_before_half_of_it_is_over() {
    let mut now = Instant::now();
    let mut reporter = reporter(1, Some(LEASE), now);
    for _ in 0..10 {
        let due = reporter.poll_timeout().unwrap();
        assert!((LEASE / 4..=LEASE / 2).contains(&(due - now)));
        assert!(reporter.handle_timeout(false, due));
        reporter.accepted(false, due);
        now = due;
    }
}

#[test]
fn a_renewal_that_did_not_get_through_is_repeated() {
    let now = Instant::now();
    let mut reporter = reporter(1, Some(LEASE), now);
    let due = reporter.poll_timeout().unwrap();
    assert!(reporter.handle_timeout(false, due));
    reporter.failed(due);
    assert!(!reporter.handle_timeout(false, due));
    assert!(reporter.handle_timeout(false, due + RETRY));
}

proptest! {
    #[test]
    fn the_wait_lies_within_the_spread(members: u32, spread_ms: u16, fraction in 0.0..1.0) {
        let spread = Duration::from_millis(spread_ms.into());
        let guidance = Guidance { number: 0, members, permit: Share::NONE, spread };
        prop_assert!(guidance.wait(fraction) <= spread);
    }
}
