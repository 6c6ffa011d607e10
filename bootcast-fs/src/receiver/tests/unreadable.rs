#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use std::time::Duration;

use bootcast_proto::PageRange;

use super::super::content::BELIEVED_FOR;
use super::super::*;
use super::fixture::{File, Shorthand, TIMING};

const PAGES: u32 = 300;
const FILE: File = File { pages: PAGES, page_size: 48, interleave: 1, key: None };

fn joined(mode: UnicastMode, now: Instant) -> Receiver {
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
    receiver.set_unicast(mode);
    receiver.handle_open();
    receiver.handle_join(&FILE.answer(1), now);
    actions(&mut receiver, now);
    receiver
}

fn actions(receiver: &mut Receiver, now: Instant) -> Vec<Action> {
    receiver.handle_timeout(now);
    receiver.actions()
}

fn pages(start: u32, end: u32) -> PageRange {
    PageRange::new(start, end)
}

/// Everything but these pages arrives.
fn receive_all_but(receiver: &mut Receiver, missing: PageRange) {
    receiver.store(pages(0, missing.start.0));
    receiver.store(pages(missing.end.0, PAGES));
}

/// Returns whether an action demands these pages.
fn wants(runs: &[PageRange]) -> impl Fn(&Action) -> bool {
    move |action| matches!(action, Action::Want(sent) if sent.now == runs)
}

#[test]
fn a_read_of_an_unreadable_page_fails_and_others_wait_on() {
    let now = Instant::now();
    let mut receiver = joined(UnicastMode::Never, now);
    receiver.handle_unreadable(&[pages(7, 9)], now);
    assert_eq!(receiver.unreadable(&(0..48)), None);
    assert_eq!(receiver.unreadable(&(0..48 * 8)), Some(48 * 7..48 * 8));
    // One that is here all the same is no error.
    receiver.store(pages(7, 8));
    assert_eq!(receiver.unreadable(&(48 * 7..48 * 8)), None);
    assert!(receiver.is_member());
}

#[test]
fn a_member_that_lacks_nothing_but_unreadable_pages_leaves_and_asks_again_later() {
    let now = Instant::now();
    let mut receiver = joined(UnicastMode::Never, now);
    receive_all_but(&mut receiver, pages(7, 9));
    assert!(receiver.is_member());
    receiver.handle_unreadable(&[pages(7, 9)], now);
    let left = actions(&mut receiver, now);
    assert!(left.contains(&Action::Leave(Token::from_random(1))), "{left:?}");
    let bytes = 48 * 7..48 * 8;
    let wait = receiver.handle_read(&bytes, now + BELIEVED_FOR / 2).unwrap();
    assert!(receiver.unreadable(&bytes).is_some());
    receiver.handle_wait_over(wait);
    assert!(!receiver.has_action());
    // Nothing streams for it: it demands what is read.
    let later = now + BELIEVED_FOR;
    receiver.handle_read(&bytes, later).unwrap();
    assert_eq!(receiver.unreadable(&bytes), None);
    let woken = actions(&mut receiver, later);
    assert_eq!(woken, [Action::Join]);
    assert_eq!(receiver.fill(), Fill::Demand);
    receiver.handle_join(&FILE.answer(1), later);
    assert!(actions(&mut receiver, later).iter().any(wants(&[pages(7, 8)])));
    receiver.store(pages(7, 9));
    assert!(receiver.is_complete());
}

#[test]
fn lost_pages_of_a_block_that_cannot_be_rebuilt_are_demanded() {
    let now = Instant::now();
    let mut receiver = joined(UnicastMode::Never, now);
    receive_all_but(&mut receiver, pages(7, 10));
    receiver.handle_unreadable(&[pages(8, 9)], now);
    assert!(receiver.is_member());
    let asked = actions(&mut receiver, now + Duration::from_secs(1));
    assert!(asked.iter().any(wants(&[pages(7, 8), pages(9, 10)])), "{asked:?}");
    receiver.store(pages(7, 8));
    receiver.store(pages(9, 10));
    assert!(!receiver.is_member());
}

#[test]
fn a_fetch_goes_round_what_the_server_cannot_read() {
    let now = Instant::now();
    let mut receiver = joined(UnicastMode::Always, now);
    let fetch = receiver.poll_fetch(None, now).unwrap();
    assert_eq!(fetch.bytes.start, 0);
    receiver.store(pages(0, 7));
    receiver.handle_fetched(fetch.id, 48 * 7, None);
    receiver.handle_fetch_end(fetch.id, Err(FetchError::Unreadable(48 * 7..48 * 9)), now);
    let later = now + Duration::from_secs(3);
    receiver.handle_timeout(later);
    let next = receiver.poll_fetch(None, later).unwrap();
    assert_eq!(next.bytes.start, 48 * 9);
    receiver.store(pages(9, PAGES));
    assert!(!receiver.is_member() && !receiver.is_complete());
}
