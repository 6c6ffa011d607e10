//! A receiver among forged datagrams.
#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use std::time::Instant;

use bootcast_proto::fec::{Engine, RepairIndex, encode};
use bootcast_proto::wire::{Beacon, Level, Pace, end_datagram};
use bootcast_proto::{BlockIndex, PageIndex, PageRange, WindowIndex};

use super::super::tests::fixture::{File, SERVER, Shorthand, TIMING, beacon as any_beacon};
use super::super::{Action, Arrival, Pin, Receiver, RepairArrival};
use super::*;

/// In one block.
const PAGES: u32 = 4;
const PAGE: u32 = 8;

fn key(number: u8) -> DatagramKey {
    DatagramKey::from_random([number; 32])
}

fn file(key: Option<DatagramKey>) -> File {
    File { pages: PAGES, page_size: PAGE, interleave: 16, key }
}

fn answer(token: u128, key: DatagramKey) -> JoinAnswer {
    file(Some(key)).answer(token)
}

/// A datagram and its port.
#[derive(Clone, Debug)]
enum Sent {
    Page(Vec<u8>),
    Repair(Vec<u8>),
}

fn content(page: u32) -> Vec<u8> {
    [page; 2].map(u32::to_be_bytes).as_flattened().to_vec()
}

fn page(key: Option<DatagramKey>, page: u32, payload: &[u8]) -> Sent {
    Sent::Page(file(key).page(page, payload))
}

fn symbol(key: Option<DatagramKey>, number: usize, payload: &[u8]) -> Sent {
    Sent::Repair(file(key).symbol(0, number, 1, payload))
}

fn beacon(key: Option<DatagramKey>, number: u32) -> Sent {
    let windows = vec![(WindowIndex(0), vec![Level { sent: 1, promised: 1 }])];
    let beacon = Beacon { windows, ..any_beacon(number, PAGES, Pace::default()) };
    Sent::Repair(file(key).sealed(beacon.encode()))
}

fn end(key: Option<DatagramKey>) -> Sent {
    Sent::Repair(file(key).sealed(end_datagram(None)))
}

/// One of each kind that would do harm.
fn harmful(key: Option<DatagramKey>) -> [Sent; 5] {
    let evil = [0xee; PAGE as usize];
    [page(key, 0, &evil), page(key, 3, &evil), symbol(key, 0, &evil), beacon(key, 99), end(key)]
}

/// A member and its clock.
struct Member {
    receiver: Receiver,
    now: Instant,
    /// What it stored.
    pages: Vec<(PageIndex, Vec<u8>)>,
    symbols: Vec<(RepairIndex, Vec<u8>)>,
}

impl Member {
    fn new() -> Self {
        let now = Instant::now();
        let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
        receiver.handle_open();
        receiver.handle_join(&answer(1, key(1)), now);
        let mut member = Self { receiver, now, pages: Vec::new(), symbols: Vec::new() };
        member.actions();
        member
    }

    fn actions(&mut self) -> Vec<Action> {
        self.receiver.actions()
    }

    fn hear(&mut self, from: SocketAddr, sent: &Sent) {
        match sent {
            Sent::Page(bytes) => {
                if let Arrival::New(page) = self.receiver.handle_datagram(from, bytes, self.now) {
                    self.pages.push((page.index, page.payload.to_vec()));
                    self.receiver.store(PageRange::single(page.index));
                }
            }
            Sent::Repair(bytes) => {
                let arrival = self.receiver.handle_repair_datagram(from, bytes, self.now);
                if let RepairArrival::Symbol { block, number, round, payload } = arrival {
                    self.symbols.push((number, payload.to_vec()));
                    self.receiver.handle_symbol_stored(block, number, round);
                }
            }
        }
    }

    fn hear_all(&mut self, from: SocketAddr, all: &[Sent]) {
        for sent in all {
            self.hear(from, sent);
        }
    }

    fn forged(&self) -> u64 {
        self.receiver.counters().forged
    }
}

#[test]
fn forged_datagrams_of_every_kind_are_counted_and_the_transfer_completes() {
    let mut member = Member::new();
    let genuine = Some(key(1));
    let forgers = [None, Some(key(2))];
    for forger in forgers {
        member.hear_all(SERVER, &harmful(forger));
    }
    for number in 0..PAGES - 1 {
        member.hear(SERVER, &page(genuine, number, &content(number)));
        member.hear_all(SERVER, &harmful(None));
    }
    member.hear(SERVER, &beacon(genuine, 1));
    assert_eq!(member.forged(), 5 * 2 + 5 * u64::from(PAGES - 1));
    assert_eq!(member.receiver.counters().symbols, 0);
    assert!(member.receiver.is_member() && member.receiver.poll_decodable().is_none());
    // The last page by way of a symbol.
    let layout = answer(1, key(1)).block_layout().unwrap();
    let pages: Vec<_> = (0..PAGES).map(content).collect();
    let sources =
        layout.pages_in(BlockIndex(0)).map(|(source, at)| (source, &pages[at.0 as usize][..]));
    let mut payload = vec![0; PAGE as usize];
    encode(Engine::best(), RepairIndex::new(0).unwrap(), sources, &mut payload);
    member.hear(SERVER, &symbol(genuine, 0, &payload));
    assert_eq!(member.symbols, [(RepairIndex::new(0).unwrap(), payload)]);
    assert_eq!(member.receiver.poll_decodable(), Some(BlockIndex(0)));
    member.receiver.store(PageRange::new(PAGES - 1, PAGES));
    assert!(member.receiver.is_complete());
    let expected: Vec<_> = (0..PAGES - 1).map(|at| (PageIndex(at), content(at))).collect();
    assert_eq!(member.pages, expected);
}

