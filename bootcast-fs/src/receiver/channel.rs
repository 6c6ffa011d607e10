//! Client side of the repair channel: which symbols to store, which blocks to rebuild, and what to
//! report.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bootcast_proto::fec::RepairIndex;
use bootcast_proto::wire::{Beacon, RepairDatagram, RepairError};
use bootcast_proto::{BlockIndex, BlockLayout, JoinAnswer, PageRange, Token};

use super::repair::{DecodePlan, Repair};
use super::{Action, Assembly, Checked, Fill, Receiver};

/// Upper bound of the time from a report's timer to its promise.
const REPORT_DELAY: Duration = Duration::from_millis(50);

/// Members of a cast that ended join again spread over this time.
const REJOIN_SPREAD: Duration = Duration::from_millis(200);

/// An end is believed when nothing newer came for so long after it. Beacons come twice as often.
const QUIET: Duration = Duration::from_millis(60);

/// Result of a datagram of the repair channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairArrival<'a> {
    /// A useful symbol: store it, then call [`Receiver::handle_symbol_stored`].
    Symbol {
        /// Block that the symbol belongs to.
        block: BlockIndex,
        /// Number of the symbol in its block.
        number: RepairIndex,
        /// The symbol: as many bytes as a full page.
        payload: &'a [u8],
    },
    /// Nothing to store.
    Nothing,
    /// Not a datagram of this cast's repair channel.
    Bad(RepairError),
}

/// Why a report was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportError {
    /// 404: the server does not know this member.
    UnknownMember,
    /// Another reason, which may pass.
    Temporary,
}

impl Receiver {
    /// Adopts the answer's repair settings. Keeps stored symbols if they are still useful.
    pub(super) fn begin_repair(&mut self, answer: &JoinAnswer, now: Instant) {
        let layout = answer.block_layout().filter(|_| self.fill() == Fill::Full);
        let fits = |repair: &Repair| {
            Some(repair.layout()) == layout && repair.page_size() == answer.page_size
        };
        if let Some(repair) = self.repair.as_mut().filter(|repair| fits(repair)) {
            repair.begin_cast();
        } else {
            self.repair_round += 1;
            self.repair = layout
                .zip(self.assembly.as_ref())
                .map(|(layout, assembly)| Repair::new(layout, answer.page_size, assembly.held()));
        }
        self.asked_needs.clear();
        self.is_supplied = false;
        self.panel.begin();
        self.reporter.begin(&answer.token, answer.extensions.lease, now);
        if std::mem::take(&mut self.has_resumed)
            && let Some(repair) = &mut self.repair
        {
            // The server waits for a report of all that is missing.
            repair.close_all();
            self.reporter.hurry(now);
        }
    }

