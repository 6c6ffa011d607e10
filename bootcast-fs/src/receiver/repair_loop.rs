//! Repair of one version's blocks: which symbols to store, which blocks to rebuild, and what to
//! report when. docs/PROTOCOL.md, "Repair channel" and "When a client reports".

use std::time::{Duration, Instant};

use bootcast_proto::api::Report;
use bootcast_proto::fec::RepairIndex;
use bootcast_proto::limits::REPORT_DELAY;
use bootcast_proto::wire::{Beacon, RepairDatagram, RepairError};
use bootcast_proto::{BlockIndex, BlockLayout, JoinAnswer, PageIndex, PageSet};

use super::loss_meter::{CastCounts, LossMeter};
use super::repair::{DecodePlan, Repair, SymbolArrival};
use super::reporter::Reporter;
use super::rescue::ReportState;
use super::trust::Trust;

/// Result of a datagram of the repair channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairArrival<'a> {
    /// A useful symbol: store it, then call [`super::Receiver::handle_symbol_stored`].
    Symbol {
        /// Block that the symbol belongs to.
        block: BlockIndex,
        /// Number of the symbol in its block.
        number: RepairIndex,
        /// Round of the blocks.
        round: Round,
        /// The symbol: as many bytes as a full page.
        payload: &'a [u8],
    },
    /// Nothing to store.
    Nothing,
    /// Not a datagram of this cast's repair channel.
    Bad(RepairError),
}

/// Names one division of the file into blocks. It changes whenever blocks get other pages. Work
/// that was handed out in one round comes back with it and counts in no other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round(u32);

/// Why a report was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportError {
    /// 404: the server does not know this member.
    UnknownMember,
    /// Another reason, which may pass.
    Temporary,
}

/// Consequence of the answer to a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReportOutcome {
    /// Nothing follows.
    Nothing,
    /// The server accepted what this member said of its reception.
    Accepted,
    /// The report is to be repeated.
    Failed,
    /// The server does not know this member.
    Forgotten,
}

/// Trust of the other machines in multicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MulticastView {
    /// Whether missing pages should be reported, because multicast can bring them.
    pub(super) is_relied_on: bool,
    /// Whether pages were sent and none arrived, as far as the beacons tell. The counters of such a
    /// time say nothing of the rate.
    pub(super) is_suspect: bool,
}

/// Blocks of the present cast, and the reports of what they lack.
#[derive(Debug)]
pub(super) struct RepairLoop {
    /// `None` if nothing repairs the file or nothing is missing.
    blocks: Option<Repair>,
    round: Round,
    reporter: Reporter,
    meter: LossMeter,
    /// Windows that the report in flight asks for.
    asked_windows: Vec<(u32, u32)>,
    /// Needs of the last report, which the server may have promised meanwhile.
    asked_needs: Vec<(u32, u8)>,
    /// Whether, by the newest beacon, sending the promised symbols takes longer than answering a
    /// report.
    is_supplied: bool,
    trust: Trust,
}

