//! Casts with a repair channel on a virtual clock.
#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

mod unicast;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use bootcast_proto::fec::REPAIRS;
use bootcast_proto::{Geometry, PageRange, PageSize, Token};
use proptest::prelude::*;

use super::reporters::Reporters;
use super::*;
use crate::cast::{Cast, CastPolicy, EndReason, MemberKind, RepairSettings, SHORT_HOLD, Sending};

/// Four windows of four blocks.
const PAGES: u32 = 2048;
const WINDOW: u32 = 512;
const LEASE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// What a datagram occupies the wire for: a file takes 41 ms.
const DATAGRAM: Duration = Duration::from_micros(20);

struct Lab {
    cast: Cast,
    now: Instant,
    sent: Vec<(Instant, Sending)>,
}

impl Lab {
    fn new() -> Self {
        let now = Instant::now();
        let page_size = PageSize::new(1456).unwrap();
        let geometry = Geometry::new(u64::from(PAGES) * 1456, page_size).unwrap();
        let policy = CastPolicy { idle_passes: NonZeroU32::new(5).unwrap(), linger: SECOND };
        let repair = RepairSettings { interleave: 4, repair_port: 9001, lease: LEASE };
        Self { cast: Cast::new(&geometry, policy, Some(&repair), now), now, sent: Vec::new() }
    }

    fn joined(kinds: &[MemberKind]) -> Self {
        let mut lab = Self::new();
        for (number, kind) in kinds.iter().enumerate() {
            lab.cast.handle_join(token(number), *kind, lab.now);
        }
        lab
    }

    /// An extended member that has all of the stream, and whose cast waits for its reports.
    fn streamed() -> Self {
        let mut lab = Self::joined(&[MemberKind::Extended]);
        lab.run(SHORT_HOLD + DATAGRAM * (PAGES + 2));
        assert_eq!(lab.pages().len(), PAGES as usize);
        lab.sent.clear();
        lab
    }

    fn report(&mut self, needs: &[(u32, u8)], bulk: &[(u32, u32)]) {
        let report = Report { needs: needs.to_vec(), bulk: bulk.to_vec(), ..Report::default() };
        assert!(self.cast.handle_report(&token(0), &report, self.now));
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.cast.handle_timeout(self.now);
            if let Some(sending) = self.cast.poll_transmit(8, self.now) {
                let datagrams = match &sending {
                    Sending::Pages(pages) => pages.len(),
                    Sending::Symbols(symbols) => u32::try_from(symbols.len()).unwrap(),
                    Sending::Beacon(_) | Sending::End(_) => 1,
                };
                assert!((1..=8).contains(&datagrams));
                self.sent.push((self.now, sending));
                self.now += DATAGRAM * datagrams;
            } else {
                let timers = [self.cast.poll_timeout(), self.cast.poll_transmit_at()];
                let wake = timers.into_iter().flatten().min().unwrap_or(end);
                assert!(wake > self.now, "the driver would spin");
                self.now = wake.min(end);
            }
        }
    }

    fn pages(&self) -> Vec<u32> {
        let runs = self.sent.iter().filter_map(|(_, sending)| match sending {
            Sending::Pages(pages) => Some(*pages),
            Sending::Symbols(_) | Sending::Beacon(_) | Sending::End(_) => None,
        });
        runs.flat_map(|run| run.iter().map(|page| page.0).collect::<Vec<_>>()).collect()
    }

    fn symbols(&self) -> Vec<Symbol> {
        let batches = self.sent.iter().filter_map(|(_, sending)| match sending {
            Sending::Symbols(symbols) => Some(symbols.clone()),
            Sending::Pages(_) | Sending::Beacon(_) | Sending::End(_) => None,
        });
        batches.flatten().collect()
    }

    fn blocks(&self) -> Vec<u32> {
        self.symbols().iter().map(|symbol| symbol.block.0).collect()
    }

    fn beacons(&self) -> Vec<(Instant, Beacon)> {
        let beacons = self.sent.iter().filter_map(|(at, sending)| match sending {
            Sending::Beacon(beacon) => Some((*at, beacon.clone())),
            Sending::Pages(_) | Sending::Symbols(_) | Sending::End(_) => None,
        });
        beacons.collect()
    }
}

