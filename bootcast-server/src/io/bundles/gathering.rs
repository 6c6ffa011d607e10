//! Answers several hosts at the same moment, so that they join at the same time and a bundle is
//! sent once.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Time for which the answers wait for one more request. Hosts that begin together ask for a bundle
/// within some 100 ms.
const QUIET: Duration = Duration::from_millis(250);

/// Maximum time from the first request to the answers. A client waits two seconds for its answer,
/// listing the directory and copying the files included.
const MAX: Duration = Duration::from_millis(750);

/// Requests for a bundle that are answered together.
#[derive(Debug)]
pub(super) struct Gathering {
    /// Time of the answers. Those who wait notice when it is put off.
    answers_at: watch::Sender<Instant>,
    /// Latest time of the answers.
    latest: Instant,
}

impl Gathering {
    /// Begins with a request at `now`, which is answered when nobody has asked for a moment.
    pub(super) fn new(now: Instant) -> Self {
        Self { answers_at: watch::Sender::new(now + QUIET), latest: now + MAX }
    }

    /// Begins with a request at `now`, which is answered at once like all others.
    pub(super) fn ended(now: Instant) -> Self {
        Self { answers_at: watch::Sender::new(now), latest: now }
    }

    /// Handles one more request. Puts the answers off if they are still waiting.
    pub(super) fn handle_request(&self, now: Instant) {
        if self.is_waiting(now) {
            self.answers_at.send_replace((now + QUIET).min(self.latest));
        }
    }

    /// Whether the answers are still waiting.
    pub(super) fn is_waiting(&self, now: Instant) -> bool {
        now < *self.answers_at.borrow()
    }

    /// Returns the time of the answers, for [`wait`].
    pub(super) fn answers_at(&self) -> watch::Receiver<Instant> {
        self.answers_at.subscribe()
    }
}

/// Waits until the requests that were gathered are answered.
pub(super) async fn wait(answers_at: watch::Receiver<Instant>) {
    loop {
        let at = *answers_at.borrow();
        if at <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(at.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_250_ms_after_the_last_one_and_750_ms_after_the_first() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let answered = |requests: &[u64]| {
            let gathering = Gathering::new(start);
            for at in requests {
                gathering.handle_request(ms(*at));
            }
            *gathering.answers_at().borrow()
        };
        assert_eq!(answered(&[]), ms(250));
        assert_eq!(answered(&[200, 400]), ms(650));
        assert_eq!(answered(&[200, 400, 600]), ms(750));
        assert_eq!(answered(&[250, 300]), ms(250), "these come after the answer");
        let ended = Gathering::ended(start);
        ended.handle_request(start);
        assert_eq!(*ended.answers_at().borrow(), start);
    }
}
