//! Token buckets: decide when datagrams may leave.

use std::time::{Duration, Instant};

use bootcast_proto::BitRate;

/// Token bucket whose tokens are time: a byte costs the time for which it occupies the wire.
///
/// In any interval of length `w` it lets through at most what the rate carries in `w + depth`.
#[derive(Debug)]
pub struct TokenBucket {
    rate: BitRate,
    /// Upper bound of the saved time. Limits the burst after a pause or a late wake-up.
    depth: Duration,
    /// Up to here the wire is sold. The saved time is how far this lies in the past.
    sold_until: Instant,
}

impl TokenBucket {
    /// Creates a full bucket. Raises `depth` to the cost of `largest` bytes, which could never pass
    /// otherwise.
    pub fn new(rate: BitRate, depth: Duration, largest: u64, now: Instant) -> Self {
        let depth = depth.max(rate.time_to_send(largest));
        Self { rate, depth, sold_until: now.checked_sub(depth).unwrap_or(now) }
    }

    /// Whether `bytes` may leave at `now`.
    pub fn allows(&self, bytes: u64, now: Instant) -> bool {
        self.ready_at(bytes, Duration::ZERO) <= now
    }

    /// Returns when `bytes` may leave and the saved time is at least `saved`, up to the depth.
    pub fn ready_at(&self, bytes: u64, saved: Duration) -> Instant {
        self.sold_until + self.rate.time_to_send(bytes).max(saved.min(self.depth))
    }

    /// Charges `bytes`. Saved time beyond the depth is lost.
    pub fn take(&mut self, bytes: u64, now: Instant) {
        self.keep(self.depth, now);
        self.sold_until += self.rate.time_to_send(bytes);
        debug_assert!(
            now.saturating_duration_since(self.sold_until) <= self.depth,
            "more time is saved than the bucket holds"
        );
    }

    /// Returns `bytes` that were charged and did not leave.
    pub fn refund(&mut self, bytes: u64) {
        let time = self.rate.time_to_send(bytes);
        self.sold_until = self.sold_until.checked_sub(time).unwrap_or(self.sold_until);
    }

    /// Reduces the saved time to `saved` if there is more.
    pub fn keep(&mut self, saved: Duration, now: Instant) {
        self.sold_until = self.sold_until.max(now.checked_sub(saved).unwrap_or(now));
    }
}

/// Depth of the bucket of the ceiling. The sender thread can make up for this long without CPU.
const CATCH_UP: Duration = Duration::from_millis(20);

/// Depth of the bucket of the peak: bounds the burst that a switch must buffer. Twice the delay
/// of a late tick.
const BURST: Duration = Duration::from_millis(4);

/// The peak exceeds the ceiling by 1 / this, so that lost time can be made up for. If the ceiling
/// is near the speed of the interface, the queue of the interface holds the excess.
const CATCH_UP_DIVISOR: u64 = 10;

/// Pacer of an interface: keeps to the ceiling on average, and to the peak, which is little higher,
/// at any moment.
#[derive(Debug)]
pub struct Pacer {
    ceiling: TokenBucket,
    peak: TokenBucket,
}

impl Pacer {
    /// Creates the pacer. `largest` is the most bytes that leave at once.
    pub fn new(ceiling: BitRate, largest: u64, now: Instant) -> Self {
        let bits = ceiling.bits_per_second();
        let peak = bits.saturating_add(bits / CATCH_UP_DIVISOR);
        let peak = BitRate::from_bits_per_second(peak).unwrap_or(ceiling);
        assert!(ceiling <= peak, "lost time could never be made up for");
        Self {
            ceiling: TokenBucket::new(ceiling, CATCH_UP, largest, now),
            peak: TokenBucket::new(peak, BURST, largest, now),
        }
    }

    /// Discards all saved time but a burst. Time with nothing to send must not be made up for.
    pub fn restart(&mut self, now: Instant) {
        self.ceiling.keep(BURST, now);
    }

    /// Whether `bytes` may leave at `now`.
    pub fn allows(&self, bytes: u64, now: Instant) -> bool {
        self.ceiling.allows(bytes, now) && self.peak.allows(bytes, now)
    }

    /// Returns when `bytes` may leave and the saved time is at least `saved`, up to the depth.
    pub fn ready_at(&self, bytes: u64, saved: Duration) -> Instant {
        self.ceiling.ready_at(bytes, saved).max(self.peak.ready_at(bytes, saved))
    }

    /// Returns `bytes` that were charged and did not leave.
    pub fn refund(&mut self, bytes: u64) {
        self.ceiling.refund(bytes);
        self.peak.refund(bytes);
    }

    /// Charges `bytes`.
    pub fn take(&mut self, bytes: u64, now: Instant) {
        self.ceiling.take(bytes, now);
        self.peak.take(bytes, now);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEPTH: Duration = Duration::from_millis(2);

    #[test]
    fn a_full_bucket_lets_its_depth_through_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new("8mbit".parse().unwrap(), DEPTH, 1, start);
        assert!(bucket.allows(2000, start));
        bucket.take(2000, start);
        assert!(!bucket.allows(1, start));
        assert_eq!(bucket.ready_at(1000, Duration::ZERO), start + Duration::from_millis(1));
    }

    #[test]
    fn a_datagram_larger_than_the_depth_still_passes() {
        let start = Instant::now();
        let bucket = TokenBucket::new("100kbit".parse().unwrap(), DEPTH, 1514, start);
        assert!(bucket.allows(1514, start));
    }

    #[test]
    fn time_lost_to_a_late_tick_is_made_up_for_without_a_large_burst() {
        let start = Instant::now();
        let mut pacer = Pacer::new("8mbit".parse().unwrap(), 100, start);
        let mut sent_by = |now: Instant| {
            let mut bytes = 0;
            while pacer.allows(100, now) {
                pacer.take(100, now);
                bytes += 100;
            }
            bytes
        };
        // 8 Mbit/s carry 1000 bytes in a millisecond. The peak of 8.8 Mbit/s saves up 4 ms, nearly
        // 4400 bytes.
        let late = start + Duration::from_millis(30);
        assert_eq!((sent_by(start), sent_by(late)), (4300, 4300));
        let ticks = (1..=20).map(|tick| sent_by(late + Duration::from_millis(tick)));
        let sent: u64 = ticks.sum();
        assert!((21_800..=22_000).contains(&sent), "{sent}");
    }

    proptest! {
        #[test]
        fn no_window_carries_more_than_the_rate_and_the_depth(
            steps in proptest::collection::vec((0u64..5000, 1u64..20_000), 1..60),
        ) {
            let rate: BitRate = "80mbit".parse().unwrap();
            let start = Instant::now();
            let mut bucket = TokenBucket::new(rate, DEPTH, 20_000, start);
            let mut now = start;
            let mut sent = Vec::new();
            for (pause_us, bytes) in steps {
                now += Duration::from_micros(pause_us);
                if bucket.allows(bytes, now) {
                    bucket.take(bytes, now);
                    sent.push((now, bytes));
                }
            }
            for (first, &(from, _)) in sent.iter().enumerate() {
                let mut total = 0;
                for &(to, bytes) in &sent[first..] {
                    total += bytes;
                    prop_assert!(total <= rate.bytes_in(to - from + DEPTH));
                }
            }
        }
    }
}
