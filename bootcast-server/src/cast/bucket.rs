//! The pace of an interface.

use std::time::{Duration, Instant};

use bootcast_proto::BitRate;

/// Token bucket that counts in time: what a byte costs is how long it occupies the wire.
///
/// Over any window of length `w` it lets through at most what the rate carries in `w + depth`.
#[derive(Debug)]
pub struct TokenBucket {
    rate: BitRate,
    /// Credit that can be saved up. Bounds the burst after a pause or a late wake-up.
    depth: Duration,
    /// Up to here the wire is sold. Credit is how far it lies in the past.
    sold_until: Instant,
}

impl TokenBucket {
    /// A full bucket. `depth` is raised to what `largest` bytes cost, so that they can ever pass.
    pub fn new(rate: BitRate, depth: Duration, largest: u64, now: Instant) -> Self {
        let depth = depth.max(rate.time_to_send(largest));
        Self { rate, depth, sold_until: now.checked_sub(depth).unwrap_or(now) }
    }

    /// Whether `bytes` may leave at `now`.
    pub fn allows(&self, bytes: u64, now: Instant) -> bool {
        self.ready_at(bytes, Duration::ZERO) <= now
    }

    /// When `bytes` may leave, and at least `credit` has been saved up for more.
    pub fn ready_at(&self, bytes: u64, credit: Duration) -> Instant {
        self.sold_until + self.rate.time_to_send(bytes).max(credit.min(self.depth))
    }

    /// Takes what `bytes` cost. Credit beyond the depth is forfeit.
    pub fn take(&mut self, bytes: u64, now: Instant) {
        let oldest = now.checked_sub(self.depth).unwrap_or(now);
        self.sold_until = self.sold_until.max(oldest) + self.rate.time_to_send(bytes);
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
    fn what_is_larger_than_the_depth_still_passes() {
        let start = Instant::now();
        let bucket = TokenBucket::new("1kbit".parse().unwrap(), DEPTH, 1514, start);
        assert!(bucket.allows(1514, start));
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
