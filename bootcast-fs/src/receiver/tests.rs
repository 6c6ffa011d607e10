#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

mod demand;
pub(in crate::receiver) mod fixture;
mod freshness;
mod intent;
mod repair;
mod reuse;
mod unicast;
mod unreadable;

use std::net::SocketAddr;

use bootcast_proto::{JoinAnswer, PageRange, PageSize};

use super::*;
use fixture::{File, SERVER, Shorthand, TIMING};

/// Two pages, of which the second is short.
const FILE: File = File { pages: 2, page_size: 4, interleave: 1, key: None };

/// Answer of a server without extensions for repair and reports.
fn answer(token: u128, etag: &str) -> JoinAnswer {
    let mut answer = FILE.answer(token);
    answer.extensions.size = Some(6);
    answer.extensions.etag = Some(Etag::new(etag).unwrap());
    answer.extensions.repair = None;
    answer.extensions.interleave = None;
    answer.extensions.lease = None;
    answer
}

fn joined(now: Instant) -> Receiver {
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
    receiver.handle_open();
    receiver.handle_join(&answer(1, "v1"), now);
    receiver.actions();
    receiver
}

/// Receives and stores a page.
fn feed(receiver: &mut Receiver, number: u32, payload: &[u8], now: Instant) {
    receiver.receive(&FILE.page(number - 1, payload), now);
}

#[test]
fn the_leave_goes_out_when_all_pages_are_there() {
    let now = Instant::now();
    let mut receiver = joined(now);
    feed(&mut receiver, 1, b"aaaa", now);
    assert_eq!(receiver.actions(), []);
    feed(&mut receiver, 2, b"bb", now);
    let leave = Action::Leave(Token::from_random(1));
    assert_eq!(receiver.actions(), [Action::Unsubscribe, leave]);
    assert!(receiver.is_complete() && receiver.is_idle());
}

#[test]
fn a_strangers_datagram_is_counted_and_forgotten() {
    let now = Instant::now();
    let mut receiver = joined(now);
    let bytes = FILE.page(0, b"evil");
    let stranger = SocketAddr::from(([192, 0, 2, 66], SERVER.port()));
    assert!(matches!(receiver.handle_datagram(stranger, &bytes, now), Arrival::Bad(_)));
    assert_eq!(receiver.counters().strangers, 1);
    assert!(!receiver.holds(&(0..4)));
}

#[test]
fn another_cast_on_the_same_group_is_silence_until_the_next_join() {
    let start = Instant::now();
    let mut receiver = joined(start);
    feed(&mut receiver, 1, b"aaaa", start);
    let restarted = SocketAddr::new(SERVER.ip(), SERVER.port() + 1);
    let bytes = FILE.page(1, b"zz");
    let later = start + TIMING.silence;
    assert!(matches!(receiver.handle_datagram(restarted, &bytes, later), Arrival::Bad(_)));
    receiver.handle_timeout(later);
    assert_eq!(receiver.actions(), [Action::Join]);
    receiver.handle_join(&answer(2, "v1"), later);
    assert!(matches!(receiver.handle_datagram(restarted, &bytes, later), Arrival::New(_)));
}

#[test]
fn a_server_that_comes_back_with_the_same_version_goes_on_where_it_was() {
    let start = Instant::now();
    let mut receiver = joined(start);
    feed(&mut receiver, 1, b"aaaa", start);
    let later = start + TIMING.silence;
    receiver.handle_timeout(later);
    assert_eq!(receiver.actions(), [Action::Join]);
    receiver.handle_join(&answer(2, "v1"), later);
    assert!(receiver.holds(&(0..4)));
    feed(&mut receiver, 2, b"bb", later);
    assert!(receiver.is_complete());
}

#[test]
fn another_version_is_never_mixed_in_and_the_membership_is_given_back() {
    let start = Instant::now();
    let mut receiver = joined(start);
    receiver.handle_timeout(start + TIMING.silence);
    receiver.actions();
    receiver.handle_join(&answer(2, "v2"), start + TIMING.silence);
    assert_eq!(receiver.failure(), Some(&Failure::Stale));
    let left: Vec<_> = receiver
        .actions()
        .into_iter()
        .filter(|action| matches!(action, Action::Leave(_)))
        .collect();
    assert_eq!(left, [1, 2].map(|token| Action::Leave(Token::from_random(token))));
    feed(&mut receiver, 2, b"bb", start + TIMING.silence);
    assert!(receiver.is_idle());
}

#[test]
fn a_file_that_vanished_is_stale_for_those_who_have_begun_it() {
    let now = Instant::now();
    let mut begun = joined(now);
    begun.handle_join_error(JoinError::NotFound("no such file".into()), now);
    assert_eq!(begun.failure(), Some(&Failure::Stale));
    let mut new = Receiver::new(Pin::default(), None, TIMING, 1);
    new.handle_open();
    new.handle_join_error(JoinError::NotFound("no such file".into()), now);
    assert_eq!(new.failure(), Some(&Failure::NotFound("no such file".into())));
}

#[test]
fn what_was_kept_complete_never_joins() {
    let geometry = bootcast_proto::Geometry::new(6, PageSize::new(4).unwrap()).unwrap();
    let mut held = bootcast_proto::PageSet::new(2);
    held.insert_range(PageRange::new(0, 2));
    let kept = Some(Assembly::resume(geometry, held));
    let mut receiver = Receiver::new(Pin::default(), kept, TIMING, 1);
    receiver.handle_open();
    assert_eq!(receiver.actions(), []);
    assert!(receiver.holds(&(0..6)));
}

#[test]
fn a_follower_that_takes_over_learns_the_content_id_that_was_saved() {
    let geometry = bootcast_proto::Geometry::new(6, PageSize::new(4).unwrap()).unwrap();
    let [id, other] = [[1; 32], [2; 32]].map(ContentId::from_bytes);
    for (told, is_taken) in [(None, true), (Some(id), true), (Some(other), false)] {
        let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
        receiver.follow();
        receiver.handle_open();
        let file = Description { geometry, content: told, has_hashes: true };
        assert!(receiver.handle_description(&file));
        let mut held = bootcast_proto::PageSet::new(2);
        held.insert_range(PageRange::new(0, 2));
        receiver.take_over(Some((Assembly::resume(geometry, held), Some(id))));
        assert_eq!(receiver.content_id(), if is_taken { Some(id) } else { told });
        assert_eq!(receiver.has_all_pages(), is_taken, "pages of another content");
    }
}
