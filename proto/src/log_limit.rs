//! Rate limit for log messages: at most one message a minute for each cause.
//!
//! An outside event (a request, a datagram, an absent server) may repeat a thousand times a second.
//! Code that logs such an event asks a [`Limiter`] first.

use alloc::collections::BTreeMap;
use core::fmt;
use core::ops::Sub;
use core::time::Duration;

/// Shortest time between two messages of one cause.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Number of causes with a limit of their own. All further causes share one limit, so that neither
/// the log nor the memory grows with the number of paths or peers.
const MAX_CAUSES: usize = 32;

/// Decides which messages are logged. `K` identifies a cause. `T` is a point in time, such as
/// `std::time::Instant`.
#[derive(Clone, Debug)]
pub struct Limiter<K, T> {
    /// Last message of each cause that was logged lately; at most [`MAX_CAUSES`] of them.
    causes: BTreeMap<K, Recent<T>>,
    /// Last message of the causes that do not fit in `causes`.
    others: Option<Recent<T>>,
}

/// Time of the last logged message, and the number of messages suppressed since.
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
    /// Decides whether a message of `cause` is logged now.
    ///
    /// Returns `None` if the message is to be suppressed, because one of this cause was logged less
    /// than a [`PERIOD`] ago. Otherwise returns the number of messages suppressed since the last
    /// one.
    pub fn allow(&mut self, cause: &K, now: T) -> Option<u64> {
        if let Some(recent) = self.causes.get_mut(cause) {
            return recent.allow(now);
        }
        if self.causes.len() >= MAX_CAUSES {
            // A cause with suppressed messages stays for a second period, so that its next message
            // states how many there were.
            self.causes.retain(|_, recent| {
                let periods = if recent.suppressed == 0 { 1 } else { 2 };
                now - recent.logged_at < PERIOD * periods
            });
        }
        if self.causes.len() < MAX_CAUSES {
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

/// Number of suppressed messages. Displayed as the end of the next message; empty for 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suppressed(pub u64);

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " (and {count} more like this since the last such line)"),
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
    fn a_cause_is_logged_once_a_minute_and_the_next_message_counts_the_suppressed_ones() {
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
    fn many_causes_give_few_messages_and_take_little_memory() {
        let mut limiter = Limiter::new();
        let logged = |limiter: &mut Limiter<u32, Duration>, second| {
            (0..10_000).filter_map(|cause| limiter.allow(&cause, at(second))).count()
        };
        assert_eq!(logged(&mut limiter, 0), MAX_CAUSES + 1);
        assert_eq!(logged(&mut limiter, 30), 0);
        assert_eq!(limiter.causes.len(), MAX_CAUSES);
        assert_eq!(logged(&mut limiter, 60), MAX_CAUSES + 1);
    }

    #[test]
    fn old_causes_make_room_for_new_ones() {
        let mut limiter = Limiter::new();
        for cause in 0..MAX_CAUSES {
            assert_eq!(limiter.allow(&cause, at(0)), Some(0));
        }
        assert_eq!(limiter.allow(&1000, at(60)), Some(0));
        assert_eq!(limiter.allow(&1001, at(60)), Some(0), "not the shared message");
        assert_eq!(limiter.causes.len(), 2);
    }

    #[test]
    fn a_suppressed_count_reads_as_the_end_of_a_sentence() {
        let message = std::format!("trying on{}", Suppressed(199));
        assert_eq!(message, "trying on (and 199 more like this since the last such line)");
        assert_eq!(Suppressed(0).to_string(), "");
    }
}