#[test]
fn a_forged_datagram_does_not_make_its_port_the_servers() {
    let mut member = Member::new();
    let forger = SocketAddr::new(SERVER.ip(), SERVER.port() + 1);
    member.hear_all(forger, &harmful(None));
    member.hear(SERVER, &page(Some(key(1)), 0, &content(0)));
    assert_eq!(member.pages, [(PageIndex(0), content(0))]);
    assert_eq!((member.forged(), member.receiver.counters().strangers), (5, 0));
}

#[test]
fn forged_datagrams_are_silence() {
    let mut member = Member::new();
    let start = member.now;
    for step in 1..=4 {
        member.now = start + TIMING.silence * step / 4;
        member.hear_all(SERVER, &harmful(None));
        member.receiver.handle_timeout(member.now);
    }
    assert_eq!(member.actions(), [Action::Join]);
}

#[test]
fn what_another_cast_sent_to_the_same_group_is_dropped() {
    let mut member = Member::new();
    let earlier = harmful(Some(key(1)));
    // The server restarted: the same group, port and version, and another key.
    member.receiver.handle_join(&answer(2, key(2)), member.now);
    member.actions();
    member.hear_all(SERVER, &earlier);
    assert_eq!((member.forged(), member.pages.len()), (5, 0));
    assert_eq!(member.receiver.poll_timeout(), Some(member.now + TIMING.silence));
    (0..PAGES).for_each(|at| member.hear(SERVER, &page(Some(key(2)), at, &content(at))));
    assert!(member.receiver.is_complete());
}

#[test]
fn many_that_are_checked_at_once_are_judged_as_each_alone() {
    let member = Member::new();
    let gate = *member.receiver.gate();
    let datagrams: Vec<_> = (0..40)
        .map(|at| {
            let Sent::Page(bytes) =
                page(Some(key(1 + u8::from(at % 3 == 0))), at % PAGES, &content(at))
            else {
                panic!("a page")
            };
            let stranger: SocketAddr = "192.0.2.99:1".parse().unwrap();
            (if at % 5 == 0 { stranger } else { SERVER }, bytes)
        })
        .collect();
    let each: Vec<_> = datagrams.iter().map(|(from, bytes)| (*from, bytes.as_slice())).collect();
    let alone: Vec<_> = each.iter().map(|(from, bytes)| gate.check(*from, bytes).finding).collect();
    let at_once: Vec<_> = gate.check_all(&each).iter().map(|it| it.finding).collect();
    assert_eq!(at_once, alone);
    for finding in [Finding::Genuine, Finding::Stranger, Finding::Forged] {
        assert!(alone.contains(&finding));
    }
}

#[test]
fn what_was_checked_before_another_join_is_checked_again() {
    let mut member = Member::new();
    let (Sent::Page(old), Sent::Page(new)) =
        (page(Some(key(1)), 0, &content(0)), page(Some(key(2)), 0, &content(0)))
    else {
        panic!("pages");
    };
    let gate = *member.receiver.gate();
    let checked = [&old, &new].map(|bytes| gate.check(SERVER, bytes));
    member.receiver.handle_join(&answer(2, key(2)), member.now);
    let arrivals = checked.map(|it| member.receiver.handle_checked(&it, member.now));
    assert!(matches!(arrivals, [Arrival::Bad(_), Arrival::New(_)]), "{arrivals:?}");
    assert_eq!(member.forged(), 1);
}

#[test]
fn without_a_key_nothing_is_forged() {
    let mut member = Member::new();
    let mut untagged = answer(2, key(2));
    untagged.extensions.key = None;
    member.receiver.handle_join(&untagged, member.now);
    (0..PAGES).for_each(|at| member.hear(SERVER, &page(None, at, &content(at))));
    assert!(member.receiver.is_complete());
    assert_eq!(member.forged(), 0);
}

#[test]
fn datagrams_of_an_ignored_sender_are_counted_and_dropped_until_the_next_join() {
    let (mut gate, mut counters) = (Gate::default(), Counters::default());
    gate.begin(&answer(1, key(1)));
    let bytes = file(Some(key(1))).page(0, &content(0));
    let other = SocketAddr::new(SERVER.ip(), 4242);
    let outdated = gate;
    let sender = gate.learn_sender(other).unwrap();
    gate.ignore(sender);
    for checked in [gate.check(other, &bytes), outdated.check(other, &bytes)] {
        assert!(!gate.admits(&checked, &mut counters));
    }
    assert!(gate.admits(&gate.check(SERVER, &bytes), &mut counters));
    assert_eq!((counters.ignored, counters.forged, counters.strangers), (2, 0, 0));
    gate.begin(&answer(2, key(1)));
    assert!(gate.admits(&gate.check(other, &bytes), &mut counters));
}
