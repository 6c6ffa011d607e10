//! Inputs of a [`Receiver`]: which machines each concerns, and in which order.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::fec::RepairIndex;
use bootcast_proto::manifest::{ContentId, Value};
use bootcast_proto::wire::{Beacon, DataError, RepairDatagram, RepairError};
use bootcast_proto::{BlockIndex, JoinAnswer, PageIndex, PageRange, Token, ZeroMap};

use super::content::Source;
use super::demand_loop::WantOutcome;
use super::repair_loop::ReportOutcome;
use super::rescue::{PageArrival, Repeat};
use super::{
    Arrival, Assembly, Check, Checked, DecodePlan, Epoch, Failure, FetchError, FileView, Fill,
    Finding, JoinError, JoinOptions, ListRequest, Missing, Receiver, RepairArrival, Replacement,
    ReportError, Reuse, Round, WaitId,
};

/// Maximum number of pages demanded at a time because an unreadable page keeps their blocks from
/// being rebuilt.
const MAX_CUT_OFF: usize = 256;

impl Receiver {
    // Readers.

    /// Handles a reader that opened the file.
    pub fn handle_open(&mut self) {
        self.session.handle_open();
    }

    /// Handles a reader that closed the file.
    pub fn handle_close(&mut self, now: Instant) {
        self.session.handle_close(now);
        self.close_intent();
    }

    /// Handles a read of these bytes, all within the file. Returns an identifier of its wait if
    /// some are missing. Run what is due afterwards.
    pub fn handle_read(&mut self, bytes: &Range<u64>, now: Instant) -> Option<WaitId> {
        let file = FileView { assembly: self.content.assembly(), blocks: self.repair.blocks() };
        let access = self.demand.record_read(bytes, file);
        self.record_intent(now);
        self.rescue.read(bytes);
        // Pages whose time as unreadable is over may be asked for again, which needs a membership.
        self.content.expire_unreadable(now);
        if self.content.holds(bytes) {
            return None;
        }
        if self.content.assembly().is_some() && self.content.unreadable(bytes).is_none() {
            self.session.wake();
        }
        let needed = self.content.handle_read(bytes);
        Some(self.demand.begin_wait(&needed, access, self.content.geometry(), now))
    }

    /// Ends the wait of a read, for whatever reason.
    pub fn handle_wait_over(&mut self, wait: WaitId) {
        self.demand.end_wait(wait);
    }

    // Joins.

    /// Prepares a join. Returns what it asks for. If a part of the file is here, the join need not
    /// bring all of it again: the first report then says what is missing.
    pub fn begin_join(&mut self) -> JoinOptions {
        let fill = self.fill();
        let resumes = fill == Fill::Full && self.content.has_pages();
        let wants_leaf_lists = fill == Fill::Full && self.content.wants_leaf_lists();
        // A member that holds a part, or copies from an older version, needs less than the profile.
        let is_fresh = !self.content.has_pages() && self.reuse == Reuse::Off;
        let wants_profile = self.is_profile_of_use && fill == Fill::Demand && is_fresh;
        let asked = JoinOptions { fill, resumes, wants_leaf_lists, wants_profile };
        self.session.record_join(asked);
        asked
    }

    /// Handles the answer to a join.
    pub fn handle_join(&mut self, answer: &JoinAnswer, now: Instant) {
        if answer.extensions.lease.is_none() && self.intent.is_awaited() {
            // The server sends everything to everybody.
            self.drop_intent();
            self.demand.set_fill(Fill::Full);
        }
        let has_repair = self.may_fill() && answer.block_layout().is_some();
        if !self.session.handle_join(answer, has_repair, now) {
            // After a data loss, its pages would be stored and read where others got lost.
            return;
        }
        self.adopt_cast(answer);
        if self.content.adopt(answer) {
            self.begin(answer, now);
            self.begin_reuse(now);
        } else {
            self.fail(Failure::Stale);
        }
        self.assert_invariants();
    }

    /// Handles a join without a usable answer.
    pub fn handle_join_error(&mut self, error: JoinError, now: Instant) {
        match error {
            JoinError::Retry { after, .. } => self.session.join_failed(after, now),
            // If a version was there before, "not found" means that it is gone.
            JoinError::NotFound(_) if self.content.assembly().is_some() => {
                self.fail(Failure::Stale);
            }
            JoinError::NotFound(message) => self.fail(Failure::NotFound(message)),
            JoinError::Refused(message) => self.fail(Failure::Refused(message)),
            JoinError::Garbled(message) => self.fail(Failure::Garbled(message)),
        }
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        if self.content.is_complete() {
            self.session.end();
        } else {
            self.session.fail(failure);
        }
    }

