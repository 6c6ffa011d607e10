#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

mod demand;
mod freshness;
mod repair;
mod unicast;
mod unreadable;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bootcast_proto::join::Extensions;
use bootcast_proto::{JoinAnswer, Layout, PageIndex, PageRange, PageSize};

use super::*;

const TIMING: Timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
const SERVER: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 40_000);

/// Shorthands of the tests.
trait Shorthand {
    /// Marks pages of the present membership as stored.
    fn store(&mut self, pages: PageRange);

    /// Answers the report of the present membership.
    fn answer_report(&mut self, result: Result<(), ReportError>, now: Instant);
}

impl Shorthand for Receiver {
    fn store(&mut self, pages: PageRange) {
        self.handle_stored(pages, self.epoch());
    }

    fn answer_report(&mut self, result: Result<(), ReportError>, now: Instant) {
        let token = self.token().expect("a member").clone();
        self.handle_report_answer(&token, result, now);
    }
}

fn answer(token: u128, etag: Option<&str>) -> JoinAnswer {
    JoinAnswer {
        connect: "239.255.0.1:9000".parse().unwrap(),
        token: Token::from_random(token),
        pages: 2,
        page_size: PageSize::new(4).unwrap(),
        extensions: Extensions {
            size: Some(6),
            etag: etag.map(|etag| Etag::new(etag).unwrap()),
            rate: None,
            source: Some(SERVER.ip()),
            ..Extensions::default()
        },
    }
}

fn actions(receiver: &mut Receiver) -> Vec<Action> {
    std::iter::from_fn(|| receiver.poll_action()).collect()
}

fn joined(now: Instant) -> Receiver {
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
    receiver.handle_open();
    receiver.handle_join(&answer(1, Some("v1")), now);
    actions(&mut receiver);
    receiver
}

/// Feeds a page and marks it as held.
fn feed(receiver: &mut Receiver, number: u32, payload: &[u8], now: Instant) {
    let mut bytes = Layout::Base.header(PageIndex(number - 1), 2, payload).to_vec();
    bytes.extend_from_slice(payload);
    if let Arrival::New(page) = receiver.handle_datagram(SERVER, &bytes, now) {
        receiver.store(PageRange::single(page.index));
    }
}

#[test]
fn the_leave_goes_out_when_all_pages_are_there() {
    let now = Instant::now();
    let mut receiver = joined(now);
    feed(&mut receiver, 1, b"aaaa", now);
    assert_eq!(actions(&mut receiver), []);
    feed(&mut receiver, 2, b"bb", now);
    let leave = Action::Leave(Token::from_random(1));
    assert_eq!(actions(&mut receiver), [Action::Unsubscribe, leave]);
    assert!(receiver.is_complete() && receiver.is_idle());
}

#[test]
fn a_strangers_datagram_is_counted_and_forgotten() {
    let now = Instant::now();
    let mut receiver = joined(now);
    let mut bytes = Layout::Base.header(PageIndex(0), 2, b"evil").to_vec();
    bytes.extend_from_slice(b"evil");
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
    let mut bytes = Layout::Base.header(PageIndex(1), 2, b"zz").to_vec();
    bytes.extend_from_slice(b"zz");
    let later = start + TIMING.silence;
    assert!(matches!(receiver.handle_datagram(restarted, &bytes, later), Arrival::Bad(_)));
    receiver.handle_timeout(later);
    assert_eq!(actions(&mut receiver), [Action::Join]);
    receiver.handle_join(&answer(2, Some("v1")), later);
    assert!(matches!(receiver.handle_datagram(restarted, &bytes, later), Arrival::New(_)));
}

#[test]
fn a_server_that_comes_back_with_the_same_version_goes_on_where_it_was() {
    let start = Instant::now();
    let mut receiver = joined(start);
    feed(&mut receiver, 1, b"aaaa", start);
    let later = start + TIMING.silence;
    receiver.handle_timeout(later);
    assert_eq!(actions(&mut receiver), [Action::Join]);
    receiver.handle_join(&answer(2, Some("v1")), later);
    assert!(receiver.holds(&(0..4)));
    feed(&mut receiver, 2, b"bb", later);
    assert!(receiver.is_complete());
}

#[test]
fn another_version_is_never_mixed_in_and_the_membership_is_given_back() {
    let start = Instant::now();
    let mut receiver = joined(start);
    receiver.handle_timeout(start + TIMING.silence);
    actions(&mut receiver);
    receiver.handle_join(&answer(2, Some("v2")), start + TIMING.silence);
    assert_eq!(receiver.failure(), Some(&Failure::Stale));
    let left: Vec<_> = actions(&mut receiver)
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
    assert_eq!(actions(&mut receiver), []);
    assert!(receiver.holds(&(0..6)));
}
