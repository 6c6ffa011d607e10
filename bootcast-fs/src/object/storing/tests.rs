#![expect(clippy::disallowed_methods, reason = "a test has a clock")]

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use bootcast_proto::manifest::LEAF_BYTES;
use bootcast_proto::wire::Layout;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::super::fixture::{File, PAGE, range};
use super::*;
use crate::cache::{Cache, Store};
use crate::receiver::{Failure, Fill, Verify};

const SENDER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);

/// Longer than all others take to write, if they do not wait.
const GRACE: Duration = Duration::from_millis(300);

/// The bytes that come otherwise. They are zeros.
const LEAVES: Range<u64> = 0..2 * LEAF_BYTES;

thread_local!(static BEFORE_WRITE: RefCell<Option<Box<dyn FnOnce()>>> = RefCell::default());

/// Runs what the test of this thread wants to happen between the look at the missing pages and
/// their writing.
pub(super) fn before_write() {
    if let Some(act) = BEFORE_WRITE.take() {
        act();
    }
}

/// Returns a datagram with a forged page.
fn forged(file: &File, page: u32) -> Vec<u8> {
    let pages = u32::try_from(file.bytes.len() as u64 / PAGE + 1).unwrap();
    let payload = vec![0xee; range(&(0..PAGE)).len()];
    [&Layout::Base.header(PageIndex(page), pages, &payload)[..], &payload].concat()
}

/// Has a forged page delayed between the look at the missing pages and its writing, while `write`
/// stores the leaves. Then checks them.
fn with_delayed_page(write: impl FnOnce(&File, &Object)) {
    let file = File::new();
    let object = file.object(Fill::Full, &[]);
    let (delayed, is_delayed) = mpsc::channel();
    let (stored, are_stored) = mpsc::channel::<()>();
    let datagram = forged(&file, 3);
    thread::scope(|scope| {
        let object = &object;
        scope.spawn(move || {
            let wait = move || {
                delayed.send(()).unwrap();
                // Either the others have written, or they wait for this page.
                assert_ne!(are_stored.recv_timeout(GRACE), Err(RecvTimeoutError::Disconnected));
            };
            BEFORE_WRITE.set(Some(Box::new(wait)));
            drop(object.receive(&[(SENDER, &datagram)], Instant::now()));
        });
        is_delayed.recv().unwrap();
        write(&file, object);
        file.serve(object);
        // Fails if nobody waits any more.
        let _ = stored.send(());
    });
    assert!(object.lock().receiver.holds(&(0..LEAF_BYTES)), "the leaf is not verified");
    let mut bytes = vec![1; range(&(0..LEAF_BYTES)).len()];
    object.store().read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == file.bytes[range(&(0..LEAF_BYTES))], "a verified leaf was written over");
}

#[test]
fn a_store_without_room_for_the_file_fails_it_although_the_first_pages_have_room() {
    let file = File::new();
    let ways: [fn(&File, &Object); 2] = [
        |file, object| drop(object.receive(&[(SENDER, &forged(file, 0))], Instant::now())),
        |file, object| object.take_zeros(&file.map(false), drop, Instant::now),
    ];
    for receive in ways {
        let small = memfd_create("small", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&small, 4 * PAGE).unwrap();
        fcntl_add_seals(&small, SealFlags::GROW).unwrap();
        let store = Store::transient(small.into(), Cache::Memory);
        let object = file.object_in(store, Verify::Leaf, Fill::Full);
        let watcher = object.changed.subscribe();
        receive(&file, &object);
        assert!(matches!(object.lock().receiver.failure(), Some(Failure::Store(_))));
        let is_told = watcher.has_changed().unwrap();
        assert!(is_told, "who waits for the file does not learn that it failed");
    }
}

#[test]
fn a_delayed_page_is_not_written_over_leaves_that_came_over_http() {
    with_delayed_page(|file, object| drop(object.store_fetched(1, 0, &file.bytes[range(&LEAVES)])));
}

#[test]
fn a_delayed_page_is_not_written_over_leaves_of_the_zero_map() {
    with_delayed_page(|file, object| object.take_zeros(&file.map(false), drop, Instant::now));
}
