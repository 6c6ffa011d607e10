//! Pacing of one cast below the ceiling of its interface.

use std::time::{Duration, Instant};

use bootcast_proto::BitRate;

use crate::cast::Pacer;

/// Longest time that a batch of two or more pages may take at the cast's own rate. It limits the
/// burst that a slow path must queue.
const BATCH_TIME: Duration = Duration::from_millis(2);

/// Pacer of one cast. At the ceiling it lets everything through, because the interface's pacer
/// limits all casts together.
#[derive(Debug)]
pub(in crate::cast) struct Allowance {
    ceiling: BitRate,
    /// Size of a full datagram on the wire, in bytes.
    datagram_wire: u64,
    /// Pages in a full batch at the ceiling.
    max_batch_pages: u32,
    /// Pages in a full batch at the present rate.
    batch_pages: u32,
    /// `None` at the ceiling.
    pacer: Option<Pacer>,
    /// Whether the cast had nothing to send since bytes were last charged.
    is_idle: bool,
}

impl Allowance {
    /// Creates an allowance for batches of at most `max_batch_pages` pages.
    pub(in crate::cast) fn new(
        ceiling: BitRate,
        rate: BitRate,
        datagram_wire: u64,
        max_batch_pages: u32,
        now: Instant,
    ) -> Self {
        let mut allowance = Self {
            ceiling,
            datagram_wire,
            max_batch_pages,
            batch_pages: max_batch_pages,
            pacer: None,
            is_idle: true,
        };
        assert!(datagram_wire > 0 && max_batch_pages > 0, "no batch could ever leave");
        allowance.set_rate(rate, now);
        allowance
    }

    /// Sets the rate. Saved time and debt from the earlier rate are forgotten.
    pub(in crate::cast) fn set_rate(&mut self, rate: BitRate, now: Instant) {
        if rate >= self.ceiling {
            (self.batch_pages, self.pacer) = (self.max_batch_pages, None);
            return;
        }
        let pages = rate.bytes_in(BATCH_TIME) / self.datagram_wire;
        self.batch_pages = u32::try_from(pages).unwrap_or(u32::MAX).clamp(1, self.max_batch_pages);
        let mut pacer = Pacer::new(rate, self.batch_wire(), now);
        pacer.restart(now);
        debug_assert!(
            self.batch_pages == 1 || rate.time_to_send(self.batch_wire()) <= BATCH_TIME,
            "a batch of {} pages takes too long",
            self.batch_pages
        );
        self.pacer = Some(pacer);
    }

    /// Number of pages in a full batch.
    pub(in crate::cast) fn batch_pages(&self) -> u32 {
        self.batch_pages
    }

    /// Bytes on the wire of a full batch.
    pub(in crate::cast) fn batch_wire(&self) -> u64 {
        u64::from(self.batch_pages) * self.datagram_wire
    }

    /// Whether a full batch may leave at `now`.
    pub(in crate::cast) fn allows(&self, now: Instant) -> bool {
        self.pacer.as_ref().is_none_or(|pacer| pacer.allows(self.batch_wire(), now))
    }

    /// Returns when a full batch may leave and the saved time is at least `saved`; `None` if at any
    /// time.
    pub(in crate::cast) fn ready_at(&self, saved: Duration) -> Option<Instant> {
        self.pacer.as_ref().map(|pacer| pacer.ready_at(self.batch_wire(), saved))
    }

    /// Records that the cast has nothing to send. Such time is not saved.
    pub(in crate::cast) fn on_idle(&mut self) {
        self.is_idle = true;
    }

    /// Charges `bytes` on the wire.
    pub(in crate::cast) fn take(&mut self, bytes: u64, now: Instant) {
        let was_idle = std::mem::take(&mut self.is_idle);
        if let Some(pacer) = &mut self.pacer {
            if was_idle {
                pacer.restart(now);
            }
            pacer.take(bytes, now);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    fn sent_in(allowance: &mut Allowance, now: &mut Instant, time: Duration) -> u64 {
        let (end, mut bytes) = (*now + time, 0);
        while *now < end {
            if allowance.allows(*now) {
                allowance.take(allowance.batch_wire(), *now);
                bytes += allowance.batch_wire();
            } else {
                *now = allowance.ready_at(Duration::ZERO).unwrap();
            }
        }
        bytes
    }

    #[test]
    fn a_cast_keeps_to_its_rate_and_to_each_new_rate() {
        let mut now = Instant::now();
        let rate = |text: &str| text.parse::<BitRate>().unwrap();
        let mut allowance = Allowance::new(rate("1gbit"), rate("100mbit"), 1514, 44, now);
        let second = Duration::from_secs(1);
        let sent = sent_in(&mut allowance, &mut now, second);
        assert!((12_400_000..12_700_000).contains(&sent), "{sent}");
        allowance.set_rate(rate("10mbit"), now);
        assert_eq!(allowance.batch_pages(), 1);
        let sent = sent_in(&mut allowance, &mut now, second);
        assert!((1_240_000..1_280_000).contains(&sent), "{sent}");
        allowance.set_rate(rate("1gbit"), now);
        assert_eq!((allowance.batch_pages(), allowance.ready_at(second)), (44, None));
    }
}
