//! A host that sends datagrams in the server's name to all receivers of a cast.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bootcast_proto::wire::{Beacon, Level, Pace, REPAIR_HEADER_LEN, end_datagram};
use bootcast_proto::{BlockLayout, DatagramKey, Geometry, Layout, PageIndex, Share, WindowIndex};

use super::burst::{Burst, Channel};
use super::random::Random;
use super::server::{ADDRESS, REPAIR};

/// Time between two turns of an intruder, and the same for a forger.
const TURN: Duration = Duration::from_millis(25);
const FORGERS_TURN: Duration = Duration::from_micros(200);

/// Byte that forged pages consist of. The file consists of zeros.
pub(super) const FORGED_BYTE: u8 = 0xee;

/// Maximum number of recorded bursts, and number of those that a replayer sends in a turn.
const MAX_RECORDED: usize = 2000;
const REPLAYED: usize = 10;

/// Number of turns in which a thief announces the end of the cast, and forges the promises of
/// symbols. Later, a new membership or a symbol that got lost would only help others.
const BUSY_TURNS: u32 = 8;

/// First byte of a symbol's datagram, and offset of the promise in it.
const SYMBOL: u8 = 1;
const PROMISED: usize = 1;

/// Abilities of an intruder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntruderKind {
    /// It does not know the key, and sends datagrams of the cast again.
    Replayer,
    /// It is a member and knows the key. It forges beacons, ends, and the promises of symbols to
    /// waste the time of others.
    Thief,
    /// It is a member and knows the key. It forges each page before the server sends it.
    Forger {
        /// Whether it has a port of its own, or sends in the name of the server's.
        has_own_port: bool,
    },
}

/// Number of pages by which a forger is ahead of the server.
const AHEAD: u64 = 64;

/// Port of a forger.
const FORGERS_PORT: u16 = 4242;

/// An intruder in one cast.
#[derive(Debug)]
pub(super) struct Intruder {
    kind: IntruderKind,
    pages: u32,
    layout: BlockLayout,
    random: Random,
    /// Bursts that the server sent.
    recorded: Vec<Rc<Burst>>,
    /// Number of turns so far.
    turns: u32,
    /// Key of the datagrams' tags, if they have any.
    key: Option<DatagramKey>,
    geometry: Geometry,
    /// Number of pages that the server sent, and that a forger forged.
    pages_sent: u64,
    pages_forged: u64,
}

impl Intruder {
    pub(super) fn new(
        kind: IntruderKind,
        geometry: &Geometry,
        key: Option<DatagramKey>,
        random: Random,
    ) -> Self {
        let layout = REPAIR.layout(geometry).expect("room for a beacon");
        Self {
            kind,
            pages: geometry.pages(),
            layout,
            random,
            recorded: Vec::new(),
            turns: 0,
            key,
            geometry: *geometry,
            pages_sent: 0,
            pages_forged: 0,
        }
    }

    /// Records a burst of the server.
    pub(super) fn record(&mut self, burst: &Rc<Burst>) {
        if burst.channel() == Channel::Data {
            self.pages_sent += burst.wire_lens().len() as u64;
        }
        if self.recorded.len() < MAX_RECORDED {
            self.recorded.push(Rc::clone(burst));
        }
    }

    /// Returns what it sends now.
    pub(super) fn take_turn(&mut self) -> Vec<Rc<Burst>> {
        self.turns += 1;
        if self.recorded.is_empty() {
            return Vec::new();
        }
        match self.kind {
            IntruderKind::Replayer => (0..REPLAYED).map(|_| Rc::clone(self.pick())).collect(),
            IntruderKind::Thief => self.forge(),
            IntruderKind::Forger { has_own_port } => self.forge_pages(has_own_port),
        }
    }

    /// Time until the next turn.
    pub(super) fn pause(&self) -> Duration {
        if matches!(self.kind, IntruderKind::Forger { .. }) { FORGERS_TURN } else { TURN }
    }

    /// Forges a page for each that the server sent since the last turn.
    fn forge_pages(&mut self, has_own_port: bool) -> Vec<Rc<Burst>> {
        let port = if has_own_port { FORGERS_PORT } else { ADDRESS.port() };
        let (sender, end) = (SocketAddr::new(ADDRESS.ip(), port), self.pages_sent + AHEAD);
        let pages: Vec<_> = (self.pages_forged..end).collect();
        self.pages_forged = self.pages_forged.max(end);
        let bursts = pages.chunks(Burst::MAX).map(|pages| {
            let mut burst = Burst::new(Channel::Data, 0).with_sender(sender);
            for page in pages {
                burst.push(&self.forged_page(page % u64::from(self.pages)), 0);
            }
            Rc::new(burst.sealed(self.key))
        });
        bursts.collect()
    }

    fn forged_page(&self, page: u64) -> Vec<u8> {
        let page = PageIndex(u32::try_from(page).expect("a page of the file"));
        let len = self.geometry.page_len(page).expect("a page of the file");
        let payload = vec![FORGED_BYTE; len as usize];
        [&Layout::Base.header(page, self.pages, &payload)[..], &payload].concat()
    }

    fn pick(&mut self) -> &Rc<Burst> {
        let at = self.random.next() % self.recorded.len() as u64;
        &self.recorded[usize::try_from(at).expect("an index")]
    }

    /// Forges a beacon each turn, and in the first ones an end and the promises of symbols.
    fn forge(&mut self) -> Vec<Rc<Burst>> {
        let mut bursts = vec![repair_burst(&self.beacon().encode())];
        if self.turns > BUSY_TURNS {
            return bursts;
        }
        bursts.push(repair_burst(&end_datagram(Some(u32::MAX))));
        let is_symbols = |burst: &&Rc<Burst>| {
            burst.channel() == Channel::Repair && burst.datagram(0)[0] == SYMBOL
        };
        bursts
            .extend(self.recorded.iter().rfind(is_symbols).map(|burst| with_high_promises(burst)));
        bursts
    }

    /// Beacon from far ahead: of a stream that is at the end or at the beginning, of promises that
    /// nobody keeps, and of a time in which nobody may report.
    fn beacon(&self) -> Beacon {
        let windows = (0..self.layout.windows()).map(WindowIndex);
        let levels = |window| vec![Level { sent: 0, promised: 255 }; blocks(self.layout, window)];
        let far = if self.turns.is_multiple_of(2) { self.pages } else { 0 };
        Beacon {
            number: 1_000_000 + self.turns,
            position: PageIndex(far),
            members: 1,
            permit: Share::NONE,
            spread_ms: u16::MAX,
            pace: Pace { rate_kbps: 1, ..Pace::default() },
            windows: windows.map(|window| (window, levels(window))).collect(),
        }
    }
}

fn blocks(layout: BlockLayout, window: WindowIndex) -> usize {
    layout.blocks_of(window).len()
}

fn repair_burst(bytes: &[u8]) -> Rc<Burst> {
    let mut burst = Burst::new(Channel::Repair, bytes.len());
    burst.push(bytes, 0);
    Rc::new(burst)
}

/// Copies symbols with the highest promise. Their payload is right.
fn with_high_promises(symbols: &Burst) -> Rc<Burst> {
    let count = symbols.wire_lens().len();
    let mut burst = Burst::new(Channel::Repair, count * symbols.datagram(0).len());
    for at in 0..count {
        let symbol = symbols.datagram(at);
        let mut header = symbol[..REPAIR_HEADER_LEN].to_vec();
        header[PROMISED] = u8::MAX;
        burst.push(&header, symbol.len() - REPAIR_HEADER_LEN);
    }
    Rc::new(burst)
}
