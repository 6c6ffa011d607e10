//! Pauses between attempts that fail one after the other.

use core::time::Duration;

/// An exponential backoff: the pause after a failure doubles with each further one.
///
/// It has no jitter. Where many hosts fail at the same time, `first` is drawn at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Pause after the first failure in a row.
    pub first: Duration,
    /// Upper bound of the pauses.
    pub longest: Duration,
}

impl Backoff {
    /// Creates a backoff with these bounds.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// Returns the pause after a failure that `earlier` others came before, in a row.
    pub fn pause(self, earlier: u32) -> Duration {
        let factor = 1_u32.checked_shl(earlier).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_however_many_failures_there_are() {
        let ms = Duration::from_millis;
        let backoff = Backoff::new(ms(100), ms(2000));
        let pauses = [0, 1, 2, 3, 4, 5, 31, 32, u32::MAX].map(|earlier| backoff.pause(earlier));
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000, 2000, 2000].map(ms));
        assert_eq!(Backoff::new(ms(3000), ms(2000)).pause(0), ms(2000));
        assert_eq!(Backoff::new(Duration::MAX, Duration::MAX).pause(9), Duration::MAX);
    }
}
