//! Casts that wait for their bytes, on a virtual clock.

use super::*;

/// Drives the scheduler until it hands out datagrams of this cast, and returns them.
fn next_of(lab: &mut Lab, cast: CastId) -> Transmit {
    loop {
        lab.scheduler.handle_timeout(lab.now);
        match lab.scheduler.poll_transmit(lab.now) {
            Some(transmit) if transmit.cast == cast => return transmit,
            Some(_) => {}
            None => lab.now += TICK / 10,
        }
    }
}

#[test]
fn a_cast_that_waits_for_bytes_is_passed_over_and_then_sends_what_it_waited_for() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    let (slow, _) = lab.join("slow", "v1", 100 * MIB).unwrap();
    let (other, _) = lab.join("other", "v1", 100 * MIB).unwrap();
    lab.run(HOLD + Duration::from_millis(20));
    let taken_back = next_of(&mut lab, slow.cast);
    let before = lab.scheduler.totals();
    lab.scheduler.handle_waiting(taken_back.clone());
    let after = lab.scheduler.totals();
    assert_eq!(before.pages_sent - after.pages_sent, u64::from(pages_in(&taken_back).len()));
    lab.sent.clear();
    lab.run(SECOND);
    let pages = 100_000_000 / 8 / page_size().wire_len();
    assert_eq!(lab.pages_of(slow.cast), 0);
    assert!(u64::from(lab.pages_of(other.cast)) > pages * 9 / 10, "the other cast gets the rate");

    lab.scheduler.handle_ready(slow.cast, taken_back.lane);
    lab.sent.clear();
    lab.run(SECOND);
    assert_eq!(lab.sent[0].1, taken_back);
    let both = (lab.pages_of(slow.cast), lab.pages_of(other.cast));
    assert!(both.0.abs_diff(both.1) <= 3 * BATCH, "equal shares again: {both:?}");
    assert!(u64::from(both.0 + both.1) <= pages * 11 / 10, "what waited is paced: {both:?}");
}

#[test]
fn a_cast_that_ends_while_it_waits_leaves_nothing_behind() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    let (joined, token) = lab.join("a", "v1", MIB).unwrap();
    lab.run(HOLD);
    lab.now += Duration::from_millis(1);
    lab.scheduler.handle_timeout(lab.now);
    let transmit = lab.scheduler.poll_transmit(lab.now).unwrap();
    lab.scheduler.handle_waiting(transmit.clone());
    assert!(lab.scheduler.is_waiting(joined.cast));
    assert_eq!(lab.scheduler.poll_transmit(lab.now), None);
    lab.scheduler.handle_leave(&name("a"), &token, lab.now);
    lab.run(SECOND);
    assert!(!lab.scheduler.is_waiting(joined.cast));
    lab.scheduler.handle_ready(joined.cast, transmit.lane);
    assert_eq!(lab.scheduler.poll_transmit(lab.now), None);
    assert_eq!(lab.scheduler.totals().pages_sent, 0);
}

#[test]
fn a_cast_that_waited_often_does_not_make_up_for_it_at_once() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    let (slow, _) = lab.join("slow", "v1", 100 * MIB).unwrap();
    // A turn of a cast with eight members is four batches long.
    (1..8).for_each(|_| drop(lab.join("slow", "v1", 100 * MIB).unwrap()));
    let (other, _) = lab.join("other", "v1", 100 * MIB).unwrap();
    lab.run(HOLD);
    for _ in 0..200 {
        let transmit = next_of(&mut lab, slow.cast);
        let lane = transmit.lane;
        lab.scheduler.handle_waiting(transmit);
        next_of(&mut lab, other.cast);
        lab.scheduler.handle_ready(slow.cast, lane);
        next_of(&mut lab, slow.cast);
    }
    lab.sent.clear();
    lab.run(SECOND / 5);
    let casts: Vec<_> = lab.sent.iter().map(|(_, it, _)| it.cast).collect();
    let longest = casts.chunk_by(|a, b| a == b).map(<[_]>::len).max();
    assert!(longest <= Some(2 * 4), "{longest:?} batches in a row");
}

