//! Tells the senders of a cast's datagrams apart, and finds those that forge. docs/PROTOCOL.md,
//! "Senders that forge"; docs/adr/0024-senders-that-forge.md.
//!
//! Where datagrams have tags, every member can make some, from any port. A leaf with wrong bytes
//! shows that one of them did. While several senders are active, it is recorded which pages each
//! brought. When the right bytes of a wrong leaf have come, they tell which pages were wrong. With
//! a single sender nothing is recorded.

mod origins;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;

use bootcast_proto::{BlockIndex, BlockLayout, Geometry, PageIndex, PageRange};

use origins::{Origin, Origins};

/// Number of senders that are told apart. All others count as one more.
const KNOWN: usize = 4;

/// Number of leaves with wrong pages of a sender after which it is ignored.
const STRIKES: u8 = 3;

/// Number of leaves with right pages of a sender after which it is relied on.
const PROOFS: u8 = 3;

/// Maximum number of wrong leaves whose right bytes are awaited: about 1 KB each.
const MAX_EVIDENCE: usize = 64;

/// Maximum number of pages that came again, and of right ones to compare such pages with: about 50
/// bytes each.
const MAX_REPEATS: usize = 4096;

/// Maximum number of blocks whose senders of symbols are recorded.
const MAX_BLOCKS: usize = 4096;

/// A sender of the present cast. The last number stands for all that are not told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SenderId(u8);

/// Set of senders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SenderSet(u8);

impl SenderSet {
    fn of(sender: SenderId) -> Self {
        Self(1 << sender.0)
    }

    fn insert(&mut self, sender: SenderId) {
        self.0 |= 1 << sender.0;
    }

    fn contains(self, sender: SenderId) -> bool {
        self.0 & 1 << sender.0 != 0
    }

    fn len(self) -> u32 {
        self.0.count_ones()
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn iter(self) -> impl Iterator<Item = SenderId> {
        (0..=KNOWN)
            .map(|id| SenderId(u8::try_from(id).expect("a few senders")))
            .filter(move |id| self.contains(*id))
    }
}

/// Addresses of the senders of a cast, and which of them are ignored. A copy allows checks without
/// a lock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SenderTable {
    known: [Option<SocketAddr>; KNOWN],
    /// The last sender that is not told apart.
    other: Option<SocketAddr>,
    ignored: SenderSet,
}

impl SenderTable {
    /// Whether the datagrams of this address and port are ignored.
    pub(super) fn is_ignored(&self, from: SocketAddr) -> bool {
        !self.ignored.is_empty() && self.ignored.contains(self.find(Some(from)))
    }

    /// Returns the sender with this address and port, which gets a number if there is room.
    pub(super) fn learn(&mut self, from: SocketAddr) -> SenderId {
        let known = self.known.iter().position(|it| it.is_none_or(|it| it == from));
        match known {
            Some(at) => self.known[at] = Some(from),
            None => self.other = Some(from),
        }
        self.find(Some(from))
    }

    fn find(&self, from: Option<SocketAddr>) -> SenderId {
        let at = self.known.iter().position(|known| *known == from).unwrap_or(KNOWN);
        SenderId(u8::try_from(at).expect("a few senders"))
    }

    /// Ignores a sender from now on.
    pub(super) fn ignore(&mut self, sender: SenderId) {
        self.ignored.insert(sender);
    }

    /// Returns the address and port of a sender.
    pub(super) fn address(&self, sender: SenderId) -> Option<SocketAddr> {
        self.known.get(usize::from(sender.0)).map_or(self.other, |known| *known)
    }
}

/// Evidence for and against a sender.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// Number of leaves in which its pages, or those rebuilt from its symbols, were wrong.
    strikes: u8,
    /// Number of leaves in which its pages were right, and of right pages that came again.
    proofs: u8,
    is_ignored: bool,
}

impl Standing {
    fn is_proven(self) -> bool {
        self.proofs >= PROOFS
    }
}

/// The part of a wrong leaf that came in one page.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    page: PageIndex,
    /// Its bytes, counted from the start of the leaf.
    bytes: Range<usize>,
    /// Hash of the bytes that were stored.
    print: blake3::Hash,
    /// Sender of the page, or of the symbols that it was rebuilt from.
    from: SenderSet,
    is_rebuilt: bool,
}

/// Senders of the present membership, and the pages and symbols that each brought.
#[derive(Debug, Default)]
pub(super) struct Senders {
    /// Senders that brought something new.
    active: SenderSet,
    standings: [Standing; KNOWN + 1],
    origins: Origins,
    /// Senders of the stored symbols of each block.
    symbols: BTreeMap<BlockIndex, SenderSet>,
    /// Wrong leaves, by their number in the file.
    evidence: BTreeMap<u64, Vec<Part>>,
    /// Number of leaves with wrong rebuilt pages all of whose senders are proven.
    unexplained: u8,
    /// Whether a leaf was wrong in this membership.
    is_alarmed: bool,
    /// Pages that came again before their right bytes were known: the sender and the hash of each.
    /// A forger who is faster than the server leaves it nothing else to send.
    repeats: BTreeMap<PageIndex, (SenderId, blake3::Hash)>,
    /// Hashes of the right pages of leaves that were wrong.
    right: BTreeMap<PageIndex, blake3::Hash>,
}

