//! One version of one file: which version it is, which of its pages are here, and which the server
//! cannot read.
//!
//! A page has one state so far: it *arrived*, so it is stored and need not come again. A further
//! state, such as *verified*, belongs here, beside the assembly: [`Content::holds`] is the only
//! question that reads ask, and [`Content::is_complete`] the only one that ends a membership.

use std::borrow::Cow;
use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::join::Extensions;
use bootcast_proto::{BlockLayout, Etag, Geometry, JoinAnswer, PageIndex, PageRange, PageSet};

use super::assembly::{Arrival, Assembly};
use super::unreadable::Unreadable;

/// After this time, the next read of an unreadable page asks for it again.
pub(super) const BELIEVED_FOR: Duration = Duration::from_secs(10);

/// Conditions on the file that a join yields.
#[derive(Clone, Debug, Default)]
pub struct Pin {
    /// Version that the file must have; `None` accepts the version of the first answer.
    pub etag: Option<Etag>,
    /// Exact size, if known beforehand.
    pub size: Option<u64>,
}

/// Pages of one version.
#[derive(Debug)]
pub(super) struct Content {
    pin: Pin,
    /// Pages that arrived; `None` until the first answer states the page size.
    assembly: Option<Assembly>,
    unreadable: Unreadable,
}

impl Content {
    /// Content of the version that `pin` describes. `kept` is what the cache kept of it.
    pub(super) fn new(pin: Pin, kept: Option<Assembly>) -> Self {
        Self { pin, assembly: kept, unreadable: Unreadable::default() }
    }

    /// Accepts the answer if it has the pinned version, or pins its version. Returns `false` for
    /// another version.
    pub(super) fn adopt(&mut self, answer: &JoinAnswer) -> bool {
        let Extensions { etag, size, .. } = &answer.extensions;
        if differ(self.pin.etag.as_ref(), etag.as_ref()) || differ(self.pin.size, *size) {
            return false;
        }
        let fits = if let Some(assembly) = &mut self.assembly {
            assembly.continue_with(answer)
        } else {
            self.assembly = Some(Assembly::begin(answer, self.pin.size));
            true
        };
        self.pin.etag = self.pin.etag.take().or_else(|| etag.clone());
        self.pin.size = self.pin.size.or(*size);
        fits
    }

    /// Pages that arrived, once the page size is known.
    pub(super) fn assembly(&self) -> Option<&Assembly> {
        self.assembly.as_ref()
    }

    /// Geometry of the file, once the page size is known.
    pub(super) fn geometry(&self) -> Option<&Geometry> {
        self.assembly.as_ref().map(Assembly::geometry)
    }

    /// Checks a datagram of the present cast.
    pub(super) fn check<'a>(&mut self, datagram: &'a [u8]) -> Option<Arrival<'a>> {
        self.assembly.as_mut().map(|assembly| assembly.arrived(datagram))
    }

    /// Whether the datagram of this page is as long as the longest of the cast. The only page of a
    /// file counts as one.
    pub(super) fn is_full_page(&self, page: PageIndex) -> bool {
        self.geometry().is_some_and(|geometry| {
            geometry.pages() <= 1
                || geometry.page_len(page).is_none_or(|len| len == geometry.page_size().get())
        })
    }

    /// Marks pages as arrived, after they were stored. Returns `false` if nothing is known of the
    /// file.
    pub(super) fn store(&mut self, pages: PageRange) -> bool {
        let Some(assembly) = &mut self.assembly else { return false };
        assembly.stored(pages);
        true
    }

    /// Forgets all pages, because the store may have lost them.
    pub(super) fn discard(&mut self) {
        self.assembly = None;
    }

    /// Whether every page is here.
    pub(super) fn is_complete(&self) -> bool {
        self.assembly.as_ref().is_some_and(Assembly::is_complete)
    }

    /// Whether some page is here.
    pub(super) fn has_pages(&self) -> bool {
        self.assembly.as_ref().is_some_and(|assembly| assembly.held().held() > 0)
    }

    /// Number of missing pages, once the page size is known.
    pub(super) fn missing_pages(&self) -> Option<u32> {
        self.assembly.as_ref().map(|assembly| assembly.held().pages() - assembly.held().held())
    }

    /// Whether all of these bytes may be read.
    pub(super) fn holds(&self, bytes: &Range<u64>) -> bool {
        self.assembly.as_ref().is_some_and(|assembly| assembly.holds(bytes))
    }

    /// Exact size, once known.
    pub(super) fn size(&self) -> Option<u64> {
        self.assembly.as_ref().and_then(Assembly::size).or(self.pin.size)
    }

    /// Version, once known. A plain server names none.
    pub(super) fn etag(&self) -> Option<&Etag> {
        self.pin.etag.as_ref()
    }

    /// Length of the gapless part at the start that needs nothing more, in bytes. With `layout` it
    /// ends at a window, because a block is rebuilt from its other pages.
    pub(super) fn finished(&self, layout: Option<BlockLayout>) -> u64 {
        let Some(assembly) = &self.assembly else { return 0 };
        let Some(layout) = layout else { return assembly.contiguous() };
        let first = assembly.held().first_missing(assembly.geometry().all());
        first.map_or(assembly.geometry().size(), |page| {
            assembly.geometry().offset(layout.pages_of(layout.window_of(page)).start)
        })
    }

    /// Records pages that the server cannot read. Returns `false` if nothing is known of the file.
    pub(super) fn record_unreadable(&mut self, runs: &[PageRange], now: Instant) -> bool {
        let Some(assembly) = &self.assembly else { return false };
        let pages = assembly.geometry().pages();
        for run in runs {
            let run = PageRange::new(run.start.0.min(pages), run.end.0.min(pages));
            self.unreadable.insert(run, now + BELIEVED_FOR);
        }
        true
    }

    /// Drops pages whose time as unreadable is over.
    pub(super) fn expire_unreadable(&mut self, now: Instant) {
        self.unreadable.expire(now);
    }

    /// First missing bytes among these that the server cannot read.
    pub(super) fn unreadable(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        let assembly = self.assembly.as_ref()?;
        let pages = assembly.geometry().pages_covering(bytes.clone());
        let missing = self.unreadable.first_missing(pages, assembly.held())?;
        Some(assembly.geometry().byte_range(missing))
    }

    /// Whether pages are missing and the server can read none of them.
    pub(super) fn lacks_only_unreadable(&self) -> bool {
        let Some(assembly) = self.assembly.as_ref().filter(|_| !self.unreadable.is_empty()) else {
            return false;
        };
        let missing = assembly.held().pages() - assembly.held().held();
        missing > 0 && self.unreadable.missing(assembly.held()) == missing
    }

    /// Up to `limit` missing pages that the server can read, if an unreadable page keeps the block
    /// of each from being rebuilt. Empty if any other page is missing.
    pub(super) fn cut_off_pages(&self, layout: BlockLayout, limit: usize) -> Vec<PageIndex> {
        let Some(assembly) = &self.assembly else { return Vec::new() };
        self.unreadable.cut_off_pages(layout, assembly.held(), limit)
    }

    /// Pages that need not be fetched: those here, and those that cannot arrive.
    pub(super) fn not_to_fetch(&self) -> Option<Cow<'_, PageSet>> {
        self.assembly.as_ref().map(|assembly| self.unreadable.or_held(assembly.held()))
    }
}

/// Whether both are known and differ.
fn differ<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}
