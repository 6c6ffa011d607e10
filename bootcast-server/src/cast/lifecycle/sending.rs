//! What a cast sends next.

use std::time::Instant;

use bootcast_proto::PageRange;
use bootcast_proto::wire::Beacon;

use super::super::stream::Audience;
use super::{Cast, EndReason, Sending, State};

impl Cast {
    /// Returns the next urgent pages, which readers wait for, at most `budget`. A due beacon goes
    /// first.
    pub fn poll_urgent(&mut self, budget: u32, now: Instant) -> Option<Sending> {
        if self.urgent_since().is_none() || budget == 0 {
            return None;
        }
        if self.state == State::Serving
            && let Some(beacon) = self.poll_beacon(now)
        {
            return Some(Sending::Beacon(beacon));
        }
        self.poll_urgent_pages(budget, now)
    }

    /// Returns what [`Self::poll_urgent`] does, without beacons.
    pub(in crate::cast) fn poll_urgent_pages(
        &mut self,
        budget: u32,
        now: Instant,
    ) -> Option<Sending> {
        if !self.sends_demand() || budget == 0 {
            return None;
        }
        if let Some(list) = self.leaf_lists.poll_demanded() {
            self.precedence.on_prioritised_sent(1, budget.into());
            return Some(Sending::LeafList(list));
        }
        let pages = self.demand.poll_urgent(budget, now)?;
        self.profile.on_sent(pages);
        let sending = self.send_first(pages, budget);
        self.assert_sendable(&sending, budget);
        Some(sending)
    }

    /// Returns since when [`Self::poll_urgent`] has had datagrams, and how many it returns with
    /// this
    /// `budget`; `None` while it has none.
    pub fn next_urgent(&self, budget: u32) -> Option<(Instant, u32)> {
        let since = self.urgent_since()?;
        let lists = self.leaf_lists.demanded().min(1);
        Some((since, if lists > 0 { lists } else { self.demand.next_urgent(budget) }))
    }

    /// Returns an upper bound of the number of urgent datagrams: pages, and lists ahead of them.
    pub fn urgent_pages(&self) -> u32 {
        if self.sends_demand() {
            self.demand.urgent_pages().saturating_add(self.leaf_lists.demanded())
        } else {
            0
        }
    }

    /// Returns the next datagrams other than urgent pages, at most as long on the wire as `budget`
    /// full pages. `None` until [`Self::poll_transmit_at`].
    pub fn poll_transmit(&mut self, budget: u32, now: Instant) -> Option<Sending> {
        self.assert_invariants();
        let sending = self.poll_not_urgent(budget, now)?;
        self.assert_sendable(&sending, budget);
        Some(sending)
    }

    fn poll_not_urgent(&mut self, budget: u32, now: Instant) -> Option<Sending> {
        if !self.sends_demand() || budget == 0 {
            return None;
        }
        if self.state == State::Serving
            && let Some(beacon) = self.poll_beacon(now).or_else(|| self.poll_probe_beacon(now))
        {
            return Some(Sending::Beacon(beacon));
        }
        if let Some(pages) = self.poll_probe_pages(budget, now) {
            return Some(Sending::Pages(pages));
        }
        if self.precedence.must_yield(budget.into()) {
            if let Some(other) = self.poll_undemanded(budget, now) {
                return Some(other);
            }
            self.precedence.on_others_idle();
        }
        if self.state == State::Serving
            && let Some(pages) = self.poll_profile_pages(budget, now)
        {
            return Some(self.send_first(pages, budget));
        }
        if let Some(pages) = self.demand.poll_later(budget, now) {
            self.profile.on_sent(pages);
            return Some(self.send_first(pages, budget));
        }
        if let Some(other) = self.poll_undemanded(budget, now) {
            return Some(other);
        }
        let pages = self.demand.poll_idle(budget, now)?;
        self.profile.on_sent(pages);
        if let Some(repair) = self.active_repair() {
            repair.on_sent();
        }
        Some(Sending::Pages(pages))
    }

    /// Returns the earliest time at which [`Self::poll_transmit`] has something. It may be past.
    pub fn poll_transmit_at(&self) -> Option<Instant> {
        if !self.sends_demand() {
            return None;
        }
        let later = [self.demand.later_since(), self.demand.idle_since()];
        let later = later.into_iter().flatten().min();
        if self.state != State::Serving {
            return later;
        }
        let situation = self.situation();
        let is_active = self.members.repair_receivers() > 0;
        let repair = self.repair.as_ref().filter(|_| is_active);
        let repair = repair.and_then(|repair| repair.poll_at(situation));
        let probe = self.probe.poll_at(&self.members);
        let stream = self.stream.poll_at(self.audience());
        let profile = self.profile.poll_at();
        [later, profile, stream, self.leaf_lists_at(), repair, probe].into_iter().flatten().min()
    }
}

