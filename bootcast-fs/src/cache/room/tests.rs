//! The budget holds, and the least recently used objects are removed for it.

use std::io::{IoSlice, Write};

use bootcast_proto::{Etag, RemotePath};

use super::*;
use crate::cache::{Cache, ObjectKey, Settled, Store};

const MIB: u64 = 1 << 20;

fn budget(size: u64) -> Budget {
    Budget { size: Amount::Bytes(size), min_free: Amount::Bytes(0) }
}

fn cache(dir: &Path, size: u64) -> Cache {
    Cache::with_budget(dir, budget(size)).unwrap()
}

fn open(cache: &Cache, path: &str) -> Store {
    let etag = Some(Etag::new("v1").unwrap());
    let path = RemotePath::decode(path).unwrap();
    cache.open(&ObjectKey { server: "head:8888".into(), path, etag, content: None }).unwrap()
}

fn write(store: &Store, mib: u64) {
    let bytes = vec![7; usize::try_from(MIB).unwrap()];
    for at in 0..mib {
        store.write_run(&mut [IoSlice::new(&bytes)], at * MIB).unwrap();
    }
}

fn used(dir: &Path) -> u64 {
    Usage::of(dir, None).unwrap().used
}

fn names(dir: &Path) -> usize {
    fs::read_dir(dir.join("objects")).unwrap().count()
}

/// Makes an object the `number`th by the time of its use.
fn use_at(dir: &Path, number: u64) {
    for object in kept::list_sizes(dir).unwrap() {
        let object = object.dir();
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        if File::open(object)
            .unwrap()
            .metadata()
            .unwrap()
            .modified()
            .unwrap()
            .elapsed()
            .is_ok_and(|age| age < Duration::from_secs(3600))
        {
            File::open(object).unwrap().set_modified(time).unwrap();
        }
    }
}

#[test]
fn the_least_recently_used_objects_go_and_those_in_use_stay() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 32 * MIB);
    let pinned = open(&cache, "pinned");
    write(&pinned, 8);
    use_at(dir.path(), 1);
    for (name, number) in [("a", 2), ("b", 3)] {
        write(&open(&cache, name), 8);
        use_at(dir.path(), number);
    }
    assert!(names(dir.path()) == 3 && used(dir.path()) >= 24 * MIB);
    let last = open(&cache, "c");
    write(&last, 20);
    assert!(used(dir.path()) <= 32 * MIB);
    assert_eq!(names(dir.path()), 2, "a and b went");
    assert!(!pinned.has_window() && !last.has_window());
}

#[test]
fn two_processes_share_the_budget_and_what_does_not_fit_is_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (cache(dir.path(), 16 * MIB), cache(dir.path(), 16 * MIB));
    let (first, second) = (open(&one, "a"), open(&two, "b"));
    for at in 0..12 {
        let bytes = vec![at; usize::try_from(MIB).unwrap()];
        first.write_run(&mut [IoSlice::new(&bytes)], u64::from(at) * MIB).unwrap();
        second.write_run(&mut [IoSlice::new(&bytes)], u64::from(at) * MIB).unwrap();
        assert!(used(dir.path()) <= 16 * MIB);
    }
    assert!(first.has_window() && second.has_window());
    for store in [&first, &second] {
        for at in 0..12 {
            let mut bytes = vec![99; usize::try_from(MIB).unwrap()];
            store.read_exact_at(&mut bytes, u64::from(at) * MIB).unwrap();
            assert!(bytes.iter().all(|byte| *byte == at), "{at}");
        }
    }
    drop(first);
    two.room().unwrap().handle_unused();
    assert!(second.has_room(MIB));
    while second.settle_window().unwrap() == Settled::Some {}
    assert!(!second.has_window() && used(dir.path()) <= 16 * MIB);
    let mut bytes = [0; 3];
    second.read_exact_at(&mut bytes, 11 * MIB).unwrap();
    assert_eq!(bytes, [11; 3]);
}

#[test]
fn nothing_goes_for_what_does_not_fit_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 8 * MIB);
    write(&open(&cache, "small"), 1);
    let room = cache.room().unwrap();
    assert!(!room.could_take(9 * MIB) && room.could_take(7 * MIB));
    assert!(room.take(0, 9 * MIB).is_none());
    assert_eq!(names(dir.path()), 1);
}

#[test]
fn a_private_store_counts_and_vanishes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 32 * MIB);
    let first = open(&cache, "a");
    let second = open(&cache, "a").open_own().unwrap();
    write(&second, 2);
    assert!(used(dir.path()) >= 2 * MIB && names(dir.path()) == 2);
    drop(second);
    assert_eq!(names(dir.path()), 1);
    drop(first);
}

#[test]
fn memory_is_limited_and_free_again_after_the_store() {
    let cache = Cache::in_memory(Amount::Bytes(8 * MIB));
    let first = open(&cache, "a");
    write(&first, 12);
    assert!(first.has_window() && cache.is_short());
    assert!(allocated(first.file()) <= 8 * MIB);
    drop(first);
    cache.room().unwrap().handle_unused();
    let second = open(&cache, "b");
    write(&second, 4);
    assert!(!second.has_window());
}

#[test]
fn a_grant_that_was_left_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let _cache = cache(dir.path(), 8 * MIB);
    let grants = dir.path().join("grants");
    let mut left = File::create(grants.join("left")).unwrap();
    left.write_all(&[0; 100]).unwrap();
    assert_eq!(other_grants(&grants, None), 0);
    assert!(!grants.join("left").exists());
}
