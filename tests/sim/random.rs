//! Seeded random numbers, the same on every machine.

use std::time::Duration;

/// The generator `SplitMix64` (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// Creates a generator. Generators with the same seed and different `stream` are independent.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut root = Self(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Self(root.next())
    }

    /// Returns 64 random bits.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Returns 128 random bits.
    pub(super) fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    /// Returns a number that is uniform over 0 to 1, never 0.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    pub(super) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Returns true with this probability.
    pub(super) fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.unit() <= probability
    }

    /// Returns a time that is uniform over 0 to `longest`.
    pub(super) fn within(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.unit())
    }

    /// Returns a time that is exponentially distributed with this mean: the time until the next of
    /// many independent events.
    pub(super) fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-self.unit().ln())
    }

    /// Returns a number, at least 1, that is geometrically distributed with this mean: the trials
    /// until the first success.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and u64::MAX trials are as good as endless"
    )]
    pub(super) fn geometric(&mut self, mean: f64) -> u64 {
        if mean <= 1.0 {
            return 1;
        }
        let trials = self.unit().ln() / (-1.0 / mean).ln_1p();
        1 + trials as u64
    }
}