impl Senders {
    /// Starts a membership. `has_pages`: some pages came otherwise.
    pub(super) fn begin(&mut self, has_pages: bool) {
        *self = Self::default();
        if has_pages {
            self.origins.forget_first();
        }
    }

    /// Whether the senders of pages must be recorded: more than one was active.
    pub(super) fn is_contested(&self) -> bool {
        self.active.len() > 1
    }

    fn activate(&mut self, sender: SenderId) {
        if self.active.is_empty() {
            self.origins.set_first(sender);
        }
        self.active.insert(sender);
    }

    /// Records the sender of a page that is about to be stored.
    pub(super) fn record_page(&mut self, sender: SenderId, page: PageIndex) {
        self.activate(sender);
        if self.is_contested() {
            self.origins.record(page, Origin::Sender(sender));
        }
    }

    /// Records the sender of a symbol that is about to be stored.
    pub(super) fn record_symbol(&mut self, sender: SenderId, block: BlockIndex) {
        self.activate(sender);
        if self.is_contested() {
            self.symbols.entry(block).or_default().insert(sender);
            if self.symbols.len() > MAX_BLOCKS {
                self.symbols.pop_first();
            }
        }
    }

    /// Whether pages that came again are of interest: a leaf was wrong.
    pub(super) fn wants_repeats(&self) -> bool {
        self.is_alarmed
    }

    /// Handles a page that is here already. Returns whether it is a proof for its sender.
    pub(super) fn record_repeat(
        &mut self,
        sender: SenderId,
        page: PageIndex,
        bytes: &[u8],
    ) -> bool {
        self.activate(sender);
        let print = blake3::hash(bytes);
        let Some(right) = self.right.get(&page) else {
            insert_limited(&mut self.repeats, page, (sender, print));
            return false;
        };
        let is_right = *right == print;
        if is_right {
            self.prove(SenderSet::of(sender));
        }
        is_right
    }

    /// Records pages that were rebuilt, or that came over HTTP.
    pub(super) fn record_other(&mut self, pages: PageRange, is_rebuilt: bool) {
        if self.is_contested() {
            let origin = if is_rebuilt { Origin::Rebuilt } else { Origin::Unknown };
            pages.iter().for_each(|page| self.origins.record(page, origin));
        }
    }

    /// Returns the senders of the page, or of the symbols that it was rebuilt from.
    fn senders_of(&self, page: PageIndex, layout: Option<BlockLayout>) -> (SenderSet, bool) {
        match self.origins.of(page) {
            Origin::Sender(sender) => (SenderSet::of(sender), false),
            Origin::Rebuilt => {
                let block = layout.map(|layout| layout.place(page).0);
                let senders = block.and_then(|block| self.symbols.get(&block)).copied();
                (senders.unwrap_or_default(), true)
            }
            Origin::Unknown => (SenderSet::default(), false),
        }
    }

    /// Returns the senders of the pages that cover these bytes of the file.
    pub(super) fn senders(&self, bytes: &Range<u64>, geometry: &Geometry) -> Vec<SenderId> {
        let mut senders = SenderSet::default();
        for page in geometry.pages_covering(bytes.clone()).iter() {
            if let Origin::Sender(sender) = self.origins.of(page) {
                senders.insert(sender);
            }
        }
        senders.iter().collect()
    }

    /// Handles a leaf with wrong bytes: `stored`, those of the file from `start` on.
    pub(super) fn handle_wrong(
        &mut self,
        leaf: u64,
        start: u64,
        stored: &[u8],
        geometry: &Geometry,
        layout: Option<BlockLayout>,
    ) {
        if self.active.is_empty() || self.evidence.len() >= MAX_EVIDENCE {
            return;
        }
        let parts = parts(start, stored.len(), geometry).map(|(page, bytes)| {
            let (from, is_rebuilt) = self.senders_of(page, layout);
            Part { page, print: blake3::hash(&stored[bytes.clone()]), bytes, from, is_rebuilt }
        });
        let parts = parts.collect();
        self.is_alarmed = true;
        self.evidence.insert(leaf, parts);
    }

    /// Handles a leaf that is right: `stored`, the bytes of the file from `start` on. Their senders
    /// get a proof. If the leaf was wrong before, the senders of its wrong pages get a strike.
    pub(super) fn handle_right(
        &mut self,
        leaf: u64,
        start: u64,
        stored: &[u8],
        geometry: &Geometry,
    ) {
        if self.evidence.contains_key(&leaf) {
            self.handle_replaced(leaf, stored, geometry);
        } else {
            self.credit(start, stored.len(), geometry);
        }
    }

