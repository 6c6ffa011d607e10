//! A host whose requests are lies: what it asks for is of no use to anybody.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bootcast_proto::api::{Report, Want};
use bootcast_proto::{PageIndex, PageRange, Token};
use bootcast_server::cast::MemberKind;

use super::random::Random;
use super::server::{REPAIR, Server};

/// Time between two turns of a liar.
const TURN: Duration = Duration::from_millis(2);

/// Joins of a host that floods, in each turn.
const JOINS: usize = 10;

/// Most pages of a want.
const WANT_PAGES: u32 = 4096;

/// What a liar does in each turn. It claims that it receives everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiarKind {
    /// It needs many symbols of just under half of the blocks of each window, again and again.
    Needs,
    /// It needs as many symbols as a report can name, of all blocks.
    Deficits,
    /// It lacks all windows, again and again.
    Bulk,
    /// It demands pages without end.
    Wants,
    /// It joins again and again, and never leaves.
    Joins,
    /// The same without the extensions.
    PlainJoins,
    /// It joins a thousand times, and is never heard again.
    DeadJoins,
}

/// A liar in one cast.
#[derive(Debug)]
pub(super) struct Liar {
    kind: LiarKind,
    tokens: Vec<Token>,
    random: Random,
    turns: u32,
}

impl Liar {
    pub(super) fn new(kind: LiarKind, random: Random) -> Self {
        Self { kind, tokens: Vec::new(), random, turns: 0 }
    }

    /// Address of the host.
    pub(super) fn address() -> IpAddr {
        Ipv4Addr::new(192, 0, 2, 99).into()
    }

    /// Time until the next turn.
    pub(super) fn pause() -> Duration {
        TURN
    }

    /// Sends its requests.
    pub(super) fn take_turn(&mut self, server: &mut Server, now: std::time::Instant) {
        self.turns += 1;
        let is_first = self.tokens.is_empty();
        match self.kind {
            LiarKind::Joins => self.join(server, MemberKind::Extended, JOINS, now),
            LiarKind::PlainJoins => self.join(server, MemberKind::Plain, JOINS, now),
            LiarKind::DeadJoins if is_first => {
                self.join(server, MemberKind::Plain, 500, now);
                self.join(server, MemberKind::Extended, 500, now);
            }
            LiarKind::DeadJoins => {}
            LiarKind::Wants if is_first => self.join(server, MemberKind::Demand, 16, now),
            LiarKind::Wants => self.want(server, now),
            LiarKind::Needs | LiarKind::Deficits | LiarKind::Bulk if is_first => {
                self.join(server, MemberKind::Extended, 16, now);
            }
            LiarKind::Needs | LiarKind::Deficits | LiarKind::Bulk => self.report(server, now),
        }
    }

    fn join(
        &mut self,
        server: &mut Server,
        kind: MemberKind,
        count: usize,
        now: std::time::Instant,
    ) {
        let joined = (0..count).filter_map(|_| server.join_as(kind, Self::address(), now));
        self.tokens.extend(joined.map(|answer| answer.token));
    }

    fn token(&self) -> &Token {
        &self.tokens[self.turns as usize % self.tokens.len()]
    }

    fn want(&mut self, server: &mut Server, now: std::time::Instant) {
        let pages = server.geometry().pages();
        let first = u32::try_from(self.random.next() % u64::from(pages)).expect("a page");
        let end = first.saturating_add(WANT_PAGES).min(pages);
        let now_pages = vec![PageRange { start: PageIndex(first), end: PageIndex(end) }];
        let want = Want { now: now_pages, late: true, ..Want::default() };
        let useful = u64::from(self.turns) * 1000;
        server.want(self.token(), &want, useful, now);
    }

    fn report(&mut self, server: &mut Server, now: std::time::Instant) {
        let layout = REPAIR.layout(server.geometry()).expect("room for a beacon");
        let sent = server.sent().pages + server.sent().symbols;
        let useful = sent;
        let mut report = Report { sent, received: sent, useful, ..Report::default() };
        match self.kind {
            LiarKind::Bulk => report.bulk = vec![(0, u32::MAX)],
            LiarKind::Deficits => {
                report.needs = (0..layout.blocks()).map(|block| (block, u8::MAX)).collect();
            }
            _ => {
                // Just under half of the blocks of each window, others each time.
                let odd = self.turns % 2;
                let named = (0..layout.blocks()).filter(|block| block % 16 < 15);
                let named = named.filter(|block| block % 2 == odd);
                report.needs = named.map(|block| (block, 128)).collect();
            }
        }
        server.report(self.token(), &report, now);
    }
}