#[test]
fn pages_that_an_ended_cast_still_waits_for_do_not_reach_the_next_cast_of_its_group() {
    let mut lab = Lab::new("100mbit", "239.255.0.1/32", 9);
    let (old, _) = lab.join("old", "v1", u64::from(BATCH) * 1456).unwrap();
    let last = loop {
        let transmit = next_of(&mut lab, old.cast);
        if lab.ended_casts() == [(old.cast, EndReason::IdlePasses)] {
            break transmit;
        }
    };
    let lane = last.lane;
    lab.scheduler.handle_waiting(last);
    assert!(lab.scheduler.is_waiting(old.cast));
    lab.now += 10 * SECOND;
    let (new, _) = lab.join("new", "v1", MIB).unwrap();
    assert_eq!(new.group, old.group);
    assert!(!lab.scheduler.is_waiting(old.cast));
    lab.scheduler.handle_ready(old.cast, lane);
    lab.run(SECOND);
    assert!(lab.sent.iter().all(|(_, it, _)| it.cast == new.cast));
}

/// Sends what the scheduler hands out until all casts have ended. Takes transmits back: the number
/// of pages that are sent at once, and the microseconds until the bytes of the rest are there.
/// Returns the pages that were sent.
fn run_with_waits(lab: &mut Lab, waits: Vec<(u32, u64)>) -> BTreeMap<CastId, Vec<u32>> {
    let (mut waits, mut sent) = (waits.into_iter(), BTreeMap::<CastId, Vec<u32>>::new());
    let mut reads: Vec<(Instant, CastId, Lane)> = Vec::new();
    while lab.scheduler.casts().next().is_some() || !lab.scheduler.waiting.is_empty() {
        lab.scheduler.handle_timeout(lab.now);
        for (_, cast, lane) in reads.extract_if(.., |(at, ..)| *at <= lab.now) {
            lab.scheduler.handle_ready(cast, lane);
        }
        if let Some(transmit) = lab.scheduler.poll_transmit(lab.now) {
            let pages = pages_in(&transmit);
            let (at_once, wait) = waits.next().unwrap_or((pages.len(), 0));
            let rest = PageRange::new(pages.start.0 + at_once.min(pages.len()), pages.end.0);
            let now = PageRange::new(pages.start.0, rest.start.0);
            sent.entry(transmit.cast).or_default().extend(now.iter().map(|page| page.0));
            if !rest.is_empty() {
                let due = lab.now + Duration::from_micros(wait);
                reads.push((due, transmit.cast, transmit.lane));
                let content = Sending::Pages(rest);
                lab.scheduler.handle_waiting(Transmit { content, ..transmit });
            }
            continue;
        }
        let reads = reads.iter().map(|(at, ..)| *at);
        let wake = lab.scheduler.poll_timeout().into_iter().chain(reads).min();
        let wake = wake.expect("a cast neither ends nor waits");
        assert!(wake > lab.now, "the driver would spin");
        lab.now = wake;
    }
    sent
}

proptest! {
    #[test]
    fn every_page_is_sent_in_order_whatever_its_cast_waits_for(
        sizes in proptest::collection::vec((0u64..40, -1i64..=1), 1..4),
        waits in proptest::collection::vec((0..=BATCH, 0u64..20_000), 0..60),
    ) {
        let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
        let sizes: Vec<_> = sizes
            .into_iter()
            .map(|(pages, more)| (pages * 1456).saturating_add_signed(more).max(1))
            .collect();
        let casts: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(number, size)| lab.join(&number.to_string(), "v1", *size).unwrap().0.cast)
            .collect();
        let mut sent = run_with_waits(&mut lab, waits);
        let total: usize = sent.values().map(Vec::len).sum();
        prop_assert_eq!(lab.scheduler.totals().pages_sent, total as u64);
        for (cast, size) in casts.into_iter().zip(sizes) {
            let pages = u32::try_from(size.div_ceil(1456)).unwrap();
            let five_passes: Vec<_> = (0..5).flat_map(|_| 0..pages).collect();
            prop_assert_eq!(sent.remove(&cast), Some(five_passes));
        }
    }
}
