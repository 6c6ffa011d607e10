//! Pages of zeros on a virtual clock.
#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

use std::sync::Arc;

use bootcast_proto::api::{Report, Want};
use bootcast_proto::manifest::{ContentTree, LEAF_BYTES};
use bootcast_proto::{Manifest, PageIndex, PageSize, WindowIndex, ZeroMap};
use proptest::prelude::*;

use super::*;

/// Pages are as large as leaves, so that page k is leaf k.
const PAGE: u64 = LEAF_BYTES;

/// One block in a window: 128 pages.
const WINDOW: u32 = BLOCK_PAGES;

fn token(number: usize) -> Token {
    Token::from_random(number as u128)
}

/// A client that loses nothing.
#[derive(Debug, Default)]
struct Client {
    received: BTreeSet<u32>,
    /// Pages of the window of its join that went by, and are so few that they are left to repair.
    left_to_repair: PageRange,
    has_map: bool,
    is_plain: bool,
}

struct Lab {
    cast: Cast,
    zeros: ZeroMap,
    pages: u32,
    now: Instant,
    /// Clients by the number of their token; `None` after they left.
    clients: Vec<Option<Client>>,
    sent: Vec<PageRange>,
}

impl Lab {
    /// A cast of a file whose pages are zeros from the first of a pair to before the second.
    fn new(pages: u32, zeros: &[(u32, u32)]) -> Self {
        let size = u64::from(pages) * PAGE;
        let geometry = Geometry::new(size, PageSize::new(PAGE).unwrap()).unwrap();
        let linger = Duration::from_secs(1000);
        let policy = CastPolicy { idle_passes: NonZeroU32::new(500).unwrap(), linger };
        let repair = RepairSettings { interleave: 1, repair_port: 9001, lease: linger };
        let now = Instant::now();
        let mut cast = Cast::new(&geometry, policy, Some(&repair), now);
        let tree = ContentTree::new(size);
        let mut map = ZeroMap::new(tree.leaves());
        for page in zeros.iter().flat_map(|&(start, end)| start..end) {
            map.insert(page.into());
        }
        let values = vec![[1; 32]; usize::try_from(tree.leaves()).unwrap()];
        cast.handle_manifest(Arc::new(Manifest::with_zeros(tree, values, map.clone())), now);
        Self { cast, zeros: map, pages, now, clients: Vec::new(), sent: Vec::new() }
    }

    fn join(&mut self, kind: MemberKind) -> usize {
        let number = self.clients.len();
        self.cast.handle_join(token(number), kind, self.now);
        let layout = self.cast.repair.as_ref().unwrap().layout();
        let next = self.cast.stream.position(Audience::Everybody);
        let window = layout.pages_of(layout.window_of(next));
        let passed = PageRange::new(window.start.0, next.0);
        let is_short = passed.len() <= window.len() / 64;
        let left_to_repair = if is_short { passed } else { PageRange::default() };
        let is_plain = kind == MemberKind::Plain;
        self.clients.push(Some(Client { left_to_repair, is_plain, ..Client::default() }));
        number
    }

    fn leave(&mut self, number: usize) {
        if let Some(client) = self.clients.get_mut(number) {
            *client = None;
            self.cast.handle_leave(&token(number), self.now);
        }
    }

    fn report_zeros(&mut self, number: usize) {
        let Some(Some(client)) = self.clients.get_mut(number) else { return };
        let report = Report { zeros: true, ..Report::default() };
        client.has_map |= self.cast.handle_report(&token(number), &report, self.now);
    }

    /// Polls the cast once. Returns `false` once the stream rests.
    fn step(&mut self, budget: u32) -> bool {
        self.now += Duration::from_micros(200);
        self.cast.handle_timeout(self.now);
        if let Some(Sending::Pages(pages)) = self.cast.poll_transmit(budget, self.now) {
            self.sent.push(pages);
            for client in self.clients.iter_mut().flatten() {
                client.received.extend(pages.iter().map(|page| page.0));
            }
        }
        self.cast.state != State::Serving || !self.cast.stream.is_done()
    }

    fn run(&mut self) {
        while self.step(20) {}
    }

    fn sent_pages(&self) -> Vec<u32> {
        self.sent.iter().flat_map(|run| run.iter()).map(|page| page.0).collect()
    }

    fn assert_complete(&self) {
        for (number, client) in self.clients.iter().enumerate() {
            let Some(client) = client else { continue };
            let lacks = (0..self.pages).find(|page| {
                let is_known = client.has_map && self.zeros.contains((*page).into());
                let is_repaired = client.left_to_repair.contains(PageIndex(*page));
                !client.received.contains(page) && !is_known && !is_repaired
            });
            assert_eq!(lacks, None, "a page that client {number} lacks");
        }
    }
}

