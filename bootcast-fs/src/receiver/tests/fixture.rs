//! A file on a server, as the tests of the receiver have it: its join answers and its datagrams.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bootcast_proto::fec::RepairIndex;
use bootcast_proto::join::Extensions;
use bootcast_proto::wire::{Beacon, Pace, symbol_header};
use bootcast_proto::{
    BlockIndex, DatagramKey, Etag, JoinAnswer, Layout, PageIndex, PageRange, PageSize, Share, Token,
};

use crate::receiver::{Action, Arrival, Receiver, RepairArrival, ReportError, Timing};

pub(in crate::receiver) const TIMING: Timing =
    Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
pub(in crate::receiver) const SERVER: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 40_000);
pub(in crate::receiver) const MS: Duration = Duration::from_millis(1);
pub(in crate::receiver) const SECOND: Duration = Duration::from_secs(1);

/// A file of full pages, and how its server casts it.
#[derive(Clone, Copy, Debug)]
pub(in crate::receiver) struct File {
    pub(in crate::receiver) pages: u32,
    pub(in crate::receiver) page_size: u32,
    pub(in crate::receiver) interleave: u32,
    /// Key of the datagrams' tags, if they have any.
    pub(in crate::receiver) key: Option<DatagramKey>,
}

impl File {
    /// Answer to a join of an extended member.
    pub(in crate::receiver) fn answer(&self, token: u128) -> JoinAnswer {
        JoinAnswer {
            connect: "239.255.0.1:9000".parse().unwrap(),
            token: Token::from_random(token),
            pages: self.pages,
            page_size: PageSize::new(self.page_size.into()).unwrap(),
            extensions: Extensions {
                size: Some(u64::from(self.pages) * u64::from(self.page_size)),
                etag: Some(Etag::new("v1").unwrap()),
                source: Some(SERVER.ip()),
                key: self.key,
                repair: Some(9001),
                interleave: Some(self.interleave),
                lease: Some(60 * SECOND),
                ..Extensions::default()
            },
        }
    }

    /// Datagram with this page.
    pub(in crate::receiver) fn page(&self, page: u32, payload: &[u8]) -> Vec<u8> {
        let header = Layout::Base.header(PageIndex(page), self.pages, payload);
        self.sealed([&header[..], payload].concat())
    }

    /// Datagram with this symbol.
    pub(in crate::receiver) fn symbol(
        &self,
        block: u32,
        number: usize,
        promised: u8,
        payload: &[u8],
    ) -> Vec<u8> {
        let header = symbol_header(BlockIndex(block), RepairIndex::new(number).unwrap(), promised);
        self.sealed([&header[..], payload].concat())
    }

    /// Adds the tag, if the cast has a key.
    pub(in crate::receiver) fn sealed(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if let Some(key) = self.key {
            key.seal(&mut bytes);
        }
        bytes
    }
}

/// Beacon that permits reports of all members and names no window.
pub(in crate::receiver) fn beacon(number: u32, position: u32, pace: Pace) -> Beacon {
    Beacon {
        number,
        position: PageIndex(position),
        members: 10,
        permit: Share::ALL,
        spread_ms: 10,
        pace,
        windows: Vec::new(),
    }
}

/// Shorthands of the tests.
pub(in crate::receiver) trait Shorthand {
    /// Marks pages of the present membership as stored.
    fn store(&mut self, pages: PageRange);

    /// Receives and stores a page from the server.
    fn receive(&mut self, page: &[u8], now: Instant);

    /// Receives a datagram of the repair channel from the server, and stores its symbol if that is
    /// useful.
    fn receive_repair(&mut self, datagram: &[u8], now: Instant);

    /// Answers the report of the present membership.
    fn answer_report(&mut self, result: Result<(), ReportError>, now: Instant);

    /// Takes all actions.
    fn actions(&mut self) -> Vec<Action>;
}

impl Shorthand for Receiver {
    fn store(&mut self, pages: PageRange) {
        self.handle_stored(pages, self.epoch());
    }

    fn receive(&mut self, page: &[u8], now: Instant) {
        if let Arrival::New(page) = self.handle_datagram(SERVER, page, now) {
            self.store(PageRange::single(page.index));
        }
    }

    fn receive_repair(&mut self, datagram: &[u8], now: Instant) {
        let arrival = self.handle_repair_datagram(SERVER, datagram, now);
        if let RepairArrival::Symbol { block, number, round, .. } = arrival {
            self.handle_symbol_stored(block, number, round);
        }
    }

    fn answer_report(&mut self, result: Result<(), ReportError>, now: Instant) {
        let token = self.token().expect("a member").clone();
        self.handle_report_answer(&token, result, now);
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.poll_action()).collect()
    }
}

/// Number of joins among these actions.
pub(in crate::receiver) fn joins(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Join)).count()
}
