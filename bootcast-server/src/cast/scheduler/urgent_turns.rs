//! Scheduling of urgent pages, which readers wait for.

use std::time::{Duration, Instant};

use super::super::Sending;
use super::{CastId, Lane, Polled, Running, Scheduler, Transmit, wire_bytes};

impl Scheduler {
    /// Polls the urgent casts in turn. Skips those whose own allowance does not let them send yet.
    pub(super) fn poll_urgent(&mut self, now: Instant) -> Polled {
        let mut skipped = 0;
        while let Some(id) = self.urgent.front().filter(|_| skipped < self.urgent.len()) {
            if self.waiting.contains(id, Lane::Urgent) {
                self.urgent.skip();
                skipped += 1;
                continue;
            }
            let Some((_, bytes)) = self.urgent_run(id) else {
                self.urgent.pop();
                continue;
            };
            if !self.pacer.allows(bytes, now) {
                return Polled::Throttled;
            }
            let running = self.casts.get_mut(&id).expect("it has an urgent run");
            if running.urgent_allowance().is_some_and(|own| !own.allows(now)) {
                self.urgent.skip();
                skipped += 1;
                continue;
            }
            let budget = running.urgent_budget(self.settings.batch_pages);
            // A beacon would state a position behind pages that wait for their bytes.
            let content = if self.waiting.contains(id, Lane::Turn) {
                running.cast.poll_urgent_pages(budget, now)
            } else {
                running.cast.poll_urgent(budget, now)
            };
            let Some(content) = content else {
                self.urgent.pop();
                continue;
            };
            let cost = wire_bytes(&running.geometry, &content);
            let is_estimated = matches!(content, Sending::Pages(_));
            debug_assert!(!is_estimated || cost <= bytes, "{cost} bytes, but {bytes} were allowed");
            self.urgent.on_sent(cost, self.batch_wire);
            let demanded = matches!(content, Sending::Pages(_));
            if demanded {
                self.totals.demanded += u64::from(content.datagrams());
            }
            let transmit = self.hand_out(id, content, demanded, cost, now);
            return Polled::Sent(Transmit { lane: Lane::Urgent, ..transmit });
        }
        if skipped > 0 { Polled::CastsThrottled } else { Polled::Nothing }
    }

    /// Estimates the time until all urgent pages of a cast are sent. Meanwhile the other urgent
    /// casts send in turn with it, and everything else takes up to a tenth of the rate.
    pub(super) fn urgent_queue(&self, id: CastId, now: Instant) -> Duration {
        let bytes_of = |id| {
            let running: &Running = self.casts.get(&id)?;
            let page_wire = running.geometry.page_size().wire_len();
            Some(u64::from(running.cast.urgent_pages()) * page_wire)
        };
        let Some(own) = bytes_of(id).filter(|own| *own > 0) else { return Duration::ZERO };
        let others = self.urgent.iter().filter(|other| *other != id);
        let others: u64 = others.filter_map(bytes_of).map(|other| other.min(own)).sum();
        let at_the_ceiling = self.settings.rate.time_to_send(own + others);
        let running = self.casts.get(&id).filter(|running| running.urgent_allowance().is_some());
        let at_its_rate = running.map(|running| running.control.rate().time_to_send(own));
        let sending = at_its_rate.map_or(at_the_ceiling, |time| time.max(at_the_ceiling));
        let starts_in = self.pacer.ready_at(0, Duration::ZERO).saturating_duration_since(now);
        starts_in + sending * 10 / 9
    }

    /// Returns since when readers have waited for the next urgent run of a cast, and the bytes that
    /// the run occupies on the wire.
    pub(super) fn urgent_run(&self, id: CastId) -> Option<(Instant, u64)> {
        let running = self.casts.get(&id)?;
        let budget = running.urgent_budget(self.settings.batch_pages);
        let (since, pages) = running.cast.next_urgent(budget)?;
        Some((since, u64::from(pages) * running.geometry.page_size().wire_len()))
    }
}
