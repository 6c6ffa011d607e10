#![expect(clippy::disallowed_methods, reason = "a test has a clock")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bootcast_proto::join::Extensions;
use bootcast_proto::{Etag, JoinAnswer, Layout, PageSize, RemotePath, Token};

use super::*;
use crate::cache::{Cache, ObjectKey};
use crate::object::{Unread, Waiter};
use crate::receiver::{Timing, UnicastMode};

const TIMING: Timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
const SIZE: usize = 64 * 100 + 7;

fn content() -> Vec<u8> {
    (0..SIZE).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
}

fn answer(token: u128, page_size: u64) -> JoinAnswer {
    let pages = u32::try_from((SIZE as u64).div_ceil(page_size)).unwrap();
    JoinAnswer {
        connect: "239.255.0.1:9000".parse().unwrap(),
        token: Token::from_random(token),
        pages,
        page_size: PageSize::new(page_size).unwrap(),
        extensions: Extensions {
            size: Some(SIZE as u64),
            etag: Some(Etag::new("v1").unwrap()),
            ..Extensions::default()
        },
    }
}

/// Pages of 64 bytes, fetched from the beginning.
fn object() -> Object {
    let key = ObjectKey {
        server: "head:8888".into(),
        path: RemotePath::decode("image").unwrap(),
        etag: Some(Etag::new("v1").unwrap()),
        content: None,
    };
    let store = Cache::Memory.open(&key).unwrap();
    let object = Object::new(key, store, None, TIMING, crate::receiver::Fill::Full, 1)
        .with_unicast(UnicastMode::Always);
    object.open();
    assert!(object.handle_join(Ok(answer(1, 64)), Instant::now()).is_empty());
    object
}

type Outcome = Result<Vec<u8>, Unread>;

/// Keeps what reads were answered.
#[derive(Clone, Default)]
struct Answer(Arc<Mutex<Vec<Outcome>>>);

impl Waiter for Answer {
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>) {
        self.0.lock().unwrap().push(outcome.map(<[u8]>::to_vec));
    }

    fn is_abandoned(&self) -> bool {
        false
    }
}

#[test]
fn whole_pages_count_and_the_rest_is_to_be_handed_in_again() {
    let (object, bytes) = (object(), content());
    let fetch = object.poll(Instant::now()).fetch.unwrap();
    assert_eq!(fetch.bytes, 0..SIZE as u64);
    let fetched = object.store_fetched(fetch.id, 0, &bytes[..63]);
    assert_eq!((fetched.used, fetched.wants_more, object.snapshot().received), (0, true, 0));
    let fetched = object.store_fetched(fetch.id, 0, &bytes[..130]);
    assert_eq!((fetched.used, fetched.wants_more, object.snapshot().received), (128, true, 128));
    let fetched = object.store_fetched(fetch.id, 128, &bytes[128..]);
    assert_eq!((fetched.used, fetched.wants_more), (SIZE - 128, false));
    assert!(object.snapshot().is_complete);
    let mut stored = vec![0; SIZE];
    object.store().read_exact_at(&mut stored, 0).unwrap();
    assert!(stored == bytes);
}

#[test]
fn a_read_that_waits_is_served_as_soon_as_its_pages_are_here() {
    let (object, bytes) = (object(), content());
    let answer = Answer::default();
    let _ = object.read(100..200, Box::new(answer.clone()), Instant::now());
    let fetch = object.poll(Instant::now()).fetch.unwrap();
    assert_eq!(fetch.bytes.start, 64, "what is waited for first");
    assert!(object.store_fetched(fetch.id, 64, &bytes[64..192]).ready.is_empty());
    for read in object.store_fetched(fetch.id, 192, &bytes[192..256]).ready {
        object.answer(read);
    }
    assert_eq!(*answer.0.lock().unwrap(), [Ok(bytes[100..200].to_vec())]);
}

#[test]
fn pages_of_another_size_get_the_bytes_that_are_theirs() {
    let (object, bytes) = (object(), content());
    let fetch = object.poll(Instant::now()).fetch.unwrap();
    // Another cast begins while the fetch goes on.
    assert!(object.handle_join(Ok(answer(2, 100)), Instant::now()).is_empty());
    let fetched = object.store_fetched(fetch.id, 64, &bytes[64..64 + 640]);
    assert_eq!((fetched.used, object.snapshot().received), (700 - 64, 600));
    let mut stored = vec![0; 600];
    object.store().read_exact_at(&mut stored, 100).unwrap();
    assert!(stored == bytes[100..700]);
}

#[test]
fn pages_that_are_here_are_not_written_again() {
    let (object, bytes) = (object(), content());
    let server = std::net::SocketAddr::from(([127, 0, 0, 1], 40_000));
    let header = Layout::Base.header(PageIndex(1), 101, &bytes[64..128]);
    let datagram = [&header[..], &bytes[64..128]].concat();
    let _ = object.receive(&[(server, &datagram[..])], Instant::now());
    let fetch = object.poll(Instant::now()).fetch.unwrap();
    // Other bytes, to tell them apart.
    let _ = object.store_fetched(fetch.id, 0, &[0xee; 192]);
    let mut stored = vec![0; 192];
    object.store().read_exact_at(&mut stored, 0).unwrap();
    assert!(stored[64..128] == bytes[64..128] && stored[..64] == [0xee; 64]);
}

#[test]
fn a_refusal_fails_the_reads_that_wait() {
    let object = object();
    let answer = Answer::default();
    let _ = object.read(0..10, Box::new(answer.clone()), Instant::now());
    let fetch = object.poll(Instant::now()).fetch.unwrap();
    let refused = Err(FetchError::Refused("no".into()));
    for read in object.handle_fetch_end(fetch.id, refused, Instant::now()) {
        object.answer(read);
    }
    assert!(matches!(answer.0.lock().unwrap()[..], [Err(Unread::Failed(_))]));
    assert_eq!(object.poll(Instant::now()).fetch, None);
}