impl RepairLoop {
    /// Starts without blocks. `seed` must differ between members.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            blocks: None,
            round: Round::default(),
            reporter: Reporter::new(seed),
            meter: LossMeter::default(),
            asked_windows: Vec::new(),
            asked_needs: Vec::new(),
            is_supplied: false,
            trust: Trust::default(),
        }
    }

    /// Starts a membership in a file with these blocks, of which the pages `arrived` are here.
    /// Keeps stored symbols if the blocks are the same. If it `resumes`, the server waits for a
    /// report of all that is missing.
    pub(super) fn begin(
        &mut self,
        answer: &JoinAnswer,
        blocks: Option<(BlockLayout, &PageSet)>,
        resumes: bool,
        now: Instant,
    ) {
        let layout = blocks.map(|(layout, _)| layout);
        let fits =
            |kept: &Repair| Some(kept.layout()) == layout && kept.page_size() == answer.page_size;
        if let Some(kept) = self.blocks.as_mut().filter(|kept| fits(kept)) {
            kept.begin_cast();
        } else {
            self.round = Round(self.round.0 + 1);
            self.blocks =
                blocks.map(|(layout, arrived)| Repair::new(layout, answer.page_size, arrived));
        }
        self.asked_needs.clear();
        self.is_supplied = false;
        self.trust.begin(now);
        self.meter.begin();
        self.reporter.begin(&answer.token, answer.extensions.lease, now);
        if let Some(blocks) = self.blocks.as_mut().filter(|_| resumes) {
            blocks.close_all();
            self.reporter.request(now);
        }
    }

    /// Forgets the blocks: nothing is missing, or nothing more can come.
    pub(super) fn discard_blocks(&mut self) {
        self.blocks = None;
    }

    /// Blocks of the present cast.
    pub(super) fn blocks(&self) -> Option<&Repair> {
        self.blocks.as_ref()
    }

    /// Blocks of the file; `None` without repair.
    pub(super) fn layout(&self) -> Option<BlockLayout> {
        self.blocks.as_ref().map(Repair::layout)
    }

    /// Decodes a datagram of the repair channel; `None` without repair.
    pub(super) fn decode<'a>(
        &self,
        bytes: &'a [u8],
    ) -> Option<Result<RepairDatagram<'a>, RepairError>> {
        let blocks = self.blocks.as_ref()?;
        Some(RepairDatagram::decode(bytes, blocks.layout(), blocks.page_size().get()))
    }

    /// Handles a page of the cast. `is_streamed`: nobody here demanded it, so that it may show
    /// where the stream is.
    pub(super) fn handle_page(
        &mut self,
        page: PageIndex,
        is_streamed: bool,
        is_new: bool,
        now: Instant,
    ) {
        self.meter.received();
        if is_new {
            self.trust.progressed(now);
        }
        if let Some(blocks) = self.blocks.as_mut().filter(|_| is_streamed) {
            blocks.page_seen(page, is_new);
        }
    }

    /// Handles a symbol. Returns what it tells, and the round to store it in.
    pub(super) fn handle_symbol(
        &mut self,
        block: BlockIndex,
        number: RepairIndex,
        promised: u8,
        now: Instant,
    ) -> Option<(SymbolArrival, Round)> {
        let arrival = self.blocks.as_mut()?.symbol_seen(block, number, promised);
        if arrival.is_new {
            self.meter.received();
        }
        if arrival.is_useful {
            self.trust.progressed(now);
        }
        Some((arrival, self.round))
    }

    /// Handles a stored symbol of a round. One of another round belongs to a block with other
    /// pages and counts as lost.
    pub(super) fn symbol_stored(&mut self, block: BlockIndex, number: RepairIndex, round: Round) {
        if let Some(blocks) = self.blocks_of(round) {
            blocks.symbol_stored(block, number);
        }
    }

    /// Handles that the stored symbols of a plan's block are unusable: they count as lost.
    pub(super) fn symbols_lost(&mut self, plan: &DecodePlan) {
        if let Some(blocks) = self.blocks_of(plan.round) {
            blocks.symbols_lost(plan.block);
        }
    }

    /// Blocks, if this is still their round.
    fn blocks_of(&mut self, round: Round) -> Option<&mut Repair> {
        self.blocks.as_mut().filter(|_| round == self.round)
    }

    /// Handles missing pages that were stored and are about to be marked as arrived.
    pub(super) fn handle_stored(&mut self, missing: impl Iterator<Item = PageIndex>) {
        if let Some(blocks) = &mut self.blocks {
            missing.for_each(|page| blocks.page_stored(page));
        }
    }

    /// Counts datagrams that this machine's sockets had no room for.
    pub(super) fn handle_drops(&mut self, datagrams: u64) {
        self.meter.dropped(datagrams);
    }

    /// Handles a beacon. Returns `false` if a newer one came before.
    pub(super) fn handle_beacon(
        &mut self,
        beacon: &Beacon,
        is_relied_on: bool,
        now: Instant,
    ) -> bool {
        let is_newer = self.reporter.is_newest(beacon.number);
        let Some(blocks) = self.blocks.as_mut().filter(|_| is_newer) else { return false };
        blocks.beacon(beacon, now);
        let owed = blocks.time_owed(beacon.pace.rate_kbps);
        let spread = Duration::from_millis(beacon.spread_ms.into());
        self.is_supplied = owed > 2 * spread + REPORT_DELAY;
        let has_to_ask = self.has_to_ask(is_relied_on);
        self.reporter.beacon(beacon, has_to_ask, now);
        let is_chosen = self.reporter.is_within(beacon.pace.panel);
        let draw = |longest| self.reporter.draw(longest);
        self.meter.beacon(&beacon.pace, is_chosen, draw, now);
        true
    }

    /// Number of the newest beacon of this membership.
    pub(super) fn newest_beacon(&self) -> Option<u32> {
        self.reporter.newest()
    }

    /// Whether a report of needs is due: something unpromised is lacking, and the server is not
    /// still busy with promises.
    fn has_to_ask(&self, is_relied_on: bool) -> bool {
        is_relied_on && !self.is_supplied && self.blocks.as_ref().is_some_and(Repair::is_short)
    }

    /// Makes all missing pages reportable, wherever the stream is. The server took it that this
    /// member needs nothing, and may have taken back its promises.
    pub(super) fn start_over(&mut self) {
        self.is_supplied = false;
        if let Some(blocks) = &mut self.blocks {
            blocks.forget_promises();
            blocks.close_all();
        }
    }

    /// Forgets what beacons said: a sender forged some of them perhaps.
    pub(super) fn forget_beacons(&mut self, now: Instant) {
        self.start_over();
        self.reporter.forget_beacons();
        self.meter.begin();
        self.reporter.request(now);
    }

    /// Requests a report as soon as possible.
    pub(super) fn request_report(&mut self, now: Instant) {
        self.reporter.request(now);
    }

    /// Renews the lease, because the server heard of this member otherwise.
    pub(super) fn renew_lease(&mut self, now: Instant) {
        self.reporter.renew(now);
    }

    /// Datagrams that the server sent, by the newest beacon.
    pub(super) fn sent(&self) -> u64 {
        self.meter.sent()
    }

    /// Counters of the present cast, by its newest beacon; `None` without one.
    pub(super) fn cast_counts(&self) -> Option<CastCounts> {
        self.meter.cast_counts()
    }

    /// Random time up to `longest`, so that members do not act all at once.
    pub(super) fn draw(&mut self, longest: Duration) -> Duration {
        self.reporter.draw(longest)
    }

    /// Whether a report should go out now; [`Self::make_report`] makes it.
    pub(super) fn is_report_due(&mut self, multicast: MulticastView, now: Instant) -> bool {
        let MulticastView { is_relied_on, is_suspect } = multicast;
        if self.believes_beacons(is_relied_on) && self.trust.lose_if_due(now) {
            self.start_over();
            self.reporter.request(now);
        }
        let is_short = self.has_to_ask(is_relied_on);
        self.reporter.handle_timeout(is_short, now)
            || is_relied_on
                && !is_suspect
                && self.meter.is_due(now)
                && self.reporter.begin_counters(is_short)
    }

    /// Whether beacons determine what this member reports, and when.
    fn believes_beacons(&self, is_relied_on: bool) -> bool {
        is_relied_on && self.blocks.is_some() && self.newest_beacon().is_some()
    }

    /// Makes the report that is due. `useful` is the number of pages and symbols of this membership
    /// that were new.
    pub(super) fn make_report(
        &mut self,
        useful: u64,
        state: ReportState,
        multicast: MulticastView,
        now: Instant,
    ) -> Report {
        let asking = self.blocks.as_ref().filter(|_| self.reporter.is_asking());
        let mut report = asking.map(Repair::report).unwrap_or_default();
        if !multicast.is_suspect {
            self.meter.add_to(&mut report, now);
        }
        let ReportState { stream_only, unicast } = state;
        (report.useful, report.stream_only, report.unicast) = (useful, stream_only, unicast);
        if unicast {
            (report.needs, report.bulk) = (Vec::new(), Vec::new());
        }
        self.asked_windows.clone_from(&report.bulk);
        self.asked_needs.clone_from(&report.needs);
        report
    }

    /// When a report may be due.
    pub(super) fn poll_timeout(&self, multicast: MulticastView) -> Option<Instant> {
        if self.reporter.is_in_flight() {
            return None;
        }
        let counts = multicast.is_relied_on && !multicast.is_suspect;
        let counters = self.meter.due().filter(|_| counts);
        let believes = self.believes_beacons(multicast.is_relied_on);
        let distrust = self.trust.ends_at().filter(|_| believes);
        [self.reporter.poll_timeout(), counters, distrust].into_iter().flatten().min()
    }

    /// Handles the answer to a report of the present membership.
    pub(super) fn handle_report_answer(
        &mut self,
        result: Result<(), ReportError>,
        now: Instant,
    ) -> ReportOutcome {
        let is_forgotten = result == Err(ReportError::UnknownMember);
        if self.reporter.counters_answered(result.is_ok(), now) {
            return if is_forgotten { ReportOutcome::Forgotten } else { ReportOutcome::Nothing };
        }
        if !self.reporter.is_asking() {
            // The answer belongs to a membership that has ended.
            return ReportOutcome::Nothing;
        }
        let bulk = std::mem::take(&mut self.asked_windows);
        match result {
            Ok(()) => {
                let is_answered = self.blocks.as_mut().is_some_and(|blocks| {
                    blocks.reopen(&bulk);
                    blocks.is_promised(&self.asked_needs)
                });
                self.reporter.accepted(is_answered, now);
                ReportOutcome::Accepted
            }
            Err(error) => {
                self.reporter.failed(now);
                match error {
                    ReportError::Temporary => ReportOutcome::Failed,
                    ReportError::UnknownMember => ReportOutcome::Forgotten,
                }
            }
        }
    }

    /// Returns the lowest block with enough symbols to be rebuilt.
    pub(super) fn poll_decodable(&mut self) -> Option<BlockIndex> {
        self.blocks.as_mut()?.poll_decodable()
    }

    /// Whether [`Self::poll_decodable`] may return a block.
    pub(super) fn has_decodable(&self) -> bool {
        self.blocks.as_ref().is_some_and(Repair::has_decodable)
    }

    /// Missing pages that can be rebuilt.
    pub(super) fn decodable_pages(&self) -> u32 {
        self.blocks.as_ref().map_or(0, Repair::decodable_pages)
    }

    /// Plan to rebuild a block; `None` if that is impossible or not needed.
    pub(super) fn decode_plan(&self, block: BlockIndex, arrived: &PageSet) -> Option<DecodePlan> {
        let plan = self.blocks.as_ref()?.decode_plan(block, arrived)?;
        debug_assert!(!plan.missing.is_empty(), "block {block} needs no repair");
        Some(DecodePlan { round: self.round, ..plan })
    }

    /// Whether a plan is still valid: its pages are missing and the blocks are the same.
    pub(super) fn confirms(&self, plan: &DecodePlan, arrived: &PageSet) -> bool {
        plan.round == self.round && plan.missing.iter().all(|(_, page)| !arrived.contains(*page))
    }
}
