//! Checks of what the server sends, and of what a client stores. They hold in every cast, whatever
//! its members do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bootcast_fs::receiver::{Counters, DecodePlan};
use bootcast_proto::fec::RepairIndex;
use bootcast_proto::wire::{Beacon, HEADER_LEN, LeafList, symbol_number};
use bootcast_proto::{BitRate, BlockIndex, ContentTree, Geometry, PageIndex, PageSet};
use bootcast_server::cast::{CastId, Scheduler, Sending, Symbol, Transmit};

use super::burst::Burst;
use super::server::{BATCH, DATA_PORT, REPAIR, Sent};

/// Depth of the bucket of the server's ceiling: time that it may make up for.
const CATCH_UP: Duration = Duration::from_millis(20);

/// Datagrams that a server has sent so far, counted outside its scheduler.
#[derive(Debug)]
pub(super) struct ServerAudit {
    geometry: Geometry,
    ceiling: BitRate,
    start: Instant,
    /// The newest cast. Its counts follow.
    cast: Option<CastId>,
    /// Number of casts.
    casts: u32,
    /// Number of symbols sent of each block.
    symbols: BTreeMap<BlockIndex, u32>,
    /// Number of the next beacon.
    next_beacon: u32,
    /// Pages and symbols sent.
    datagrams: u64,
    /// Bytes on the wire, announcements of ends included.
    wire: u64,
    /// Bytes on the wire of announcements of ends, which wait for no pacer.
    ends_wire: u64,
}

impl ServerAudit {
    pub(super) fn new(geometry: Geometry, ceiling: BitRate, start: Instant) -> Self {
        Self {
            geometry,
            ceiling,
            start,
            cast: None,
            casts: 0,
            symbols: BTreeMap::new(),
            next_beacon: 0,
            datagrams: 0,
            wire: 0,
            ends_wire: 0,
        }
    }

    /// Checks datagrams that the server sends now. `burst` holds them as they are sent.
    pub(super) fn check(&mut self, transmit: &Transmit, burst: &Burst, now: Instant) {
        let Transmit { cast, group, content, .. } = transmit;
        if Some(*cast) > self.cast {
            self.casts += 1;
            self.cast = Some(*cast);
            (self.next_beacon, self.datagrams) = (0, 0);
            self.symbols.clear();
        }
        let is_newest = self.cast == Some(*cast);
        let is_page = matches!(content, Sending::Pages(_));
        let port = if is_page { DATA_PORT } else { REPAIR.repair_port };
        assert_eq!(group.port(), port, "the port of {content:?}");
        let wire: u64 = burst.wire_lens().iter().sum();
        self.wire += wire;
        match content {
            Sending::Pages(pages) => {
                assert!(!pages.is_empty() && pages.len() <= BATCH, "a batch of {pages}");
                assert!(pages.end.0 <= self.geometry.pages(), "{pages} of a smaller file");
                self.datagrams += u64::from(pages.len());
            }
            Sending::Symbols(symbols) => symbols.iter().for_each(|symbol| self.symbol(*symbol)),
            Sending::Beacon(beacon) => self.beacon(beacon, burst),
            Sending::LeafList(_) => {
                let full = HEADER_LEN + self.geometry.page_size().get() as usize;
                assert!(burst.datagram(0).len() <= full, "a leaf list is longer than a full page");
            }
            Sending::End(next) => {
                self.ends_wire += wire;
                assert!(!is_newest || *next == self.next_beacon, "an end with a wrong number");
            }
        }
        assert!(is_newest || matches!(content, Sending::End(_)), "a cast that has ended sends");
        self.check_rate(now);
    }

    /// Checks that a symbol was promised and is the next of its block.
    fn symbol(&mut self, symbol: Symbol) {
        let sent = self.symbols.entry(symbol.block).or_default();
        assert_eq!(symbol.number, symbol_number(*sent), "a symbol of {} repeats", symbol.block);
        *sent += 1;
        assert!(saturated(*sent) <= symbol.promised, "a symbol of {} is too many", symbol.block);
        self.datagrams += 1;
    }

    /// Checks that a beacon states what was sent.
    fn beacon(&mut self, beacon: &Beacon, burst: &Burst) {
        assert_eq!(beacon.number, self.next_beacon, "the number of a beacon");
        self.next_beacon += 1;
        assert!(beacon.position.0 <= self.geometry.pages(), "the position of a beacon");
        assert_eq!(beacon.pace.sent, self.datagrams, "the datagrams that a beacon states");
        let full = HEADER_LEN + self.geometry.page_size().get() as usize;
        assert!(burst.datagram(0).len() <= full, "a beacon is longer than a full page");
        let layout = REPAIR.layout(&self.geometry).expect("room for a beacon");
        for (window, levels) in &beacon.windows {
            let blocks = layout.blocks_of(*window);
            assert_eq!(blocks.len(), levels.len(), "the blocks of a window");
            for (block, level) in blocks.zip(levels) {
                let sent = self.symbols.get(&BlockIndex(block)).map_or(0, |sent| saturated(*sent));
                assert_eq!(level.sent, sent, "the symbols that a beacon states of block {block}");
                assert!(level.sent <= level.promised, "the promise of block {block}");
            }
        }
    }

