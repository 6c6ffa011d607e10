//! Pages that the server cannot read: reads that need one fail, everything else continues.

use std::borrow::Cow;
use std::time::Instant;

use bootcast_proto::{BlockLayout, PageIndex, PageRange, PageSet, RangeMap};

/// Unreadable pages that the server named recently.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    /// Until when each page counts as unreadable.
    pages: RangeMap<Instant>,
}

impl Unreadable {
    /// Adds pages that count as unreadable until this time.
    pub(super) fn insert(&mut self, run: PageRange, until: Instant) {
        self.pages.insert(run, until);
    }

    /// Whether no page counts as unreadable.
    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Drops pages whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        let expired: Vec<_> = self.pages.iter().filter(|(_, until)| *until <= now).collect();
        for (run, _) in expired {
            self.pages.remove(run);
        }
    }

    fn contains(&self, page: PageIndex) -> bool {
        self.pages.parts(PageRange::single(page)).next().is_some()
    }

    /// Number of these pages that are missing.
    pub(super) fn missing(&self, held: &PageSet) -> u32 {
        let runs = self.pages.iter().map(|(run, _)| run);
        let missing = |run: PageRange| run.iter().filter(|page| !held.contains(*page)).count();
        u32::try_from(runs.map(missing).sum::<usize>()).unwrap_or(u32::MAX)
    }

    /// First of these pages that is unreadable and missing, with the rest of its run.
    pub(super) fn first_missing(&self, pages: PageRange, held: &PageSet) -> Option<PageRange> {
        let mut runs = self.pages.parts(pages).map(|(run, _)| run);
        let missing = |run: PageRange| {
            let first = run.iter().find(|page| !held.contains(*page))?;
            Some(PageRange::new(first.0, run.end.0))
        };
        runs.find_map(missing)
    }

    /// Up to `limit` missing pages that the server can read, if an unreadable page keeps the block
    /// of each from being rebuilt. Empty if any other page is missing.
    pub(super) fn cut_off_pages(
        &self,
        layout: BlockLayout,
        held: &PageSet,
        limit: usize,
    ) -> Vec<PageIndex> {
        let is_cut_off = |page: PageIndex| {
            let (block, _) = layout.place(page);
            layout.pages_in(block).any(|(_, other)| self.contains(other) && !held.contains(other))
        };
        let runs = held.missing_ranges();
        let readable = runs.flat_map(PageRange::iter).filter(|page| !self.contains(*page));
        let mut pages = Vec::new();
        for page in readable.take(limit) {
            if !is_cut_off(page) {
                return Vec::new();
            }
            pages.push(page);
        }
        debug_assert!(pages.len() <= limit, "too many pages are demanded");
        pages
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
