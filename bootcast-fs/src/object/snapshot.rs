//! The state of an object at one moment, as openers, progress displays and logs see it.

use std::ops::Range;

use bootcast_proto::{Etag, PageRange};
use tokio::sync::watch;

use super::{Inner, Object};
use crate::receiver::{Assembly, Counters, Failure};

/// Progress of an open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// The server has not answered yet.
    Pending,
    /// Reads will be served, now or later.
    Open,
    /// The file cannot be opened.
    Failed(Failure),
}

/// State of an object at one moment. Its fields belong together: no change falls between them.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Progress of the open, or the reason why missing pages can never arrive.
    pub opening: Opening,
    /// Version, once known. Plain servers name none.
    pub etag: Option<Etag>,
    /// Exact size in bytes, once known.
    pub size: Option<u64>,
    /// Upper bound of the size, once joined: less than a page above the exact size until that is
    /// known.
    pub size_at_most: Option<u64>,
    /// Number of pages, once joined.
    pub pages: Option<u32>,
    /// Bytes at the start without a gap that may be read.
    pub contiguous: u64,
    /// Number of held bytes, up to a page too low.
    pub received: u64,
    /// Whether every byte may be read.
    pub is_complete: bool,
    /// Whether every byte is held and will not get lost: it reached the disk, where there is one.
    pub is_durable: bool,
    /// Whether the object has no opens and takes part in no cast.
    pub is_idle: bool,
    /// First missing bytes that the server cannot read, if it said so lately.
    pub unreadable: Option<Range<u64>>,
    /// Joins in a row that failed.
    pub join_failures: u32,
    /// Fetches in a row that brought nothing.
    pub fetch_failures: u32,
    /// Number of pages and symbols of the present membership that were new.
    pub useful: u64,
    /// Datagrams by result.
    pub counters: Counters,
}

impl Snapshot {
    /// Returns the reason why missing pages can never arrive, if so.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.opening {
            Opening::Failed(failure) => Some(failure),
            Opening::Pending | Opening::Open => None,
        }
    }
}

impl Object {
    /// Returns the present state. It costs an allocation or two: look at it when it is needed, not
    /// for each datagram.
    pub fn snapshot(&self) -> Snapshot {
        let mut inner = self.lock();
        let contiguous = inner.contiguous();
        let Inner { receiver, saved, .. } = &*inner;
        let opening = match receiver.failure() {
            Some(failure) => Opening::Failed(failure.clone()),
            None if receiver.is_confirmed() => Opening::Open,
            None => Opening::Pending,
        };
        let assembly = receiver.assembly();
        let size_at_most = assembly.map(|assembly| assembly.geometry().size());
        let snapshot = Snapshot {
            opening,
            etag: receiver.etag().cloned(),
            size: receiver.size(),
            size_at_most,
            pages: assembly.map(|assembly| assembly.geometry().pages()),
            contiguous,
            received: assembly.map_or(0, received),
            is_complete: receiver.is_complete(),
            is_durable: receiver.is_complete()
                && !receiver.follows()
                && !self.store().has_window()
                && assembly.is_some_and(|held| {
                    self.store().is_in_memory() || saved.is_of(held, receiver.proven_content())
                }),
            is_idle: receiver.is_idle() && receiver.readers() == 0,
            unreadable: size_at_most.and_then(|size| receiver.unreadable(&(0..size))),
            join_failures: receiver.join_failures(),
            fetch_failures: receiver.fetch_failures(),
            useful: receiver.useful(),
            counters: receiver.counters(),
        };
        debug_assert!(
            !snapshot.is_complete || Some(contiguous) == size_at_most,
            "a complete file has a gap"
        );
        snapshot
    }

    /// Whether every page is here, verified or not, so that nothing need come any more.
    pub fn has_all_pages(&self) -> bool {
        self.lock().receiver.has_all_pages()
    }

    /// Waits until `look` finds something in a snapshot, and returns it.
    pub async fn wait_for<T>(&self, mut look: impl FnMut(Snapshot) -> Option<T>) -> T {
        let mut changes = self.watch();
        loop {
            if let Some(found) = look(self.snapshot()) {
                return found;
            }
            // Fails only if the sender is gone, but `self` has it.
            let _ = changes.changed().await;
        }
    }

    /// Returns a receiver that is notified whenever a snapshot may differ from the one before,
    /// except for pages that arrived and may not be read yet.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// Number of held bytes, up to a page too low.
pub(super) fn received(assembly: &Assembly) -> u64 {
    let pages = u64::from(assembly.arrived().len());
    (pages * u64::from(assembly.page_size().get())).min(assembly.geometry().size())
}

/// Pages at the start that are known to be held, so that the search for the first gap continues
/// there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ContiguousPages {
    /// Page size in bytes that `pages` counts; 0 before the first search.
    page_size: u32,
    pages: u32,
}

impl Inner {
    /// Returns the length of the part at the start without a gap that may be read, in bytes.
    fn contiguous(&mut self) -> u64 {
        if let Some(verified) = self.receiver.verified_contiguous() {
            return verified;
        }
        let Some(assembly) = self.receiver.assembly() else { return 0 };
        let (geometry, page_size) = (assembly.geometry(), assembly.page_size().get());
        let all = geometry.all();
        let known = Some(self.contiguous).filter(|known| known.page_size == page_size);
        let start = known.map_or(0, |known| known.pages).min(all.end.0);
        let gap = assembly.arrived().first_missing(PageRange::new(start, all.end.0));
        self.contiguous = ContiguousPages { page_size, pages: gap.map_or(all.end.0, |gap| gap.0) };
        gap.map_or(geometry.size(), |gap| geometry.offset(gap))
    }
}
