//! Pauses before new casts of a file whose casts fail again and again.
//!
//! The members of a cast that failed join again at once. Without a pause, a file that changes all
//! the time, or that cannot be read, begins a hundred casts a second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bootcast_proto::RemotePath;

use super::EndReason;

/// Failures in a row that no pause follows.
const FREE: u32 = 2;

/// Longest pause. Clients obey `Retry-After` up to this.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A cast that lasted for this long has recovered: the failures before it no longer count.
const RECOVERED: Duration = Duration::from_secs(30);

/// Time after the end of a pause in which the failures still count.
const MEMORY: Duration = Duration::from_secs(60);

/// Most paths that are remembered.
const PATHS_MAX: usize = 1024;

/// Failures of one path in a row.
#[derive(Clone, Copy, Debug)]
struct Failures {
    /// Reason of the last one.
    reason: EndReason,
    count: u32,
    /// When a new cast may begin.
    free_at: Instant,
}

/// Paths whose last casts failed.
#[derive(Debug, Default)]
pub(super) struct Relapses {
    paths: BTreeMap<RemotePath, Failures>,
}

impl Relapses {
    /// Records the end of a cast that ran for `lasted`. Only failures of the file count.
    pub(super) fn on_end(
        &mut self,
        path: &RemotePath,
        reason: EndReason,
        lasted: Duration,
        now: Instant,
    ) {
        if lasted >= RECOVERED {
            self.paths.remove(path);
        }
        if !matches!(reason, EndReason::FileChanged | EndReason::Unreadable) {
            return;
        }
        let known = self.known(path, now).filter(|known| known.reason == reason);
        let count = known.map_or(0, |known| known.count).saturating_add(1);
        if self.paths.len() >= PATHS_MAX && !self.paths.contains_key(path) {
            self.make_room(now);
        }
        self.paths
            .insert(path.clone(), Failures { reason, count, free_at: now + pause_after(count) });
        debug_assert!(self.paths.len() <= PATHS_MAX);
    }

    /// Returns the reason and the rest of the pause; `None` if a cast may begin now.
    pub(super) fn pause(&self, path: &RemotePath, now: Instant) -> Option<(EndReason, Duration)> {
        let known = self.known(path, now)?;
        let rest = known.free_at.saturating_duration_since(now);
        (!rest.is_zero()).then_some((known.reason, rest))
    }

    fn known(&self, path: &RemotePath, now: Instant) -> Option<&Failures> {
        self.paths.get(path).filter(|known| known.counts(now))
    }

    /// Forgets what no longer counts, or else the path whose pause ends first.
    fn make_room(&mut self, now: Instant) {
        self.paths.retain(|_, known| known.counts(now));
        if self.paths.len() >= PATHS_MAX {
            let first = self.paths.iter().min_by_key(|(_, known)| known.free_at);
            if let Some(path) = first.map(|(path, _)| path.clone()) {
                self.paths.remove(&path);
            }
        }
    }
}

impl Failures {
    fn counts(&self, now: Instant) -> bool {
        now < self.free_at + MEMORY
    }
}

/// Pause after this many failures in a row: 1 s, twice that, and so on.
fn pause_after(failures: u32) -> Duration {
    let Some(doublings) = failures.checked_sub(FREE + 1) else { return Duration::ZERO };
    Duration::from_secs(1 << doublings.min(5)).min(PAUSE_MAX)
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
        let (mut relapses, mut now) = (Relapses::default(), Instant::now());
        let pauses: Vec<u64> = (0..10)
            .map(|_| {
                relapses.on_end(&path("a"), EndReason::FileChanged, SHORT, now);
                let pause = relapses.pause(&path("a"), now).map_or(Duration::ZERO, |it| it.1);
                now += pause;
                assert_eq!(relapses.pause(&path("a"), now), None, "it is over");
                pause.as_secs()
            })
            .collect();
        assert_eq!(pauses, [0, 0, 1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(relapses.pause(&path("b"), now), None, "another path");
    }

    #[test]
    fn a_long_cast_or_a_quiet_minute_clears_the_record() {
        let (mut relapses, mut now) = (Relapses::default(), Instant::now());
        let fail = |relapses: &mut Relapses, lasted, now| {
            relapses.on_end(&path("a"), EndReason::Unreadable, lasted, now);
            relapses.pause(&path("a"), now).map_or(0, |it| it.1.as_secs())
        };
        assert_eq!([0; 3].map(|_| fail(&mut relapses, SHORT, now)), [0, 0, 1]);
        assert_eq!(fail(&mut relapses, RECOVERED, now), 0, "the first failure of a new row");
        assert_eq!([0; 3].map(|_| fail(&mut relapses, SHORT, now)), [0, 1, 2]);
        relapses.on_end(&path("a"), EndReason::LastLeave, RECOVERED, now);
        assert_eq!([0; 3].map(|_| fail(&mut relapses, SHORT, now)), [0, 0, 1]);
        now += Duration::from_secs(1) + MEMORY;
        assert!(relapses.known(&path("a"), now).is_none());
        assert_eq!([0; 3].map(|_| fail(&mut relapses, SHORT, now)), [0, 0, 1]);
    }

    #[test]
    fn other_ends_count_for_nothing() {
        let (mut relapses, now) = (Relapses::default(), Instant::now());
        for reason in [
            EndReason::LastLeave,
            EndReason::IdlePasses,
            EndReason::LeasesOver,
            EndReason::AddressChanged,
            EndReason::Stopped,
        ] {
            for _ in 0..10 {
                relapses.on_end(&path("a"), reason, SHORT, now);
            }
        }
        assert!(relapses.known(&path("a"), now).is_none());
    }

    #[test]
    fn the_memory_is_bounded() {
        let (mut relapses, now) = (Relapses::default(), Instant::now());
        for number in 0..2 * PATHS_MAX {
            relapses.on_end(&path(&format!("{number}")), EndReason::FileChanged, SHORT, now);
        }
        assert_eq!(relapses.paths.len(), PATHS_MAX);
    }
}
