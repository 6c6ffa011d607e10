//! Bytes that arrive over HTTP.

use std::io::IoSlice;
use std::ops::Range;
use std::time::Instant;

use bootcast_proto::{PageIndex, PageRange};

use super::{Inner, Object, Ready};
use crate::receiver::{Assembly, Fetch, FetchError};
use crate::totals::TOTALS;

/// Result of [`Object::store_fetched`].
pub struct Fetched {
    /// Reads that these bytes complete.
    pub ready: Vec<Ready>,
    /// Number of bytes used. The rest is the start of a page; pass it again with the bytes that
    /// follow.
    pub used: usize,
    /// Whether more bytes are wanted.
    pub wants_more: bool,
}

impl Inner {
    /// Returns the next bytes to fetch, if any, and counts their fetch as begun.
    pub(super) fn poll_fetch(&mut self, now: Instant) -> Option<Fetch> {
        if !self.receiver.may_fetch() {
            return None;
        }
        let oldest = self.oldest_wait();
        self.receiver.poll_fetch(oldest.as_ref(), now)
    }
}

impl Object {
    /// Stores whole missing pages from bytes of fetch `id` at `offset`.
    #[must_use]
    pub fn store_fetched(&self, id: u64, offset: u64, bytes: &[u8]) -> Fetched {
        let end = offset + bytes.len() as u64;
        let alone = self.begin_writing();
        let (mut pages, page_size, epoch, whole_end) = {
            let mut inner = self.lock();
            self.set_final_size(&mut inner);
            let Some(assembly) = inner.receiver.assembly() else {
                return Fetched { ready: Vec::new(), used: bytes.len(), wants_more: false };
            };
            let whole = whole_pages(assembly, &(offset..end));
            let geometry = assembly.geometry();
            let missing = whole.iter().filter(|page| !assembly.arrived().contains(*page));
            let slice = |page: PageIndex| {
                let range = geometry.byte_range(PageRange::single(page));
                let at = |position| usize::try_from(position - offset).ok();
                Some((page, IoSlice::new(bytes.get(at(range.start)?..at(range.end)?)?)))
            };
            let pages: Vec<_> = missing.filter_map(slice).collect();
            let whole_end = if whole.is_empty() { offset } else { geometry.byte_range(whole).end };
            let page_size = geometry.page_size();
            for (page, _) in &pages {
                inner.receiver.record_other_pages(PageRange::single(*page), false);
            }
            (pages, page_size, inner.receiver.epoch(), whole_end)
        };
        let written = self.write(&mut pages, page_size);
        TOTALS.unicast_bytes.add(written.bytes(page_size));
        let has_failed = written.error.is_some() || !written.lost.is_empty();
        let ready = self.mark_held(written, epoch);
        drop(alone);
        let mut inner = self.lock();
        let oldest = inner.oldest_wait();
        let continues = inner.receiver.handle_fetched(id, whole_end, oldest.as_ref());
        let used = usize::try_from(whole_end - offset).unwrap_or(bytes.len());
        Fetched { ready, used, wants_more: continues && !has_failed }
    }

    /// Ends a fetch. Returns the reads that this ends. The receive thread must attend to the object
    /// afterwards.
    #[must_use]
    pub fn handle_fetch_end(
        &self,
        id: u64,
        result: Result<(), FetchError>,
        now: Instant,
    ) -> Vec<Ready> {
        let mut inner = self.lock();
        inner.receiver.handle_fetch_end(id, result, now);
        self.take_answerable(&mut inner)
    }
}

/// Pages whose bytes all lie within `bytes`.
fn whole_pages(assembly: &Assembly, bytes: &Range<u64>) -> PageRange {
    let geometry = assembly.geometry();
    let mut pages = geometry.pages_covering(bytes.clone());
    let cut = |page: PageIndex| {
        let range = geometry.byte_range(PageRange::single(page));
        range.start < bytes.start || bytes.end < range.end
    };
    if !pages.is_empty() && cut(pages.start) {
        pages.start.0 += 1;
    }
    if !pages.is_empty() && cut(PageIndex(pages.end.0 - 1)) {
        pages.end.0 -= 1;
    }
    pages
}

#[cfg(test)]
mod tests;
