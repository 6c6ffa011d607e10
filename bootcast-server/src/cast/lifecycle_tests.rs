//! Casts on a virtual clock: plain members, demand, and unreadable pages.
#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

use bootcast_proto::api::{Report, Want};
use bootcast_proto::limits::REPORT_RUNS;
use bootcast_proto::{PageIndex, PageSize};
use proptest::prelude::*;

use super::*;
use crate::cast::PASS_INTERVAL;

const POLICY: CastPolicy =
    CastPolicy { idle_passes: NonZeroU32::new(5).unwrap(), linger: Duration::from_millis(500) };

#[test]
fn the_number_of_bulk_pairs_that_are_read_is_documented() {
    let protocol = include_str!("../../../docs/PROTOCOL.md");
    let sentence = format!("looks at the first {REPORT_RUNS} pairs of `bulk`");
    assert!(protocol.contains(&sentence), "{sentence}");
}

fn token(number: u128) -> Token {
    Token::from_random(number)
}

fn file(pages: u32) -> Geometry {
    Geometry::new(u64::from(pages) * 1456, PageSize::new(1456).unwrap()).unwrap()
}

fn joined(pages: u32, now: Instant) -> Cast {
    let mut cast = Cast::new(&file(pages), POLICY, None, now);
    cast.handle_join(token(1), MemberKind::Plain, now);
    cast
}

/// Polls a cast with only plain members, to which only pages are sent.
fn poll_pages(cast: &mut Cast, budget: u32, now: Instant) -> Option<PageRange> {
    match cast.poll_transmit(budget, now)? {
        Sending::Pages(pages) => Some(pages),
        other => panic!("{other:?}"),
    }
}

/// Advances the clock to the next timer or page. Returns `false` if there is none.
fn advance(cast: &mut Cast, now: &mut Instant) -> bool {
    let timers = [cast.poll_timeout(), cast.poll_transmit_at()];
    let Some(timer) = timers.into_iter().flatten().min() else { return false };
    *now = timer.max(*now);
    cast.handle_timeout(*now);
    true
}

/// Returns every page in the order of sending, until the cast has ended or `limit` pages were sent.
fn run(cast: &mut Cast, budget: u32, now: &mut Instant, limit: usize) -> Vec<u32> {
    let mut sent = Vec::new();
    while sent.len() < limit && cast.end_reason().is_none() {
        match poll_pages(cast, budget, *now) {
            Some(pages) => sent.extend(pages.iter().map(|page| page.0)),
            None => assert!(advance(cast, now), "no pages, no timer and no end"),
        }
    }
    sent
}

#[test]
fn the_first_page_waits_for_the_hold() {
    let start = Instant::now();
    let mut cast = joined(3, start);
    cast.handle_timeout(start + HOLD / 2);
    assert_eq!(poll_pages(&mut cast, 9, start), None);
    assert_eq!(cast.poll_timeout(), Some(start + HOLD));
    cast.handle_timeout(start + HOLD);
    assert_eq!(poll_pages(&mut cast, 9, start + HOLD), Some(PageRange::new(0, 3)));
}

#[test]
fn a_run_never_crosses_the_end_of_a_pass() {
    let mut now = Instant::now();
    let mut cast = joined(10, now);
    advance(&mut cast, &mut now);
    let runs: Vec<_> =
        std::iter::from_fn(|| poll_pages(&mut cast, 4, now)).map(PageRange::len).collect();
    assert_eq!(runs, [4, 4, 2]);
    assert_eq!(cast.passes(), 1);
}

#[test]
fn passes_of_a_small_file_start_no_sooner_than_the_pass_interval() {
    let start = Instant::now();
    let mut now = start;
    let mut cast = joined(1, now);
    let sent = run(&mut cast, 44, &mut now, usize::MAX);
    assert_eq!(sent.len(), 5);
    assert_eq!(now, start + HOLD + 4 * PASS_INTERVAL);
}

#[test]
fn a_second_join_does_not_restart_the_carousel() {
    let mut now = Instant::now();
    let mut cast = joined(100, now);
    assert_eq!(run(&mut cast, 10, &mut now, 30).len(), 30);
    cast.handle_join(token(2), MemberKind::Plain, now);
    assert_eq!(poll_pages(&mut cast, 10, now), Some(PageRange::new(30, 40)));
}

