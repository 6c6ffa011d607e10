//! Turns datagrams into the pages of one version of one file. Does no I/O: time and datagrams are
//! arguments, and what is to be done comes out as [`Action`]s.
//!
//! Five machines decide, and each owns its state:
//!
//! | machine | decides | made of |
//! |---|---|---|
//! | `Session` | when to be a member, what to believe | membership, gate, senders, ends |
//! | `Content` | which version this is, what arrived, what may be read | assembly, verification |
//! | `RepairLoop` | which blocks to rebuild, what to report | repair, reporter, trust |
//! | `DemandLoop` | which pages to ask for | demand, reads, `stream_position` |
//! | `Rescue` | what to fetch over HTTP, and when | hearing, deafness, fetches |
//!
//! None knows another. [`Receiver`] passes each input to the machines that it concerns, in a fixed
//! order. What a machine must know of another is an argument, and what another must do because of
//! it is its result. Each input is a method and not a variant of one enum, because most have a
//! result of their own: a datagram lends out its page, a read returns its wait, work that was
//! handed out returns whether it still counts.

mod assembly;
mod content;
mod demand;
mod demand_loop;
mod ends;
mod fetches;
mod following;
mod forgers;
mod gate;
mod hearing;
mod in_flight;
mod inputs;
mod intent;
mod loss_meter;
mod membership;
mod page_hashes;
mod passed_windows;
mod reads;
mod remainder;
mod repair;
mod repair_loop;
mod reporter;
mod rescue;
mod retry;
mod reuse;
mod scarcity;
mod senders;
mod session;
mod stream_position;
mod trust;
mod unreadable;
mod verification;
mod zeros;

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use bootcast_proto::api::{Report, Want};
use bootcast_proto::{BlockIndex, BlockLayout, ContentId, ContentTree, Etag, JoinAnswer, Token};

pub use assembly::{Arrival, Assembly, GROUP_PAGES};
pub use content::{Pin, Verify};
pub use demand::{Fill, WaitId};
pub use fetches::Fetch;
pub use following::{Description, News, Told};
pub use gate::{Checked, Epoch, Gate};
pub use loss_meter::CastCounts;
pub use membership::{Action, REQUEST_BACKOFF, Subscription, Timing};
pub use page_hashes::HashRequest;
pub use repair::DecodePlan;
pub use repair_loop::{RepairArrival, ReportError, Round};
pub use rescue::{Cause, FetchError, Notice, Reception, UnicastMode};
pub use session::{Counters, Failure, JoinError, JoinOptions};
pub use verification::{
    Check, Finding, Learned, ListRequest, ListsError, Piece, Refuted, Replacement,
};

use content::Content;
use demand_loop::{DemandLoop, FileView};
use fetches::{Missing, Scope};
use in_flight::PagesInFlight;
pub use intent::FillPolicy;
use intent::Intent;
use page_hashes::PageHashes;
use repair_loop::{MulticastView, RepairLoop};
use rescue::{Rescue, RescueEvent, RescueView};
use reuse::Reuse;
use session::Session;
use verification::Verification;

/// Reception of one version of one file.
#[derive(Debug)]
pub struct Receiver {
    session: Session,
    content: Content,
    repair: RepairLoop,
    demand: DemandLoop,
    rescue: Rescue,
    in_flight: PagesInFlight,
    page_hashes: PageHashes,
    reuse: Reuse,
    intent: Intent,
    /// Whether readers are likely to want what those of other hosts wanted first.
    is_profile_of_use: bool,
    /// Whether a holder tells of pages, so that leaves are verified here.
    is_told_pages: bool,
    counters: Counters,
}

impl Receiver {
    /// Creates a receiver of the file that `pin` describes. `kept` is what the cache kept of that
    /// version. `seed` must differ between members, because it spreads their actions in time.
    pub fn new(pin: Pin, kept: Option<Assembly>, timing: Timing, seed: u64) -> Self {
        let content = Content::new(pin, kept);
        Self {
            session: Session::new(timing, content.has_all_pages()),
            content,
            repair: RepairLoop::new(seed),
            demand: DemandLoop::default(),
            rescue: Rescue::default(),
            in_flight: PagesInFlight::default(),
            page_hashes: PageHashes::default(),
            reuse: Reuse::default(),
            intent: Intent::default(),
            is_profile_of_use: false,
            is_told_pages: false,
            counters: Counters::default(),
        }
    }

    /// Sets which pages should arrive; all, by default.
    #[must_use]
    pub fn with_fill(mut self, fill: Fill) -> Self {
        self.demand.set_fill(fill);
        self
    }

