//! When an object counts as durable, and what a failing disk makes of it.
#![expect(clippy::disallowed_methods, reason = "a test has a clock")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bootcast_proto::join::Extensions;
use bootcast_proto::{Etag, Layout, PageIndex, PageSize, RemotePath};

use super::*;
use crate::cache::{Cache, CheckpointError};
use crate::receiver::Failure;

const SIZE: u64 = 1000;
const CONTENT: [u8; 1000] = [7; 1000];

/// An object in `store` that has received everything over HTTP.
fn complete(key: &ObjectKey, store: Store) -> Object {
    let object = joined(key, store);
    let fetch = object.poll(Instant::now()).fetch.unwrap();
    let _ = object.store_fetched(fetch.id, 0, &CONTENT);
    assert!(object.snapshot().is_complete);
    object
}

/// An object in `store` that may fetch everything over HTTP.
fn joined(key: &ObjectKey, store: Store) -> Object {
    let timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
    let object = Object::new(key.clone(), store, Some(SIZE), timing, Fill::Full, 1)
        .with_unicast(UnicastMode::Always);
    object.open();
    assert!(object.handle_join(Ok(join_answer()), Instant::now()).is_empty());
    object
}

fn join_answer() -> JoinAnswer {
    JoinAnswer {
        connect: "239.255.0.1:9000".parse().unwrap(),
        token: Token::from_random(1),
        pages: 10,
        page_size: PageSize::new(100).unwrap(),
        extensions: Extensions { size: Some(SIZE), etag: key().etag, ..Extensions::default() },
    }
}

fn key() -> ObjectKey {
    let etag = Some(Etag::new("v1").unwrap());
    ObjectKey {
        server: "head:8888".into(),
        path: RemotePath::decode("image").unwrap(),
        etag,
        content: None,
    }
}

#[derive(Clone, Default)]
struct Answer(Arc<Mutex<Option<Result<usize, Unread>>>>);

impl Waiter for Answer {
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>) {
        *self.0.lock().unwrap() = Some(outcome.map(<[u8]>::len));
    }

    fn is_abandoned(&self) -> bool {
        false
    }
}

fn read(object: &Object) -> Result<usize, Unread> {
    let answer = Answer::default();
    let _ = object.read(0..SIZE, Box::new(answer.clone()), Instant::now());
    answer.0.lock().unwrap().clone().expect("answered at once")
}

#[test]
fn what_is_complete_is_durable_once_it_reached_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    let object = complete(&key(), cache.open(&key()).unwrap());
    assert!(!object.snapshot().is_durable);
    object.checkpoint().unwrap();
    assert!(object.snapshot().is_durable);
    drop(object);

    let timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
    let store = cache.open(&key()).unwrap();
    let next = Object::new(key(), store, Some(SIZE), timing, Fill::Full, 1);
    assert!(next.snapshot().is_complete && next.snapshot().is_durable);
    assert!(complete(&key(), Cache::Memory.open(&key()).unwrap()).snapshot().is_durable);
}

#[test]
fn after_a_failed_sync_nothing_of_the_object_is_read_or_remembered_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    let object = complete(&key(), cache.open(&key()).unwrap().with_failing_sync());
    assert_eq!(read(&object), Ok(1000));
    assert!(matches!(object.checkpoint(), Err(CheckpointError::Data(_))));
    assert!(object.snapshot().failure().is_some() && !object.snapshot().is_durable);
    assert!(matches!(read(&object), Err(Unread::Failed(Failure::Store(_)))));
    // The disk works again, but the kernel has dropped what it could not write.
    assert!(matches!(object.checkpoint(), Err(CheckpointError::Data(_))));
    drop(object);
    assert!(cache.open(&key()).unwrap().take_restored().is_none());
}

#[test]
fn a_failed_save_of_the_state_leaves_the_object_readable_and_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    let object = complete(&key(), cache.open(&key()).unwrap().with_failing_save());
    assert!(matches!(object.checkpoint(), Err(CheckpointError::State(_))));
    assert!(object.snapshot().failure().is_none() && !object.snapshot().is_durable);
    assert_eq!(read(&object), Ok(1000));
    object.checkpoint().unwrap();
    assert!(object.snapshot().is_durable);
    drop(object);
    assert!(cache.open(&key()).unwrap().take_restored().unwrap().assembly.is_complete());
}

#[test]
fn bytes_that_were_under_way_when_a_sync_failed_are_not_held() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    let object = joined(&key(), cache.open(&key()).unwrap().with_failing_sync());
    let fetch = object.poll(Instant::now()).fetch.unwrap();
    let _ = object.store_fetched(fetch.id, 0, &CONTENT[..500]);
    assert_eq!(object.snapshot().received, 500);
    assert!(matches!(object.checkpoint(), Err(CheckpointError::Data(_))));
    assert!(!object.store_fetched(fetch.id, 500, &CONTENT[500..]).wants_more);
    assert_eq!(object.snapshot().received, 0);
    assert!(matches!(read(&object), Err(Unread::Failed(Failure::Store(_)))));
    assert!(matches!(object.checkpoint(), Err(CheckpointError::Data(_))));
    drop(object);
    assert!(cache.open(&key()).unwrap().take_restored().is_none());
}

#[test]
fn a_join_that_was_under_way_when_a_sync_failed_brings_no_page() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    let object = complete(&key(), cache.open(&key()).unwrap().with_failing_sync());
    assert!(matches!(object.checkpoint(), Err(CheckpointError::Data(_))));
    assert!(object.handle_join(Ok(join_answer()), Instant::now()).is_empty());
    let server = SocketAddr::from(([127, 0, 0, 1], 40_000));
    for (page, payload) in (0..).zip(CONTENT.chunks(100)) {
        let header = Layout::Base.header(PageIndex(page), 10, payload);
        let datagram = [&header[..], payload].concat();
        let _ = object.receive(&[(server, &datagram[..])], Instant::now());
    }
    assert!(object.snapshot().failure().is_some() && !object.snapshot().is_durable);
    assert_eq!(object.snapshot().received, 0);
    assert!(matches!(read(&object), Err(Unread::Failed(Failure::Store(_)))));
    assert!(matches!(object.checkpoint(), Err(CheckpointError::Data(_))));
}