fn token(number: usize) -> Token {
    Token::from_random(number as u128)
}

fn window(number: u32) -> Vec<u32> {
    (number * WINDOW..(number + 1) * WINDOW).collect()
}

#[test]
fn a_promise_goes_before_the_stream_and_a_beacon_before_both() {
    let mut lab = Lab::joined(&[MemberKind::Extended]);
    lab.run(SHORT_HOLD + 30 * DATAGRAM);
    lab.sent.clear();
    lab.report(&[(3, 1)], &[]);
    // A beacon is due by then, and the stream has pages left.
    lab.now += Duration::from_millis(30);
    lab.run(DATAGRAM * 10);
    let kinds: Vec<_> = lab.sent.iter().map(|(_, sending)| sending).collect();
    assert!(
        matches!(kinds[..], [Sending::Beacon(_), Sending::Symbols(_), Sending::Pages(_), ..]),
        "{kinds:?}"
    );
}

#[test]
fn beacons_leave_most_of_a_slow_rate_to_what_was_promised() {
    // A full datagram takes as long at 256 kbit/s.
    let slow = Duration::from_millis(48);
    for is_opening in [true, false] {
        let mut lab = Lab::streamed();
        lab.cast.set_pace(is_opening, slow);
        lab.report(&[(3, 60)], &[]);
        for _ in 0..32 {
            lab.now += slow;
            lab.cast.handle_timeout(lab.now);
            lab.sent.extend(lab.cast.poll_transmit(1, lab.now).map(|sending| (lab.now, sending)));
        }
        let beacons = lab.sent.iter().filter(|(_, it)| matches!(it, Sending::Beacon(_))).count();
        assert!(beacons <= 5, "{beacons} of {}", lab.sent.len());
        assert!(lab.symbols().len() >= 24, "{}", lab.symbols().len());
    }
}

#[test]
fn the_first_symbol_of_every_block_goes_before_the_second_of_any() {
    let mut lab = Lab::streamed();
    lab.report(&[(9, 1), (2, 3), (5, 2)], &[]);
    lab.run(DATAGRAM * 8);
    assert_eq!(lab.blocks(), [2, 5, 9, 2, 5, 2]);
    let numbers: Vec<_> = lab.symbols().iter().map(|symbol| symbol.number.get()).collect();
    assert_eq!(numbers, [0, 0, 0, 1, 1, 2]);
    assert_eq!(lab.symbols()[0].promised, 3);
}

#[test]
fn the_same_report_again_changes_nothing() {
    let mut lab = Lab::streamed();
    for _ in 0..5 {
        lab.report(&[(2, 3)], &[(1, 1)]);
    }
    lab.run(DATAGRAM * 20);
    lab.report(&[(2, 3)], &[]);
    lab.run(Duration::from_millis(50));
    assert_eq!(lab.blocks(), [2, 2, 2]);
    assert_eq!(lab.pages(), window(1));
}

#[test]
fn an_absurd_report_is_owed_no_more_symbols_than_a_block_has() {
    let mut lab = Lab::streamed();
    lab.report(&[(2, 255), (16, 9), (u32::MAX, 255)], &[(4, 1), (u32::MAX, u32::MAX)]);
    lab.run(DATAGRAM * 140);
    assert_eq!(lab.blocks(), [2; 128]);
    assert!(lab.pages().is_empty());
}

#[test]
fn a_report_of_a_stranger_or_of_a_plain_member_is_refused() {
    let mut lab = Lab::joined(&[MemberKind::Plain, MemberKind::Extended]);
    let report = Report { needs: vec![(2, 1)], ..Report::default() };
    assert!(!lab.cast.handle_report(&token(7), &report, lab.now));
    assert!(!lab.cast.handle_report(&token(0), &report, lab.now));
    lab.run(SHORT_HOLD + DATAGRAM * 50);
    assert!(lab.symbols().is_empty());
}

#[test]
fn a_window_that_is_asked_for_comes_again_and_then_the_stream_rests() {
    let mut lab = Lab::streamed();
    lab.report(&[], &[(2, 1)]);
    lab.run(Duration::from_millis(60));
    assert_eq!(lab.pages(), window(2));
    assert_eq!(lab.beacons().last().unwrap().1.position, PageIndex(PAGES));
}