    /// Handles a datagram of the repair channel. A symbol must be stored before
    /// [`Self::handle_symbol_stored`].
    pub fn handle_repair_datagram<'a>(
        &mut self,
        from: SocketAddr,
        datagram: &'a [u8],
        now: Instant,
    ) -> RepairArrival<'a> {
        self.handle_checked_repair(&self.gate.check(from, datagram), now)
    }

    /// Like [`Self::handle_repair_datagram`], for a datagram whose tag was checked before.
    pub fn handle_checked_repair<'a>(
        &mut self,
        checked: &Checked<'a>,
        now: Instant,
    ) -> RepairArrival<'a> {
        if !self.gate.admits(checked, &mut self.counters) {
            return RepairArrival::Bad(RepairError::Index);
        }
        let Some(repair) = &self.repair else { return RepairArrival::Nothing };
        let page_size = repair.page_size().get();
        let decoded = match RepairDatagram::decode(checked.bytes, repair.layout(), page_size) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.counters.bad += 1;
                return RepairArrival::Bad(error);
            }
        };
        self.gate.heard_from(checked.from);
        let Some(repair) = &mut self.repair else { return RepairArrival::Nothing };
        match decoded {
            RepairDatagram::Symbol { block, symbol: number, promised, payload } => {
                self.counters.symbols += 1;
                self.panel.received();
                let is_useful = repair.symbol_seen(block, number, promised);
                self.symbol_came(is_useful, now);
                if is_useful {
                    return RepairArrival::Symbol { block, number, payload };
                }
            }
            RepairDatagram::Beacon(beacon) => self.handle_beacon(&beacon, now),
            RepairDatagram::End { next_beacon } => self.handle_cast_end(next_beacon, now),
        }
        RepairArrival::Nothing
    }

    fn handle_beacon(&mut self, beacon: &Beacon, now: Instant) {
        let Some(repair) = self.repair.as_mut().filter(|_| self.reporter.is_news(beacon.number))
        else {
            return;
        };
        repair.beacon(beacon, now);
        self.ends.beacon();
        if let Some(course) = &mut self.course {
            course.beacon(beacon.position, now);
        }
        let owed = repair.time_owed(beacon.pace.rate_kbps);
        let spread = Duration::from_millis(beacon.spread_ms.into());
        self.is_supplied = owed > 2 * spread + REPORT_DELAY;
        self.reporter.beacon(beacon, self.has_to_ask(), now);
        let is_chosen = self.reporter.is_within(beacon.pace.panel);
        let draw = |longest| self.reporter.draw(longest);
        self.panel.beacon(&beacon.pace, is_chosen, draw, now);
        self.beacon_came(beacon.pace.sent, now);
    }

    /// Whether a report of needs is due: something unpromised is lacking, and the server is not
    /// still busy with promises.
    fn has_to_ask(&self) -> bool {
        self.unicast.relies_on_multicast()
            && !self.is_supplied
            && self.repair.as_ref().is_some_and(Repair::is_short)
    }

    /// The server forgot this member: joins again, ever more seldom while that brings nothing.
    fn join_again(&mut self, now: Instant) {
        let pause = self.reporter.draw(REJOIN_SPREAD);
        self.membership.join_again(now + self.ends.pause(pause));
    }

    /// Somebody says that the cast is over, in the server's name.
    fn handle_cast_end(&mut self, next_beacon: Option<u32>, now: Instant) {
        let is_old =
            next_beacon.zip(self.reporter.newest()).is_some_and(|(next, newest)| next <= newest);
        if !is_old {
            let pause = self.reporter.draw(REJOIN_SPREAD.saturating_sub(QUIET));
            self.ends.said(now + QUIET + pause);
        }
    }

    /// Joins again if the cast ended, and nothing of it came since.
    pub(super) fn rejoin_if_ended(&mut self, now: Instant) {
        if self.ends.due().is_some_and(|at| at <= now) {
            self.ends.believed();
            let pause = self.ends.pause(REJOIN_SPREAD).saturating_sub(REJOIN_SPREAD);
            self.membership.join_again(now + pause);
        }
    }

    /// Handles a stored symbol.
    pub fn handle_symbol_stored(&mut self, block: BlockIndex, number: RepairIndex) {
        if let Some(repair) = &mut self.repair {
            repair.symbol_stored(block, number);
        }
    }

    /// Handles that the stored symbols of a block are unusable: they count as lost.
    pub fn handle_symbols_lost(&mut self, block: BlockIndex) {
        if let Some(repair) = &mut self.repair {
            repair.symbols_lost(block);
        }
    }

    /// Updates the blocks of pages that are about to be marked as held.
    pub(super) fn note_in_blocks(&mut self, pages: PageRange) {
        let (Some(repair), Some(assembly)) = (&mut self.repair, &self.assembly) else { return };
        let all = assembly.geometry().all();
        let new =
            pages.iter().filter(|page| all.contains(*page) && !assembly.held().contains(*page));
        new.for_each(|page| repair.page_stored(page));
    }

    /// Whether all missing pages can be rebuilt.
    pub fn lacks_only_decodable(&self) -> bool {
        self.assembly.as_ref().is_some_and(|assembly| {
            let held = assembly.held();
            let decodable = self.repair.as_ref().map_or(0, Repair::decodable_pages);
            held.pages() - held.held() <= decodable
        })
    }

    /// Blocks of the file; `None` without repair.
    pub fn block_layout(&self) -> Option<BlockLayout> {
        self.repair.as_ref().map(Repair::layout)
    }

    /// Returns the lowest block with enough symbols to be rebuilt. Returns each block once, and
    /// again after another page or symbol of it arrived. Call it after storing pages or symbols.
    pub fn poll_decodable(&mut self) -> Option<BlockIndex> {
        self.repair.as_mut()?.poll_decodable()
    }

    /// Whether [`Self::poll_decodable`] would return a block.
    pub fn has_decodable(&self) -> bool {
        self.repair.as_ref().is_some_and(Repair::has_decodable)
    }

    /// Plan to rebuild a block; `None` if that is impossible or not needed.
    pub fn decode_plan(&self, block: BlockIndex) -> Option<DecodePlan> {
        let (repair, assembly) = (self.repair.as_ref()?, self.assembly.as_ref()?);
        let plan = repair.decode_plan(block, assembly.held())?;
        debug_assert!(!plan.missing.is_empty(), "block {block} needs no repair");
        Some(DecodePlan { round: self.repair_round, ..plan })
    }

    /// The server answered a report of the membership `token`.
    pub fn handle_report_answer(
        &mut self,
        token: &Token,
        result: Result<(), ReportError>,
        now: Instant,
    ) {
        if self.membership.token() == Some(token) {
            self.handle_reported(result, now);
        }
    }

    /// The server answered a report of the present membership.
    pub fn handle_reported(&mut self, result: Result<(), ReportError>, now: Instant) {
        if self.reporter.counted(result.is_ok(), now) {
            if result == Err(ReportError::UnknownMember) {
                self.join_again(now);
            }
            return;
        }
        if !self.reporter.is_asking() {
            // The answer belongs to a membership that has ended.
            return;
        }
        let bulk = std::mem::take(&mut self.asked_windows);
        match result {
            Ok(()) => {
                let is_answered = self.repair.as_mut().is_some_and(|repair| {
                    repair.reopen(&bulk);
                    repair.is_promised(&self.asked_needs)
                });
                self.reporter.heard(is_answered, now);
                self.told(now);
            }
            Err(ReportError::Temporary) => {
                self.reporter.not_heard(now);
                self.tell_news(now);
            }
            Err(ReportError::UnknownMember) => {
                self.reporter.not_heard(now);
                self.join_again(now);
            }
        }
    }

    /// Issues a report if one is due.
    pub(super) fn report_if_due(&mut self, now: Instant) {
        if self.membership.token().is_none() {
            return;
        }
        let hears =
            self.unicast.relies_on_multicast() && !self.unicast.is_suspect(self.panel.sent());
        let is_short = self.has_to_ask();
        let speaks = self.reporter.handle_timeout(is_short, now)
            || hears && self.panel.is_due(now) && self.reporter.tell(is_short);
        if !speaks {
            return;
        }
        let asking = self.repair.as_ref().filter(|_| self.reporter.is_asking());
        let mut report = asking.map(Repair::report).unwrap_or_default();
        if !self.unicast.is_suspect(self.panel.sent()) {
            self.panel.tell(&mut report, now);
        }
        self.note_in_report(&mut report);
        self.asked_windows.clone_from(&report.bulk);
        self.asked_needs.clone_from(&report.needs);
        self.membership.act(Action::Report(report));
    }

    /// When a report may be due.
    pub(super) fn poll_report(&self) -> Option<Instant> {
        if self.membership.token().is_none() || self.reporter.is_speaking() {
            return None;
        }
        let hears =
            self.unicast.relies_on_multicast() && !self.unicast.is_suspect(self.panel.sent());
        let panel = self.panel.due().filter(|_| hears);
        [self.reporter.poll_timeout(), panel].into_iter().flatten().min()
    }

    /// Length of the gapless part at the start from which no block will be rebuilt, in bytes.
    pub fn settled(&self) -> u64 {
        let Some(assembly) = &self.assembly else { return 0 };
        let Some(repair) = &self.repair else { return assembly.contiguous() };
        let first = assembly.held().first_missing(assembly.geometry().all());
        first.map_or(assembly.geometry().size(), |page| {
            let layout = repair.layout();
            assembly.geometry().offset(layout.pages_of(layout.window_of(page)).start)
        })
    }

    /// Whether a plan is still valid: its pages are missing and the blocks are the same. What was
    /// read for it is then correct.
    pub fn confirms(&self, plan: &DecodePlan) -> bool {
        let held = self.assembly.as_ref().map(Assembly::held);
        plan.round == self.repair_round
            && held.is_some_and(|held| plan.missing.iter().all(|(_, page)| !held.contains(*page)))
    }
}

#[cfg(test)]
mod tests;
