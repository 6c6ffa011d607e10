//! Whether the server answers, by the latest requests.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::totals::TOTALS;

/// When the server last answered, shared by all clones of a client.
#[derive(Clone, Debug, Default)]
pub(super) struct Reachability(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    answered: Option<Instant>,
    /// Set from the first request without an answer to the next answer.
    away_since: Option<Instant>,
}

impl Reachability {
    /// Records an answer of any kind.
    pub(super) fn record_answer(&self, now: Instant) {
        let mut state = self.lock();
        *state = State { answered: Some(now), away_since: None };
    }

    /// Records a request without an answer.
    pub(super) fn record_no_answer(&self, now: Instant) {
        TOTALS.unanswered_requests.add(1);
        let mut state = self.lock();
        let since = state.answered.unwrap_or(now);
        state.away_since.get_or_insert(since);
    }

    /// Returns the time since the last answer, if a request after it had none.
    pub(super) fn away_for(&self, now: Instant) -> Option<Duration> {
        self.lock().away_since.map(|since| now.saturating_duration_since(since))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_away_from_its_last_answer_to_the_next() {
        let (server, now) = (Reachability::default(), Instant::now());
        let second = |count| now + Duration::from_secs(count);
        assert_eq!(server.away_for(now), None);
        server.record_answer(second(1));
        server.record_no_answer(second(5));
        server.record_no_answer(second(8));
        assert_eq!(server.away_for(second(9)), Some(Duration::from_secs(8)));
        server.record_answer(second(10));
        assert_eq!(server.away_for(second(11)), None);
    }
}
