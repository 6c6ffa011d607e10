//! Which members may report, and over which time they spread their reports.

use std::time::Duration;

/// Up to this many members all may report, and the spread grows with their number.
pub(super) const FEW_MEMBERS: usize = 100;

/// Spread of the reports of many members, and the minimum for few.
const SPREAD_MANY: Duration = Duration::from_millis(200);
const SPREAD_MIN: Duration = Duration::from_millis(2);

/// Spread that each of few members adds. While the stream runs there is time to wait for a report
/// that stands for many; when it rests, everybody waits for the reports.
const SPREAD_RUNNING: Duration = Duration::from_millis(1);
const SPREAD_RESTING: Duration = Duration::from_micros(200);

/// Upper bound of the time from a report's timer to its promise.
const REPORT_DELAY: Duration = Duration::from_millis(50);

/// Permit of all members. The wire format shows it as 65,535.
pub(super) const EVERYBODY: u64 = 1 << 16;

/// Number of members, and the share of them that may report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reporters {
    pub(super) members: usize,
    /// Share that may report, in 1/65536.
    pub(super) permit: u64,
}

impl Reporters {
    /// Whether there are so few members that all may always report.
    pub(super) fn are_few(self) -> bool {
        self.members <= FEW_MEMBERS
    }

    /// Approximate number of members that may report.
    pub(super) fn permitted(self) -> u64 {
        (self.members as u64).saturating_mul(self.permit) / EVERYBODY
    }

    /// Number of blocks, of `count`, that `thousandths` of them make if some member asks for them,
    /// scaled to what the reporting members see.
    pub(super) fn share_of(self, thousandths: u64, count: usize) -> usize {
        let share = (count as u64).saturating_mul(thousandths) * self.permit / (1000 * EVERYBODY);
        usize::try_from(share).unwrap_or(usize::MAX)
    }
}

/// Time over which this many members spread their reports.
pub(super) fn spread(members: usize, stream_done: bool) -> Duration {
    let each = if stream_done { SPREAD_RESTING } else { SPREAD_RUNNING };
    match u32::try_from(members) {
        Ok(few) if members <= FEW_MEMBERS => (each * few).max(SPREAD_MIN),
        _ => SPREAD_MANY,
    }
}

/// Longest time that a report may take that answers the last change.
pub(super) fn patience(members: usize, stream_done: bool) -> Duration {
    2 * spread(members, stream_done) + REPORT_DELAY
}
