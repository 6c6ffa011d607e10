//! Checks the paths of running casts for new versions.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{Duration, Instant};

use super::reading::{CastReader, Checked, Outcome};
use super::{CastId, Driver, EndReason};
use crate::source::SourceError;

/// Period in which the path of every running cast is checked once for a new version. A cast of a
/// changed file therefore ends within about a second, one of a removed file within two.
const ROUND: Duration = Duration::from_secs(1);

/// Maximum number of checks in a period. Each checks a few casts, so that the stage does not get
/// all of them at once.
const ROUND_CHECKS: u32 = 64;

/// Progress of checking the paths of all casts.
#[derive(Debug)]
pub(super) struct VersionRound {
    /// Time of the next check.
    next: Instant,
    /// Time between two checks.
    interval: Duration,
    /// Number of casts in one check.
    casts: usize,
    /// Cast that was checked last; `None` if the next check starts a new round.
    last: Option<CastId>,
}

impl VersionRound {
    /// Creates a round that starts at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, interval: ROUND, casts: 0, last: None }
    }

    /// Returns the casts to check now.
    fn poll(&mut self, readers: &BTreeMap<CastId, CastReader>, now: Instant) -> Vec<CastId> {
        if now < self.next {
            return Vec::new();
        }
        if self.last.is_none() {
            let casts = u32::try_from(readers.len()).unwrap_or(u32::MAX);
            let checks = casts.clamp(1, ROUND_CHECKS);
            self.interval = ROUND / checks;
            self.casts = casts.div_ceil(checks) as usize;
        }
        self.next = now + self.interval;
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = readers.range((after, Bound::Unbounded)).map(|(cast, _)| *cast);
        let due: Vec<_> = rest.by_ref().take(self.casts).collect();
        self.last = rest.next().and(due.last().copied());
        due
    }
}

impl Driver {
    /// Lets the stage check the next few casts, if that is due. A path that hangs is not checked
    /// again meanwhile.
    pub(super) fn check_versions(&mut self, now: Instant) {
        for cast in self.version_round.poll(&self.readers, now) {
            let view = self.scheduler.cast(cast);
            let reader = self.readers.get_mut(&cast).filter(|reader| !reader.is_checked);
            let (Some(view), Some(reader)) = (view, reader) else { continue };
            reader.is_checked = true;
            let (identity, path) = (self.config.identity.clone(), view.path.clone());
            let version = reader.version();
            self.submit(cast, move || {
                Outcome::Version(match identity.version(&path) {
                    Ok(announced) if announced == version => Checked::Same,
                    // The server lacks descriptors or memory; this says nothing about the file.
                    Err(SourceError::Busy) => Checked::Same,
                    Err(SourceError::NotFound) => Checked::Missing,
                    Ok(_) | Err(_) => Checked::Changed,
                })
            });
        }
    }

    /// Ends a cast whose path leads to another version, or nowhere twice in a row.
    pub(super) fn handle_checked(&mut self, cast: CastId, checked: Checked) {
        let Some(reader) = self.readers.get_mut(&cast) else { return };
        let was_missing = std::mem::replace(&mut reader.is_missing, checked == Checked::Missing);
        let is_gone = was_missing && checked == Checked::Missing;
        if is_gone || checked == Checked::Changed {
            self.scheduler.handle_end(cast, EndReason::FileChanged, Instant::now());
        }
    }
}
