//! Demanded pages of several casts, on a virtual clock.

use super::*;
use crate::cast::demand::tests::runs;

const PATHS: [&str; 2] = ["streamed", "demanded"];

/// Creates a lab with a plain member of one cast, and a token for a member that demands pages
/// of another.
fn lab(rate: &str) -> (Lab, Token) {
    let mut lab = Lab::new(rate, "239.255.0.0/16", 9);
    lab.scheduler.settings.repair =
        Some(RepairSettings { interleave: 4, repair_port: 9001, lease: 60 * SECOND });
    lab.join(PATHS[0], "v1", 100 * MIB).unwrap();
    (lab, Token::from_random(1000))
}

fn join(lab: &mut Lab, token: &Token) -> CastId {
    let (etag, kind) = (Etag::new("v1").unwrap(), MemberKind::Demand);
    let geometry = Geometry::new(100 * MIB, page_size()).unwrap();
    let (path, token) = (name(PATHS[1]), token.clone());
    let joined = lab.scheduler.handle_join(&path, &etag, geometry, newcomer(token, kind), lab.now);
    joined.unwrap().cast
}

fn want(lab: &mut Lab, token: &Token, now: &[(u32, u32)]) {
    let want = Want { now: runs(now), ..Want::default() };
    assert!(lab.scheduler.handle_want(&name(PATHS[1]), token, &want, lab.now).is_some());
}

#[test]
fn demanded_pages_of_one_cast_overtake_the_stream_of_another() {
    let (mut lab, token) = lab("100mbit");
    let cast = join(&mut lab, &token);
    lab.run(HOLD + SECOND);
    assert_eq!(lab.pages_of(cast), 0);
    let (demanded_at, before) = (lab.now, lab.sent.len());
    want(&mut lab, &token, &[(40_001, 3)]);
    lab.run(SECOND / 10);
    let (at, first, _) = &lab.sent[before];
    assert_eq!(
        (first.cast, &first.content),
        (cast, &Sending::Pages(PageRange::new(40_000, 40_003)))
    );
    assert!(first.demanded && *at <= demanded_at + TICK, "{:?}", *at - demanded_at);
    assert_eq!(lab.pages_of(cast), 3);
    assert_eq!(lab.scheduler.totals().demanded, 3);
}

#[test]
fn on_an_idle_link_demanded_pages_leave_at_once() {
    let (mut lab, token) = lab("200mbit");
    lab.scheduler.handle_stop(lab.now);
    let cast = join(&mut lab, &token);
    lab.run(SECOND);
    lab.sent.clear();
    for _ in 0..100 {
        let demanded_at = lab.now;
        want(&mut lab, &token, &[(40_001, 3)]);
        assert!(lab.scheduler.poll_timeout() <= Some(lab.now));
        lab.run(SECOND / 100);
        let (at, transmit, _) = lab.sent.pop().unwrap();
        assert_eq!((at, transmit.cast), (demanded_at, cast));
    }
    assert_eq!(lab.sent.len(), 0);
}

#[test]
fn a_run_of_demanded_pages_waits_only_until_its_own_bytes_may_leave() {
    let (mut lab, token) = lab("10mbit");
    lab.scheduler.handle_stop(lab.now);
    join(&mut lab, &token);
    lab.run(SECOND);
    // Full runs of 9.8 ms each use up all saved time of the pacer. A page takes 1.2 ms.
    want(&mut lab, &token, &[(1, 32)]);
    lab.run(SECOND / 40);
    want(&mut lab, &token, &[(101, 1), (201, 1), (301, 1)]);
    lab.run(SECOND / 10);
    let runs: Vec<_> = lab.sent.iter().map(|(_, it, _)| pages_in(it).len()).collect();
    assert_eq!(runs, [8, 8, 8, 8, 1, 1, 1]);
    let times: Vec<_> = lab.sent[3..].iter().map(|(at, _, _)| *at).collect();
    let page = lab.scheduler.rate().time_to_send(page_size().wire_len());
    assert!(times.windows(2).all(|two| two[1] - two[0] <= page + TICK), "{times:?}");
}

#[test]
fn the_stream_of_another_cast_keeps_a_tenth_and_then_half_however_much_is_demanded() {
    let (mut lab, token) = lab("100mbit");
    let cast = join(&mut lab, &token);
    lab.run(HOLD + SECOND / 10);
    let mut demand = |wants: std::ops::Range<u32>| {
        lab.sent.clear();
        for at in wants {
            want(&mut lab, &token, &[(1 + at * 170 % 68_000, 100)]);
            lab.run(Duration::from_millis(2));
        }
        let all = lab.sent.iter().map(|(_, it, _)| pages_in(it).len()).sum::<u32>();
        (all, lab.pages_of(cast))
    };
    // 16.5 pages fit 2 ms at this rate.
    let (all, demanded) = demand(0..100);
    assert!((1550..=1750).contains(&all), "{all}");
    assert!(demanded <= all * 9 / 10 + 100 && all * 8 / 10 < demanded, "{demanded} of {all}");
    // The ration of the host is used up: its cast has no more than the other.
    demand(100..200);
    let (all, demanded) = demand(200..400);
    assert!((all * 2 / 5..=all * 3 / 5).contains(&demanded), "{demanded} of {all}");
}

