//! Detects outliers: members that need far more than the others. Their needs are served last.

use std::collections::BTreeMap;
use std::time::Instant;

use bootcast_proto::BlockIndex;
use bootcast_proto::api::Report;

use super::levels::Levels;
use super::reporters::{Reporters, report_timeout};

/// Symbols by which a need must exceed the promise to count as large. If the redundancy is higher,
/// it is the bound. Random loss does not explain more.
const LARGE_EXCESS: u32 = 8;

/// 1 / this is the largest fraction of the reporting members that can be outliers. If more of them
/// have large needs, such needs are usual.
const OUTLIER_DIVISOR: u64 = 8;

/// Counts reports of large needs in periods of [`report_timeout`].
#[derive(Debug)]
pub(super) struct Outliers {
    period_began: Instant,
    /// Reports of large needs in this period.
    reports: u64,
}

impl Outliers {
    pub(super) fn new(now: Instant) -> Self {
        Self { period_began: now, reports: 0 }
    }

    /// Whether this report is of an outlier. Counts it if its needs are large.
    pub(super) fn is_outlier(
        &mut self,
        report: &Report,
        levels: &Levels,
        redundancy: u32,
        reporters: Reporters,
        now: Instant,
    ) -> bool {
        if reporters.members < 2 || !has_large_needs(report, levels, redundancy) {
            return false;
        }
        if self.period_began + report_timeout(reporters.members, false) <= now {
            *self = Self::new(now);
        }
        self.reports += 1;
        self.reports <= (reporters.permitted() / OUTLIER_DIVISOR).max(1)
    }
}

/// Whether more than half of the blocks in the reported windows have large needs.
fn has_large_needs(report: &Report, levels: &Levels, redundancy: u32) -> bool {
    let layout = levels.layout();
    let mut blocks = BTreeMap::new();
    let mut large = 0;
    for &(block, need) in &report.needs {
        let Some(promised) = levels.promised(BlockIndex(block)) else { continue };
        let window = layout.window_of_block(BlockIndex(block));
        let range = layout.blocks_of(window);
        blocks.insert(window, range.end - range.start);
        large += u32::from(u32::from(need) > promised + redundancy.max(LARGE_EXCESS));
    }
    let reported: u32 = blocks.values().sum();
    reported > 0 && large.saturating_mul(2) > reported
}