#[test]
fn a_cast_ends_after_its_idle_passes() {
    let mut now = Instant::now();
    let mut cast = joined(7, now);
    assert_eq!(run(&mut cast, 3, &mut now, usize::MAX).len(), 35);
    assert_eq!(cast.end_reason(), Some(EndReason::IdlePasses));
}

#[test]
fn a_silent_plain_member_is_forgotten_although_others_join_and_leave() {
    let mut now = Instant::now();
    let mut cast = joined(10, now);
    let mut sent = 0;
    for number in 2..12 {
        // Each further member gets one pass and leaves. The first one is forgotten after five.
        cast.handle_join(token(number), MemberKind::Plain, now);
        sent += run(&mut cast, 1, &mut now, 10).len();
        assert!(cast.handle_leave(&token(number), now));
        if cast.members() == 0 {
            break;
        }
    }
    assert_eq!(sent, 50);
}

#[test]
fn a_plain_member_gets_all_its_passes_after_an_earlier_one_is_forgotten() {
    let mut now = Instant::now();
    let mut cast = joined(10, now);
    run(&mut cast, 7, &mut now, 47);
    cast.handle_join(token(3), MemberKind::Plain, now);
    let rest = run(&mut cast, 1, &mut now, usize::MAX);
    assert_eq!(rest.len(), 50);
    assert_eq!(cast.end_reason(), Some(EndReason::IdlePasses));
}

#[test]
fn a_cast_without_members_lingers_silently_and_ends() {
    let mut now = Instant::now();
    let mut cast = joined(10, now);
    run(&mut cast, 3, &mut now, 3);
    assert!(cast.handle_leave(&token(1), now));
    assert_eq!(poll_pages(&mut cast, 3, now), None);
    assert_eq!(cast.poll_timeout(), Some(now + POLICY.linger));
    assert_eq!(cast.end_reason(), None);
    advance(&mut cast, &mut now);
    assert_eq!(cast.end_reason(), Some(EndReason::LastLeave));
}

#[test]
fn without_linger_the_last_leave_ends_the_cast_at_once() {
    let now = Instant::now();
    let policy = CastPolicy { linger: Duration::ZERO, ..POLICY };
    let mut cast = Cast::new(&file(10), policy, None, now);
    cast.handle_join(token(1), MemberKind::Plain, now);
    cast.handle_join(token(2), MemberKind::Plain, now);
    assert!(cast.handle_leave(&token(1), now));
    assert_eq!(cast.end_reason(), None);
    assert!(cast.handle_leave(&token(2), now));
    assert_eq!(cast.end_reason(), Some(EndReason::LastLeave));
}

#[test]
fn a_lingering_cast_that_is_joined_starts_with_page_1_after_a_hold() {
    let mut now = Instant::now();
    let mut cast = joined(10, now);
    run(&mut cast, 3, &mut now, 3);
    cast.handle_leave(&token(1), now);
    cast.handle_join(token(2), MemberKind::Plain, now);
    assert_eq!(cast.poll_timeout(), Some(now + HOLD));
    advance(&mut cast, &mut now);
    let first = poll_pages(&mut cast, 3, now).map(|run| run.start);
    assert_eq!(first, Some(PageIndex(0)));
}

#[test]
fn an_unknown_token_changes_nothing() {
    let mut now = Instant::now();
    let mut cast = joined(10, now);
    run(&mut cast, 3, &mut now, 6);
    let before = format!("{cast:?}");
    assert!(!cast.handle_leave(&token(9), now));
    assert_eq!(format!("{cast:?}"), before);
}

#[test]
fn an_empty_file_sends_nothing_and_its_cast_still_ends() {
    let start = Instant::now();
    let mut now = start;
    let mut cast = joined(0, now);
    assert!(run(&mut cast, 44, &mut now, usize::MAX).is_empty());
    assert_eq!(now, start + HOLD + POLICY.linger);
}

#[test]
fn an_ended_cast_keeps_its_reason_and_sends_nothing() {
    let now = Instant::now();
    let mut cast = joined(10, now);
    cast.handle_end(EndReason::FileChanged);
    cast.handle_end(EndReason::Stopped);
    cast.handle_join(token(2), MemberKind::Plain, now);
    cast.handle_timeout(now + HOLD);
    assert_eq!(cast.end_reason(), Some(EndReason::FileChanged));
    assert_eq!((poll_pages(&mut cast, 5, now + HOLD), cast.poll_timeout()), (None, None));
}

