//! Handles parts of files that cannot be read. The cast goes on without them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

use bootcast_proto::{BlockIndex, PageRange};
use rustix::io::Errno;

use super::reading::CastReader;
use super::{CastId, Driver, EndReason, Sending, Symbol, Transmit};
use crate::io::reader::ReadFailure;
use crate::io::reader::source::ReadError;

/// Failed reads after which pages are given up although each of them alone can be read.
pub(super) const MAX_FAILURES: u32 = 3;

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

    /// Leaves pages out from now on that cannot be read.
    pub(super) fn handle_unreadable_pages(&mut self, cast: CastId, failure: &ReadFailure) {
        let ReadFailure { error, unreadable } = failure;
        let ReadError::Io(errno) = error else { return };
        if self.scheduler.cast(cast).is_none() {
            // It ended with pages that wait for this read.
            return self.end_unreadable(cast, error);
        }
        let now = Instant::now();
        for page in unreadable {
            self.scheduler.handle_unreadable(cast, PageRange::single(*page), now);
        }
        if let Some(first) = unreadable.first() {
            // The pages of a block are not consecutive: the warning names the first run.
            let run = (first.0..).zip(unreadable).take_while(|(next, page)| *next == page.0);
            let end = first.0 + u32::try_from(run.count()).expect("at most the pages of a read");
            self.warn_unreadable(cast, PageRange::new(first.0, end), *errno);
        }
    }

    /// Returns these symbols without those of blocks with unreadable pages, which it counts as not
    /// sent. All of them are given up after [`MAX_FAILURES`].
    pub(super) fn readable_symbols(&mut self, cast: CastId, symbols: &[Symbol]) -> Vec<Symbol> {
        let mut rest = symbols.to_vec();
        let gives_up = self.readers.get_mut(&cast).is_some_and(CastReader::take_give_up);
        let unsent: Vec<_> = if gives_up {
            std::mem::take(&mut rest)
        } else {
            let bad = self.unreadable_blocks(cast, symbols);
            rest.extract_if(.., |symbol| bad.contains(&symbol.block)).collect()
        };
        if !unsent.is_empty() {
            self.scheduler.handle_unsent(cast, &Sending::Symbols(unsent));
        }
        rest
    }

    /// Returns the blocks of these symbols that have unreadable pages.
    fn unreadable_blocks(&self, cast: CastId, symbols: &[Symbol]) -> BTreeSet<BlockIndex> {
        let Some(view) = self.scheduler.cast(cast) else { return BTreeSet::new() };
        let all = PageRange::new(0, view.geometry.pages());
        let layout = self.scheduler.layout(&view.geometry);
        let has_any = self.scheduler.unreadable_in(cast, all).is_some();
        let Some(layout) = layout.filter(|_| has_any) else { return BTreeSet::new() };
        let blocks = symbols.iter().map(|symbol| symbol.block);
        let is_bad = |block: &BlockIndex| {
            layout.pages_in(*block).any(|(_, page)| {
                self.scheduler.unreadable_in(cast, PageRange::single(page)).is_some()
            })
        };
        blocks.filter(is_bad).collect()
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
