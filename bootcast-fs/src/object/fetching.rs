//! Bytes that arrive over HTTP.

use std::io::IoSlice;
use std::ops::Range;
use std::time::Instant;

use bootcast_proto::{PageIndex, PageRange};

use super::{Inner, Object, Ready};
use crate::receiver::{Assembly, Fetch, FetchError, Notice, Reception, UnicastMode};

/// Result of bytes of a fetch.
pub struct Fetched {
    /// Reads that they complete.
    pub ready: Vec<Ready>,
    /// Number of bytes used. The rest is the start of a page; pass it again with the bytes that
    /// follow.
    pub taken: usize,
    /// Whether more bytes are wanted.
    pub goes_on: bool,
}

impl Inner {
    /// Bytes that the longest waiting reader asked for.
    fn oldest_wait(&self) -> Option<Range<u64>> {
        self.parked.iter().min_by_key(|parked| parked.since).map(|parked| parked.bytes.clone())
    }
}

impl Object {
    /// Sets whether the file may be fetched over HTTP.
    #[must_use]
    pub fn with_unicast(self, mode: UnicastMode) -> Self {
        self.lock().receiver.set_unicast(mode);
        self
    }

    /// Other files of this server got no multicast lately. `tells`: the server hears of it at once.
    pub fn presume_no_multicast(&self, tells: bool, now: Instant) {
        self.lock().receiver.presume_no_multicast(tells, now);
    }

    /// Whether a part of the file is here, so that a join need not bring all of it again.
    pub fn resumes(&self) -> bool {
        self.lock().receiver.resumes()
    }

    /// Pages and symbols of the present membership that were of use.
    pub fn useful(&self) -> u64 {
        self.lock().receiver.useful()
    }

    /// The socket of the pages, or of the repair channel, could not be opened.
    pub fn has_no_socket(&self, is_repair: bool, error: &str, now: Instant) {
        self.lock().receiver.handle_no_socket(is_repair, error, now);
    }

    /// The interface that the datagrams come in by has this MTU.
    pub fn heard_by(&self, mtu: u32, now: Instant) {
        self.lock().receiver.handle_mtu(mtu, now);
    }

    /// What the user is to be told of the reception.
    pub fn take_notices(&self) -> Vec<Notice> {
        self.lock().receiver.take_notices()
    }

    /// How the file arrives at present.
    pub fn reception(&self) -> Reception {
        self.lock().receiver.reception()
    }

    /// Fetches in a row that brought nothing.
    pub fn fetch_failures(&self) -> u32 {
        self.lock().receiver.fetch_failures()
    }

    /// Returns a request to send. Call it whenever the object was tended to.
    pub fn poll_fetch(&self, now: Instant) -> Option<Fetch> {
        let mut inner = self.lock();
        if !inner.receiver.may_fetch() {
            return None;
        }
        let oldest = inner.oldest_wait();
        inner.receiver.poll_fetch(oldest.as_ref(), now)
    }

    /// Stores whole missing pages from bytes of fetch `id` at `offset`.
    #[must_use]
    pub fn fetched(&self, id: u64, offset: u64, bytes: &[u8]) -> Fetched {
        let end = offset + bytes.len() as u64;
        let (mut pages, page_size, epoch, whole) = {
            let mut inner = self.lock();
            self.give_size(&mut inner);
            let Some(assembly) = inner.receiver.assembly() else {
                return Fetched { ready: Vec::new(), taken: bytes.len(), goes_on: false };
            };
            let whole = whole_pages(assembly, &(offset..end));
            let geometry = assembly.geometry();
            let missing = whole.iter().filter(|page| !assembly.held().contains(*page));
            let slice = |page: PageIndex| {
                let range = geometry.byte_range(PageRange::single(page));
                let at = |position| usize::try_from(position - offset).ok();
                Some((page, IoSlice::new(bytes.get(at(range.start)?..at(range.end)?)?)))
            };
            let pages: Vec<_> = missing.filter_map(slice).collect();
            let taken = if whole.is_empty() { offset } else { geometry.byte_range(whole).end };
            (pages, geometry.page_size(), inner.receiver.epoch(), taken)
        };
        let stored = self.write(&mut pages, page_size);
        let is_stored = stored.error.is_none();
        let ready = self.note(stored, epoch);
        let mut inner = self.lock();
        let oldest = inner.oldest_wait();
        let goes_on = inner.receiver.handle_fetched(id, whole, oldest.as_ref()) && is_stored;
        let taken = usize::try_from(whole - offset).unwrap_or(bytes.len());
        Fetched { ready, taken, goes_on }
    }

    /// Ends a fetch. The intake must attend to the object afterwards.
    #[must_use]
    pub fn fetch_ended(&self, id: u64, result: Result<(), FetchError>, now: Instant) -> Vec<Ready> {
        let mut inner = self.lock();
        inner.receiver.handle_fetch_end(id, result, now);
        self.settle(&mut inner)
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