    /// Ends the membership if every page is here.
    pub(super) fn end_if_complete(&mut self) {
        if self.content.has_all_pages() {
            self.content.expect_leaf_lists(false);
            self.content.check_all();
            self.repair.discard_blocks();
            self.session.end();
        }
    }

    /// Ends the membership because the client is stopping.
    pub fn shut_down(&mut self) {
        self.session.end();
    }

    // Datagrams.

    /// Handles a datagram from `from`. A new page must be stored before [`Self::handle_stored`].
    pub fn handle_datagram<'a>(
        &mut self,
        from: SocketAddr,
        datagram: &'a [u8],
        now: Instant,
    ) -> Arrival<'a> {
        self.handle_checked(&self.gate().check(from, datagram), now)
    }

    /// Like [`Self::handle_datagram`], for a datagram whose tag was checked before.
    pub fn handle_checked<'a>(&mut self, checked: &Checked<'a>, now: Instant) -> Arrival<'a> {
        if !self.session.admits(checked, &mut self.counters) {
            return Arrival::Bad(DataError::Index);
        }
        let Some(arrival) = self.content.check(checked.bytes) else {
            return Arrival::Bad(DataError::Index);
        };
        let (page, is_new) = match arrival {
            Arrival::New(page) => {
                if !self.is_servers(page, now) {
                    self.counters.ignored += 1;
                    return Arrival::Ignored;
                }
                self.session.record_page(checked.from, page.index);
                (page.index, self.in_flight.record(page.index))
            }
            Arrival::Duplicate(page) => {
                self.counters.duplicates += 1;
                if self.session.record_repeat(checked.from, page) {
                    self.ignore_forgers(now);
                }
                (page.index, false)
            }
            Arrival::Bad(_) | Arrival::Ignored => {
                self.counters.bad += 1;
                return arrival;
            }
        };
        self.session.record_sender(checked.from);
        self.handle_page(page, is_new, now);
        // A duplicate can prove that the last page is a phantom.
        self.end_if_complete();
        self.assert_invariants();
        arrival
    }

    /// Handles a page. What each kind may move: docs/PROTOCOL.md, "What counts as news".
    fn handle_page(&mut self, page: PageIndex, is_new: bool, now: Instant) {
        let was_demanded = is_new && self.demand.handle_new_page(page, now);
        let is_full = self.content.is_full_page(page);
        let arrival = PageArrival { page, is_full, was_demanded };
        if is_new {
            self.repair.handle_page(page, !was_demanded, true, now);
            self.session.progressed(now);
            self.rescue.handle_new_page(arrival, now);
        } else {
            let repeat = self.rescue.handle_repeated_page(arrival);
            if repeat != Repeat::Echo {
                self.repair.handle_page(page, true, false, now);
            }
            if repeat == Repeat::SignOfLife {
                self.session.record_sign_of_life(now);
            }
        }
        self.follow_rescue(now);
    }

    /// Handles a datagram of the repair channel. A symbol must be stored before
    /// [`Self::handle_symbol_stored`].
    pub fn handle_repair_datagram<'a>(
        &mut self,
        from: SocketAddr,
        datagram: &'a [u8],
        now: Instant,
    ) -> RepairArrival<'a> {
        self.handle_checked_repair(&self.gate().check(from, datagram), now)
    }

    /// Like [`Self::handle_repair_datagram`], for a datagram whose tag was checked before.
    pub fn handle_checked_repair<'a>(
        &mut self,
        checked: &Checked<'a>,
        now: Instant,
    ) -> RepairArrival<'a> {
        if !self.session.admits(checked, &mut self.counters) {
            self.handle_end_from_elsewhere(checked, now);
            return RepairArrival::Bad(RepairError::Index);
        }
        let decoded = match self.repair.decode(checked.bytes) {
            None => {
                self.handle_awaited_beacon(checked.bytes, now);
                return RepairArrival::Nothing;
            }
            Some(Ok(decoded)) => decoded,
            Some(Err(error)) => {
                self.counters.bad += 1;
                return RepairArrival::Bad(error);
            }
        };
        self.session.record_sender(checked.from);
        match decoded {
            RepairDatagram::Symbol { block, symbol: number, promised, payload } => {
                if let Some(round) = self.handle_symbol(block, number, promised, now) {
                    self.session.record_symbol(checked.from, block);
                    return RepairArrival::Symbol { block, number, round, payload };
                }
            }
            RepairDatagram::Beacon(beacon) => self.handle_beacon(&beacon, now),
            RepairDatagram::LeafList(list) => self.content.handle_cast_leaves(&list),
            RepairDatagram::End { next_beacon } => self.handle_cast_end(next_beacon, now),
        }
        RepairArrival::Nothing
    }

    /// Handles the end of the cast if a stranger announces it with the right tag: the server got
    /// another address.
    fn handle_end_from_elsewhere(&mut self, checked: &Checked<'_>, now: Instant) {
        let decoded = self.repair.decode(checked.bytes);
        if let Some(Ok(RepairDatagram::End { next_beacon })) = decoded
            && self.session.is_tagged(checked)
        {
            self.handle_cast_end(next_beacon, now);
        }
    }

    fn handle_cast_end(&mut self, next_beacon: Option<u32>, now: Instant) {
        let newest = self.repair.newest_beacon();
        let draw = |longest| self.repair.draw(longest);
        self.session.handle_cast_end(next_beacon, newest, draw, now);
    }

    /// Returns the round to store the symbol in, if it is useful.
    fn handle_symbol(
        &mut self,
        block: BlockIndex,
        number: RepairIndex,
        promised: u8,
        now: Instant,
    ) -> Option<Round> {
        self.counters.symbols += 1;
        let (arrival, round) = self.repair.handle_symbol(block, number, promised, now)?;
        if arrival.is_useful {
            self.session.progressed(now);
        }
        if arrival.is_new {
            self.rescue.handle_symbol(arrival.is_useful, now);
        }
        self.follow_rescue(now);
        arrival.is_useful.then_some(round)
    }

    fn handle_beacon(&mut self, beacon: &Beacon, now: Instant) {
        if !self.repair.handle_beacon(beacon, self.rescue.relies_on_multicast(), now) {
            return;
        }
        self.session.handle_beacon(beacon.number, now);
        self.demand.handle_beacon(beacon.position, now);
        if let Some(assembly) = self.content.assembly() {
            self.rescue.handle_beacon(beacon.pace.sent, assembly.page_size(), now);
        }
        self.follow_rescue(now);
    }

    /// Counts datagrams that the socket had no room for.
    pub fn handle_drops(&mut self, datagrams: u64) {
        self.counters.drops += datagrams;
        self.repair.handle_drops(datagrams);
        self.rescue.handle_drops(datagrams);
    }

    /// Handles a port whose socket could not be opened: that of the pages, or of the repair
    /// channel.
    pub fn handle_no_socket(&mut self, is_repair: bool, error: &str, now: Instant) {
        self.rescue.handle_no_socket(is_repair, error, now);
        self.follow_rescue(now);
    }

    /// Handles the MTU of the interface that the datagrams come in by.
    pub fn handle_mtu(&mut self, mtu: u32, now: Instant) {
        let Some(assembly) = self.content.assembly() else { return };
        self.rescue.handle_mtu(mtu, assembly.page_size(), now);
        self.follow_rescue(now);
    }

    // What was stored.

    /// Handles pages that were stored. They count only if they were handed out in this `epoch`:
    /// another join may have changed the page size.
    pub fn handle_stored(&mut self, pages: PageRange, epoch: Epoch) {
        self.handle_stored_from(Source::Wire, pages, epoch);
    }

    fn handle_stored_from(&mut self, source: Source, pages: PageRange, epoch: Epoch) {
        if epoch != self.session.epoch() {
            return;
        }
        self.in_flight.clear();
        if let Some(assembly) = self.content.assembly() {
            let (all, arrived) = (assembly.geometry().all(), assembly.arrived());
            let is_missing = |page: &PageIndex| all.contains(*page) && !arrived.contains(*page);
            self.repair.handle_stored(pages.iter().filter(is_missing));
        }
        self.demand.handle_stored(pages);
        if self.content.store(pages, source) {
            self.counters.pages += u64::from(pages.len());
        }
        self.end_if_complete();
        self.rest_if_nothing_can_come();
        self.assert_invariants();
    }

    /// Returns the groups of [`GROUP_PAGES`](super::GROUP_PAGES) with pages that arrived, or were
    /// dropped, since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<u32> {
        self.content.assembly_mut().map(Assembly::take_changed).unwrap_or_default()
    }

    /// Records that what is saved of these pages is out of date.
    pub fn mark_changed(&mut self, pages: PageRange) {
        if let Some(assembly) = self.content.assembly_mut() {
            assembly.mark_changed(pages);
        }
    }

    /// Records that missing pages do not come in datagrams, and are about to be stored: they were
    /// rebuilt, or came over HTTP.
    pub fn record_other_pages(&mut self, pages: PageRange, is_rebuilt: bool) {
        self.session.senders_mut().record_other(pages, is_rebuilt);
    }

    /// Handles a stored symbol. It counts only if it was handed out in this `round`.
    pub fn handle_symbol_stored(&mut self, block: BlockIndex, number: RepairIndex, round: Round) {
        self.repair.symbol_stored(block, number, round);
    }

    /// Handles that the stored symbols of a plan's block are unusable: they count as lost.
    pub fn handle_symbols_lost(&mut self, plan: &DecodePlan) {
        self.repair.symbols_lost(plan);
    }

    /// Handles a store that may have lost data: nothing in it counts any more.
    pub fn handle_store_lost(&mut self, message: String) {
        self.content.discard();
        self.repair.discard_blocks();
        self.fail(Failure::Store(message));
        self.assert_invariants();
    }

    /// Handles a store that accepts no more pages.
    pub fn handle_store_error(&mut self, message: String) {
        self.fail(Failure::Store(message));
    }

    // Answers to requests.

    /// Handles the answer to a report of the membership `token`.
    pub fn handle_report_answer(
        &mut self,
        token: &Token,
        result: Result<(), ReportError>,
        now: Instant,
    ) {
        if self.session.token() != Some(token) {
            // The answer belongs to a membership that has ended.
            return;
        }
        match self.repair.handle_report_answer(result, now) {
            ReportOutcome::Nothing => {}
            ReportOutcome::Accepted => self.rescue.report_accepted(),
            ReportOutcome::Failed => self.rescue.request_report(),
            ReportOutcome::Forgotten => {
                self.session.rejoin_forgotten(|longest| self.repair.draw(longest), now);
            }
        }
        self.follow_rescue(now);
    }

    /// Handles the answer to a demand of the membership `token`. It states when the demanded pages
    /// leave the server.
    pub fn handle_wanted(
        &mut self,
        token: &Token,
        want: &Want,
        result: Result<Duration, ReportError>,
        now: Instant,
    ) {
        if self.session.token() != Some(token) {
            // The answer belongs to a membership that has ended.
            return;
        }
        match self.demand.handle_answer(want, result) {
            WantOutcome::Accepted => self.repair.renew_lease(now),
            WantOutcome::Failed => {}
            WantOutcome::Forgotten(pause) => self.session.join_again(now + pause),
        }
    }

    /// Handles pages that the server cannot read.
    pub fn handle_unreadable(&mut self, runs: &[PageRange], now: Instant) {
        if !self.content.record_unreadable(runs, now) {
            return;
        }
        self.demand.skip_remainder(runs);
        self.rest_if_nothing_can_come();
        let layout = self.repair.layout().filter(|_| self.fill() == Fill::Full);
        let cut_off = layout.map(|layout| self.content.cut_off_pages(layout, MAX_CUT_OFF));
        let pages = cut_off.unwrap_or_default();
        self.demand.demand_cut_off(&pages, self.content.geometry(), now);
    }

    /// Leaves the cast if all missing pages are unreadable. Later reads of them demand them, so
    /// that no stream runs for them.
    pub(super) fn rest_if_nothing_can_come(&mut self) {
        if self.content.lacks_only_unreadable() {
            self.demand.stop_filling();
            self.drop_intent();
            self.reuse = Reuse::Off;
            self.repair.discard_blocks();
            self.session.rest();
        }
    }

    // Hashes.

    /// Handles the answer to a request for hashes: the content id, if the server knows it by now,
    /// and the values that were requested.
    pub fn handle_lists(
        &mut self,
        request: &ListRequest,
        id: Option<ContentId>,
        values: &[Value],
        now: Instant,
    ) {
        if let Err(error) = self.content.handle_lists(request, id, values, now) {
            self.fail(Failure::Garbled(error.to_string()));
        }
    }

    /// Handles hashes that an earlier use left in the cache. Returns whether they are proven;
    /// otherwise the server must be asked.
    pub fn handle_stored_lists(
        &mut self,
        request: &ListRequest,
        values: &[Value],
        now: Instant,
    ) -> bool {
        self.content.handle_stored_lists(request, values, now)
    }

    /// Handles a request for hashes that failed for a reason that may pass.
    pub fn handle_lists_failed(&mut self, request: &ListRequest, after: Duration, now: Instant) {
        self.content.handle_lists_failed(request, after, now);
    }

    /// Handles that the server no longer has the version, so that neither hashes nor bytes of it
    /// can come. If all leaves were found right by what it said before, nothing is needed.
    pub fn handle_version_gone(&mut self) {
        if !self.content.accept_unproven() {
            self.fail(Failure::Stale);
        }
    }

    /// Handles the result of a check.
    pub fn handle_check_result(&mut self, check: &Check, finding: &Finding, now: Instant) {
        self.content.handle_checked(check, finding, now);
    }

    /// Handles the result of fetching wrong leaves: those that are wrong again, the others being
    /// stored. `None`: nothing came.
    pub fn handle_replaced(&mut self, leaves: &Replacement, wrong: Option<&[u64]>, now: Instant) {
        self.content.handle_replaced(leaves, wrong, now);
    }

    // Zeros.

    /// Handles the zero map. Then make missing pages that lie wholly in its leaves zeros in the
    /// store, and call [`Self::handle_zeros_stored`] for each run of them.
    pub fn begin_zeros(&mut self, map: &ZeroMap) {
        // With an older version at hand, the whole file is wanted in the end.
        let is_lazy = self.fill() == Fill::Demand && self.reuse == Reuse::Off;
        self.content.begin_zeros(map, is_lazy);
    }

    /// Handles pages of the zero map that are zeros in the store. They count only in this `epoch`.
    pub fn handle_zeros_stored(&mut self, pages: PageRange, epoch: Epoch) {
        self.handle_stored_from(Source::ZeroMap, pages, epoch);
    }

    /// Handles that all pages of the zero map arrived. The server hears of it at once, so that the
    /// stream leaves them out.
    pub fn handle_zeros_taken(&mut self, now: Instant) {
        self.content.handle_zeros_taken();
        self.report_zeros(now);
    }

    /// Handles a request for the zero map that brought none. The server asks for a pause of `after`
    /// at least.
    pub fn handle_no_zeros(&mut self, after: Duration, now: Instant) {
        self.content.handle_no_zeros(after, now);
    }

    /// Tells the server that the stream may leave out pages of zeros, if that is so.
    pub(super) fn report_zeros(&mut self, now: Instant) {
        if self.content.has_zeros() && self.fill() == Fill::Full {
            self.repair.request_report(now);
        }
    }

    // Fetches over HTTP.

    /// Fetches from the beginning, and listens all the same, because multicast did not come for
    /// other files lately. With `reports` the server hears of it at once and sends nothing for this
    /// member. Otherwise it gets a second to show that multicast comes again.
    pub fn presume_no_multicast(&mut self, reports: bool, now: Instant) {
        self.rescue.presume_no_multicast(reports, now);
        self.follow_rescue(now);
    }

    /// Handles that all bytes of a fetch before `next` are stored. Returns `false` if the request
    /// should end.
    pub fn handle_fetched(&mut self, id: u64, next: u64, oldest: Option<&Range<u64>>) -> bool {
        let (Some(scope), Some(geometry), Some(held)) =
            (self.fetch_scope(), self.content.geometry(), self.content.not_to_fetch())
        else {
            return false;
        };
        let missing = Missing { geometry, held: &held, oldest, scope };
        self.rescue.handle_fetched(id, next, &missing)
    }

    /// Ends a fetch.
    pub fn handle_fetch_end(&mut self, id: u64, result: Result<(), FetchError>, now: Instant) {
        let failed = match result {
            Ok(()) => None,
            Err(FetchError::Retry { after }) => Some(after),
            Err(FetchError::Changed) => {
                // The answer to a join decides.
                self.rescue.file_changed();
                self.session.join_again(now);
                Some(Duration::ZERO)
            }
            Err(FetchError::Refused(message)) => {
                self.fail(Failure::Refused(message));
                Some(Duration::ZERO)
            }
            Err(FetchError::Garbled(message)) => {
                self.fail(Failure::Garbled(message));
                Some(Duration::ZERO)
            }
            Err(FetchError::Unreadable(bytes)) => {
                let pages = self.content.geometry().map(|it| it.pages_covering(bytes));
                self.handle_unreadable(pages.as_slice(), now);
                None
            }
            Err(FetchError::Store) => Some(Duration::ZERO),
        };
        self.rescue.fetch_ended(id, failed, now);
    }
}
