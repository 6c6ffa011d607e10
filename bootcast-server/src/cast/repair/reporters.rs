//! Members that may report needs, and the time over which they spread their reports.

use std::time::Duration;

use bootcast_proto::Share;
use bootcast_proto::limits::REPORT_DELAY;

/// Largest number of members that counts as few: all of them may report, and the spread grows with
/// their number.
pub(super) const FEW_MEMBERS: usize = 100;

/// Spread of the reports of many members.
const SPREAD_MANY: Duration = Duration::from_millis(200);

/// Lower bound of the spread of few members.
const MIN_SPREAD: Duration = Duration::from_millis(2);

/// Spread that each of few members adds while the stream runs. There is time then to wait for a
/// report that stands for many.
const SPREAD_RUNNING: Duration = Duration::from_millis(1);

/// Spread that each of few members adds while the stream rests, and all members wait for repair.
const SPREAD_RESTING: Duration = Duration::from_micros(200);

/// Number of members, and the share of them that may report needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reporters {
    pub(super) members: usize,
    /// Share of the members that may report.
    pub(super) permit: Share,
}

impl Reporters {
    /// Whether there are so few members that all may always report.
    pub(super) fn are_few(self) -> bool {
        self.members <= FEW_MEMBERS
    }

    /// Returns the approximate number of members that may report.
    pub(super) fn permitted(self) -> u64 {
        self.permit.apply(self.members as u64)
    }

    /// Returns `thousandths` of `count` blocks, reduced by the permit: of the blocks that some
    /// member needs, only those of the members that may report are known.
    pub(super) fn share_of(self, thousandths: u64, count: usize) -> usize {
        let share = self.permit.apply((count as u64).saturating_mul(thousandths)) / 1000;
        usize::try_from(share).unwrap_or(usize::MAX)
    }
}

/// Returns the time over which this many members spread their reports.
pub(super) fn spread(members: usize, stream_done: bool) -> Duration {
    let each = if stream_done { SPREAD_RESTING } else { SPREAD_RUNNING };
    match u32::try_from(members) {
        Ok(few) if members <= FEW_MEMBERS => (each * few).max(MIN_SPREAD),
        _ => SPREAD_MANY,
    }
}

/// Returns the time after a change by which every report that answers it has arrived.
pub(super) fn report_timeout(members: usize, stream_done: bool) -> Duration {
    2 * spread(members, stream_done) + REPORT_DELAY
}
