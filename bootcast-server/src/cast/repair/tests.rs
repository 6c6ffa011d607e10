//! Casts with a repair channel on a virtual clock.
#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

mod unicast;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use bootcast_proto::fec::REPAIRS;
use bootcast_proto::limits::SHORT_HOLD;
use bootcast_proto::{Geometry, PageRange, PageSize, Share, Token};
use proptest::prelude::*;

use super::reporters::Reporters;
use super::*;
use crate::cast::{Cast, CastPolicy, EndReason, MemberKind, RepairSettings, Sending};

/// Four windows of four blocks.
const PAGES: u32 = 2048;
const WINDOW: u32 = 512;
const LEASE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// Time that a datagram takes on the wire, so that the file takes 41 ms.
const DATAGRAM: Duration = Duration::from_micros(20);

/// A cast with a repair channel, and the datagrams that it sent.
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

    /// A new cast with these members, numbered from 0.
    fn joined(kinds: &[MemberKind]) -> Self {
        let mut lab = Self::new();
        for (number, kind) in kinds.iter().enumerate() {
            lab.cast.handle_join(token(number), *kind, lab.now);
        }
        lab
    }

    /// A cast that has sent the whole stream to one extended member and waits for its reports.
    fn streamed() -> Self {
        let mut lab = Self::joined(&[MemberKind::Extended]);
        lab.run(SHORT_HOLD + DATAGRAM * (PAGES + 2));
        assert_eq!(lab.pages().len(), PAGES as usize);
        lab.sent.clear();
        lab
    }

    /// Sends a report of member 0.
    fn report(&mut self, needs: &[(u32, u8)], bulk: &[(u32, u32)]) {
        let report = Report { needs: needs.to_vec(), bulk: bulk.to_vec(), ..Report::default() };
        assert!(self.cast.handle_report(&token(0), &report, self.now));
    }

    /// Runs the cast for this time, like the driver.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.cast.handle_timeout(self.now);
            if let Some(sending) = self.cast.poll_transmit(8, self.now) {
                let datagrams = match &sending {
                    Sending::Pages(pages) => pages.len(),
                    Sending::Symbols(symbols) => u32::try_from(symbols.len()).unwrap(),
                    Sending::Beacon(_) | Sending::LeafList(_) | Sending::End(_) => 1,
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
            Sending::Symbols(_) | Sending::Beacon(_) | Sending::LeafList(_) | Sending::End(_) => {
                None
            }
        });
        runs.flat_map(|run| run.iter().map(|page| page.0).collect::<Vec<_>>()).collect()
    }

    fn symbols(&self) -> Vec<Symbol> {
        let batches = self.sent.iter().filter_map(|(_, sending)| match sending {
            Sending::Symbols(symbols) => Some(symbols.clone()),
            Sending::Pages(_) | Sending::Beacon(_) | Sending::LeafList(_) | Sending::End(_) => None,
        });
        batches.flatten().collect()
    }

    fn blocks(&self) -> Vec<u32> {
        self.symbols().iter().map(|symbol| symbol.block.0).collect()
    }

    fn beacons(&self) -> Vec<(Instant, Beacon)> {
        let beacons = self.sent.iter().filter_map(|(at, sending)| match sending {
            Sending::Beacon(beacon) => Some((*at, beacon.clone())),
            Sending::Pages(_) | Sending::Symbols(_) | Sending::LeafList(_) | Sending::End(_) => {
                None
            }
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
fn promised_symbols_go_before_the_stream_and_a_beacon_before_both() {
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
fn beacons_leave_most_of_a_slow_rate_to_promised_symbols() {
    // A full datagram takes this long at 256 kbit/s.
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
fn a_repeated_report_changes_nothing() {
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
fn an_absurd_report_is_promised_at_most_128_symbols_of_a_block() {
    let mut lab = Lab::streamed();
    lab.report(&[(2, 255), (16, 9), (u32::MAX, 255)], &[(4, 1), (u32::MAX, u32::MAX)]);
    lab.run(DATAGRAM * 140);
    assert_eq!(lab.blocks(), [2; 128]);
    assert!(lab.pages().is_empty());
}

#[test]
fn a_report_with_an_unknown_token_or_of_a_plain_member_is_refused() {
    let mut lab = Lab::joined(&[MemberKind::Plain, MemberKind::Extended]);
    let report = Report { needs: vec![(2, 1)], ..Report::default() };
    assert!(!lab.cast.handle_report(&token(7), &report, lab.now));
    assert!(!lab.cast.handle_report(&token(0), &report, lab.now));
    lab.run(SHORT_HOLD + DATAGRAM * 50);
    assert!(lab.symbols().is_empty());
}

#[test]
fn a_requested_window_is_sent_again_and_then_the_stream_rests() {
    let mut lab = Lab::streamed();
    lab.report(&[], &[(2, 1)]);
    lab.run(Duration::from_millis(60));
    assert_eq!(lab.pages(), window(2));
    assert_eq!(lab.beacons().last().unwrap().1.position, PageIndex(PAGES));
}

#[test]
fn pages_sent_before_a_late_join_are_sent_again_once() {
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
fn fill_symbols_go_to_every_block_in_turn_until_no_member_seems_to_listen() {
    let mut lab = Lab::streamed();
    lab.run(Duration::from_millis(45));
    assert!(lab.symbols().is_empty(), "reports may still arrive");
    lab.run(Duration::from_millis(20));
    assert_eq!(lab.blocks()[..16], (0..16).collect::<Vec<_>>());
    lab.run(10 * SECOND);
    let before = lab.symbols().len();
    assert_eq!(before % 16, 0);
    lab.report(&[], &[]);
    lab.run(SECOND);
    assert_eq!(lab.symbols().len(), before, "a report without needs");
    lab.report(&[(0, 255)], &[]);
    lab.run(SECOND);
    assert!(lab.symbols().len() > before + 128, "a report with a need");
}

#[test]
fn a_silent_member_is_forgotten_after_its_lease_and_the_cast_ends() {
    let mut lab = Lab::streamed();
    lab.run(LEASE / 2);
    lab.report(&[], &[]);
    lab.run(LEASE / 2 + SECOND);
    assert_eq!((lab.cast.members(), lab.cast.end_reason()), (1, None));
    lab.run(LEASE);
    assert_eq!((lab.cast.members(), lab.cast.end_reason()), (0, Some(EndReason::LeasesExpired)));
    assert!(lab.cast.poll_end_announcement().is_some());
}

#[test]
fn without_members_nothing_is_sent() {
    let mut lab = Lab::streamed();
    lab.report(&[(2, 9)], &[(0, 9)]);
    assert!(lab.cast.handle_leave(&token(0), lab.now));
    lab.run(2 * SECOND);
    assert!(lab.sent.is_empty());
    assert_eq!(lab.cast.end_reason(), Some(EndReason::LastLeave));
}

#[test]
fn a_cast_with_only_plain_members_sends_only_pages() {
    let mut lab = Lab::joined(&[MemberKind::Plain]);
    lab.run(SECOND);
    assert_eq!(lab.pages().len() / PAGES as usize, 5);
    assert!(lab.sent.iter().all(|(_, sending)| matches!(sending, Sending::Pages(_))));
    assert_eq!(lab.cast.end_reason(), Some(EndReason::IdlePasses));
}

#[test]
fn idle_passes_remove_plain_members_and_leave_the_others_to_their_lease() {
    let mut lab = Lab::joined(&[MemberKind::Plain, MemberKind::Extended]);
    lab.run(2 * SECOND);
    assert_eq!((lab.cast.members(), lab.cast.end_reason()), (1, None));
    assert_eq!(lab.cast.passes(), 5);
}

#[test]
fn beacons_keep_their_intervals_and_state_every_window() {
    let mut lab = Lab::joined(&[MemberKind::Extended, MemberKind::Extended]);
    lab.run(SHORT_HOLD + Duration::from_millis(60));
    let beacons = lab.beacons();
    assert!(beacons.len() >= 2);
    for pair in beacons.windows(2) {
        let came_to_rest =
            pair[0].1.position < PageIndex(PAGES) && pair[1].1.position == PageIndex(PAGES);
        let rested = pair[0].1.position == PageIndex(PAGES);
        let interval = if came_to_rest {
            2
        } else if rested {
            5
        } else {
            25
        };
        assert!(pair[1].0 - pair[0].0 >= Duration::from_millis(interval));
        assert_eq!(pair[1].1.number, pair[0].1.number + 1);
    }
    let (_, last) = beacons.last().unwrap();
    assert_eq!((last.members, last.permit, last.spread_ms), (2, Share::ALL, 2));
    let windows: Vec<_> = last.windows.iter().map(|(window, _)| window.0).collect();
    assert_eq!(windows, [0, 1, 2, 3]);
}

#[test]
fn the_permit_of_many_members_rises_while_few_report() {
    let mut lab = Lab::joined(&[MemberKind::Extended; 1000]);
    lab.run(SHORT_HOLD + DATAGRAM * (PAGES + 2));
    lab.run(Duration::from_secs(3));
    let permits: Vec<_> = lab.beacons().iter().map(|(_, beacon)| beacon.permit).collect();
    assert_eq!(permits[0], Share(6554));
    assert_eq!(permits.last(), Some(&Share::ALL));
    assert!(permits.is_sorted());
    let spreads: Vec<_> = lab.beacons().iter().map(|(_, beacon)| beacon.spread_ms).collect();
    assert_eq!((spreads[0], spreads.last()), (200, Some(&50)));
    assert!(spreads.is_sorted_by(|before, after| before >= after));
}

#[test]
fn many_reports_lower_the_permit_and_restore_the_spread() {
    let mut lab = Lab::joined(&[MemberKind::Extended; 1000]);
    lab.run(SHORT_HOLD + DATAGRAM * (PAGES + 2) + Duration::from_secs(3));
    for need in 100..160 {
        lab.report(&[(0, need)], &[]);
    }
    lab.sent.clear();
    lab.run(Duration::from_millis(100));
    let (_, last) = lab.beacons().pop().unwrap();
    assert_eq!((last.permit, last.spread_ms), (Share(16_384), 200));
}

#[test]
fn the_fourth_report_of_many_members_makes_a_beacon_urgent() {
    let mut lab = Lab::joined(&[MemberKind::Extended; 200]);
    lab.run(SHORT_HOLD + Duration::from_millis(10));
    lab.sent.clear();
    for need in 1..4 {
        lab.report(&[(0, need)], &[]);
    }
    lab.run(Duration::from_millis(10));
    assert!(lab.beacons().is_empty(), "three reports can wait");
    lab.report(&[(0, 4)], &[]);
    let reported_at = lab.now;
    lab.run(Duration::from_millis(10));
    let (at, beacon) = lab.beacons().remove(0);
    assert!(at <= reported_at + Duration::from_millis(1));
    assert_eq!(beacon.windows[0].1[0].promised, 4);
}

#[test]
fn redundancy_is_learned_with_the_highest_permit_since_the_window() {
    let layout = BlockLayout::new(32 * 128, 32).unwrap();
    let mut levels = Levels::new(layout);
    let mut redundancy = Redundancy::default();
    let now = Instant::now();
    redundancy.watch(WindowIndex(0), &mut levels, now + SECOND);
    let all = Reporters { members: 1000, permit: Share::ALL };
    redundancy.learn(&mut levels, all, now);
    for block in 0..5 {
        levels.promise_need(BlockIndex(block), 3);
    }
    redundancy.learn(&mut levels, Reporters { permit: all.permit.divided_by(4), ..all }, now);
    assert_eq!(
        redundancy.symbols(),
        0,
        "five of 32 blocks are left to reports if all members may report"
    );
    levels.promise_need(BlockIndex(5), 3);
    redundancy.learn(&mut levels, all, now);
    assert_eq!(redundancy.symbols(), 3);
}

#[test]
fn redundancy_follows_the_need_of_most_blocks_up_and_down() {
    let layout = BlockLayout::new(PAGES, 4).unwrap();
    let mut repair = Repair::new(layout, 1472, Instant::now());
    let mut now = Instant::now();
    let mut end_window = |repair: &mut Repair, number| {
        now += SECOND;
        repair.on_window(WindowIndex(number), 1, now);
    };
    end_window(&mut repair, 0);
    let needs = vec![(0, 5), (1, 6), (2, 5), (3, 9)];
    let author = Author { principal: None, ration: u64::MAX };
    repair.handle_report(&Report { needs, ..Report::default() }, 1, author, Instant::now());
    end_window(&mut repair, 1);
    assert_eq!(repair.redundancy(), 5);
    end_window(&mut repair, 2);
    assert_eq!(repair.redundancy(), 4);
}

#[test]
fn redundancy_falls_by_a_quarter_without_needs_and_by_one_with_few() {
    let layout = BlockLayout::new(3 * 32 * 128, 32).unwrap();
    let mut levels = Levels::new(layout);
    let mut redundancy = Redundancy::default();
    let few = Reporters { members: 10, permit: Share::ALL };
    let now = Instant::now();
    redundancy.watch(WindowIndex(0), &mut levels, now);
    for block in 0..32 {
        levels.promise_need(BlockIndex(block), 41);
    }
    redundancy.learn(&mut levels, few, now);
    assert_eq!(redundancy.symbols(), 41);
    redundancy.watch(WindowIndex(1), &mut levels, now);
    redundancy.learn(&mut levels, few, now);
    assert_eq!(redundancy.symbols(), 31);
    redundancy.watch(WindowIndex(2), &mut levels, now);
    levels.promise_need(BlockIndex(64), 32);
    redundancy.learn(&mut levels, few, now);
    assert_eq!(redundancy.symbols(), 30);
}

#[test]
fn while_reports_are_awaited_the_interval_of_beacons_doubles() {
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
    fn symbols_go_in_the_order_of_their_numbers_and_exactly_as_promised(
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
    fn a_plain_member_gets_every_page_in_order_for_any_steps_of_other_members(
        steps in proptest::collection::vec(
            (0u32..20, any::<u8>(), 0u32..6, 0u64..30, 0u8..4), 1..30,
        ),
    ) {
        let mut lab = Lab::joined(&[MemberKind::Extended, MemberKind::Plain]);
        lab.run(SHORT_HOLD);
        for (number, (block, need, window, pause_ms, step)) in steps.into_iter().enumerate() {
            match step {
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

#[test]
fn windows_that_members_ask_for_in_the_hold_are_sent_when_it_ends() {
    let mut lab = Lab::joined(&[MemberKind::Resuming, MemberKind::Resuming]);
    let report = Report { bulk: vec![(2, 2)], ..Report::default() };
    for member in 0..2 {
        assert!(lab.cast.handle_report(&token(member), &report, lab.now));
    }
    lab.run(SHORT_HOLD + DATAGRAM * (2 * WINDOW + 2));
    assert_eq!(lab.pages(), [window(2), window(3)].concat());
}