proptest! {
    #[test]
    fn every_pass_sends_every_page_in_order(
        pages in 1u32..300, budgets in proptest::collection::vec(1u32..60, 1..20),
    ) {
        let mut now = Instant::now();
        let mut cast = joined(pages, now);
        let mut sent = Vec::new();
        for &budget in budgets.iter().cycle() {
            sent.extend(run(&mut cast, budget, &mut now, 1));
            now += Duration::from_millis(3);
            if cast.end_reason().is_some() {
                break;
            }
        }
        let five_passes: Vec<u32> = (0..5).flat_map(|_| 0..pages).collect();
        prop_assert_eq!(sent, five_passes);
        prop_assert_eq!(cast.passes(), 5);
    }
}

mod demand {
    use super::*;
    use crate::cast::demand::tests::runs;

    const REPAIR: RepairSettings =
        RepairSettings { interleave: 1, repair_port: 9001, lease: Duration::from_secs(60) };

    fn cast_of(pages: u32, kinds: &[MemberKind], now: Instant) -> Cast {
        let mut cast = Cast::new(&file(pages), POLICY, Some(&REPAIR), now);
        for (number, kind) in kinds.iter().enumerate() {
            cast.handle_join(token(number as u128), *kind, now);
        }
        cast
    }

    fn want(cast: &mut Cast, member: u128, now: &[(u32, u32)], later: &[(u32, u32)], at: Instant) {
        let want = Want { now: runs(now), later: runs(later), ..Want::default() };
        assert!(cast.handle_want(&token(member), &want, at));
    }

    /// Polls as the scheduler does while the pacer allows everything.
    fn poll(cast: &mut Cast, budget: u32, now: Instant) -> Option<Sending> {
        cast.poll_urgent(budget, now).or_else(|| cast.poll_transmit(budget, now))
    }

    #[test]
    fn a_member_that_only_demands_is_sent_nothing_else() {
        let start = Instant::now();
        let mut now = start;
        let mut cast = cast_of(1000, &[MemberKind::Demand], now);
        while now < start + Duration::from_secs(50) {
            cast.handle_timeout(now);
            assert_eq!((poll(&mut cast, 44, now), cast.poll_transmit_at()), (None, None));
            now += Duration::from_millis(100);
        }
        want(&mut cast, 0, &[(901, 3)], &[(1, 1)], now);
        assert_eq!(cast.next_urgent(44), Some((now, 3)));
        assert_eq!(poll(&mut cast, 44, now), Some(Sending::Pages(PageRange::new(900, 903))));
        assert_eq!(cast.poll_transmit_at(), Some(now));
        assert_eq!(poll(&mut cast, 44, now), Some(Sending::Pages(PageRange::new(0, 1))));
        assert_eq!((poll(&mut cast, 44, now), cast.poll_transmit_at()), (None, None));
        assert_eq!((cast.next_urgent(44), cast.passes(), cast.demanded()), (None, 0, 4));
    }

    #[test]
    fn demand_is_answered_before_the_stream_begins() {
        let now = Instant::now();
        for kind in [MemberKind::Extended, MemberKind::Demand] {
            let mut cast = cast_of(100, &[kind], now);
            want(&mut cast, 0, &[(7, 2)], &[(50, 1)], now);
            let runs =
                [poll(&mut cast, 44, now), poll(&mut cast, 44, now), poll(&mut cast, 44, now)];
            let pages = |start, end| Some(Sending::Pages(PageRange::new(start, end)));
            assert_eq!(runs, [pages(6, 8), pages(49, 50), None]);
        }
    }

    #[test]
    fn demanded_pages_that_the_stream_has_just_sent_are_not_sent_again() {
        let mut now = Instant::now();
        let mut cast = cast_of(1000, &[MemberKind::Plain, MemberKind::Demand], now);
        advance(&mut cast, &mut now);
        assert_eq!(poll(&mut cast, 44, now), Some(Sending::Pages(PageRange::new(0, 44))));
        want(&mut cast, 1, &[(40, 10)], &[(1, 40)], now);
        assert_eq!(cast.poll_urgent(44, now), Some(Sending::Pages(PageRange::new(44, 49))));
        assert_eq!((cast.next_urgent(44), cast.demanded()), (None, 5));
        assert_eq!(cast.poll_transmit(44, now), Some(Sending::Pages(PageRange::new(44, 88))));
    }