#[test]
fn the_estimated_time_until_demanded_pages_are_sent_is_right() {
    let (mut lab, token) = lab("100mbit");
    let cast = join(&mut lab, &token);
    lab.run(HOLD + SECOND / 10);
    for pages in [10, 100, 1000] {
        let (demanded_at, before) = (lab.now, lab.sent.len());
        let want = Want { now: vec![PageRange::from((1 + pages * 20, pages))], ..Want::default() };
        let path = name(PATHS[1]);
        let queue = lab.scheduler.handle_want(&path, &token, &want, lab.now).unwrap();
        // The same pages are queued already, so the estimate is the same.
        assert_eq!(lab.scheduler.handle_want(&path, &token, &want, lab.now), Some(queue));
        lab.run(SECOND / 2);
        let mut sent = lab.sent[before..].iter().filter(|(_, it, _)| it.cast == cast);
        let took = sent.next_back().unwrap().0 - demanded_at;
        // The estimate leaves out that the pacer may have saved up time for a burst of 4 ms.
        let (least, most) = (took.saturating_sub(2 * TICK), took + 6 * TICK);
        assert!(
            (least..=most).contains(&queue),
            "{pages} pages: estimated {queue:?}, took {took:?}"
        );
        lab.run(SECOND / 2);
    }
    let nothing = lab.scheduler.handle_want(&name(PATHS[1]), &token, &Want::default(), lab.now);
    assert_eq!(nothing, Some(Duration::ZERO));
}

#[test]
fn demand_keeps_to_the_rate_of_its_cast_if_members_report_counters() {
    for (kind, is_limited) in [(MemberKind::Extended, true), (MemberKind::Demand, false)] {
        let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
        lab.scheduler.settings.rate_source = CeilingSource::Assumption;
        lab.scheduler.settings.repair =
            Some(RepairSettings { interleave: 4, repair_port: 9001, lease: 60 * SECOND });
        let reader = Token::from_random(1000);
        let cast = join(&mut lab, &reader);
        let (etag, geometry) =
            (Etag::new("v1").unwrap(), Geometry::new(100 * MIB, page_size()).unwrap());
        let (path, other) = (name(PATHS[1]), Token::from_random(7));
        lab.scheduler.handle_join(&path, &etag, geometry, newcomer(other, kind), lab.now).unwrap();
        for at in 0..20 {
            want(&mut lab, &reader, &[(1 + at * 1000, 1000)]);
            lab.run(SECOND / 20);
        }
        // The ceiling carries 8256 pages a second. The cast starts at 0.3 of it, and falls to
        // a tenth after 250 ms without a report.
        let sent = lab.scheduler.cast(cast).unwrap().cast.demanded();
        let expected = if is_limited { 1000..=1500 } else { 6000..=8600 };
        assert!(expected.contains(&sent), "{kind:?}: {sent}");
    }
}

#[test]
fn urgent_casts_send_in_turn() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    lab.scheduler.settings.repair =
        Some(RepairSettings { interleave: 4, repair_port: 9001, lease: 60 * SECOND });
    let mut members = Vec::new();
    for number in 0..3 {
        let (path, token) = (name(&number.to_string()), Token::from_random(number));
        let (etag, geometry) = (Etag::new("v1").unwrap(), Geometry::new(MIB, page_size()).unwrap());
        let kind = MemberKind::Demand;
        lab.scheduler
            .handle_join(&path, &etag, geometry, newcomer(token.clone(), kind), lab.now)
            .unwrap();
        members.push((path, token));
    }
    for (path, token) in &members {
        let want = Want { now: vec![PageRange::from((1, 16))], ..Want::default() };
        assert!(lab.scheduler.handle_want(path, token, &want, lab.now).is_some());
    }
    lab.run(SECOND / 10);
    let casts: Vec<_> = lab.sent.iter().map(|(_, it, _)| it.cast.0).collect();
    assert_eq!(casts, [0, 1, 2, 0, 1, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn demand_keeps_to_the_ceiling_and_every_demanded_page_is_sent(
        wants in proptest::collection::vec((0u32..80_000, 0u32..300, 0u64..5000), 1..60),
        rate_mbit in 50u64..1000,
    ) {
        let (mut lab, token) = lab(&format!("{rate_mbit}mbit"));
        let cast = join(&mut lab, &token);
        for (first, count, pause_us) in wants {
            want(&mut lab, &token, &[(first, count)]);
            lab.run(Duration::from_micros(pause_us));
        }
        lab.run(SECOND / 2);
        let rate = lab.scheduler.rate();
        let batch = u64::from(BATCH) * page_size().wire_len();
        let depth = Duration::from_millis(20).max(rate.time_to_send(batch));
        for start in (0..lab.sent.len()).step_by(1 + lab.sent.len() / 50) {
            let mut total = 0;
            for (at, _, bytes) in &lab.sent[start..] {
                total += bytes;
                prop_assert!(total <= rate.bytes_in(*at - lab.sent[start].0 + depth));
            }
        }
        lab.run(2 * SECOND);
        let view = lab.scheduler.cast(cast).unwrap();
        prop_assert_eq!(view.cast.next_urgent(BATCH), None);
        prop_assert_eq!(view.cast.demanded(), u64::from(lab.pages_of(cast)));
    }
}
