//! Profiles of casts on a virtual clock.
#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

use std::num::NonZeroU32;

use bootcast_proto::PageSize;
use bootcast_proto::api::{Report, Want};
use bootcast_proto::manifest::LEAF_BYTES;
use proptest::prelude::*;

use super::*;
use crate::cast::{Cast, CastPolicy, EndReason, MemberKind, RepairSettings, Sending};

const BATCH: u32 = 44;
const LEAVES: u64 = 200;

fn token(number: u128) -> Token {
    Token::from_random(number)
}

fn geometry() -> Geometry {
    Geometry::new(LEAVES * LEAF_BYTES, PageSize::new(1456).unwrap()).unwrap()
}

fn profile(leaves: &[u64]) -> Profile {
    let mut profile = Profile::new(geometry().size());
    for leaf in leaves {
        profile.extend(*leaf..leaf + 1);
    }
    profile
}

fn pages_of(leaf: u64) -> PageRange {
    geometry().pages_covering(leaf * LEAF_BYTES..(leaf + 1) * LEAF_BYTES)
}

/// Returns the pages of these leaves, each once.
fn pages_of_all(leaves: &[u64]) -> Vec<u32> {
    let mut pages = Vec::new();
    for page in leaves.iter().flat_map(|leaf| pages_of(*leaf).iter()) {
        if !pages.contains(&page.0) {
            pages.push(page.0);
        }
    }
    pages
}

fn want(leaf: u64) -> Want {
    Want { now: vec![pages_of(leaf)], ..Want::default() }
}

/// A cast whose members only demand.
struct Fixture {
    cast: Cast,
    now: Instant,
    start: Instant,
}

impl Fixture {
    fn new() -> Self {
        let (policy, now) = (
            CastPolicy { idle_passes: NonZeroU32::MIN, linger: Duration::from_secs(1) },
            Instant::now(),
        );
        let repair =
            RepairSettings { interleave: 16, repair_port: 9001, lease: Duration::from_secs(600) };
        let cast = Cast::new(&geometry(), policy, Some(&repair), now);
        Self { cast, now, start: now }
    }

    /// Joins as a member that holds nothing.
    fn join_fresh(&mut self, member: u128, known: &[u64]) {
        self.join(member);
        self.cast.request_profile(&token(member), &Arc::new(profile(known)), self.now);
    }

