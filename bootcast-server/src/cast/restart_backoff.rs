//! Backoff before new casts of a file whose casts fail repeatedly.
//!
//! The members of a failed cast join again at once. Without a backoff, a file that changes
//! continuously or cannot be read would start a hundred casts a second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bootcast_proto::limits::RETRY_AFTER_MAX;
use bootcast_proto::{Backoff, RemotePath};

use super::EndReason;

/// Number of failures in a row after which a new cast may still start at once.
const FREE_FAILURES: u32 = 2;

/// Pauses after further failures.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), RETRY_AFTER_MAX);

/// Duration of a cast after which the failures before it no longer count.
const RECOVERY_TIME: Duration = Duration::from_secs(30);

/// Time after the end of a pause during which the failures still count.
const MEMORY_TIME: Duration = Duration::from_secs(60);

/// Maximum number of paths that are remembered. Bounds memory.
const PATHS_MAX: usize = 1024;

/// Consecutive failures of one path.
#[derive(Clone, Copy, Debug)]
struct Failures {
    /// Reason of the last one.
    reason: EndReason,
    count: u32,
    /// Earliest start of the next cast.
    not_before: Instant,
}

/// Failures of the paths whose last casts failed.
#[derive(Debug, Default)]
pub(super) struct RestartBackoff {
    failures: BTreeMap<RemotePath, Failures>,
}

impl RestartBackoff {
    /// Records the end of a cast that ran for `duration`. Only reasons that lie in the file count
    /// as failures.
    pub(super) fn on_end(
        &mut self,
        path: &RemotePath,
        reason: EndReason,
        duration: Duration,
        now: Instant,
    ) {
        if duration >= RECOVERY_TIME {
            self.on_success(path);
        }
        if !matches!(reason, EndReason::FileChanged | EndReason::Unreadable) {
            return;
        }
        let count =
            self.failures_of(path, now).map_or(0, |earlier| earlier.count).saturating_add(1);
        if self.failures.len() >= PATHS_MAX && !self.failures.contains_key(path) {
            self.make_room(now);
        }
        self.failures
            .insert(path.clone(), Failures { reason, count, not_before: now + pause_after(count) });
        debug_assert!(self.failures.len() <= PATHS_MAX);
    }

    /// Forgets the failures of a path whose file was sent to the end.
    pub(super) fn on_success(&mut self, path: &RemotePath) {
        self.failures.remove(path);
    }

    /// Returns the reason of the failures and the remaining pause; `None` if a cast may start now.
    pub(super) fn pause(&self, path: &RemotePath, now: Instant) -> Option<(EndReason, Duration)> {
        let failures = self.failures_of(path, now)?;
        let remaining = failures.not_before.saturating_duration_since(now);
        (!remaining.is_zero()).then_some((failures.reason, remaining))
    }

    /// Returns the failures of a path that still count.
    fn failures_of(&self, path: &RemotePath, now: Instant) -> Option<&Failures> {
        self.failures.get(path).filter(|failures| failures.counts(now))
    }

    /// Removes the failures that no longer count, or else those of the path whose pause ends first.
    fn make_room(&mut self, now: Instant) {
        self.failures.retain(|_, failures| failures.counts(now));
        if self.failures.len() >= PATHS_MAX {
            let first = self.failures.iter().min_by_key(|(_, failures)| failures.not_before);
            if let Some(path) = first.map(|(path, _)| path.clone()) {
                self.failures.remove(&path);
            }
        }
    }
}

impl Failures {
    fn counts(&self, now: Instant) -> bool {
        now < self.not_before + MEMORY_TIME
    }
}

/// Returns the pause after this many failures in a row.
fn pause_after(failures: u32) -> Duration {
    let earlier = failures.checked_sub(FREE_FAILURES + 1);
    earlier.map_or(Duration::ZERO, |earlier| PAUSES.pause(earlier))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);

    fn path(name: &str) -> RemotePath {
        RemotePath::decode(name).unwrap()
    }

    #[test]
    fn pauses_grow_after_two_free_restarts() {
        let (mut backoff, mut now) = (RestartBackoff::default(), Instant::now());
        let pauses: Vec<u64> = (0..10)
            .map(|_| {
                backoff.on_end(&path("a"), EndReason::FileChanged, SHORT, now);
                let pause = backoff.pause(&path("a"), now).map_or(Duration::ZERO, |it| it.1);
                now += pause;
                assert_eq!(backoff.pause(&path("a"), now), None, "the pause is over");
                pause.as_secs()
            })
            .collect();
        assert_eq!(pauses, [0, 0, 1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(backoff.pause(&path("b"), now), None, "another path");
    }

    #[test]
    fn a_file_that_changes_and_cannot_be_read_by_turns_is_paused_too() {
        let (mut backoff, now) = (RestartBackoff::default(), Instant::now());
        for reason in [EndReason::FileChanged, EndReason::Unreadable, EndReason::FileChanged] {
            assert_eq!(backoff.pause(&path("a"), now), None);
            backoff.on_end(&path("a"), reason, SHORT, now);
        }
        let pause = Some((EndReason::FileChanged, Duration::from_secs(1)));
        assert_eq!(backoff.pause(&path("a"), now), pause);
    }

    #[test]
    fn a_long_cast_or_a_minute_without_failures_resets_the_count() {
        let (mut backoff, mut now) = (RestartBackoff::default(), Instant::now());
        let fail = |backoff: &mut RestartBackoff, duration, now| {
            backoff.on_end(&path("a"), EndReason::Unreadable, duration, now);
            backoff.pause(&path("a"), now).map_or(0, |it| it.1.as_secs())
        };
        assert_eq!([0; 3].map(|_| fail(&mut backoff, SHORT, now)), [0, 0, 1]);
        assert_eq!(fail(&mut backoff, RECOVERY_TIME, now), 0, "failures are counted anew");
        assert_eq!([0; 3].map(|_| fail(&mut backoff, SHORT, now)), [0, 1, 2]);
        backoff.on_end(&path("a"), EndReason::LastLeave, RECOVERY_TIME, now);
        assert_eq!([0; 3].map(|_| fail(&mut backoff, SHORT, now)), [0, 0, 1]);
        now += Duration::from_secs(1) + MEMORY_TIME;
        assert!(backoff.failures_of(&path("a"), now).is_none());
        assert_eq!([0; 3].map(|_| fail(&mut backoff, SHORT, now)), [0, 0, 1]);
    }

    #[test]
    fn other_end_reasons_are_no_failures() {
        let (mut backoff, now) = (RestartBackoff::default(), Instant::now());
        for reason in [
            EndReason::LastLeave,
            EndReason::IdlePasses,
            EndReason::LeasesExpired,
            EndReason::AddressChanged,
            EndReason::GroupTaken,
            EndReason::Stopped,
        ] {
            for _ in 0..10 {
                backoff.on_end(&path("a"), reason, SHORT, now);
            }
        }
        assert!(backoff.failures_of(&path("a"), now).is_none());
    }

    #[test]
    fn the_number_of_remembered_paths_is_bounded() {
        let (mut backoff, now) = (RestartBackoff::default(), Instant::now());
        for number in 0..2 * PATHS_MAX {
            backoff.on_end(&path(&format!("{number}")), EndReason::FileChanged, SHORT, now);
        }
        assert_eq!(backoff.failures.len(), PATHS_MAX);
    }
}