    /// Asks for the profile of the content when it joins and holds nothing.
    pub fn request_profile(&mut self) {
        self.is_profile_of_use = true;
    }

    /// Sets the proof that bytes need before they may be read; the tag, by default.
    pub fn set_verify(&mut self, verify: Verify) {
        self.content.set_verify(verify);
    }

    /// Sets whether the file may be fetched over HTTP. Never, by default.
    pub fn set_unicast(&mut self, mode: UnicastMode) {
        self.rescue.set_mode(mode);
    }

    /// Asserts what holds between any two inputs.
    fn assert_invariants(&self) {
        let is_complete = self.content.has_all_pages();
        self.session.assert_invariants(is_complete);
        assert!(
            self.repair.blocks().is_none() || self.content.assembly().is_some(),
            "blocks are repaired of a file that is not known"
        );
        debug_assert!(
            self.repair.blocks().is_none() || !is_complete,
            "blocks are repaired of a file that is complete"
        );
    }

    /// Returns the lowest block with enough symbols to be rebuilt. Returns each block once, and
    /// again after another page or symbol of it arrived. Call it after storing pages or symbols.
    pub fn poll_decodable(&mut self) -> Option<BlockIndex> {
        self.repair.poll_decodable()
    }

    /// Whether [`Self::poll_decodable`] would return a block.
    pub fn has_decodable(&self) -> bool {
        self.repair.has_decodable()
    }

    /// Whether all missing pages can be rebuilt.
    pub fn lacks_only_decodable(&self) -> bool {
        let missing = self.content.missing_pages();
        missing.is_some_and(|missing| missing <= self.repair.decodable_pages())
    }

    /// Blocks of the file; `None` without repair.
    pub fn block_layout(&self) -> Option<BlockLayout> {
        self.repair.layout()
    }

    /// Plan to rebuild a block; `None` if that is impossible or not needed.
    pub fn decode_plan(&self, block: BlockIndex) -> Option<DecodePlan> {
        self.repair.decode_plan(block, self.content.assembly()?.arrived())
    }

    /// Whether a plan is still valid: its pages are missing and the blocks are the same. What was
    /// read for it is then correct.
    pub fn confirms(&self, plan: &DecodePlan) -> bool {
        let assembly = self.content.assembly();
        assembly.is_some_and(|assembly| self.repair.confirms(plan, assembly.arrived()))
    }

    /// Length of the gapless part at the start from which no block will be rebuilt, in bytes.
    pub fn settled(&self) -> u64 {
        self.content.settled(self.repair.layout())
    }

    /// Starts a membership in every machine. Each depends on those before it:
    ///
    /// 1. The content has adopted the answer: the others take the geometry from it.
    /// 2. The session begins an epoch. From here on, datagrams of the former cast are refused, and
    ///    what was handed out before does not count.
    /// 3. The repair loop compares its blocks with the new ones, counts what arrived, and starts
    ///    its reporter. Requests for a report, which the others may have, would otherwise be lost.
    /// 4. The demand loop decides whether datagrams are expected unasked.
    /// 5. The rescue must know both: whether beacons will come, and whether pages will.
    /// 6. The answer may have stated a size by which the file is complete.
    fn begin(&mut self, answer: &JoinAnswer, now: Instant) {
        let is_full = self.fill() == Fill::Full;
        let resumes = self.session.begin(answer, self.content.has_pages());
        self.in_flight.clear();
        self.page_hashes.begin();
        let layout = answer.block_layout().filter(|_| is_full);
        let blocks = layout.zip(self.content.assembly().map(Assembly::arrived));
        self.repair.begin(answer, blocks, resumes, now);
        if let Some(geometry) = self.content.geometry() {
            self.demand.begin(answer, geometry, now);
        }
        self.session.expect(self.demand.expects_demanded().unwrap_or(true), now);
        let listens_to_repair = self.repair.blocks().is_some();
        // Before it knows the content id, the server sends no leaf lists.
        let has_manifest = answer.extensions.content_id.is_some();
        self.content.expect_leaf_lists(listens_to_repair && has_manifest);
        self.rescue.begin(answer, listens_to_repair, is_full, now);
        self.follow_rescue(now);
        self.report_zeros(now);
        self.end_if_complete();
    }

    // What is to be done.

