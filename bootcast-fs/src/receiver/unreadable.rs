//! Pages that the server cannot read: reads that need one fail, everything else continues.

use std::borrow::Cow;
use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::{PageIndex, PageRange, PageSet, RangeMap};

use super::access::Access;
use super::{Fill, Receiver, WaitId};

/// After this time, the next read of an unreadable page asks for it again.
const BELIEVED_FOR: Duration = Duration::from_secs(10);

/// Most runs of pages demanded at a time because their blocks cannot be rebuilt.
const MAX_RESCUED: usize = 256;

/// Unreadable pages that the server named recently.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    /// Until when each page counts as unreadable.
    pages: RangeMap<Instant>,
    /// Demands for pages of blocks that cannot be rebuilt.
    rescues: Vec<WaitId>,
}

impl Unreadable {
    fn expire(&mut self, now: Instant) {
        let expired: Vec<_> = self.pages.iter().filter(|(_, until)| *until <= now).collect();
        for (run, _) in expired {
            self.pages.remove(run);
        }
    }

    fn contains(&self, page: PageIndex) -> bool {
        self.pages.parts(PageRange::single(page)).next().is_some()
    }

    /// Number of these pages that are missing.
    fn missing(&self, held: &PageSet) -> u32 {
        let runs = self.pages.iter().map(|(run, _)| run);
        let missing = |run: PageRange| run.iter().filter(|page| !held.contains(*page)).count();
        u32::try_from(runs.map(missing).sum::<usize>()).unwrap_or(u32::MAX)
    }

    /// Pages that need not be fetched: held ones, and those that cannot arrive.
    pub(super) fn or_held<'a>(&self, held: &'a PageSet) -> Cow<'a, PageSet> {
        if self.pages.is_empty() {
            return Cow::Borrowed(held);
        }
        let mut all = held.clone();
        for (run, _) in self.pages.iter() {
            all.insert_range(run);
        }
        Cow::Owned(all)
    }
}

impl Receiver {
    /// Handles pages that the server cannot read.
    pub fn handle_unreadable(&mut self, runs: &[PageRange], now: Instant) {
        let Some(assembly) = &self.assembly else { return };
        let pages = assembly.geometry().pages();
        for run in runs {
            let run = PageRange::new(run.start.0, run.end.0.min(pages));
            self.unreadable.pages.insert(run, now + BELIEVED_FOR);
        }
        self.rest_if_nothing_can_come();
        self.rescue(now);
    }

    /// First missing bytes among these that the server cannot read.
    pub fn unreadable(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        let assembly = self.assembly.as_ref()?;
        let pages = assembly.geometry().pages_covering(bytes.clone());
        let mut runs = self.unreadable.pages.parts(pages).map(|(run, _)| run);
        let missing = |run: PageRange| {
            let first = run.iter().find(|page| !assembly.held().contains(*page))?;
            Some(PageRange::new(first.0, run.end.0))
        };
        Some(assembly.geometry().byte_range(runs.find_map(missing)?))
    }

    /// Prepares a read: pages whose time is over may be asked for again, which needs a membership.
    pub(super) fn retry_unreadable(&mut self, bytes: &Range<u64>, now: Instant) {
        self.unreadable.expire(now);
        if self.assembly.is_some() && !self.holds(bytes) && self.unreadable(bytes).is_none() {
            self.membership.wake();
        }
    }

    /// Leaves the cast if all missing pages are unreadable. Later reads of them demand them, so
    /// that no stream runs for them.
    pub(super) fn rest_if_nothing_can_come(&mut self) {
        let Some(assembly) = self.assembly.as_ref().filter(|_| !self.unreadable.pages.is_empty())
        else {
            return;
        };
        let held = assembly.held();
        let missing = held.pages() - held.held();
        if missing > 0 && self.unreadable.missing(held) == missing {
            for wait in std::mem::take(&mut self.unreadable.rescues) {
                self.demand.end_wait(wait);
            }
            self.repair = None;
            self.demand.set_fill(Fill::Demand);
            self.membership.rest();
        }
    }

    /// Demands missing pages that nothing else brings, because an unreadable page keeps their block
    /// from being rebuilt. Waits until nothing else is missing.
    fn rescue(&mut self, now: Instant) {
        for wait in std::mem::take(&mut self.unreadable.rescues) {
            self.demand.end_wait(wait);
        }
        if self.fill() != Fill::Full {
            return;
        }
        let (Some(repair), Some(assembly)) = (&self.repair, &self.assembly) else { return };
        let (layout, held) = (repair.layout(), assembly.held());
        let is_lost = |page: PageIndex| {
            let (block, _) = layout.place(page);
            layout
                .pages_in(block)
                .any(|(_, other)| self.unreadable.contains(other) && !held.contains(other))
        };
        let mut rescued = Vec::new();
        for run in held.missing_ranges() {
            for page in run.iter().filter(|page| !self.unreadable.contains(*page)) {
                if rescued.len() == MAX_RESCUED {
                    break;
                }
                if !is_lost(page) {
                    return;
                }
                rescued.push(page);
            }
        }
        let geometry = *assembly.geometry();
        for page in rescued {
            let bytes = geometry.byte_range(PageRange::single(page));
            let wait = self.demand.begin_wait(&bytes, Access::Random, Some(&geometry), now);
            self.unreadable.rescues.push(wait);
        }
        debug_assert!(self.unreadable.rescues.len() <= MAX_RESCUED, "too many pages are demanded");
    }
}

#[cfg(test)]
mod tests;
