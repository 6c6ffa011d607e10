//! Rate limit for log messages: each cause is told once a minute.
//!
//! An outside event (a request, a datagram, an absent server) may repeat a thousand times a second.
//! A message that such an event can cause asks a [`Limiter`] first.

use alloc::collections::BTreeMap;
use core::fmt;
use core::ops::Sub;
use core::time::Duration;

/// Time between two messages of one cause.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Number of causes that are told apart. All further ones share one more message in each period, so
/// that neither the log nor the memory grows with the number of paths or peers.
const CAUSES: usize = 32;

/// Decides which messages are logged. `T` is the clock's moment, such as `std::time::Instant`.
#[derive(Clone, Debug)]
pub struct Limiter<K, T> {
    /// What is known of each cause that had a message lately.
    causes: BTreeMap<K, Recent<T>>,
    /// The same of all causes that did not fit.
    others: Option<Recent<T>>,
}

/// A message that was logged, and those of its cause that were not.
#[derive(Clone, Copy, Debug)]
struct Recent<T> {
    logged_at: T,
    suppressed: u64,
}

impl<K, T> Default for Limiter<K, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, T> Limiter<K, T> {
    /// Creates a limiter that has seen no message.
    pub const fn new() -> Self {
        Self { causes: BTreeMap::new(), others: None }
    }
}

impl<K: Ord + Clone, T: Copy + Sub<T, Output = Duration>> Limiter<K, T> {
    /// Returns `None` where a message of this cause was logged less than a [`PERIOD`] ago.
    /// Otherwise the message is to be logged now, and the number tells how many were suppressed
    /// before it.
    pub fn allow(&mut self, cause: &K, now: T) -> Option<u64> {
        if let Some(recent) = self.causes.get_mut(cause) {
            return recent.allow(now);
        }
        if self.causes.len() >= CAUSES {
            // A cause with suppressed messages stays for a second period, so that they are told.
            self.causes.retain(|_, recent| {
                let periods = if recent.suppressed == 0 { 1 } else { 2 };
                now - recent.logged_at < PERIOD * periods
            });
        }
        if self.causes.len() < CAUSES {
            self.causes.insert(cause.clone(), Recent { logged_at: now, suppressed: 0 });
            return Some(0);
        }
        if let Some(recent) = &mut self.others {
            return recent.allow(now);
        }
        self.others = Some(Recent { logged_at: now, suppressed: 0 });
        Some(0)
    }
}

impl<T: Copy + Sub<T, Output = Duration>> Recent<T> {
    fn allow(&mut self, now: T) -> Option<u64> {
        if now - self.logged_at < PERIOD {
            self.suppressed += 1;
            return None;
        }
        self.logged_at = now;
        Some(core::mem::take(&mut self.suppressed))
    }
}

/// The end of a message that tells how many more like it were suppressed; empty for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct More(pub u64);

impl fmt::Display for More {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            more => write!(f, " (and {more} more like this since the last such line)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_cause_is_told_once_a_minute_and_the_next_message_counts_the_rest() {
        let mut limiter = Limiter::new();
        assert_eq!(limiter.allow(&"away", at(100)), Some(0));
        for second in 100..160 {
            assert_eq!(limiter.allow(&"away", at(second)), None);
        }
        assert_eq!(limiter.allow(&"full", at(130)), Some(0), "another cause has its own minute");
        assert_eq!(limiter.allow(&"away", at(160)), Some(60));
        assert_eq!(limiter.allow(&"away", at(161)), None);
        assert_eq!(limiter.allow(&"away", at(300)), Some(1));
    }

    #[test]
    fn many_causes_are_few_messages_and_little_memory() {
        let mut limiter = Limiter::new();
        let told = |limiter: &mut Limiter<u32, Duration>, second| {
            (0..10_000).filter_map(|cause| limiter.allow(&cause, at(second))).count()
        };
        assert_eq!(told(&mut limiter, 0), CAUSES + 1);
        assert_eq!(told(&mut limiter, 30), 0);
        assert_eq!(limiter.causes.len(), CAUSES);
        assert_eq!(told(&mut limiter, 60), CAUSES + 1);
    }

    #[test]
    fn causes_that_are_long_past_make_room() {
        let mut limiter = Limiter::new();
        for cause in 0..CAUSES {
            assert_eq!(limiter.allow(&cause, at(0)), Some(0));
        }
        assert_eq!(limiter.allow(&1000, at(60)), Some(0));
        assert_eq!(limiter.allow(&1001, at(60)), Some(0), "not the shared message");
        assert_eq!(limiter.causes.len(), 2);
    }

    #[test]
    fn a_suppressed_count_reads_as_the_end_of_a_sentence() {
        let message = std::format!("trying on{}", More(199));
        assert_eq!(message, "trying on (and 199 more like this since the last such line)");
        assert_eq!(More(0).to_string(), "");
    }
}