    /// Checks that the server keeps to its ceiling.
    fn check_rate(&self, now: Instant) {
        let batch = u64::from(BATCH) * self.geometry.page_size().wire_len();
        let depth = CATCH_UP.max(self.ceiling.time_to_send(batch));
        let allowed = self.ceiling.bytes_in(now - self.start + depth);
        let paced = self.wire - self.ends_wire;
        assert!(paced <= allowed, "{paced} bytes at {}, not {allowed}", self.ceiling);
    }

    /// Checks that a client stored no symbol that was not sent. The symbols of former casts are not
    /// known any more.
    pub(super) fn check_symbols(&self, client: &ClientAudit) {
        for (block, stored) in client.symbols.iter().filter(|_| self.casts == 1) {
            let sent = self.symbols.get(block).copied().unwrap_or_default();
            let forged = stored.checked_shr(sent).unwrap_or_default();
            assert!(forged == 0, "symbols of block {block} were never sent");
        }
    }

    /// Checks that the server counts what it sends.
    pub(super) fn check_totals(&self, scheduler: &Scheduler, sent: Sent) {
        let totals = scheduler.totals();
        assert_eq!(
            (totals.pages_sent, totals.symbols_sent, totals.bytes_sent),
            (sent.pages, sent.symbols, self.wire),
            "pages, symbols and bytes that the server counts"
        );
    }
}

/// Pages and symbols that a client has stored so far, recorded outside its receiver.
#[derive(Debug, Default)]
pub(super) struct ClientAudit {
    /// Stored pages; `None` before the first.
    pages: Option<PageSet>,
    /// Stored symbols of each block: bit `n` stands for symbol `n`.
    symbols: BTreeMap<BlockIndex, u128>,
    /// Leaves whose values came, by the segment.
    leaves: BTreeMap<u64, BTreeSet<u64>>,
}

impl ClientAudit {
    /// Records the leaves of a list.
    pub(super) fn store_list(&mut self, list: &LeafList<'_>) {
        let tree = ContentTree::new(u64::MAX);
        let (leaves, _) = list.in_file(&tree).expect("every leaf is in the largest file");
        self.leaves.entry(list.segment().into()).or_default().extend(leaves);
    }

    /// Returns the bytes of the manifest that have to be fetched: the values of all segments, and
    /// of the leaves of those that did not come as a whole.
    pub(super) fn manifest_bytes(&self, file: &Geometry) -> u64 {
        let tree = ContentTree::new(file.size());
        let fetched = (0..tree.segments()).map(|segment| {
            let leaves = tree.leaves_of(segment);
            let leaves = leaves.end - leaves.start;
            let came = self.leaves.get(&segment).map_or(0, BTreeSet::len) as u64;
            assert!(came <= leaves, "a list has leaves that the file does not have");
            if came == leaves { 0 } else { leaves }
        });
        32 * (tree.segments() + fetched.sum::<u64>())
    }

    /// Records a page that is stored. No page may be stored twice.
    pub(super) fn store_page(&mut self, page: PageIndex, geometry: &Geometry) {
        let pages = self.pages.get_or_insert_with(|| PageSet::new(geometry.pages()));
        assert!(pages.insert(page), "page {page} is stored twice, or the file does not have it");
    }

    /// Records a symbol that is stored. No symbol may be stored twice.
    pub(super) fn store_symbol(&mut self, block: BlockIndex, number: RepairIndex) {
        let (stored, bit) = (self.symbols.entry(block).or_default(), 1 << number.get());
        assert!(*stored & bit == 0, "symbol {} of block {block} is stored twice", number.get());
        *stored |= bit;
    }

    /// Checks that a block can be rebuilt: its pages and symbols are here, and no fewer symbols
    /// than missing pages.
    pub(super) fn check_plan(&self, plan: &DecodePlan) {
        let DecodePlan { block, missing, present, symbols, .. } = plan;
        let is_held = |page| self.pages.as_ref().is_some_and(|pages| pages.contains(page));
        let stored = self.symbols.get(block).copied().unwrap_or_default();
        assert_eq!(missing.len(), symbols.len(), "symbols for the pages of block {block}");
        assert!(missing.iter().all(|(_, page)| !is_held(*page)), "block {block} is not missing");
        assert!(
            present.iter().all(|(_, page)| is_held(*page)),
            "pages of block {block} are not here"
        );
        let mut bits = symbols.iter().map(|number| 1 << number.get());
        assert!(bits.all(|bit: u128| stored & bit != 0), "symbols of block {block} are not here");
    }

    /// Checks that a client stated no more progress than it made.
    pub(super) fn check_useful(useful: u64, counters: Counters) {
        let Counters { pages, symbols, .. } = counters;
        assert!(useful <= pages + symbols, "{useful} useful of {pages} pages, {symbols} symbols");
    }

    /// Checks that a complete client has each page of the file, and stored it once.
    pub(super) fn check_complete(&self, size: Option<u64>, counters: Counters, file: &Geometry) {
        assert_eq!(size, Some(file.size()), "the size of the file");
        assert!(self.pages.as_ref().is_some_and(PageSet::is_full), "pages were never stored");
        assert_eq!(counters.pages, u64::from(file.pages()), "pages that were counted");
    }
}

/// Returns the count as the wire states it, where 255 stands for 255 or more.
fn saturated(count: u32) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}
