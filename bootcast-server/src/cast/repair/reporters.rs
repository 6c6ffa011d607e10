//! Those who may report, and the time over which they do.

use std::time::Duration;

/// Up to this many members all may report, and the spread follows their number.
pub(super) const FEW_MEMBERS: usize = 100;

/// The time over which many members' reports are spread, and the least for few.
const SPREAD_MANY: Duration = Duration::from_millis(200);
const SPREAD_MIN: Duration = Duration::from_millis(2);

/// What each of few members adds to it: while the stream runs there is time for one report to stand for many, and when it rests
/// everybody waits.
const SPREAD_RUNNING: Duration = Duration::from_millis(1);
const SPREAD_RESTING: Duration = Duration::from_micros(200);

/// What a report takes from the end of its timer to its promise, at most.
const REPORT_DELAY: Duration = Duration::from_millis(50);

/// Everybody may report; the wire says 65,535.
pub(super) const EVERYBODY: u64 = 1 << 16;

/// The members, and the share of them that may report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reporters {
    pub(super) members: usize,
    /// In 1/65536.
    pub(super) permit: u64,
}

impl Reporters {
    /// Whether all of them may report at any time.
    pub(super) fn are_few(self) -> bool {
        self.members <= FEW_MEMBERS
    }

    /// Members that may report, about.
    pub(super) fn permitted(self) -> u64 {
        (self.members as u64).saturating_mul(self.permit) / EVERYBODY
    }

    /// Of `count` blocks that some member asks for, so many thousandths, as seen through those who may report.
    pub(super) fn share_of(self, thousandths: u64, count: usize) -> usize {
        let share = (count as u64).saturating_mul(thousandths) * self.permit / (1000 * EVERYBODY);
        usize::try_from(share).unwrap_or(usize::MAX)
    }
}

/// The time over which the reports of so many members are spread.
pub(super) fn spread(members: usize, stream_done: bool) -> Duration {
    let each = if stream_done { SPREAD_RESTING } else { SPREAD_RUNNING };
    match u32::try_from(members) {
        Ok(few) if members <= FEW_MEMBERS => (each * few).max(SPREAD_MIN),
        _ => SPREAD_MANY,
    }
}

/// How long a report may be under way that answers the last change.
pub(super) fn patience(members: usize, stream_done: bool) -> Duration {
    2 * spread(members, stream_done) + REPORT_DELAY
}
