//! Lets datagrams accumulate where they arrive one by one and fast, because waking up costs more
//! than reading one.

use std::time::{Duration, Instant};

/// Mean time between two messages below which they accumulate.
const DENSE_INTERVAL: Duration = Duration::from_micros(200);
/// Time for which the receive thread lets datagrams accumulate before it wakes.
pub(super) const COALESCE_DELAY: Duration = Duration::from_millis(4);
/// Shortest time over which the mean is taken. Longer than a single read takes, whose pages also
/// arrive close together.
const SAMPLE_TIME: Duration = Duration::from_millis(4);

/// Measures how densely messages arrive.
#[derive(Debug)]
pub(super) struct ArrivalRate {
    /// Number of messages since `since`.
    messages: u32,
    since: Instant,
    /// Whether messages arrived densely in the sample before.
    is_dense: bool,
}

impl ArrivalRate {
    pub(super) fn new(now: Instant) -> Self {
        Self { messages: 0, since: now, is_dense: false }
    }

    /// Counts messages that arrived.
    pub(super) fn add(&mut self, messages: u32) {
        self.messages = self.messages.saturating_add(messages);
    }

    /// Returns whether messages arrived densely in the last full sample.
    pub(super) fn is_dense(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= SAMPLE_TIME {
            self.is_dense = DENSE_INTERVAL * std::mem::take(&mut self.messages) > elapsed;
            self.since = now;
        }
        self.is_dense
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    #[test]
    fn messages_are_dense_if_more_than_five_arrive_a_millisecond() {
        let start = Instant::now();
        let mut rate = ArrivalRate::new(start);
        assert!(!rate.is_dense(start + SAMPLE_TIME));
        rate.add(21);
        assert!(!rate.is_dense(start + SAMPLE_TIME * 3 / 2), "the sample is not full");
        assert!(rate.is_dense(start + SAMPLE_TIME * 2));
        rate.add(20);
        assert!(rate.is_dense(start + SAMPLE_TIME * 5 / 2), "the last full sample counts");
        assert!(!rate.is_dense(start + SAMPLE_TIME * 3));
    }
}
