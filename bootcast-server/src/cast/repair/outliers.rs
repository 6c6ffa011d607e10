//! Detects members that need far more than the others; these are served last.

use std::collections::BTreeMap;
use std::time::Instant;

use bootcast_proto::BlockIndex;
use bootcast_proto::api::Report;

use super::levels::Levels;
use super::reporters::{Reporters, patience};

/// A need counts as large if it exceeds the promise by more than this many symbols, or by more than
/// the redundancy. Random loss does not explain more.
const MUCH: u32 = 8;

/// 1 / this is the largest fraction of the reporting members that can be outliers. If more of them
/// need much, they are not unusual.
const UNUSUAL_SHARE: u64 = 8;

/// Counts the reports of members that need much.
#[derive(Debug)]
pub(super) struct Outliers {
    since: Instant,
    reports: u64,
}

impl Outliers {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, reports: 0 }
    }

    /// Whether this report asks for far more than most others do.
    pub(super) fn is_outlier(
        &mut self,
        report: &Report,
        levels: &Levels,
        redundancy: u32,
        reporters: Reporters,
        now: Instant,
    ) -> bool {
        if reporters.members < 2 || !asks_for_much(report, levels, redundancy) {
            return false;
        }
        if self.since + patience(reporters.members, false) <= now {
            *self = Self::new(now);
        }
        self.reports += 1;
        self.reports <= (reporters.permitted() / UNUSUAL_SHARE).max(1)
    }
}

/// Whether more than half of the blocks in the reported windows need much.
fn asks_for_much(report: &Report, levels: &Levels, redundancy: u32) -> bool {
    let layout = levels.layout();
    let mut blocks = BTreeMap::new();
    let mut much = 0;
    for &(block, need) in &report.needs {
        let Some(promised) = levels.promised(BlockIndex(block)) else { continue };
        let window = layout.window_of_block(BlockIndex(block));
        let range = layout.blocks_of(window);
        blocks.insert(window, range.end - range.start);
        much += u32::from(u32::from(need) > promised + redundancy.max(MUCH));
    }
    let named: u32 = blocks.values().sum();
    named > 0 && much.saturating_mul(2) > named
}
