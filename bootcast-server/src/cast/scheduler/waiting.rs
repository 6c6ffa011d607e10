//! Datagrams whose bytes are not read yet. Their cast waits; the others send.
//!
//! The driver takes such datagrams back. They lose neither their turn nor their share: a cast pays
//! for them once, when they are first handed out. Only the wire is paid for when they leave.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::{CastId, Polled, Scheduler, Sending, Transmit, datagrams, wire_bytes};

/// Order in which a cast's datagrams are handed out. Urgent pages do not wait for the bytes of
/// others; the others wait for those of urgent pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Everything that casts send in turn: stream, symbols, beacons, and demanded pages that no
    /// reader waits for.
    Turn,
    /// Urgent pages, which readers wait for.
    Urgent,
}

/// Datagrams that were taken back, at most those of one poll for each cast and lane.
#[derive(Debug, Default)]
pub(super) struct WaitingTransmits {
    transmits: BTreeMap<(CastId, Lane), Transmit>,
    /// Keys of those whose bytes have been read since, oldest first.
    ready: VecDeque<(CastId, Lane)>,
}

impl WaitingTransmits {
    /// Whether datagrams of this cast and lane were taken back and not handed out again.
    pub(super) fn contains(&self, cast: CastId, lane: Lane) -> bool {
        self.transmits.contains_key(&(cast, lane))
    }

    /// Whether datagrams of this cast were taken back and not handed out again.
    pub(super) fn contains_any_of(&self, cast: CastId) -> bool {
        let lanes = (cast, Lane::Turn)..=(cast, Lane::Urgent);
        self.transmits.range(lanes).next().is_some()
    }

    /// Whether any cast has datagrams here.
    pub(super) fn is_empty(&self) -> bool {
        self.transmits.is_empty()
    }

    /// Returns the datagrams that became ready first.
    fn front(&self) -> Option<&Transmit> {
        self.transmits.get(self.ready.front()?)
    }

    /// Removes the datagrams that became ready first.
    fn pop(&mut self) -> Option<Transmit> {
        self.transmits.remove(&self.ready.pop_front()?)
    }

    /// Drops the datagrams of a cast.
    pub(super) fn forget(&mut self, cast: CastId) {
        self.retain(|transmit| transmit.cast != cast);
    }

    /// Drops the datagrams to a group.
    pub(super) fn forget_group(&mut self, group: Ipv4Addr) {
        self.retain(|transmit| *transmit.group.ip() != group);
    }

    fn retain(&mut self, stays: impl Fn(&Transmit) -> bool) {
        self.transmits.retain(|_, transmit| stays(transmit));
        self.ready.retain(|key| self.transmits.contains_key(key));
    }
}

impl Scheduler {
    /// Takes datagrams back that were handed out last, because their bytes are not read yet. Their
    /// cast is passed over until [`Self::handle_ready`], except for its urgent pages if these
    /// datagrams are others. The cast may have ended with them.
    pub fn handle_waiting(&mut self, transmit: Transmit) {
        let Transmit { cast, lane, .. } = transmit;
        assert!(
            !self.waiting.contains(cast, lane),
            "cast {cast} hands out datagrams while it waits"
        );
        self.pacer.refund(self.wire_bytes_of(&transmit));
        // Beacons and counters must not count them.
        self.handle_unsent(cast, &transmit.content);
        self.waiting.transmits.insert((cast, lane), transmit);
    }

    /// Lets datagrams that were taken back be handed out again, because their bytes have been read
    /// or cannot be. Ignores casts and lanes that do not wait.
    pub fn handle_ready(&mut self, cast: CastId, lane: Lane) {
        let (key, waiting) = ((cast, lane), &mut self.waiting);
        if waiting.transmits.contains_key(&key) && !waiting.ready.contains(&key) {
            waiting.ready.push_back(key);
        }
    }

    /// Whether a cast waits for bytes. It may have ended.
    pub fn is_waiting(&self, cast: CastId) -> bool {
        self.waiting.contains_any_of(cast)
    }

    /// Hands out datagrams again whose bytes have been read meanwhile.
    pub(super) fn poll_ready(&mut self, now: Instant) -> Polled {
        let Some(front) = self.waiting.front() else { return Polled::Nothing };
        let cost = self.wire_bytes_of(front);
        if !self.pacer.allows(cost, now) {
            return Polled::Throttled;
        }
        let transmit = self.waiting.pop().expect("looked at above");
        let Some(running) = self.casts.get_mut(&transmit.cast) else {
            // It ended with these datagrams, and has paid for them.
            return Polled::Sent(transmit);
        };
        running.control.on_sent(datagrams(&transmit.content), now);
        if let Sending::Pages(pages) = transmit.content {
            running.cast.handle_sent_late(pages.len());
        }
        self.count(&transmit.content);
        self.charge(cost, now);
        Polled::Sent(transmit)
    }

    /// Returns when the next datagrams that are ready may leave.
    pub(super) fn ready_transmit_at(&self) -> Option<Instant> {
        let cost = self.wire_bytes_of(self.waiting.front()?);
        Some(self.pacer.ready_at(cost, Duration::ZERO))
    }

    /// Returns the bytes on the wire of datagrams; 0 if their cast has ended.
    fn wire_bytes_of(&self, transmit: &Transmit) -> u64 {
        let running = self.casts.get(&transmit.cast);
        running.map_or(0, |running| wire_bytes(&running.geometry, &transmit.content))
    }
}
