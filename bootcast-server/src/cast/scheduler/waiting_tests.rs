//! Casts that wait for their bytes, on a virtual clock.

use super::*;

#[test]
fn a_cast_that_waits_for_bytes_is_passed_over_and_then_sends_what_it_waited_for() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    let (slow, _) = lab.join("slow", "v1", 100 * MIB).unwrap();
    let (other, _) = lab.join("other", "v1", 100 * MIB).unwrap();
    lab.run(HOLD + Duration::from_millis(20));
    let taken_back = loop {
        let transmit = lab.scheduler.poll_transmit(lab.now);
        match transmit.filter(|transmit| transmit.cast == slow.cast) {
            Some(transmit) => break transmit,
            None => lab.now += Duration::from_millis(1),
        }
    };
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
