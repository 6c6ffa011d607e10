#![expect(clippy::disallowed_methods, reason = "a test has a clock")]

use std::ops::Range;

use bootcast_proto::manifest::{LEAF_BYTES, SEGMENT_BYTES};

use super::super::Seek;
use super::super::fixture::{File, PAGE, receive};
use super::*;
use crate::receiver::{Action, Fill, ListRequest, Verify};

/// The leaf of [`File`] that has data.
const DATA: Range<u64> = {
    let start = 5_000_000 / LEAF_BYTES * LEAF_BYTES;
    start..start + LEAF_BYTES
};

fn take(object: &Object, map: &ZeroMap) {
    object.take_zeros(map, drop, Instant::now);
}

fn is_report(action: &Action) -> bool {
    matches!(action, Action::Report(report) if report.zeros && report.needs.is_empty())
}

#[test]
fn pages_of_zeros_arrive_without_a_byte_and_the_server_hears_of_it_at_once() {
    let file = File::new();
    let object = file.object(Fill::Full, &[]);
    let actions = object.poll(Instant::now()).actions;
    assert!(actions.contains(&Action::ZeroMap), "{actions:?}");
    take(&object, &file.map(false));
    let actions = object.poll(Instant::now()).actions;
    assert!(actions.iter().any(is_report), "{actions:?}");
    let blocks = rustix::fs::fstat(object.store()).unwrap().st_blocks;
    assert_eq!(blocks, 0, "nothing was written");
    let missing = object.lock().receiver.assembly().unwrap().missing();
    assert!((12..=14).contains(&missing), "{missing} pages of one leaf are missing");
}

#[test]
fn the_map_is_asked_for_where_bytes_are_verified() {
    for (verify, is_asked) in [(Verify::Tag, false), (Verify::Leaf, true)] {
        let object = File::new().object_with(verify, Fill::Full, &[]);
        let actions = object.poll(Instant::now()).actions;
        assert_eq!(actions.contains(&Action::ZeroMap), is_asked, "{verify:?}: {actions:?}");
    }
}

#[test]
fn segments_of_zeros_are_verified_without_leaf_lists() {
    let file = File::new();
    let object = file.object(Fill::Full, &[]);
    // Stale bytes of an earlier use, of which nobody knows, lie where zeros belong.
    let object_with_stale = file.object(Fill::Full, &vec![9; 6_000_000]);
    for object in [object, object_with_stale] {
        take(&object, &file.map(false));
        let (lists, _) = file.serve(&object);
        assert_eq!(lists, [], "the list of segment 1 comes in the cast");
        let holds = |bytes: Range<u64>| object.lock().receiver.holds(&bytes);
        assert!(holds(0..SEGMENT_BYTES) && holds(2 * SEGMENT_BYTES..file.bytes.len() as u64));
        assert!(!holds(SEGMENT_BYTES..SEGMENT_BYTES + 1));
        receive(&file, &object, &DATA);
        let (lists, others) = file.serve(&object);
        assert_eq!(lists, [ListRequest::Leaves(1..2)]);
        assert!(!others.iter().any(|action| matches!(action, Action::Replace(_))));
        file.assert_complete(&object);
    }
}

#[test]
fn what_a_wrong_map_claims_is_never_read_and_fetched() {
    let file = File::new();
    let object = file.object(Fill::Full, &[]);
    take(&object, &file.map(true));
    assert!(object.has_all_pages());
    let (lists, others) = file.serve(&object);
    assert_eq!(lists, [ListRequest::Leaves(1..2)], "the segment's value refutes the map");
    let replaced: Vec<_> = (others.into_iter())
        .filter_map(|action| if let Action::Replace(it) = action { Some(it.bytes()) } else { None })
        .collect();
    assert_eq!(replaced, [DATA]);
    file.assert_complete(&object);
}

#[test]
fn on_demand_only_zeros_that_are_read_are_verified_and_none_is_demanded() {
    let file = File::new();
    let object = file.object(Fill::Demand, &[]);
    take(&object, &file.map(false));
    file.serve(&object);
    let holds = |bytes: Range<u64>| object.lock().receiver.holds(&bytes);
    assert!(!holds(0..1) && !object.lock().receiver.has_check());
    assert!(object.lock().receiver.handle_read(&(0..1), Instant::now()).is_some());
    let (lists, others) = file.serve(&object);
    assert!(holds(0..1), "{others:?}");
    assert!(!others.iter().any(|action| matches!(action, Action::Want(_))), "{others:?}");
    assert_eq!(lists, []);
}

#[test]
fn another_membership_of_the_same_version_says_at_once_that_it_has_the_map() {
    let file = File::new();
    let object = file.object(Fill::Full, &[]);
    take(&object, &file.map(false));
    drop(object.handle_join(Ok(file.answer(2)), Instant::now()));
    let actions = object.poll(Instant::now()).actions;
    assert!(actions.iter().any(|action| matches!(action, Action::Report(it) if it.zeros)));
}

#[test]
fn holes_are_shown_where_zeros_are_verified_and_nowhere_else() {
    let file = File::new();
    let size = file.bytes.len() as u64;
    let object = file.object(Fill::Full, &[]);
    assert_eq!(object.seek(0, Seek::Hole), Some(size), "nothing is here yet");
    assert_eq!(object.seek(100, Seek::Data), Some(100));
    take(&object, &file.map(false));
    assert_eq!(object.seek(0, Seek::Hole), Some(size), "nothing is verified yet");
    file.serve(&object);
    assert_eq!(object.seek(7, Seek::Hole), Some(7));
    assert_eq!(object.seek(0, Seek::Data), Some(SEGMENT_BYTES));
    assert_eq!(object.seek(SEGMENT_BYTES, Seek::Hole), Some(2 * SEGMENT_BYTES));
    assert_eq!(object.seek(2 * SEGMENT_BYTES, Seek::Data), None);
    receive(&file, &object, &DATA);
    file.serve(&object);
    let data = object.seek(0, Seek::Data).unwrap();
    let end = object.seek(data, Seek::Hole).unwrap();
    // The store has whole blocks, and its data begins with a page that begins before the leaf.
    assert!((DATA.start - PAGE - 4096..=5_000_000).contains(&data), "{data}");
    assert!((5_000_100..=DATA.end + LEAF_BYTES).contains(&end), "{end}");
    assert_eq!(object.seek(end, Seek::Data), None);
    for seek in [Seek::Data, Seek::Hole] {
        assert_eq!(object.seek(size, seek), None);
        assert_eq!(object.seek(u64::MAX, seek), None);
    }
}