#[test]
fn a_late_joiner_gets_again_what_was_sent_before_it_came_and_no_more() {
    let mut lab = Lab::joined(&[MemberKind::Extended]);
    lab.run(SHORT_HOLD + DATAGRAM * (WINDOW + WINDOW / 2));
    let half = lab.pages().len();
    lab.cast.handle_join(token(1), MemberKind::Extended, lab.now);
    lab.run(DATAGRAM * (2 * PAGES));
    let rest: Vec<_> = lab.pages()[half..].to_vec();
    let half = u32::try_from(half).unwrap();
    assert_eq!(rest, (half..PAGES).chain(0..half).collect::<Vec<_>>());
}

#[test]
fn with_nothing_else_to_do_every_block_gets_more_in_turn_but_not_for_ever() {
    let mut lab = Lab::streamed();
    lab.run(Duration::from_millis(45));
    assert!(lab.symbols().is_empty(), "reports may still be under way");
    lab.run(Duration::from_millis(20));
    assert_eq!(lab.blocks()[..16], (0..16).collect::<Vec<_>>());
    lab.run(10 * SECOND);
    let quiet = lab.symbols().len();
    assert_eq!(quiet % 16, 0);
    lab.report(&[], &[]);
    lab.run(SECOND);
    assert_eq!(lab.symbols().len(), quiet, "somebody lives, and lacks nothing");
    lab.report(&[(0, 255)], &[]);
    lab.run(SECOND);
    assert!(lab.symbols().len() > quiet + 128, "somebody lacks something");
}

#[test]
fn a_member_that_says_nothing_is_forgotten_after_its_lease_and_the_cast_ends() {
    let mut lab = Lab::streamed();
    lab.run(LEASE / 2);
    lab.report(&[], &[]);
    lab.run(LEASE / 2 + SECOND);
    assert_eq!((lab.cast.members(), lab.cast.ended()), (1, None));
    lab.run(LEASE);
    assert_eq!((lab.cast.members(), lab.cast.ended()), (0, Some(EndReason::LeasesOver)));
    assert!(lab.cast.poll_farewell().is_some());
}

#[test]
fn without_members_nothing_is_sent() {
    let mut lab = Lab::streamed();
    lab.report(&[(2, 9)], &[(0, 9)]);
    assert!(lab.cast.handle_leave(&token(0), lab.now));
    lab.run(2 * SECOND);
    assert!(lab.sent.is_empty());
    assert_eq!(lab.cast.ended(), Some(EndReason::LastLeave));
}

#[test]
fn plain_members_alone_hear_pages_only() {
    let mut lab = Lab::joined(&[MemberKind::Plain]);
    lab.run(SECOND);
    assert_eq!(lab.pages().len() / PAGES as usize, 5);
    assert!(lab.sent.iter().all(|(_, sending)| matches!(sending, Sending::Pages(_))));
    assert_eq!(lab.cast.ended(), Some(EndReason::IdlePasses));
}

#[test]
fn idle_passes_forget_the_plain_members_and_leave_the_others_to_their_lease() {
    let mut lab = Lab::joined(&[MemberKind::Plain, MemberKind::Extended]);
    lab.run(2 * SECOND);
    assert_eq!((lab.cast.members(), lab.cast.ended()), (1, None));
    assert_eq!(lab.cast.passes(), 5);
}

#[test]
fn beacons_keep_their_distance_and_tell_of_every_window() {
    let mut lab = Lab::joined(&[MemberKind::Extended, MemberKind::Extended]);
    lab.run(SHORT_HOLD + Duration::from_millis(60));
    let beacons = lab.beacons();
    assert!(beacons.len() >= 2);
    for pair in beacons.windows(2) {
        let came_to_rest =
            pair[0].1.position < PageIndex(PAGES) && pair[1].1.position == PageIndex(PAGES);
        let rested = pair[0].1.position == PageIndex(PAGES);
        let distance = if came_to_rest {
            2
        } else if rested {
            5
        } else {
            25
        };
        assert!(pair[1].0 - pair[0].0 >= Duration::from_millis(distance));
        assert_eq!(pair[1].1.number, pair[0].1.number + 1);
    }
    let (_, last) = beacons.last().unwrap();
    assert_eq!((last.members, last.permit, last.spread_ms), (2, u16::MAX, 2));
    let windows: Vec<_> = last.windows.iter().map(|(window, _)| window.0).collect();
    assert_eq!(windows, [0, 1, 2, 3]);
}

