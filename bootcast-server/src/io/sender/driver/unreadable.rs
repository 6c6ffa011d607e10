//! Handles parts of files that cannot be read. The cast goes on without them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

use bootcast_proto::{BlockIndex, PageIndex, PageRange};
use rustix::io::Errno;

use super::{CastId, Driver, EndReason, ReadError, Sending, Symbol, Transmit};
use crate::io::reading::is_local_to_bytes;

/// Failed reads after which pages are given up although each of them alone can be read.
const MAX_FAILURES: u32 = 3;

impl Driver {
    /// Returns the first run of pages in `rest` that are not known to be unreadable; empty if there
    /// is none. Removes the unreadable pages before it from `rest`, and counts them as not sent.
    pub(super) fn readable_run(&mut self, transmit: &Transmit, rest: &mut PageRange) -> PageRange {
        let cast = transmit.cast;
        while let Some(bad) = self.scheduler.unreadable_in(cast, *rest) {
            if bad.start > rest.start {
                return PageRange::new(rest.start.0, bad.start.0);
            }
            self.scheduler.handle_unsent(cast, &Sending::Pages(bad));
            rest.start = bad.end;
        }
        *rest
    }

    /// Handles a failed read of these pages: finds the unreadable ones, which the cast leaves out
    /// from now on. Ends the cast if the error concerns the whole file. `failures` counts the
    /// failed reads of this run.
    pub(super) fn handle_unreadable_pages(
        &mut self,
        cast: CastId,
        pages: &[PageIndex],
        error: &ReadError,
        failures: &mut u32,
    ) {
        let errno = match error {
            ReadError::Io(errno) if is_local_to_bytes(*errno) => *errno,
            ReadError::Io(_) | ReadError::Changed => return self.end_unreadable(cast, error),
        };
        let Some(reader) = self.readers.get_mut(&cast) else { return };
        let is_bad = |page: &&PageIndex| reader.pages.is_unreadable(**page);
        let mut bad: Vec<_> = pages.iter().filter(is_bad).copied().collect();
        *failures += 1;
        if bad.is_empty() && *failures >= MAX_FAILURES {
            bad.extend(pages);
        }
        let now = Instant::now();
        for page in &bad {
            self.scheduler.handle_unreadable(cast, PageRange::single(*page), now);
        }
        if let Some(first) = bad.first() {
            // The pages of a block are not consecutive: the warning names the first run.
            let run = (first.0..).zip(&bad).take_while(|(next, page)| *next == page.0).count();
            let end = first.0 + u32::try_from(run).expect("at most the pages of a read");
            self.warn_unreadable(cast, PageRange::new(first.0, end), errno);
        }
    }

    /// Handles a failed read of the blocks of these symbols. Returns the symbols whose blocks are
    /// not known to be unreadable. `failures` counts the failed reads for these symbols.
    pub(super) fn handle_unreadable_blocks(
        &mut self,
        cast: CastId,
        symbols: &[Symbol],
        error: &ReadError,
        failures: &mut u32,
    ) -> Vec<Symbol> {
        let mut rest = symbols.to_vec();
        let geometry = self.scheduler.cast(cast).map(|view| view.geometry);
        let Some(layout) = geometry.and_then(|geometry| self.scheduler.layout(&geometry)) else {
            return Vec::new();
        };
        let blocks: BTreeSet<BlockIndex> = symbols.iter().map(|symbol| symbol.block).collect();
        let is_bad = |driver: &Self, block: BlockIndex| {
            layout.pages_in(block).any(|(_, page)| {
                driver.scheduler.unreadable_in(cast, PageRange::single(page)).is_some()
            })
        };
        // Finds one unreadable block at a time, so that few blocks are read page by page.
        let unreadable = blocks.into_iter().find(|block| {
            let pages: Vec<_> = layout.pages_in(*block).map(|(_, page)| page).collect();
            self.handle_unreadable_pages(cast, &pages, error, &mut 0);
            self.scheduler.cast(cast).is_none() || is_bad(self, *block)
        });
        *failures += 1;
        let unsent = match unreadable {
            Some(block) => rest.extract_if(.., |symbol| symbol.block == block).collect(),
            // No page is unreadable by itself: the error may have been temporary.
            None if *failures < MAX_FAILURES => Vec::new(),
            None => std::mem::take(&mut rest),
        };
        self.scheduler.handle_unsent(cast, &Sending::Symbols(unsent));
        rest
    }

    /// Ends a cast whose file cannot be read at all, or is no longer the announced version.
    pub(super) fn end_unreadable(&mut self, cast: CastId, error: &ReadError) {
        let now = Instant::now();
        match error {
            ReadError::Changed => self.scheduler.handle_end(cast, EndReason::FileChanged, now),
            ReadError::Io(errno) => {
                self.warn_unreadable(cast, PageRange::default(), *errno);
                self.scheduler.handle_end(cast, EndReason::Unreadable, now);
            }
        }
    }

    /// Logs that a part of a file cannot be read, or all of it (`pages` empty): once a minute for
    /// each file.
    fn warn_unreadable(&mut self, cast: CastId, pages: PageRange, errno: Errno) {
        let Some(view) = self.scheduler.cast(cast) else { return };
        let Some(suppressed) = self.unreadable_warnings.allow(view.path, Instant::now()) else {
            return;
        };
        let Range { start, end } = view.geometry.byte_range(pages);
        let path = view.path;
        if pages.is_empty() {
            tracing::warn!(%path, %errno, suppressed, "cannot read the file: its cast ends");
        } else {
            let last = end.saturating_sub(1);
            tracing::warn!(
                %path, %errno, suppressed,
                "cannot read bytes {start}-{last} of the file: it is sent without them"
            );
        }
    }
}
