//! Storing the pages that arrive by multicast, and saving which pages are held.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::Instant;

use bootcast_proto::{ContentId, PageIndex, PageRange, PageSize};
use tracing::warn;

use super::{Inner, Object, Ready};
use crate::cache::{CheckpointError, HeldSnapshot, is_no_room};
use crate::io::now;
use crate::receiver::{Arrival, Assembly, Checked, Counters, Epoch, GROUP_PAGES};
use crate::totals::TOTALS;
use crate::{log_limit, panics};

/// Most slices in one write: `UIO_MAXIOV` of the kernel.
const MAX_SLICES: usize = 1024;

/// Extent of a checkpoint: the number of pages, their size, and the content id, if all bytes are
/// found to be those of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    page_size: u32,
    pages: u32,
    content: Option<ContentId>,
}

impl Saved {
    /// Returns the held pages of `assembly`, and the content id.
    pub(super) fn of(assembly: &Assembly, content: Option<ContentId>) -> Self {
        match assembly.arrived().len() {
            0 => Self::default(),
            pages => Self { page_size: assembly.page_size().get(), pages, content },
        }
    }

    /// Whether all held pages of `assembly` are saved, and the content id.
    pub(super) fn is_of(self, assembly: &Assembly, content: Option<ContentId>) -> bool {
        self == Self::of(assembly, content)
    }
}

/// Result of writing pages: the runs that were written, and the error that ended it.
#[derive(Default)]
pub(super) struct Written {
    runs: Vec<PageRange>,
    /// Runs for which there is no room, not even in memory: they count as lost.
    pub(super) lost: Vec<PageRange>,
    pub(super) error: Option<String>,
}

impl Written {
    /// Number of bytes that were written. The last page of the file counts as a full one.
    pub(super) fn bytes(&self, page_size: PageSize) -> u64 {
        let pages: u64 = self.runs.iter().map(|run| u64::from(run.len())).sum();
        pages * u64::from(page_size.get())
    }
}

/// Counts datagrams of no use, by the counters of a receiver before and after it handled some.
pub(super) fn count_datagrams(before: &Counters, after: &Counters) {
    let rejected = |of: &Counters| of.bad + of.strangers + of.forged + of.ignored;
    TOTALS.rejected_datagrams.add(rejected(after) - rejected(before));
    TOTALS.duplicate_pages.add(after.duplicates - before.duplicates);
    TOTALS.symbols.add(after.symbols - before.symbols);
}

impl Object {
    /// Stores the new pages of a batch of datagrams. Returns the reads that they complete.
    #[must_use]
    pub fn receive(&self, datagrams: &[(SocketAddr, &[u8])], now: Instant) -> Vec<Ready> {
        let mut pages = Vec::with_capacity(datagrams.len());
        let checked = self.check(datagrams);
        let _alone = self.begin_writing();
        let (epoch, page_size) = {
            let mut inner = self.lock();
            let before = inner.receiver.counters();
            for datagram in &checked {
                if let Arrival::New(page) = inner.receiver.handle_checked(datagram, now) {
                    pages.push((page.index, IoSlice::new(page.payload)));
                }
            }
            count_datagrams(&before, &inner.receiver.counters());
            self.set_final_size(&mut inner);
            (inner.receiver.epoch(), inner.receiver.assembly().map(Assembly::page_size))
        };
        let written = page_size.map(|size| self.write(&mut pages, size)).unwrap_or_default();
        TOTALS.multicast_bytes.add(page_size.map_or(0, |size| written.bytes(size)));
        self.mark_held(written, epoch)
    }

    /// Gives the store its final size as soon as it is known.
    pub(super) fn set_final_size(&self, inner: &mut Inner) {
        if !inner.has_final_size
            && let Some(size) = inner.receiver.size()
        {
            match self.store().set_size(size) {
                Ok(()) => inner.has_final_size = true,
                Err(error) => self.store_failed(inner, error.to_string()),
            }
        }
    }

    /// Fails the object because its cache cannot be written or read.
    pub(super) fn store_failed(&self, inner: &mut Inner, error: String) {
        if let Some(more) = log_limit::allow("cannot write or read stored pages", &error) {
            warn!(path = %self.key.path, error, "cannot write or read stored pages{more}");
        }
        inner.receiver.handle_store_error(error);
    }

