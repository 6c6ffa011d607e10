#![expect(clippy::disallowed_methods, reason = "a test has a clock")]

use std::ops::Range;

use bootcast_proto::manifest::{LEAF_BYTES, SEGMENT_BYTES};

use super::super::fixture::{File, receive};
use super::*;
use crate::receiver::Fill;

/// Longer than a test takes.
const LONG: Duration = Duration::from_secs(60);

/// Returns the bytes of a leaf.
fn leaf(number: u64) -> Range<u64> {
    number * LEAF_BYTES..(number + 1) * LEAF_BYTES
}

/// Returns an object that has a leaf, and the leaf list to check more.
fn object(file: &File) -> Arc<Object> {
    let object = file.object(Fill::Full, &[]);
    receive(file, &object, &leaf(0));
    file.serve(&object);
    assert!(object.lock().receiver.holds(&leaf(0)));
    object
}

fn read(object: &Object, bytes: &Range<u64>, now: Instant) {
    assert!(object.lock().receiver.handle_read(bytes, now).is_some());
}

#[test]
fn leaves_accumulate_unless_a_reader_needs_others_than_the_next_ones_or_all_pages_are_here() {
    let file = File::new();
    let object = object(&file);
    let must_check = |now| object.lock().receiver.must_check(now);
    let now = Instant::now();
    receive(&file, &object, &(leaf(1).start..leaf(3).end));
    assert!(object.lock().receiver.has_check() && !must_check(now));
    read(&object, &(0..leaf(1).end), now);
    assert!(!must_check(now), "the reader follows the stream");
    read(&object, &(leaf(3).start..leaf(3).start + 1), now);
    assert!(must_check(now), "the reader reads here and there");
    file.serve(&object);
    assert!(!must_check(now), "nobody waits");
    receive(&file, &object, &(0..3 * SEGMENT_BYTES + 77));
    assert!(must_check(now), "nothing more arrives");
}

#[test]
fn a_reader_here_and_there_ends_the_wait_for_more_leaves() {
    let file = File::new();
    let object = object(&file);
    let now = Instant::now();
    receive(&file, &object, &leaf(3));
    let mut verifying = object.begin_verifying(now).unwrap();
    let waiting = std::thread::spawn(move || {
        let goes_on = verifying.wait(LONG, || now);
        assert!(verifying.step(drop, || now) && !verifying.step(drop, || now));
        goes_on
    });
    read(&object, &leaf(3), now);
    while !waiting.is_finished() {
        assert!(now.elapsed() < LONG / 2, "the check still waits");
        assert!(object.begin_verifying(now).is_none());
        std::thread::yield_now();
    }
    assert!(waiting.join().unwrap());
    assert!(object.lock().receiver.holds(&leaf(3)));
}

#[test]
fn a_check_that_finds_nothing_lets_another_one_begin() {
    let file = File::new();
    let object = object(&file);
    let now = Instant::now();
    receive(&file, &object, &leaf(1));
    let mut first = object.begin_verifying(now).unwrap();
    assert!(first.wait(Duration::ZERO, || now));
    while first.step(drop, || now) {}
    assert!(object.begin_verifying(now).is_none(), "one is there, and nothing to check");
    assert!(!first.wait(Duration::ZERO, || now));
    receive(&file, &object, &leaf(2));
    let second = object.begin_verifying(now);
    assert!(second.is_some());
    drop(first);
    assert!(object.begin_verifying(now).is_none(), "the second one is not over");
}
