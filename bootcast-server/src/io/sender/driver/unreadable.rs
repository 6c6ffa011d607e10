//! Parts of files that cannot be read: the cast goes on without them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

use bootcast_proto::{BlockIndex, PageIndex, PageRange};
use rustix::io::Errno;

use super::{CastId, Driver, EndReason, ReadError, Sending, Symbol, Transmit};
use crate::io::reading::is_about_bytes;

/// How often a read that fails is tried again where none of its pages is unreadable by itself.
const TRIES: u32 = 3;

impl Driver {
    /// First of these pages that are readable, as far as known, with those that follow. Pages left
    /// out count as not sent. Empty if none is left.
    pub(super) fn readable(&mut self, transmit: &Transmit, left: &mut PageRange) -> PageRange {
        let cast = transmit.cast;
        while let Some(bad) = self.scheduler.unreadable_in(cast, *left) {
            if bad.start > left.start {
                return PageRange::new(left.start.0, bad.start.0);
            }
            self.scheduler.handle_unsent(cast, &Sending::Pages(bad));
            left.start = bad.end;
        }
        *left
    }

    /// Handles a failed read of these pages: finds the unreadable ones and leaves them out from now
    /// on. Ends the cast if the error concerns the whole file. `tries` counts the failures of this
    /// run.
    pub(super) fn on_unreadable(
        &mut self,
        cast: CastId,
        pages: &[PageIndex],
        error: &ReadError,
        tries: &mut u32,
    ) {
        let errno = match error {
            ReadError::Io(errno) if is_about_bytes(*errno) => *errno,
            ReadError::Io(_) | ReadError::Changed => return self.end_unreadable(cast, error),
        };
        let Some(reader) = self.readers.get_mut(&cast) else { return };
        let is_bad = |page: &&PageIndex| reader.pages.is_unreadable(**page);
        let mut bad: Vec<_> = pages.iter().filter(is_bad).copied().collect();
        *tries += 1;
        if bad.is_empty() && *tries >= TRIES {
            bad.extend(pages);
        }
        let now = Instant::now();
        for page in &bad {
            self.scheduler.handle_unreadable(cast, PageRange::single(*page), now);
        }
        if let (Some(first), Some(last)) = (bad.first(), bad.last()) {
            self.warn_unreadable(cast, PageRange::new(first.0, last.0 + 1), errno);
        }
    }

    /// Handles a failed read for these symbols. Returns those whose blocks are readable, as far as
    /// known.
    pub(super) fn on_unreadable_block(
        &mut self,
        cast: CastId,
        symbols: &[Symbol],
        error: &ReadError,
        tries: &mut u32,
    ) -> Vec<Symbol> {
        let mut rest = symbols.to_vec();
        let view = self.scheduler.cast(cast).map(|view| view.geometry);
        let Some(layout) = view.and_then(|geometry| self.scheduler.layout(&geometry)) else {
            return Vec::new();
        };
        let blocks: BTreeSet<BlockIndex> = symbols.iter().map(|symbol| symbol.block).collect();
        let is_bad = |driver: &Self, block: BlockIndex| {
            layout.pages_in(block).any(|(_, page)| {
                driver.scheduler.unreadable_in(cast, PageRange::single(page)).is_some()
            })
        };
        // One bad block at a time: the pages of the others need not be read one by one.
        let found = blocks.into_iter().find(|block| {
            let pages: Vec<_> = layout.pages_in(*block).map(|(_, page)| page).collect();
            self.on_unreadable(cast, &pages, error, &mut 0);
            self.scheduler.cast(cast).is_none() || is_bad(self, *block)
        });
        *tries += 1;
        let gone = match found {
            Some(block) => rest.extract_if(.., |symbol| symbol.block == block).collect(),
            // The error has passed, unless it comes again and again.
            None if *tries < TRIES => Vec::new(),
            None => std::mem::take(&mut rest),
        };
        self.scheduler.handle_unsent(cast, &Sending::Symbols(gone));
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

    /// Warns once a minute for each file about the part that cannot be read.
    fn warn_unreadable(&mut self, cast: CastId, pages: PageRange, errno: Errno) {
        let Some(view) = self.scheduler.cast(cast) else { return };
        let Some(more) = self.unreadable.allow(view.path, Instant::now()) else { return };
        let Range { start, end } = view.geometry.byte_range(pages);
        let path = view.path;
        if pages.is_empty() {
            tracing::warn!(%path, %errno, more, "cannot read the file");
        } else {
            let last = end.saturating_sub(1);
            tracing::warn!(
                %path, %errno, more,
                "cannot read bytes {start}-{last} of the file, it is sent without them"
            );
        }
    }
}
