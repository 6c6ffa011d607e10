//! Inputs of a [`Receiver`] that concern senders that forge. docs/PROTOCOL.md, "Senders that
//! forge".

use std::time::Instant;

use bootcast_proto::wire::Page;
use bootcast_proto::{PageHash, PageRange};

use super::page_hashes::Verdict;
use super::{Action, Assembly, Check, DecodePlan, Finding, HashRequest, Receiver, Replacement};

impl Receiver {
    /// Handles the bytes that were checked, before the result: they show who sent wrong pages.
    pub fn handle_checked_bytes(
        &mut self,
        check: &Check,
        finding: &Finding,
        bytes: &[u8],
        now: Instant,
    ) {
        let Finding::Wrong(wrong) = finding else { return };
        let Some(geometry) = self.content.geometry().filter(|_| self.content.is_current(check))
        else {
            return;
        };
        let (senders, layout) = (self.session.senders_mut(), self.repair.layout());
        for (leaf, start, own) in check.leaves_of(bytes) {
            if wrong.contains(&leaf) {
                senders.handle_wrong(leaf, start, own, geometry, layout);
            } else {
                senders.handle_right(leaf, start, own, geometry);
            }
        }
        self.ignore_forgers(now);
    }

    /// Handles wrong leaves that were fetched, before the result: `wrong` are wrong again.
    pub fn handle_fetched_leaves(
        &mut self,
        leaves: &Replacement,
        wrong: &[u64],
        bytes: &[u8],
        now: Instant,
    ) {
        let Some(geometry) = self.content.geometry() else { return };
        let senders = self.session.senders_mut();
        let parts = leaves.check().leaves_of(bytes);
        for (leaf, _, own) in parts.filter(|(leaf, ..)| !wrong.contains(leaf)) {
            senders.handle_replaced(leaf, own, geometry);
        }
        self.ignore_forgers(now);
    }

    /// Listens no more to senders that forged again and again. If the server cannot be told from
    /// them, compares each page with its hash.
    pub(super) fn ignore_forgers(&mut self, now: Instant) {
        while let Some(sender) = self.session.ignore_next() {
            self.rescue.notify_forger(sender);
            self.repair.forget_beacons(now);
            self.page_hashes.stop();
        }
        let is_exact = self.content.assembly().is_some_and(|assembly| assembly.size().is_some());
        if let Some(geometry) = self.content.geometry().filter(|_| is_exact)
            && self.session.is_nobody_to_blame()
            && self.page_hashes.start(*geometry)
        {
            self.rescue.notify_comparing();
        }
    }

    /// Whether a missing page counts: it is the server's, or there was no reason to compare it.
    pub(super) fn is_servers(&mut self, page: Page<'_>, now: Instant) -> bool {
        if !self.page_hashes.is_on() {
            return true;
        }
        let arrived = self.content.assembly().map(Assembly::arrived);
        let is_missing = |pages| arrived.is_some_and(|it| it.first_missing(pages).is_some());
        let verdict = self.page_hashes.check(page.index, page.payload, is_missing);
        self.request_page_hashes(now);
        verdict == Verdict::Right
    }

    fn request_page_hashes(&mut self, now: Instant) {
        while let Some(request) = self.page_hashes.poll_request(now) {
            self.session.queue(Action::PageHashes(request));
        }
    }

    /// Handles the answer to a request for page hashes. `None`: it failed.
    pub fn handle_page_hashes(
        &mut self,
        request: &HashRequest,
        hashes: Option<Vec<PageHash>>,
        now: Instant,
    ) {
        self.page_hashes.handle_answer(request, hashes, now);
        self.request_page_hashes(now);
    }

    /// Whether rebuilt pages count: `pages` are the missing ones of the plan, in its order.
    /// Otherwise something was wrong that they were rebuilt from: the symbols of the block count as
    /// lost, and the pages are fetched.
    pub fn admits_rebuilt<'a>(
        &mut self,
        plan: &DecodePlan,
        pages: impl Iterator<Item = &'a [u8]>,
    ) -> bool {
        let mut missing = plan.missing.iter().map(|(_, page)| *page).zip(pages);
        let is_wrong =
            |(page, bytes): (_, &[u8])| self.page_hashes.compare(page, bytes) == Verdict::Wrong;
        if !self.rescue.may_fetch_named() || !missing.any(is_wrong) {
            return true;
        }
        self.repair.symbols_lost(plan);
        for (_, page) in &plan.missing {
            self.rescue.fetch_now(PageRange::single(*page));
        }
        false
    }
}