    /// Handles the right bytes of a leaf that was wrong, from any source. The senders of the wrong
    /// pages get a strike.
    pub(super) fn handle_replaced(&mut self, leaf: u64, right: &[u8], geometry: &Geometry) {
        if let Some(parts) = self.evidence.remove(&leaf) {
            self.judge(&parts, right);
            self.judge_repeats(&parts, right, geometry);
        }
    }

    fn judge(&mut self, parts: &[Part], right: &[u8]) {
        let (mut guilty, mut proven) = (SenderSet::default(), SenderSet::default());
        let mut has_unexplained = false;
        for Part { bytes, print, from, is_rebuilt, .. } in parts {
            let Some(own) = right.get(bytes.clone()) else { continue };
            let is_right = blake3::hash(own) == *print;
            let are_all_proven = from.iter().all(|sender| self.standing(sender).is_proven());
            has_unexplained |= !is_right && *is_rebuilt && are_all_proven;
            for sender in from.iter() {
                match (is_right, is_rebuilt) {
                    (true, false) => proven.insert(sender),
                    (false, false) => guilty.insert(sender),
                    // Either a symbol or another page of the block was wrong.
                    (false, true) if !self.standing(sender).is_proven() => guilty.insert(sender),
                    (_, true) => {}
                }
            }
        }
        for sender in guilty.iter() {
            let strikes = &mut self.standing(sender).strikes;
            *strikes = strikes.saturating_add(1);
        }
        self.prove(proven);
        self.unexplained = self.unexplained.saturating_add(has_unexplained.into());
    }

    /// Compares whole pages of a leaf that came again, or will, with the right ones.
    fn judge_repeats(&mut self, parts: &[Part], right: &[u8], geometry: &Geometry) {
        for Part { page, bytes, .. } in parts {
            let is_whole = geometry.page_len(*page).is_some_and(|len| len as usize == bytes.len());
            let Some(own) = right.get(bytes.clone()).filter(|_| is_whole) else { continue };
            let print = blake3::hash(own);
            if let Some((sender, _)) = self.repeats.remove(page).filter(|(_, it)| *it == print) {
                self.prove(SenderSet::of(sender));
            }
            insert_limited(&mut self.right, *page, print);
        }
    }

    fn standing(&mut self, sender: SenderId) -> &mut Standing {
        &mut self.standings[usize::from(sender.0)]
    }

    fn prove(&mut self, senders: SenderSet) {
        for sender in senders.iter() {
            let proofs = &mut self.standing(sender).proofs;
            *proofs = proofs.saturating_add(1);
        }
    }

    /// Gives a proof to the senders of a leaf of which all pages were right.
    fn credit(&mut self, start: u64, len: usize, geometry: &Geometry) {
        if self.active.iter().all(|id| self.standings[usize::from(id.0)].is_proven()) {
            return;
        }
        let mut proven = SenderSet::default();
        for (page, _) in parts(start, len, geometry) {
            if let Origin::Sender(sender) = self.origins.of(page) {
                proven.insert(sender);
            }
        }
        self.prove(proven);
    }

    /// Returns a sender to ignore from now on, if its pages were wrong again and again, and another
    /// sender is proven and brought no wrong page.
    pub(super) fn poll_ignored(&mut self) -> Option<SenderId> {
        if !self.is_somebody_trusted() {
            return None;
        }
        let id = self.guilty()?;
        self.standing(id).is_ignored = true;
        self.unexplained = 0;
        Some(id)
    }

    /// Whether pages were wrong again and again, and no sender can be ignored for it. One that has
    /// the server's address and port cannot be told from it.
    pub(super) fn is_nobody_to_blame(&self) -> bool {
        let is_guilty = !self.is_somebody_trusted() && self.guilty().is_some();
        is_guilty || self.unexplained >= STRIKES
    }

    fn is_somebody_trusted(&self) -> bool {
        let is_trusted = |it: &Standing| it.is_proven() && it.strikes == 0 && !it.is_ignored;
        self.standings.iter().any(is_trusted)
    }

    fn guilty(&self) -> Option<SenderId> {
        let is_guilty = |it: &Standing| it.strikes >= STRIKES && !it.is_ignored;
        self.active.iter().find(|id| is_guilty(&self.standings[usize::from(id.0)]))
    }
}

/// Adds an entry. If there are too many, the lowest one is forgotten: the stream is behind it.
fn insert_limited<T>(map: &mut BTreeMap<PageIndex, T>, page: PageIndex, entry: T) {
    map.insert(page, entry);
    if map.len() > MAX_REPEATS {
        map.pop_first();
    }
}

/// Returns the pages that cover `len` bytes of the file from `start` on, and the bytes of each,
/// counted from `start`.
fn parts(
    start: u64,
    len: usize,
    geometry: &Geometry,
) -> impl Iterator<Item = (PageIndex, Range<usize>)> {
    let end = start + len as u64;
    geometry.pages_covering(start..end).iter().map(move |page| {
        let bytes = geometry.byte_range(PageRange::single(page));
        let at = |position: u64| {
            usize::try_from(position.clamp(start, end) - start).expect("within the leaf")
        };
        (page, at(bytes.start)..at(bytes.end))
    })
}

#[cfg(test)]
mod tests;
