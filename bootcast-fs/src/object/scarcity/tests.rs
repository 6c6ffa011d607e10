//! Objects for which the cache has no room.
#![expect(clippy::disallowed_methods, reason = "a test has a clock")]

use std::io::IoSlice;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bootcast_proto::manifest::SEGMENT_BYTES;

use super::super::fixture::{File, receive};
use super::super::{Unread, Waiter};
use super::*;
use crate::cache::{Amount, Cache, ObjectKey};
use crate::receiver::{Action, Verify};

/// A cache with room for some bytes.
fn cache(bytes: u64) -> Cache {
    Cache::in_memory(Amount::Bytes(bytes))
}

fn object(file: &File, cache: &Cache) -> Arc<Object> {
    let path = bootcast_proto::RemotePath::decode("image").unwrap();
    let key = ObjectKey { server: "head:8888".into(), path, etag: None, content: None };
    let store = cache.open(&key).unwrap();
    file.object_in(store, Verify::Leaf, Fill::Full)
}

struct Answer(Sender<Result<Vec<u8>, Unread>>);

impl Waiter for Answer {
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>) {
        let _ = self.0.send(outcome.map(<[u8]>::to_vec));
    }

    fn is_abandoned(&self) -> bool {
        false
    }
}

fn read(object: &Object, bytes: Range<u64>) -> Receiver<Result<Vec<u8>, Unread>> {
    let (answer, answered) = channel();
    let _ = object.read(bytes, Box::new(Answer(answer)), Instant::now());
    answered
}

fn part<'a>(file: &'a File, bytes: &Range<u64>) -> &'a [u8] {
    &file.bytes[super::super::fixture::range(bytes)]
}

#[test]
fn dropped_bytes_are_missing_and_verified_again_when_they_come_again() {
    let file = File::new();
    // Nothing has room but the window.
    let object = object(&file, &cache(0));
    let bytes = SEGMENT_BYTES..2 * SEGMENT_BYTES;
    let data = 5_000_000..5_000_100;
    receive(&file, &object, &bytes);
    assert!(object.store().has_window());
    file.serve(&object);
    assert_eq!(read(&object, data.clone()).recv().unwrap().unwrap(), part(&file, &data));
    assert!(!object.snapshot().is_durable);

    let chunks = object.store().oldest_in_window();
    {
        let _alone = object.begin_writing();
        let mut inner = object.lock();
        object.stop_filling(&mut inner);
        for chunk in &chunks {
            object.drop_bytes(&mut inner, chunk);
        }
    }
    assert!(!object.store().has_window() && object.is_past_cache());
    let answered = read(&object, data.clone());
    assert!(answered.try_recv().is_err(), "dropped bytes were read");
    receive(&file, &object, &bytes);
    assert!(answered.try_recv().is_err(), "bytes were read before they were verified again");
    let (_, actions) = file.serve(&object);
    assert!(actions.contains(&Action::Join), "{actions:?}");
    assert_eq!(read(&object, data.clone()).recv().unwrap().unwrap(), part(&file, &data));
}

#[test]
fn bytes_that_are_being_read_are_not_dropped() {
    let file = File::new();
    let object = object(&file, &cache(0));
    let bytes = SEGMENT_BYTES..2 * SEGMENT_BYTES;
    receive(&file, &object, &bytes);
    file.serve(&object);
    let data = 5_000_000..5_000_100;
    let inner = object.lock();
    assert!(inner.receiver.holds(&data));
    let kept = object.keep(&data);
    drop(inner);
    let drop_all = || {
        let _alone = object.begin_writing();
        let mut inner = object.lock();
        object.stop_filling(&mut inner);
        for chunk in object.store().oldest_in_window() {
            object.drop_bytes(&mut inner, &chunk);
        }
        inner.receiver.holds(&data)
    };
    assert!(drop_all(), "bytes were dropped under a reader");
    drop(kept);
    assert!(!drop_all());
}

#[test]
fn a_window_moves_to_the_cache_once_that_has_room_and_the_file_is_filled_again() {
    let (file, cache) = (File::new(), cache(16 << 20));
    let others = object(&file, &cache);
    let others_bytes = vec![1; 16 << 20];
    let room = |object: &Object| {
        object.store().write_run(&mut [IoSlice::new(&others_bytes)], 0).unwrap();
    };
    room(&others);
    let object = object(&file, &cache);
    let bytes = SEGMENT_BYTES..2 * SEGMENT_BYTES;
    receive(&file, &object, &bytes);
    file.serve(&object);
    {
        let mut inner = object.lock();
        object.stop_filling(&mut inner);
        assert_eq!(inner.receiver.fill(), Fill::Demand);
    }
    object.checkpoint().unwrap();
    assert!(object.store().has_window(), "there is no room yet");
    drop(others);
    let deadline = Instant::now() + Duration::from_secs(60);
    while object.is_past_cache() {
        assert!(Instant::now() < deadline, "the window stays although there is room");
        object.checkpoint().unwrap();
    }
    assert!(!object.store().has_window());
    assert_eq!(object.lock().receiver.fill(), Fill::Full);
    let answered = read(&object, 5_000_000..5_000_100);
    assert_eq!(answered.recv().unwrap().unwrap(), part(&file, &(5_000_000..5_000_100)));
}
