#![expect(clippy::disallowed_methods, reason = "a test has a clock")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bootcast_proto::RemotePath;

use super::*;
use crate::cache::{Cache, ObjectKey};
use crate::receiver::{Fill, Timing};

/// An object that is open, and whose server has not answered yet.
fn object() -> Arc<Object> {
    let path = RemotePath::decode("image").unwrap();
    let key = ObjectKey { server: "head:8888".into(), path, etag: None, content: None };
    let store = Cache::Memory.open(&key).unwrap();
    let timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
    let object = Object::new(key, store, Some(1000), timing, Fill::Full, 1);
    object.open();
    Arc::new(object)
}

type Answer = Arc<Mutex<Option<Result<usize, Unread>>>>;

/// A reader that calls a function when it is asked whether it is abandoned.
struct Reader(Answer, Box<dyn Fn() + Send>);

impl Waiter for Reader {
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>) {
        let earlier = self.0.lock().unwrap().replace(outcome.map(<[u8]>::len));
        assert_eq!(earlier, None, "a read is answered once");
    }

    fn is_abandoned(&self) -> bool {
        self.1();
        false
    }
}

/// Starts a read of missing bytes. `when_asked` runs in the middle of [`Object::reap`].
fn read(object: &Object, when_asked: impl Fn() + Send + 'static) -> Answer {
    let answer = Answer::default();
    let reader = Box::new(Reader(answer.clone(), Box::new(when_asked)));
    drop(object.read(0..100, reader, Instant::now()));
    answer
}

#[test]
fn a_read_that_is_being_checked_while_the_mount_ends_is_answered() {
    let object = object();
    let ended = object.clone();
    let answer = read(&object, move || ended.shut_down());
    assert_eq!(*answer.lock().unwrap(), None);
    object.reap(None);
    assert_eq!(*answer.lock().unwrap(), Some(Err(Unread::ShutDown)));
}

#[test]
fn after_a_panic_under_the_lock_waiting_reads_are_answered_and_new_ones_get_no_bytes() {
    let object = object();
    let answer = read(&object, || ());
    let panicking = object.clone();
    let thread = std::thread::spawn(move || {
        let _inner = panicking.lock();
        std::panic::resume_unwind(Box::new("half done"));
    });
    assert!(thread.join().is_err());
    object.abandon();
    assert_eq!(*answer.lock().unwrap(), Some(Err(Unread::ShutDown)));
    let late = object.clone();
    let late = std::thread::spawn(move || read(&late, || ()));
    assert!(late.join().is_err(), "the reply is dropped, which is EIO");
}

#[test]
fn a_read_that_comes_after_the_end_of_the_mount_is_not_parked() {
    let object = object();
    object.shut_down();
    let answer = read(&object, || ());
    assert_eq!(*answer.lock().unwrap(), Some(Err(Unread::ShutDown)));
}

#[test]
fn a_read_that_waits_for_longer_than_the_limit_ends_and_others_go_on() {
    let object = object();
    let early = read(&object, || ());
    let deadline = Instant::now() + Duration::from_millis(1);
    object.reap(Some(deadline));
    assert_eq!(*early.lock().unwrap(), Some(Err(Unread::TimedOut)));
    let late = read(&object, || ());
    object.reap(Some(deadline.checked_sub(Duration::from_secs(1)).unwrap()));
    assert_eq!(*late.lock().unwrap(), None);
    object.shut_down();
    assert_eq!(*late.lock().unwrap(), Some(Err(Unread::ShutDown)));
}
