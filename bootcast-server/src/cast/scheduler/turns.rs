//! Turns of the casts, and what is counted and charged for the datagrams that they hand out.

use std::net::SocketAddrV4;
use std::time::Instant;

use super::{CastId, Lane, Polled, Scheduler, Sending, Transmit, datagrams, wire_bytes};

impl Scheduler {
    /// Polls all casts in turn for datagrams other than urgent pages.
    pub(super) fn poll_turns(&mut self, now: Instant) -> Polled {
        let mut are_casts_throttled = false;
        // Polls each cast once, and the front twice if its turn ends.
        for _ in 0..=self.turns.len() {
            let Some(&id) = self.turns.front() else { return Polled::Nothing };
            let running = self.casts.get_mut(&id).expect("turns lists running casts");
            let page_wire = running.geometry.page_size().wire_len();
            let batch = u64::from(self.settings.batch_pages) * page_wire;
            if !self.pacer.allows(batch, now) {
                return Polled::Throttled;
            }
            // Less urgent pages must not overtake those that readers wait for.
            if self.waiting.contains_any_of(id) {
                // It keeps what is left of this turn, but not of all turns that it waited in.
                running.deficit = running.deficit.min(batch * running.weight());
                running.control.on_idle();
                self.next_turn();
                continue;
            }
            if !running.allowance.allows(now) {
                are_casts_throttled |= running.cast.poll_transmit_at().is_some_and(|at| at <= now);
                running.deficit = 0;
                self.next_turn();
                continue;
            }
            if !self.has_quantum {
                running.deficit += batch * running.weight();
                self.has_quantum = true;
            }
            let affordable = u32::try_from(running.deficit / page_wire).unwrap_or(u32::MAX);
            let budget = affordable.min(running.allowance.batch_pages());
            let before = (running.cast.demanded(), running.cast.profile_pages());
            if let Some(content) = running.cast.poll_transmit(budget, now) {
                let after = (running.cast.demanded(), running.cast.profile_pages());
                self.totals.demanded += after.0 - before.0;
                let demanded = after != before;
                let cost = wire_bytes(&running.geometry, &content);
                running.deficit = running.deficit.saturating_sub(cost);
                self.urgent.on_others_sent(cost);
                let transmit = self.hand_out(id, content, demanded, cost, now);
                return Polled::Sent(transmit);
            }
            if running.cast.poll_transmit_at().is_none_or(|at| now < at) {
                running.deficit = 0;
                running.allowance.on_idle();
                running.control.on_idle();
            }
            self.next_turn();
        }
        if are_casts_throttled { Polled::CastsThrottled } else { Polled::Nothing }
    }

    /// Ends the turn of the front: moves it to the back.
    fn next_turn(&mut self) {
        self.turns.rotate_left(1);
        self.has_quantum = false;
    }

    /// Counts and charges datagrams of a cast, completes beacons, and adds the destination.
    pub(super) fn hand_out(
        &mut self,
        id: CastId,
        mut content: Sending,
        demanded: bool,
        cost: u64,
        now: Instant,
    ) -> Transmit {
        let running = self.casts.get_mut(&id).expect("it has something to send");
        let count = content.datagrams();
        assert!(count <= self.settings.batch_pages, "{count} datagrams do not fit a batch");
        debug_assert!(!demanded || matches!(content, Sending::Pages(_)), "only pages are demanded");
        if let Sending::Beacon(beacon) = &mut content {
            beacon.pace = running.control.pace(running.cast.reporting_members());
        }
        running.control.on_sent(datagrams(&content), now);
        running.end_opening(now);
        running.allowance.take(cost, now);
        let group = self.destination(id, &content);
        self.count(&content);
        self.charge(cost, now);
        self.reap(id, now);
        Transmit { cast: id, group, content, demanded, lane: Lane::Turn }
    }

    /// Returns the group of a cast with the port for this kind of datagram.
    pub(super) fn destination(&self, id: CastId, content: &Sending) -> SocketAddrV4 {
        let group = self.casts[&id].group;
        match (content, &self.settings.repair) {
            (Sending::Pages(_), _) | (_, None) => group,
            (
                Sending::Symbols(_) | Sending::Beacon(_) | Sending::LeafList(_) | Sending::End(_),
                Some(repair),
            ) => SocketAddrV4::new(*group.ip(), repair.repair_port),
        }
    }

    /// Adds pages and symbols to the totals.
    pub(super) fn count(&mut self, content: &Sending) {
        match content {
            Sending::Pages(pages) => self.totals.pages_sent += u64::from(pages.len()),
            Sending::Symbols(symbols) => self.totals.symbols_sent += symbols.len() as u64,
            Sending::Beacon(_) | Sending::LeafList(_) | Sending::End(_) => {}
        }
    }
}