    #[test]
    fn a_want_renews_the_lease_and_silence_ends_it() {
        let start = Instant::now();
        let mut cast = cast_of(100, &[MemberKind::Demand], start);
        cast.handle_timeout(start + HOLD);
        let late = start + REPAIR.lease / 2;
        want(&mut cast, 0, &[(1, 1)], &[], late);
        assert!(cast.handle_report(&token(0), &Report::default(), late));
        cast.handle_timeout(start + REPAIR.lease);
        assert_eq!(cast.members(), 1);
        let mut now = late;
        while cast.end_reason().is_none() {
            while poll(&mut cast, 44, now).is_some() {}
            assert!(advance(&mut cast, &mut now));
        }
        assert_eq!(cast.end_reason(), Some(EndReason::LeasesExpired));
        assert!(late + REPAIR.lease <= now && now < late + REPAIR.lease * 9 / 8);
        assert!(cast.poll_end_announcement().is_some());
    }

    #[test]
    fn a_member_without_a_lease_cannot_demand() {
        let now = Instant::now();
        let mut cast = cast_of(100, &[MemberKind::Plain], now);
        let want = Want { now: vec![PageRange::from((1, 1))], ..Want::default() };
        assert!(!cast.handle_want(&token(0), &want, now));
        assert!(!cast.handle_want(&token(9), &want, now));
        let mut plain_server = joined(100, now);
        plain_server.handle_join(token(2), MemberKind::Demand, now);
        assert!(!plain_server.handle_want(&token(2), &want, now));
    }

    #[test]
    fn if_all_members_have_repair_the_hold_is_short_after_the_last_join() {
        let start = Instant::now();
        let mut cast = Cast::new(&file(300), POLICY, Some(&REPAIR), start);
        let mut join = |number: u8, kind, milliseconds| {
            let now = start + Duration::from_millis(milliseconds);
            cast.handle_timeout(now);
            cast.handle_join(token(number.into()), kind, now);
            cast.poll_timeout().unwrap() - start
        };
        assert_eq!(join(1, MemberKind::Extended, 0), SHORT_HOLD);
        assert_eq!(join(2, MemberKind::Extended, 15), Duration::from_millis(35));
        assert_eq!(join(3, MemberKind::Demand, 20), Duration::from_millis(35));
        assert_eq!(join(4, MemberKind::Plain, 30), HOLD);
        assert_eq!(join(5, MemberKind::Extended, 95), HOLD);

        let mut all_extended = Cast::new(&file(300), POLICY, Some(&REPAIR), start);
        for number in 0..20 {
            let now = start + Duration::from_millis(10) * number;
            all_extended.handle_timeout(now);
            all_extended.handle_join(token(number.into()), MemberKind::Extended, now);
        }
        assert_eq!(all_extended.passes(), 0);
        let after_the_hold = start + HOLD;
        assert!(matches!(all_extended.poll_transmit(44, after_the_hold), Some(Sending::Pages(_))));
    }

    #[test]
    fn the_first_member_that_wants_the_whole_file_gets_a_hold_and_page_1() {
        for (kind, hold) in [(MemberKind::Plain, HOLD), (MemberKind::Extended, SHORT_HOLD)] {
            let mut now = Instant::now();
            let mut cast = cast_of(300, &[MemberKind::Demand], now);
            now += Duration::from_secs(1);
            cast.handle_timeout(now);
            want(&mut cast, 0, &[(200, 5)], &[], now);
            while poll(&mut cast, 44, now).is_some() {}
            cast.handle_join(token(1), kind, now);
            assert_eq!(cast.poll_timeout(), Some(now + hold));
            now += hold;
            cast.handle_timeout(now);
            let first = std::iter::from_fn(|| poll(&mut cast, 44, now))
                .find(|sending| matches!(sending, Sending::Pages(_)));
            assert_eq!(first, Some(Sending::Pages(PageRange::new(0, 44))), "{kind:?}");
        }
    }

    #[test]
    fn silent_plain_members_are_forgotten_although_others_demand() {
        let mut now = Instant::now();
        let mut cast = cast_of(50, &[MemberKind::Plain, MemberKind::Demand], now);
        let mut streamed = 0;
        for round in 0..2000 {
            cast.handle_timeout(now);
            want(&mut cast, 1, &[(1 + round % 50, 1)], &[], now);
            assert!(cast.handle_report(&token(1), &Report::default(), now));
            let before = cast.demanded();
            while let Some(sending) = poll(&mut cast, 8, now) {
                streamed += u64::from(sending.datagrams());
            }
            streamed -= cast.demanded() - before;
            now += Duration::from_millis(5);
        }
        assert_eq!((streamed, cast.passes(), cast.members()), (250, 5, 1));
        cast.handle_leave(&token(1), now);
        advance(&mut cast, &mut now);
        assert_eq!(cast.end_reason(), Some(EndReason::LastLeave));
    }

