//! Two senders in one group.

use super::*;

const SIZE: u64 = 1 << 20;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn the_sender_that_should_leave_ends_its_cast_at_once_and_the_next_one_has_another_group() {
    let mut lab = Lab::new("10mbit", "239.255.0.0/28", 4);
    let first = lab.join("a", "1", SIZE).unwrap().0;
    assert_eq!(lab.scheduler.handle_taken(first.cast, false, lab.now), Some(Taken::Ended));
    assert_eq!(lab.ended_casts(), [(first.cast, EndReason::GroupTaken)]);
    assert_eq!(lab.scheduler.handle_taken(first.cast, false, lab.now), None);
    let second = lab.join("a", "1", SIZE).unwrap().0;
    assert_ne!(second.group, first.group);
}

#[test]
fn the_sender_that_keeps_its_group_waits_ten_seconds_for_the_other_to_leave() {
    let mut lab = Lab::new("10mbit", "239.255.0.0/28", 4);
    let cast = lab.join("a", "1", SIZE).unwrap().0.cast;
    for (after, expected) in [(0, Taken::Waits), (9, Taken::Waits), (70, Taken::Waits)] {
        let now = lab.now + seconds(after);
        assert_eq!(lab.scheduler.handle_taken(cast, true, now), Some(expected), "{after}");
    }
    // The stranger of the first seconds was forgotten.
    let now = lab.now + seconds(79);
    assert_eq!(lab.scheduler.handle_taken(cast, true, now), Some(Taken::Waits));
    let now = lab.now + seconds(80);
    assert_eq!(lab.scheduler.handle_taken(cast, true, now), Some(Taken::Ended));
}

#[test]
fn strangers_end_no_more_than_one_cast_in_ten_seconds() {
    let mut lab = Lab::new("10mbit", "239.255.0.0/28", 4);
    let [a, b] = ["a", "b"].map(|name| lab.join(name, "1", SIZE).unwrap().0.cast);
    assert_eq!(lab.scheduler.handle_taken(a, false, lab.now), Some(Taken::Ended));
    let now = lab.now + seconds(9);
    assert_eq!(lab.scheduler.handle_taken(b, false, now), Some(Taken::Waits));
    assert_eq!(lab.scheduler.handle_taken(b, false, now + seconds(1)), Some(Taken::Ended));
}

#[test]
fn a_cast_without_another_group_goes_on() {
    let mut lab = Lab::new("10mbit", "239.255.0.1/32", 4);
    let cast = lab.join("a", "1", SIZE).unwrap().0.cast;
    assert_eq!(lab.scheduler.handle_taken(cast, false, lab.now), Some(Taken::NoOtherGroup));
    assert_eq!(lab.ended_casts(), []);
}
