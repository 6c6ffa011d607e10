//! Turns of the casts with urgent pages, which readers wait for.

use std::time::{Duration, Instant};

use super::super::Sending;
use super::{CastId, Polled, Running, Scheduler, wire_bytes};

impl Scheduler {
    /// Sends pages that readers wait for, as soon as the interface and the cast's own allowance
    /// have credit for them.
    pub(super) fn poll_urgent(&mut self, now: Instant) -> Polled {
        let mut skipped = 0;
        while let Some(id) = self.urgent.front().filter(|_| skipped < self.urgent.len()) {
            let Some((_, bytes)) = self.urgent_run(id) else {
                self.urgent.pop();
                continue;
            };
            if !self.pacer.allows(bytes, now) {
                return Polled::NoCredit;
            }
            let running = self.casts.get_mut(&id).expect("it has a run");
            if running.urgent_allowance().is_some_and(|own| !own.allows(now)) {
                self.urgent.skip();
                skipped += 1;
                continue;
            }
            let budget = running.urgent_budget(self.settings.batch_pages);
            let Some(what) = running.cast.poll_urgent(budget, now) else {
                self.urgent.pop();
                continue;
            };
            let cost = wire_bytes(&running.geometry, &what);
            self.urgent.on_sent(cost, self.batch_wire);
            let demanded = matches!(what, Sending::Pages(_));
            return Polled::Sent(self.hand_out(id, what, demanded, cost, now));
        }
        if skipped > 0 { Polled::HeldBack } else { Polled::Nothing }
    }

    /// Estimates the time until all urgent pages of a cast are sent. Casts with urgent pages send
    /// in turn; everything else takes up to a tenth of the rate.
    pub(super) fn urgent_queue(&self, id: CastId, now: Instant) -> Duration {
        let bytes_of = |id| {
            let running: &Running = self.casts.get(&id)?;
            let page_wire = running.geometry.page_size().wire_len();
            Some(u64::from(running.cast.urgent_pages()) * page_wire)
        };
        let Some(own) = bytes_of(id).filter(|own| *own > 0) else { return Duration::ZERO };
        let others = self.urgent.iter().filter(|other| *other != id);
        let others: u64 = others.filter_map(bytes_of).map(|other| other.min(own)).sum();
        let on_the_line = self.settings.rate.time_to_send(own + others);
        let running = self.casts.get(&id).filter(|running| running.urgent_allowance().is_some());
        let at_its_rate = running.map(|running| running.control.rate().time_to_send(own));
        let sending = at_its_rate.map_or(on_the_line, |time| time.max(on_the_line));
        let begins = self.pacer.ready_at(0, Duration::ZERO).saturating_duration_since(now);
        begins + sending * 10 / 9
    }

    /// When readers began to wait for this cast's next urgent run, and the run's bytes on the wire.
    pub(super) fn urgent_run(&self, id: CastId) -> Option<(Instant, u64)> {
        let running = self.casts.get(&id)?;
        let budget = running.urgent_budget(self.settings.batch_pages);
        let (since, pages) = running.cast.urgent(budget)?;
        Some((since, u64::from(pages) * running.geometry.page_size().wire_len()))
    }
}
