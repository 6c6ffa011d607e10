//! Waits for conditions with a deadline, never for a fixed time.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Deadline for events that take milliseconds on an idle machine. Long, because test machines are
/// busy.
pub const SOON: Duration = Duration::from_secs(20);

/// Time between two checks of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds; panics with `what` when `deadline` has passed.
#[track_caller]
pub fn wait_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(deadline, what, || condition().then_some(()));
}

/// Waits until `look` finds something; panics with `what` when `deadline` has passed.
#[track_caller]
pub fn wait_for<T>(deadline: Duration, what: &str, look: impl FnMut() -> Option<T>) -> T {
    try_wait_for(deadline, look).unwrap_or_else(|| panic!("not within {deadline:?}: {what}"))
}

/// Like [`wait_for`], but returns `None` when `deadline` has passed.
pub fn try_wait_for<T>(deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let found = look();
        if found.is_some() || start.elapsed() >= deadline {
            return found;
        }
        sleep(POLL_INTERVAL);
    }
}