    fn join(&mut self, member: u128) {
        self.cast.handle_join(token(member), MemberKind::Demand, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.cast.handle_timeout(self.now);
    }

    /// Sends what is due, at most `batches` batches. Returns the pages.
    fn send(&mut self, batches: usize) -> Vec<u32> {
        let mut sent = Vec::new();
        for _ in 0..batches {
            let (urgent, now) = (self.cast.poll_urgent(BATCH, self.now), self.now);
            match urgent.or_else(|| self.cast.poll_transmit(BATCH, now)) {
                Some(Sending::Pages(pages)) => sent.extend(pages.iter().map(|page| page.0)),
                Some(_) => {}
                None => break,
            }
        }
        sent
    }

    fn send_all(&mut self) -> Vec<u32> {
        self.send(usize::MAX)
    }
}

#[test]
fn the_documented_numbers_are_these() {
    let page = include_str!("../../../docs/PROTOCOL.md");
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    for told in [
        format!(
            "{} ms after the last of these joins, and at most {} s after the first",
            HOLD.as_millis(),
            HOLD_MAX.as_secs()
        ),
        format!("within {} s of its join", RECORD_TIME.as_secs()),
        format!("{} s after it changed", KEEP_DELAY.as_secs()),
    ] {
        assert!(page.contains(&told), "{told}");
    }
}

#[test]
fn members_that_hold_nothing_get_the_profile_once_and_in_its_order() {
    let mut lab = Fixture::new();
    lab.join_fresh(1, &[50, 3, 4, 120]);
    lab.pass(Duration::from_millis(100));
    lab.join_fresh(2, &[50, 3, 4, 120]);
    lab.pass(HOLD / 2);
    assert_eq!(lab.send_all(), [] as [u32; 0], "the group forms");
    lab.pass(HOLD / 2);
    assert_eq!(lab.send_all(), pages_of_all(&[50, 3, 4, 120]));
    assert_eq!(lab.cast.demanded(), 0);
    assert_eq!(lab.cast.profile_pages(), lab.cast.pages_sent());
    assert_eq!(lab.cast.poll_transmit_at(), None, "it is silent again");
}

#[test]
fn the_first_page_waits_for_a_second_at_most_however_many_join() {
    let mut lab = Fixture::new();
    for member in 0..20 {
        lab.join_fresh(member, &[7]);
        lab.pass(Duration::from_millis(50));
    }
    assert_eq!(lab.now, lab.start + HOLD_MAX);
    assert_eq!(lab.send_all(), pages_of_all(&[7]));
}

#[test]
fn whoever_joins_meanwhile_gets_what_it_missed_and_the_others_nothing_twice() {
    let mut lab = Fixture::new();
    let leaves: Vec<u64> = (0..100).step_by(2).collect();
    lab.join_fresh(1, &leaves);
    lab.pass(HOLD);
    let missed = lab.send(5);
    lab.join_fresh(2, &leaves);
    lab.pass(HOLD);
    let mut rest = pages_of_all(&leaves);
    assert_eq!(rest[..missed.len()], missed);
    rest.rotate_left(missed.len());
    assert_eq!(lab.send_all(), rest);
}

#[test]
fn demands_go_first_and_what_they_bring_is_not_sent_again() {
    let mut lab = Fixture::new();
    lab.join_fresh(1, &[10, 20, 30]);
    assert!(lab.cast.handle_want(&token(1), &want(30), lab.now));
    assert_eq!(lab.send_all(), pages_of_all(&[30]));
    lab.pass(HOLD);
    assert!(lab.cast.handle_want(&token(1), &want(20), lab.now));
    assert_eq!(lab.send_all(), pages_of_all(&[20, 10]));
}

#[test]
fn nothing_is_sent_to_members_that_did_not_ask() {
    let mut lab = Fixture::new();
    lab.join(1);
    lab.join_fresh(2, &[10]);
    assert!(lab.cast.handle_leave(&token(2), lab.now));
    lab.pass(HOLD_MAX);
    assert_eq!(lab.send_all(), [] as [u32; 0], "the member that asked has left");
    lab.cast.request_profile(&token(2), &Arc::new(profile(&[10])), lab.now);
    lab.pass(HOLD_MAX);
    assert_eq!(lab.send_all(), [] as [u32; 0], "it is no member");
}

#[test]
fn nothing_is_sent_to_a_member_that_multicast_does_not_reach() {
    let mut lab = Fixture::new();
    lab.join_fresh(1, &(0..100).collect::<Vec<_>>());
    lab.pass(HOLD);
    assert!(!lab.send(2).is_empty());
    let report = Report { unicast: true, ..Report::default() };
    assert!(lab.cast.handle_report(&token(1), &report, lab.now));
    assert_eq!(lab.cast.profile_pages(), lab.cast.pages_sent());
    let before = lab.cast.pages_sent();
    lab.send(2);
    assert_eq!(lab.cast.profile_pages(), before, "the rest is dropped");
}

#[test]
fn the_order_of_first_wants_is_handed_out_to_be_kept() {
    let mut lab = Fixture::new();
    lab.join_fresh(1, &[]);
    lab.join_fresh(2, &[]);
    lab.join(3);
    for (member, leaf) in [(1, 50), (2, 3), (1, 3), (3, 99), (2, 4)] {
        assert!(lab.cast.handle_want(&token(member), &want(leaf), lab.now));
    }
    assert_eq!(lab.cast.poll_profile(lab.now), None, "it may change again soon");
    assert_eq!(lab.cast.poll_timeout().map(|at| at <= lab.now + KEEP_DELAY), Some(true));
    lab.pass(KEEP_DELAY);
    // Member 3 held something when it joined: its wants say nothing about an open.
    assert_eq!(lab.cast.poll_profile(lab.now), Some(profile(&[50, 3, 4])));
    assert_eq!(lab.cast.poll_profile(lab.now), None, "it did not change since");
    assert!(lab.cast.handle_want(&token(1), &want(7), lab.now));
    lab.cast.handle_end(EndReason::Stopped);
    assert_eq!(lab.cast.poll_profile(lab.now), Some(profile(&[50, 3, 4, 7])));
}

#[test]
fn a_leaf_beyond_a_known_profile_must_be_wanted_twice() {
    let mut lab = Fixture::new();
    for member in 1..=3 {
        lab.join_fresh(member, &[5]);
    }
    for (member, leaf) in [(1, 30), (1, 30), (2, 40), (3, 40)] {
        assert!(lab.cast.handle_want(&token(member), &want(leaf), lab.now));
    }
    lab.cast.handle_end(EndReason::Stopped);
    let mut learned = profile(&[5, 40]);
    assert!(learned.propose(30));
    assert_eq!(lab.cast.poll_profile(lab.now), Some(learned.clone()));

    // A member of a later cast is another one.
    let mut lab = Fixture::new();
    lab.join(1);
    lab.cast.request_profile(&token(1), &Arc::new(learned), lab.now);
    assert!(lab.cast.handle_want(&token(1), &want(30), lab.now));
    lab.cast.handle_end(EndReason::Stopped);
    assert_eq!(lab.cast.poll_profile(lab.now), Some(profile(&[5, 40, 30])));
}

#[test]
fn a_candidate_that_another_cast_confirmed_comes_with_the_next_join() {
    let mut lab = Fixture::new();
    lab.join_fresh(1, &[5]);
    assert!(lab.cast.handle_want(&token(1), &want(30), lab.now));
    lab.join_fresh(2, &[5, 30]);
    assert!(lab.cast.handle_want(&token(1), &want(30), lab.now));
    lab.cast.handle_end(EndReason::Stopped);
    assert_eq!(lab.cast.poll_profile(lab.now), Some(profile(&[5, 30])));
}

#[test]
fn a_running_cast_that_has_learned_enough_takes_what_two_members_want() {
    let mut lab = Fixture::new();
    lab.join_fresh(1, &[]);
    assert!(lab.cast.handle_want(&token(1), &want(50), lab.now));
    lab.pass(RECORD_TIME);
    for (member, leaf) in [(2, 60), (2, 70), (3, 70)] {
        lab.join_fresh(member, &[]);
        assert!(lab.cast.handle_want(&token(member), &want(leaf), lab.now));
    }
    lab.cast.handle_end(EndReason::Stopped);
    let mut learned = profile(&[50, 70]);
    assert!(learned.propose(60));
    assert_eq!(lab.cast.poll_profile(lab.now), Some(learned));
}

#[test]
fn what_a_reader_will_probably_want_next_is_part_of_the_profile() {
    let mut lab = Fixture::new();
    lab.join_fresh(1, &[]);
    let want = Want { later: vec![pages_of(8), pages_of(9)], ..want(7) };
    assert!(lab.cast.handle_want(&token(1), &want, lab.now));
    lab.cast.handle_end(EndReason::Stopped);
    assert_eq!(lab.cast.poll_profile(lab.now), Some(profile(&[7, 8, 9])));
}

#[test]
fn what_is_wanted_long_after_the_join_is_not_part_of_the_profile() {
    let mut lab = Fixture::new();
    lab.join_fresh(1, &[]);
    lab.pass(RECORD_TIME);
    assert!(lab.cast.handle_want(&token(1), &want(7), lab.now));
    lab.cast.handle_end(EndReason::Stopped);
    assert_eq!(lab.cast.poll_profile(lab.now), None);
}

#[test]
fn a_member_that_joins_a_running_cast_gets_what_this_cast_learned() {
    let mut lab = Fixture::new();
    lab.join_fresh(1, &[]);
    assert!(lab.cast.handle_want(&token(1), &want(50), lab.now));
    assert_eq!(lab.send_all(), pages_of_all(&[50]));
    lab.join_fresh(2, &[8]);
    lab.pass(HOLD);
    assert_eq!(lab.send_all(), pages_of_all(&[50, 8]));
}

#[test]
fn without_a_repair_channel_there_is_no_profile() {
    let now = Instant::now();
    let policy = CastPolicy { idle_passes: NonZeroU32::MIN, linger: Duration::from_secs(1) };
    let mut cast = Cast::new(&geometry(), policy, None, now);
    cast.handle_join(token(1), MemberKind::Demand, now);
    cast.request_profile(&token(1), &Arc::new(profile(&[10])), now);
    cast.handle_timeout(now + HOLD_MAX);
    let Some(Sending::Pages(pages)) = cast.poll_transmit(BATCH, now + HOLD_MAX) else {
        panic!("the carousel of a plain member runs");
    };
    assert_eq!(pages.start.0, 0);
    assert_eq!(cast.profile_pages(), 0);
}

proptest! {
    #[test]
    fn every_member_that_asked_gets_every_page_of_the_profile(
        steps in prop::collection::vec((0..5_u32, 0..LEAVES, 1..8_usize), 0..60),
    ) {
        let mut lab = Fixture::new();
        // The pages that each member that asked for the profile still expects.
        let mut expected: Vec<(u128, Vec<u32>)> = Vec::new();
        let known = [5, 6, 7, 100, 150, 30];
        lab.join(0);
        for (number, (what, leaf, batches)) in (1..).zip(steps) {
            match what {
                0 => {
                    lab.join_fresh(number, &known);
                    expected.push((number, pages_of_all(&known)));
                }
                1 if !expected.is_empty() => {
                    let (gone, _) = expected.remove(0);
                    prop_assert!(lab.cast.handle_leave(&token(gone), lab.now));
                }
                2 => prop_assert!(lab.cast.handle_want(&token(0), &want(leaf), lab.now)),
                _ => lab.pass(Duration::from_millis(u64::try_from(batches).unwrap() * 30)),
            }
            let sent = lab.send(batches);
            for (_, pages) in &mut expected {
                pages.retain(|page| !sent.contains(page));
            }
        }
        lab.pass(HOLD_MAX);
        let sent = lab.send_all();
        for (member, pages) in expected {
            let missing: Vec<_> = pages.iter().filter(|page| !sent.contains(page)).collect();
            prop_assert!(missing.is_empty(), "{} of {}", missing.len(), member);
        }
        prop_assert_eq!(lab.cast.poll_transmit_at(), None, "it is silent again");
    }
}