#[test]
fn of_many_members_few_may_report_until_those_have_nothing_to_say() {
    let mut lab = Lab::joined(&[MemberKind::Extended; 1000]);
    lab.run(SHORT_HOLD + DATAGRAM * (PAGES + 2));
    lab.run(Duration::from_secs(3));
    let permits: Vec<_> = lab.beacons().iter().map(|(_, beacon)| beacon.permit).collect();
    assert_eq!(permits[0], 6554);
    assert_eq!(permits.last(), Some(&u16::MAX));
    assert!(permits.is_sorted());
    let spreads: Vec<_> = lab.beacons().iter().map(|(_, beacon)| beacon.spread_ms).collect();
    assert_eq!((spreads[0], spreads.last()), (200, Some(&50)));
    assert!(spreads.is_sorted_by(|before, after| before >= after));
}

#[test]
fn those_who_say_much_have_all_of_the_spread_again() {
    let mut lab = Lab::joined(&[MemberKind::Extended; 1000]);
    lab.run(SHORT_HOLD + DATAGRAM * (PAGES + 2) + Duration::from_secs(3));
    for need in 100..160 {
        lab.report(&[(0, need)], &[]);
    }
    lab.sent.clear();
    lab.run(Duration::from_millis(100));
    let (_, last) = lab.beacons().pop().unwrap();
    assert_eq!((last.permit, last.spread_ms), (16_384, 200));
}

#[test]
fn several_reports_are_answered_by_a_beacon_at_once() {
    let mut lab = Lab::joined(&[MemberKind::Extended; 200]);
    lab.run(SHORT_HOLD + Duration::from_millis(10));
    lab.sent.clear();
    for need in 1..4 {
        lab.report(&[(0, need)], &[]);
    }
    lab.run(Duration::from_millis(10));
    assert!(lab.beacons().is_empty(), "three can wait");
    lab.report(&[(0, 4)], &[]);
    let asked_at = lab.now;
    lab.run(Duration::from_millis(10));
    let (at, beacon) = lab.beacons().remove(0);
    assert!(at <= asked_at + Duration::from_millis(1));
    assert_eq!(beacon.windows[0].1[0].promised, 4);
}

#[test]
fn what_is_learned_counts_those_who_could_report_at_best() {
    let layout = BlockLayout::new(32 * 128, 32).unwrap();
    let mut levels = Levels::new(layout);
    let mut redundancy = Redundancy::default();
    let now = Instant::now();
    redundancy.begin(WindowIndex(0), &mut levels, now + SECOND);
    let all = Reporters { members: 1000, permit: 1 << 16 };
    redundancy.learn(&mut levels, all, now);
    for block in 0..5 {
        levels.ask(BlockIndex(block), 3);
    }
    redundancy.learn(&mut levels, Reporters { permit: all.permit / 4, ..all }, now);
    assert_eq!(redundancy.symbols(), 0, "five of 32 are left to reports where all may report");
    levels.ask(BlockIndex(5), 3);
    redundancy.learn(&mut levels, all, now);
    assert_eq!(redundancy.symbols(), 3);
}

#[test]
fn what_most_blocks_need_is_sent_unasked_from_then_on_and_unlearned_when_they_do_not() {
    let layout = BlockLayout::new(PAGES, 4).unwrap();
    let mut repair = Repair::new(layout, 1472, Instant::now());
    let mut now = Instant::now();
    let mut end_window = |repair: &mut Repair, number| {
        now += SECOND;
        repair.on_window(WindowIndex(number), 1, now);
    };
    end_window(&mut repair, 0);
    let needs = vec![(0, 5), (1, 6), (2, 5), (3, 9)];
    repair.handle_report(&Report { needs, ..Report::default() }, 1, Instant::now());
    end_window(&mut repair, 1);
    assert_eq!(repair.redundancy(), 5);
    end_window(&mut repair, 2);
    assert_eq!(repair.redundancy(), 4);
}