    /// Checks the tags of a batch, which takes up to a millisecond, without the lock that readers
    /// need.
    pub(super) fn check<'a>(&self, datagrams: &[(SocketAddr, &'a [u8])]) -> Vec<Checked<'a>> {
        let gate = *self.lock().receiver.gate();
        gate.check_all(datagrams)
    }

    /// Writes pages in runs of consecutive ones. Needs [`Object::begin_writing`].
    pub(super) fn write(
        &self,
        mut pages: &mut [(PageIndex, IoSlice<'_>)],
        page_size: PageSize,
    ) -> Written {
        #[cfg(test)]
        tests::before_write();
        let mut written = Written::default();
        while let Some(&(first, _)) = pages.first() {
            let consecutive = |(at, page): &(usize, &(PageIndex, IoSlice<'_>))| {
                *at < MAX_SLICES && page.0.0 as usize == first.0 as usize + at
            };
            let len = pages.iter().enumerate().take_while(consecutive).count();
            let (run, rest) = pages.split_at_mut(len);
            let mut slices: Vec<_> = run.iter().map(|(_, slice)| *slice).collect();
            let offset = u64::from(first.0) * u64::from(page_size.get());
            let mut stored = self.store().write_run(&mut slices, offset);
            if stored.as_ref().is_err_and(is_no_room) {
                self.drop_oldest(run.iter().map(|(_, slice)| slice.len() as u64).sum());
                let mut slices: Vec<_> = run.iter().map(|(_, slice)| *slice).collect();
                stored = self.store().write_run(&mut slices, offset);
            }
            let end = u32::try_from(len).map_or(u32::MAX, |len| first.0 + len);
            let own = PageRange::new(first.0, end);
            match stored {
                Ok(()) => written.runs.push(own),
                Err(error) if self.store().may_drop() && is_no_room(&error) => {
                    written.lost.push(own);
                }
                Err(error) => {
                    written.error = Some(error.to_string());
                    return written;
                }
            }
            pages = rest;
        }
        written
    }

    /// Marks written pages as held, unless a join since `epoch` may have brought another page size.
    /// The bytes are then right, but their page numbers are not. Returns the reads that can be
    /// answered.
    pub(super) fn mark_held(&self, written: Written, epoch: Epoch) -> Vec<Ready> {
        let mut inner = self.lock();
        for run in written.runs {
            inner.receiver.handle_stored(run, epoch);
        }
        for run in written.lost {
            inner.receiver.handle_not_stored(run, now());
        }
        if self.store().has_window() {
            self.stop_filling(&mut inner);
        }
        if let Some(error) = written.error {
            self.store_failed(&mut inner, error);
        }
        let receiver = &inner.receiver;
        let is_verified_later = receiver.tree().is_some() && receiver.failure().is_none();
        if is_verified_later && !receiver.has_all_pages() {
            // Nobody waits for pages that may not be read yet.
            return Vec::new();
        }
        self.take_answerable(&mut inner)
    }

    /// Saves to disk which pages are held. Waits for the disk; call it on a thread that may.
    pub fn checkpoint(&self) -> Result<(), CheckpointError> {
        let _alone = panics::lock(&self.saving);
        if self.store().follows() {
            return Ok(());
        }
        self.settle()?;
        // Before the link to the content, so that who finds that finds the hashes, too.
        self.save_lists();
        let (kept, changed) = self.snapshot_held();
        let result = match &kept {
            Some((_, Some(kept))) => self.store().checkpoint(kept),
            // Of lost data an earlier state may still be there, if it could not be removed.
            Some((_, None)) | None => return self.store().fail_if_lost(),
        };
        if let Err(error) = &result
            && let Some(more) = log_limit::allow("cannot save which pages are held", error)
        {
            warn!(path = %self.key.path, %error, "cannot save which pages are held{more}");
        }
        let mut inner = self.lock();
        if result.is_err() {
            for group in changed {
                inner.receiver.mark_changed(pages_of(group));
            }
        }
        match &result {
            Ok(()) => {
                inner.saved = kept.map(|(saved, _)| saved).unwrap_or_default();
                // Followers can lock an object that is complete from now on.
                self.changed.send_replace(());
            }
            // The kernel reports a failed write-back once, and then shows the page as clean.
            Err(CheckpointError::Data(error)) => {
                inner.receiver.handle_store_lost(error.clone());
                let failed = self.take_answerable(&mut inner);
                drop(inner);
                self.answer_all(failed);
            }
            Err(CheckpointError::State(_)) => {}
        }
        result
    }

    /// Takes a snapshot of the pages that are held, if it differs from what is saved. Returns it,
    /// and the groups with changes that it has.
    fn snapshot_held(&self) -> (Option<(Saved, Option<HeldSnapshot>)>, BTreeSet<u32>) {
        let past = self.store().in_window(&(0..u64::MAX));
        let mut inner = self.lock();
        let (content, proven) = (inner.receiver.content_id(), inner.receiver.proven_content());
        let Some(assembly) = inner.receiver.assembly() else { return (None, BTreeSet::new()) };
        let (geometry, saved) = (*assembly.geometry(), Saved::of(assembly, proven));
        if saved == inner.saved && past.is_empty() {
            return (None, BTreeSet::new());
        }
        for bytes in &past {
            inner.receiver.mark_changed(geometry.pages_covering(bytes.clone()));
        }
        let changed = inner.receiver.take_changed();
        let saves_changes = self.store().saves_changes(&geometry, content);
        let of = |assembly| {
            let is_verified = proven.is_some();
            let only = Some(&changed).filter(|_| saves_changes);
            HeldSnapshot::of(assembly, content, is_verified, &past, only)
        };
        let snapshot = inner.receiver.assembly().and_then(of);
        (Some((saved, snapshot)), changed)
    }
}

/// Returns the pages of a group whose arrival is saved together.
fn pages_of(group: u32) -> PageRange {
    PageRange::new(group * GROUP_PAGES, group.saturating_add(1).saturating_mul(GROUP_PAGES))
}

#[cfg(test)]
mod tests;
