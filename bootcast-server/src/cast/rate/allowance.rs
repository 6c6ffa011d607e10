//! Pacing of one cast below the ceiling of its interface.

use std::time::{Duration, Instant};

use bootcast_proto::BitRate;

use crate::cast::Pacer;

/// Longest time that a run occupies the wire at the cast's own rate, if it has more than one page.
const BATCH_TIME: Duration = Duration::from_millis(2);

/// A cast's own pacer. At the ceiling it has none: the interface's pacer limits all casts together.
#[derive(Debug)]
pub(in crate::cast) struct Allowance {
    ceiling: BitRate,
    datagram_wire: u64,
    /// Pages in a full run at the ceiling.
    most_pages: u32,
    /// Pages in a full run at the present rate.
    pages: u32,
    /// `None` at the ceiling.
    pacer: Option<Pacer>,
    /// Whether the last poll found nothing to send.
    idle: bool,
}

impl Allowance {
    /// Creates an allowance for runs of at most `most_pages` pages.
    pub(in crate::cast) fn new(
        ceiling: BitRate,
        rate: BitRate,
        datagram_wire: u64,
        most_pages: u32,
        now: Instant,
    ) -> Self {
        let (pacer, pages) = (None, most_pages);
        let mut allowance = Self { ceiling, datagram_wire, most_pages, pages, pacer, idle: true };
        allowance.set_rate(rate, now);
        allowance
    }

    /// Sets the rate.
    pub(in crate::cast) fn set_rate(&mut self, rate: BitRate, now: Instant) {
        if rate >= self.ceiling {
            (self.pages, self.pacer) = (self.most_pages, None);
            return;
        }
        let calm = rate.bytes_in(BATCH_TIME) / self.datagram_wire;
        self.pages = u32::try_from(calm).unwrap_or(u32::MAX).clamp(1, self.most_pages);
        let mut pacer = Pacer::new(rate, self.batch(), now);
        pacer.restart(now);
        self.pacer = Some(pacer);
    }

    /// Pages in a full run.
    pub(in crate::cast) fn pages(&self) -> u32 {
        self.pages
    }

    /// Bytes of a full run on the wire.
    pub(in crate::cast) fn batch(&self) -> u64 {
        u64::from(self.pages) * self.datagram_wire
    }

    /// Whether a full run may leave at `now`.
    pub(in crate::cast) fn allows(&self, now: Instant) -> bool {
        self.pacer.as_ref().is_none_or(|pacer| pacer.allows(self.batch(), now))
    }

    /// When a full run may leave with `credit` left over; `None`: always.
    pub(in crate::cast) fn ready_at(&self, credit: Duration) -> Option<Instant> {
        self.pacer.as_ref().map(|pacer| pacer.ready_at(self.batch(), credit))
    }

    /// Marks time without anything to send, which earns no credit.
    pub(in crate::cast) fn rest(&mut self) {
        self.idle = true;
    }

    /// Charges `bytes`.
    pub(in crate::cast) fn take(&mut self, bytes: u64, now: Instant) {
        let rested = std::mem::take(&mut self.idle);
        if let Some(pacer) = &mut self.pacer {
            if rested {
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
                allowance.take(allowance.batch(), *now);
                bytes += allowance.batch();
            } else {
                *now = allowance.ready_at(Duration::ZERO).unwrap();
            }
        }
        bytes
    }

    #[test]
    fn a_cast_keeps_to_its_rate_and_to_another_one_from_then_on() {
        let mut now = Instant::now();
        let rate = |text: &str| text.parse::<BitRate>().unwrap();
        let mut allowance = Allowance::new(rate("1gbit"), rate("100mbit"), 1514, 44, now);
        let second = Duration::from_secs(1);
        let sent = sent_in(&mut allowance, &mut now, second);
        assert!((12_400_000..12_700_000).contains(&sent), "{sent}");
        allowance.set_rate(rate("10mbit"), now);
        assert_eq!(allowance.pages(), 1);
        let sent = sent_in(&mut allowance, &mut now, second);
        assert!((1_240_000..1_280_000).contains(&sent), "{sent}");
        allowance.set_rate(rate("1gbit"), now);
        assert_eq!((allowance.pages(), allowance.ready_at(second)), (44, None));
    }
}