#[test]
fn members_with_the_zero_map_get_only_the_other_pages() {
    let mut lab = Lab::new(4 * WINDOW, &[(10, 20), (100, 300), (400, 4 * WINDOW)]);
    let members = [lab.join(MemberKind::Extended), lab.join(MemberKind::Extended)];
    for member in members {
        lab.report_zeros(member);
    }
    lab.run();
    assert_eq!(lab.sent_pages(), (0..10).chain(20..100).chain(300..400).collect::<Vec<_>>());
    assert_eq!((lab.cast.zero_pages(), lab.cast.pages_sent()), (322, 190));
    assert_eq!(lab.cast.passes(), 1);
    assert_eq!(lab.cast.situation().position, PageIndex(4 * WINDOW), "the stream rests");
    lab.assert_complete();
}

#[test]
fn while_a_plain_member_is_there_everything_is_sent() {
    let mut lab = Lab::new(4 * WINDOW, &[(10, 500)]);
    let holder = lab.join(MemberKind::Extended);
    lab.report_zeros(holder);
    lab.join(MemberKind::Plain);
    lab.run();
    assert_eq!(lab.sent_pages(), (0..4 * WINDOW).collect::<Vec<_>>());
    assert_eq!(lab.cast.zero_pages(), 0);
}

#[test]
fn a_member_that_joins_late_gets_pages_of_zeros_until_it_has_the_map() {
    let mut lab = Lab::new(4 * WINDOW, &[(0, 4 * WINDOW - 1)]);
    let first = lab.join(MemberKind::Extended);
    lab.report_zeros(first);
    lab.run();
    assert_eq!(lab.sent_pages(), [511]);
    let second = lab.join(MemberKind::Extended);
    while lab.sent_pages().len() < 61 {
        lab.step(20);
    }
    lab.report_zeros(second);
    lab.run();
    let sent: Vec<_> = (0..60).chain([511]).collect();
    assert_eq!(lab.sent_pages()[1..], sent);
    lab.assert_complete();
}

#[test]
fn a_member_that_never_says_that_it_has_the_map_gets_everything() {
    let mut lab = Lab::new(4 * WINDOW, &[(0, 511)]);
    let holder = lab.join(MemberKind::Extended);
    lab.report_zeros(holder);
    lab.run();
    let other = lab.join(MemberKind::Extended);
    lab.run();
    assert_eq!(lab.clients[other].as_ref().unwrap().received.len(), 512);
    lab.leave(other);
    lab.join(MemberKind::Demand);
    let report = Report { bulk: vec![(0, 4)], zeros: true, ..Report::default() };
    lab.cast.handle_report(&token(holder), &report, lab.now);
    let before = lab.sent_pages().len();
    lab.run();
    assert_eq!(lab.sent_pages()[before..], [511], "members that only demand do not count");
}

#[test]
fn pages_of_zeros_are_sent_on_demand() {
    let mut lab = Lab::new(4 * WINDOW, &[(0, 511)]);
    let holder = lab.join(MemberKind::Extended);
    lab.report_zeros(holder);
    lab.run();
    let want = Want { now: vec![PageRange::from((8, 2))], ..Want::default() };
    assert!(lab.cast.handle_want(&token(holder), &want, lab.now));
    let sent = lab.cast.poll_urgent_pages(20, lab.now);
    assert_eq!(sent, Some(Sending::Pages(PageRange::new(7, 9))));
}

#[test]
fn windows_of_zeros_get_no_symbols_unasked_and_others_do() {
    let mut lab = Lab::new(4 * WINDOW, &[(10, 2 * WINDOW), (3 * WINDOW - 5, 4 * WINDOW)]);
    let holder = lab.join(MemberKind::Extended);
    lab.report_zeros(holder);
    lab.run();
    // Two windows were passed that have other pages, one of which ends with zeros.
    let watched = lab.cast.repair.as_ref().unwrap().awaited_windows();
    assert_eq!(watched, [WindowIndex(0), WindowIndex(2)]);
}

#[derive(Clone, Debug)]
enum Event {
    Join(MemberKind),
    ReportZeros(usize),
    Leave(usize),
    Steps(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Join(MemberKind::Extended)),
        1 => Just(Event::Join(MemberKind::Plain)),
        4 => (0..6_usize).prop_map(Event::ReportZeros),
        1 => (0..6_usize).prop_map(Event::Leave),
        6 => (0..20_usize).prop_map(Event::Steps),
    ]
}

proptest! {
    #[test]
    fn no_member_misses_a_page_whoever_has_the_map_and_when(
        events in proptest::collection::vec(event(), 1..30),
        runs in proptest::collection::vec((0..400_u32, 4..150_u32), 0..5),
        budget in 1..30_u32,
    ) {
        let pages = 400;
        let zeros: Vec<_> = runs.iter().map(|&(at, len)| (at, (at + len).min(pages))).collect();
        let mut lab = Lab::new(pages, &zeros);
        for event in events {
            match event {
                Event::Join(kind) => { lab.join(kind); }
                Event::ReportZeros(number) => lab.report_zeros(number),
                Event::Leave(number) => lab.leave(number),
                Event::Steps(steps) => for _ in 0..steps { lab.step(budget); },
            }
        }
        for number in 0..lab.clients.len() {
            if lab.clients[number].as_ref().is_some_and(|client| client.is_plain) {
                lab.leave(number);
            }
        }
        if lab.clients.iter().flatten().next().is_some() {
            lab.run();
            lab.assert_complete();
        }
    }
}