    #[test]
    fn the_stream_gets_a_tenth_however_much_is_demanded() {
        let mut now = Instant::now();
        let mut cast = cast_of(100_000, &[MemberKind::Plain, MemberKind::Demand], now);
        advance(&mut cast, &mut now);
        let (mut demanded, mut streamed) = (0, 0);
        for at in 0..5000 {
            want(&mut cast, 1, &[], &[(1 + at * 17 % 99_000, 9)], now);
            let before = cast.demanded();
            let sent = cast.poll_transmit(8, now).unwrap().datagrams();
            if cast.demanded() == before {
                streamed += sent;
            } else {
                demanded += sent;
            }
            now += Duration::from_millis(1);
        }
        assert!(streamed * 8 < demanded, "{demanded} and {streamed}");
        assert!(demanded <= streamed * 9 + 100, "{demanded} and {streamed}");
    }

    proptest! {
        #[test]
        fn wants_change_neither_the_stream_nor_its_end(
            pages in 1u32..300, budgets in proptest::collection::vec(1u32..60, 1..20),
            wants in proptest::collection::vec((0u8..3, 0u32..400, 0u32..400), 1..80),
        ) {
            let mut now = Instant::now();
            let kinds = [MemberKind::Plain, MemberKind::Demand];
            let mut cast = cast_of(pages, &kinds, now);
            let (mut streamed, mut wants) = (Vec::new(), wants.into_iter());
            for &budget in budgets.iter().cycle() {
                if let Some((kind, first, count)) = wants.next() {
                    let pair = &[(first, count)][..];
                    let (urgent, later) = if kind == 0 { (&[][..], pair) } else { (pair, &[][..]) };
                    want(&mut cast, 1, urgent, later, now);
                }
                let before = cast.demanded();
                match poll(&mut cast, budget, now) {
                    Some(Sending::Pages(run)) => {
                        prop_assert!(!run.is_empty() && run.len() <= budget && run.end.0 <= pages);
                        if cast.demanded() == before {
                            streamed.extend(run.iter().map(|page| page.0));
                        }
                    }
                    Some(other) => prop_assert!(false, "{:?}", other),
                    None if cast.members() == 1 => break,
                    None => prop_assert!(advance(&mut cast, &mut now)),
                }
                now += Duration::from_millis(1);
            }
            let five_passes: Vec<u32> = (0..5).flat_map(|_| 0..pages).collect();
            prop_assert_eq!(streamed, five_passes);
            prop_assert_eq!(cast.passes(), 5);
        }
    }
}

#[test]
fn an_unreadable_page_is_neither_sent_nor_repaired_before_its_retry_time() {
    let now = Instant::now();
    let lease = Duration::from_secs(600);
    let repair = RepairSettings { interleave: 1, repair_port: 9001, lease };
    let mut cast = Cast::new(&file(256), POLICY, Some(&repair), now);
    cast.handle_join(token(1), MemberKind::Extended, now);
    cast.handle_unreadable(PageRange::new(130, 132), now);
    // A want counts pages from 1.
    let want = Want {
        now: vec![PageRange::from((129, 5))],
        later: vec![PageRange::from((131, 1))],
        ..Want::default()
    };
    assert!(cast.handle_want(&token(1), &want, now));
    let demanded = std::iter::from_fn(|| cast.poll_urgent(8, now));
    let demanded: Vec<_> = demanded.collect();
    let pages = |start, end| Sending::Pages(PageRange::new(start, end));
    assert_eq!(demanded, [pages(128, 130), pages(132, 133)]);
    assert_eq!(cast.select_unreadable(&[]), [PageRange::new(130, 132)]);

    let is_promised = |cast: &mut Cast, block, now| {
        let report = Report { needs: vec![(block, 2)], ..Report::default() };
        cast.handle_report(&token(1), &report, now);
        cast.poll_promised(8).is_some()
    };
    assert!(!is_promised(&mut cast, 1, now));
    assert!(is_promised(&mut cast, 0, now));
    let later = now + Duration::from_secs(41);
    cast.handle_timeout(later);
    assert_eq!(cast.unreadable_in(PageRange::new(0, 256)), None);
    assert!(is_promised(&mut cast, 1, later));
}