#[test]
fn what_one_bad_moment_taught_is_forgotten_by_quarters_and_what_is_hardly_too_much_one_by_one() {
    let layout = BlockLayout::new(3 * 32 * 128, 32).unwrap();
    let mut levels = Levels::new(layout);
    let mut redundancy = Redundancy::default();
    let few = Reporters { members: 10, permit: 1 << 16 };
    let now = Instant::now();
    redundancy.begin(WindowIndex(0), &mut levels, now);
    for block in 0..32 {
        levels.ask(BlockIndex(block), 41);
    }
    redundancy.learn(&mut levels, few, now);
    assert_eq!(redundancy.symbols(), 41);
    redundancy.begin(WindowIndex(1), &mut levels, now);
    redundancy.learn(&mut levels, few, now);
    assert_eq!(redundancy.symbols(), 31);
    redundancy.begin(WindowIndex(2), &mut levels, now);
    levels.ask(BlockIndex(64), 32);
    redundancy.learn(&mut levels, few, now);
    assert_eq!(redundancy.symbols(), 30);
}

#[test]
fn while_reports_are_awaited_what_a_beacon_told_is_told_again_soon() {
    let mut lab = Lab::joined(&[MemberKind::Extended]);
    lab.run(SHORT_HOLD + DATAGRAM * PAGES + Duration::from_millis(50));
    let beacons = lab.beacons();
    let resting = beacons.iter().filter(|(_, beacon)| beacon.position == PageIndex(PAGES));
    let times: Vec<_> = resting.map(|(at, _)| *at).collect();
    let gaps: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert_eq!(gaps, [5, 10, 20]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn numbers_go_in_order_and_promises_are_kept_exactly(
        reports in proptest::collection::vec(
            (proptest::collection::vec((0u32..18, any::<u8>()), 0..6), 0u64..5), 1..12,
        ),
    ) {
        let mut lab = Lab::streamed();
        let mut promised = BTreeMap::new();
        for (needs, pause_ms) in reports {
            lab.report(&needs, &[]);
            let sent = lab.symbols();
            for (block, need) in needs {
                let so_far = sent.iter().filter(|symbol| symbol.block.0 == block).count();
                let level = promised.entry(block).or_insert(0);
                *level = (*level).max(usize::from(need).min(so_far + REPAIRS));
            }
            lab.run(Duration::from_millis(pause_ms));
        }
        promised.retain(|block, level| *block < 16 && *level > 0);
        while lab.symbols().len() < promised.values().sum() {
            lab.run(DATAGRAM);
        }
        let mut counts = BTreeMap::new();
        for symbol in lab.symbols() {
            let count = counts.entry(symbol.block.0).or_insert(0usize);
            prop_assert_eq!(symbol.number.get(), *count % REPAIRS);
            *count += 1;
        }
        prop_assert_eq!(counts, promised);
    }

    #[test]
    fn a_plain_member_gets_every_page_in_order_whatever_the_others_do(
        steps in proptest::collection::vec((0u32..20, any::<u8>(), 0u32..6, 0u64..30, 0u8..4), 1..30),
    ) {
        let mut lab = Lab::joined(&[MemberKind::Extended, MemberKind::Plain]);
        lab.run(SHORT_HOLD);
        for (number, (block, need, window, pause_ms, what)) in steps.into_iter().enumerate() {
            match what {
                0 => lab.report(&[(block, need)], &[]),
                1 => lab.report(&[], &[(window, 2)]),
                2 => lab.cast.handle_join(token(10 + number), MemberKind::Extended, lab.now),
                _ => {
                    lab.cast.handle_leave(&token(9 + number), lab.now);
                }
            }
            lab.run(Duration::from_millis(pause_ms));
        }
        lab.run(SECOND / 2);
        let pages = lab.pages();
        prop_assert!(pages.len() >= PAGES as usize);
        let carousel = PageRange::new(0, PAGES).iter().map(|page| page.0).collect::<Vec<_>>();
        let expected: Vec<_> = carousel.into_iter().cycle().take(pages.len()).collect();
        prop_assert_eq!(pages, expected);
    }
}