impl Cast {
    /// Returns the beacon of a multicast probe if one is due.
    fn poll_probe_beacon(&mut self, now: Instant) -> Option<Beacon> {
        let is_due = self.probe.poll_at(&self.members).is_some_and(|at| at <= now);
        if !is_due || !self.probe.is_beacon_next() {
            return None;
        }
        self.probe.on_beacon(now);
        let situation = self.situation();
        Some(self.repair.as_mut()?.beacon(situation, now))
    }

    /// Returns pages of a multicast probe if some are due.
    fn poll_probe_pages(&mut self, budget: u32, now: Instant) -> Option<PageRange> {
        let is_due = self.probe.poll_at(&self.members).is_some_and(|at| at <= now);
        if self.state != State::Serving || !is_due {
            return None;
        }
        let pages = self.probe.poll_pages(self.pages, budget)?;
        self.unreadable.first_in(pages).is_none().then_some(pages)
    }

    fn poll_beacon(&mut self, now: Instant) -> Option<Beacon> {
        let situation = self.situation();
        self.active_repair()?.poll_beacon(situation, now)
    }

    /// Returns fill symbols. If windows are deferred and everything promised is sent, returns pages
    /// of these windows instead.
    fn poll_fill(&mut self, budget: u32, now: Instant) -> Option<Sending> {
        let situation = self.situation();
        if self.active_repair()?.is_idle(situation, now) && self.stream.want_deferred() {
            self.active_repair()?.on_change(now);
            self.notify_repair();
            return self.poll_stream(budget, now);
        }
        let symbols = self.active_repair()?.poll_fill(budget, situation, now)?;
        self.stream_was_last = false;
        Some(Sending::Symbols(symbols))
    }

    /// Counts pages that go before others, demanded or of the profile, and wraps them.
    fn send_first(&mut self, pages: PageRange, budget: u32) -> Sending {
        self.precedence.on_prioritised_sent(pages.len().into(), budget.into());
        if let Some(repair) = self.active_repair() {
            repair.on_sent();
        }
        Sending::Pages(pages)
    }

    /// Returns datagrams that were not demanded: leaf lists that are queued, promised symbols, then
    /// the stream and fill symbols in turn.
    fn poll_undemanded(&mut self, budget: u32, now: Instant) -> Option<Sending> {
        if self.state != State::Serving {
            return None;
        }
        let list = self.poll_queued_leaf_list().map(Sending::LeafList);
        let sending = list.or_else(|| self.poll_promised(budget)).or_else(|| {
            let fill = if self.stream_was_last { self.poll_fill(budget, now) } else { None };
            fill.or_else(|| self.poll_stream(budget, now)).or_else(|| self.poll_fill(budget, now))
        })?;
        self.precedence.on_others_sent(sending.datagrams().into());
        Some(sending)
    }

    pub(in crate::cast) fn poll_promised(&mut self, budget: u32) -> Option<Sending> {
        let symbols = self.active_repair()?.poll_promised(budget)?;
        Some(Sending::Symbols(symbols))
    }

    fn poll_stream(&mut self, budget: u32, now: Instant) -> Option<Sending> {
        let audience = self.audience();
        self.skip_zeros(audience, now);
        if let Some(list) = self.poll_leaf_list(audience, now) {
            self.stream_was_last = true;
            return Some(Sending::LeafList(list));
        }
        let budget = budget.min(self.pages_until_leaf_list(audience));
        let is_wanted = self.stream.is_wanted();
        let run = self.stream.poll(budget, audience, now)?;
        self.stream_was_last = true;
        if !(is_wanted && self.members.has_proven()) {
            self.members.charge(u64::from(run.pages.len()) * self.page_bytes);
        }
        self.demand.on_sent(run.pages, now);
        self.profile.on_sent(run.pages);
        self.on_stream_pages(run.pages, audience, now);
        let members = self.members.receivers();
        if let Some(repair) = self.active_repair() {
            repair.on_sent();
            if let Some(window) = run.finished {
                repair.on_window(window, members, now);
            }
        }
        self.notify_repair();
        if audience == Audience::Everybody {
            self.count_carousel(run.pages);
        }
        Some(Sending::Pages(run.pages))
    }

    /// Leaves out the pages of zeros that come next, and ends the windows that they are the end of.
    fn skip_zeros(&mut self, audience: Audience, now: Instant) {
        if audience != Audience::ZeroMapHolders {
            return;
        }
        let members = self.members.receivers();
        while let Some(window) = self.stream.skip_zeros(audience, now) {
            if let Some(repair) = self.active_repair() {
                repair.on_window(window, members, now);
            }
        }
        self.notify_repair();
    }

    /// Counts pages of the carousel, and forgets plain members that got all their passes.
    fn count_carousel(&mut self, pages: PageRange) {
        self.carousel_pages += u64::from(pages.len());
        let any_forgotten = self.members.forget_finished_plain(self.carousel_pages);
        if any_forgotten && self.members.is_empty() {
            self.end(EndReason::IdlePasses);
        }
    }
}