    /// Runs what is due. Call it after the datagrams that have arrived were handed in: what is
    /// overdue counts as lost.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.may_want() {
            self.demand.lose_late(now);
        }
        self.want_if_due(now);
        // The rescue comes before the session, which would join again for silence.
        let view = RescueView {
            assembly: self.content.assembly(),
            sent: self.repair.sent(),
            silence: self.session.silence(),
            is_member: self.session.is_member(),
            has_token: self.session.token().is_some(),
            needs_pages: self.needs_pages(),
        };
        self.rescue.handle_timeout(&view, now);
        self.follow_rescue(now);
        self.end_reuse_if_over(now);
        self.fill_if_due(now);
        self.session.rejoin_if_ended(now);
        self.session.handle_timeout(now);
        self.request_zeros_if_due(now);
        self.report_if_due(now);
        self.verify_if_due(now);
        self.assert_invariants();
    }

    /// Requests the zero map if that is due.
    fn request_zeros_if_due(&mut self, now: Instant) {
        if self.session.token().is_some() && self.content.poll_zero_map(now) {
            self.session.queue(Action::ZeroMap);
        }
    }

    /// Requests hashes and wrong leaves that are due, while somebody reads the file or it arrives.
    fn verify_if_due(&mut self, now: Instant) {
        if !self.may_verify() {
            return;
        }
        self.content.begin_verification();
        let Some(verification) = self.content.verification_mut() else { return };
        verification.handle_timeout(now);
        while let Some(request) = verification.poll_request(now) {
            self.session.queue(Action::Lists(request));
        }
        while let Some(replacement) = verification.poll_replacement(now) {
            self.session.queue(Action::Replace(replacement));
        }
    }

    /// Whether verification goes on. If every page is here, it does without readers too: proven
    /// once, the file can be read while the server is away. It rests while a holder does it.
    fn may_verify(&self) -> bool {
        let does_holder = self.session.follows() && !self.is_told_pages;
        let is_used = self.session.is_member() || self.session.readers() > 0 && !does_holder;
        (is_used || self.content.has_all_pages()) && self.session.failure().is_none()
    }

    /// Returns leaves to check.
    pub fn poll_check(&mut self) -> Option<Check> {
        self.content.verification_mut()?.poll_check()
    }

    /// Whether [`Self::poll_check`] would return leaves.
    pub fn has_check(&self) -> bool {
        self.content.verification().is_some_and(Verification::has_check)
    }

    /// Whether leaves must be checked at once, instead of some of them together: nothing more
    /// arrives, or a reader waits for leaves that are here, and does not just follow the stream.
    pub fn must_check(&self, now: Instant) -> bool {
        let is_wanted = self.content.verification().is_some_and(Verification::has_urgent_check);
        let is_streamed = self.session.is_member() && self.fill() == Fill::Full;
        let follows = is_streamed && !self.demand.is_waiting() && !self.demand.is_hurried(now);
        self.content.has_all_pages() || (is_wanted && !follows)
    }

    /// Addresses of the senders of the pages around a leaf, as far as they are known.
    pub fn senders_of_leaf(&self, leaf: u64) -> Vec<SocketAddr> {
        let Some((tree, geometry)) = self.tree().zip(self.content.geometry()) else {
            return Vec::new();
        };
        self.session.addresses(&tree.leaf(leaf), geometry)
    }

    /// Returns hashes that became known since the last call, to keep with the bytes.
    pub fn poll_learned(&mut self) -> Option<Learned> {
        self.content.verification_mut()?.poll_learned()
    }

    /// Returns why these bytes will not be verified for now, if that is so.
    pub fn refuted(&self, bytes: &Range<u64>) -> Option<Refuted> {
        self.content.refuted(bytes)
    }

    /// Length of the verified part at the start, in bytes. `None` where leaves are not verified, so
    /// that pages may be read as soon as they are here.
    pub fn verified_contiguous(&self) -> Option<u64> {
        self.content.verified_contiguous()
    }

    /// Number of verified bytes. `None` where leaves are not verified.
    pub fn verified_bytes(&self) -> Option<u64> {
        self.content.verification().map(Verification::verified_bytes)
    }

    /// Counters of the present cast, by its newest beacon; `None` without one.
    pub fn cast_counts(&self) -> Option<CastCounts> {
        self.is_member().then(|| self.repair.cast_counts()).flatten()
    }

    /// Whether leaves are checked, or hashes are on their way.
    pub fn is_verifying(&self) -> bool {
        self.content.verification().is_some_and(Verification::is_busy)
    }

    /// Division of the file into leaves, once its size is known. `None` where leaves are not
    /// verified.
    pub fn tree(&self) -> Option<ContentTree> {
        self.content.verification().map(|verification| *verification.tree())
    }

    /// Hash of the content, once all bytes are found to be those of it.
    pub fn proven_content(&self) -> Option<ContentId> {
        self.content.content_id().filter(|_| self.is_complete())
    }

    /// Hash of the content, once known.
    pub fn content_id(&self) -> Option<ContentId> {
        self.content.content_id()
    }

    /// Issues a demand if one is due: the part of [`Self::handle_timeout`] for callers that cannot
    /// execute other actions.
    pub fn want_if_due(&mut self, now: Instant) {
        if !self.may_want() {
            return;
        }
        let file = FileView { assembly: self.content.assembly(), blocks: self.repair.blocks() };
        self.demand.handle_timeout(file, now);
        if let Some(is_waiting) = self.demand.expects_demanded() {
            self.session.expect(is_waiting, now);
            self.rescue.expect(is_waiting, now);
        }
        for pages in self.demand.take_overdue() {
            self.rescue.fetch_now(pages);
        }
    }

    /// Whether demands may go out; a member that receives nothing fetches instead.
    fn may_want(&self) -> bool {
        let is_member = self.session.token().is_some() && !self.content.has_all_pages();
        is_member && self.rescue.may_want()
    }

    fn report_if_due(&mut self, now: Instant) {
        let multicast = self.multicast();
        if self.session.token().is_none() || !self.repair.is_report_due(multicast, now) {
            return;
        }
        let (useful, state) = (self.session.useful(), self.rescue.report_state());
        let report = self.repair.make_report(useful, state, multicast, now);
        let zeros = self.content.has_zeros();
        self.session.queue(Action::Report(Report { zeros, ..report }));
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let has_token = self.session.token().is_some();
        let report = has_token.then(|| self.repair.poll_timeout(self.multicast()));
        let demand = self.may_want().then(|| self.demand.poll_timeout());
        let is_member = self.session.is_member();
        let rescue = is_member.then(|| self.rescue.poll_timeout(self.session.silence()));
        let zeros = has_token.then(|| self.content.zero_map_timeout());
        let others = [report, demand, rescue, zeros].into_iter().map(Option::flatten);
        let verification = self.content.verification().filter(|_| self.may_verify());
        let verification = verification.and_then(Verification::poll_timeout);
        let reuse = self.reuse_timeout();
        let own = [self.session.poll_timeout(), self.intent_timeout(), verification, reuse];
        others.chain(own).flatten().min()
    }

    /// Returns the next action.
    pub fn poll_action(&mut self) -> Option<Action> {
        let is_deaf = self.rescue.is_deaf();
        let mut actions = std::iter::from_fn(|| self.session.poll_action());
        let action = actions.find(|action| !(is_deaf && matches!(action, Action::Subscribe(_))));
        action.or_else(|| self.poll_want().map(Action::Want))
    }

    /// Whether [`Self::poll_action`] is worth asking at once.
    pub fn has_action(&self) -> bool {
        self.session.has_action()
    }

    /// Returns a demand to send now, which [`Self::poll_action`] would return last. Call it after
    /// [`Self::handle_timeout`].
    pub fn poll_want(&mut self) -> Option<Want> {
        self.demand.poll_want().inspect(|_| self.rescue.wanted())
    }

    /// Whether [`Self::poll_fetch`] may return a request.
    pub fn may_fetch(&self) -> bool {
        self.rescue.may_fetch()
    }

    /// Returns a request to send. `oldest` holds the bytes that the longest waiting reader asked
    /// for. Report progress with [`Self::handle_fetched`] and the end with
    /// [`Self::handle_fetch_end`].
    pub fn poll_fetch(&mut self, oldest: Option<&Range<u64>>, now: Instant) -> Option<Fetch> {
        let scope = self.fetch_scope()?;
        let (geometry, held) = (self.content.geometry()?, self.content.not_to_fetch()?);
        let missing = Missing { geometry, held: &held, oldest, scope };
        self.rescue.poll_fetch(&missing, now)
    }

    /// Returns what the user is to be told since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.rescue.take_notices()
    }

    /// Returns what may be fetched at present; `None` if nothing is needed.
    fn fetch_scope(&self) -> Option<Scope> {
        let fill = if self.reuse.is_asking() { Fill::Full } else { self.fill() };
        self.needs_pages().then(|| self.rescue.scope(fill))
    }

    /// Whether this client is a member and lacks pages that can still arrive.
    fn needs_pages(&self) -> bool {
        self.session.failure().is_none()
            && self.session.is_member()
            && !self.content.has_all_pages()
    }

    /// Lets the other machines do what the rescue decided.
    fn follow_rescue(&mut self, now: Instant) {
        while let Some(event) = self.rescue.poll_event() {
            match event {
                RescueEvent::Report => self.repair.request_report(now),
                RescueEvent::Silence(silence) => self.session.expect_silence(silence),
                RescueEvent::MulticastReturned => {
                    self.session.record_sign_of_life(now);
                    self.repair.start_over();
                }
                RescueEvent::Relisten => self.session.relisten(),
                RescueEvent::Want(want) => self.session.queue(Action::Want(want)),
            }
        }
    }

    fn multicast(&self) -> MulticastView {
        MulticastView {
            is_relied_on: self.rescue.relies_on_multicast(),
            is_suspect: self.rescue.is_suspect(self.repair.sent()),
        }
    }

    // What is known.

    /// Facts that datagrams are checked against at present.
    pub fn gate(&self) -> &Gate {
        self.session.gate()
    }

    /// Names the present membership. What is handed out in one counts in no other.
    pub fn epoch(&self) -> Epoch {
        self.session.epoch()
    }

    /// Which pages should arrive.
    pub fn fill(&self) -> Fill {
        self.demand.fill()
    }

    /// Whether every page is here.
    pub fn has_all_pages(&self) -> bool {
        self.content.has_all_pages()
    }

    /// Whether every byte may be read.
    pub fn is_complete(&self) -> bool {
        self.content.is_complete()
    }

    /// Whether all of these bytes are here.
    pub fn holds(&self, bytes: &Range<u64>) -> bool {
        self.content.holds(bytes)
    }

    /// First of these bytes that may be read, without a gap.
    pub fn first_readable(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        self.content.first_readable(bytes)
    }

    /// Bytes that must arrive before these may be read; `None` if all of them are here.
    pub fn lacking(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        self.content.lacking(bytes)
    }

    /// First missing bytes among these that the server cannot read.
    pub fn unreadable(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        self.content.unreadable(bytes)
    }

    /// Exact size, once known.
    pub fn size(&self) -> Option<u64> {
        self.content.size()
    }

    /// Version, once known. A plain server names none.
    pub fn etag(&self) -> Option<&Etag> {
        self.content.etag()
    }

    /// Why missing pages can never arrive, if so.
    pub fn failure(&self) -> Option<&Failure> {
        self.session.failure()
    }

    /// Pages that arrived, once the page size is known.
    pub fn assembly(&self) -> Option<&Assembly> {
        self.content.assembly()
    }

    /// Datagrams so far, by result.
    pub fn counters(&self) -> Counters {
        let wrong_leaves = self.content.verification().map_or(0, Verification::wrong_total);
        Counters { wrong_leaves, ..self.counters }
    }

    /// Pages and symbols of the present membership that were new.
    pub fn useful(&self) -> u64 {
        self.session.useful()
    }

    /// Returns how the file arrives at present. A file fetched by choice learns nothing about
    /// multicast.
    pub fn reception(&self) -> Reception {
        self.rescue.reception()
    }

    /// Whether a random reader waits, so that the time of each page matters.
    pub fn is_hurried(&self, now: Instant) -> bool {
        self.demand.is_hurried(now)
    }

    /// Whether the file is fetched over HTTP at present, by choice or not.
    pub fn is_fetching(&self) -> bool {
        !self.rescue.relies_on_multicast()
    }

    /// Number of readers.
    pub fn readers(&self) -> usize {
        self.session.readers()
    }

    /// Whether there is nothing to do for this file except to keep it.
    pub fn is_idle(&self) -> bool {
        let follows = self.session.follows() && self.session.readers() > 0;
        self.session.is_idle() && !follows && !(self.is_verifying() && self.may_verify())
    }

    /// Whether this version can be opened: the server confirmed it in this membership, or all of it
    /// is here, or the server is away and some of it is here, or another process receives it.
    pub fn is_confirmed(&self) -> bool {
        let begun = self.content.assembly().is_some();
        let is_tried = self.is_member() || self.join_failures() > 0 || self.session.follows();
        begun && (self.content.has_all_pages() || is_tried)
    }

    /// Whether it is a member of a cast.
    pub fn is_member(&self) -> bool {
        self.session.is_member()
    }

    /// Token of the present membership.
    pub fn token(&self) -> Option<&Token> {
        self.session.token()
    }

    /// Joins in a row that failed.
    pub fn join_failures(&self) -> u32 {
        self.session.join_failures()
    }

    /// Fetches in a row that brought nothing.
    pub fn fetch_failures(&self) -> u32 {
        self.rescue.fetch_failures()
    }
}

#[cfg(test)]
mod tests;
