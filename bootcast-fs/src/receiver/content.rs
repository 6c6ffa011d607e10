//! One version of one file: which version it is, which of its pages are here, and which the server
//! cannot read.
//!
//! A page that *arrived* is stored and need not come again. With `verify=leaf`, its bytes may be
//! read when the leaf around them is *verified*. A plain server proves nothing: there what arrived
//! may be read.

use std::borrow::Cow;
use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::join::Extensions;
use bootcast_proto::manifest::{ContentId, ContentTree, LEAF_BYTES, SEGMENT_LEAVES, Value};
use bootcast_proto::wire::LeafList;
use bootcast_proto::{
    BlockLayout, Etag, Geometry, JoinAnswer, PageIndex, PageRange, PageSet, ZeroMap,
};

use super::assembly::{Arrival, Assembly};
use super::following::{self, Description, Told, ToldOf};
use super::unreadable::Unreadable;
use super::verification::{
    Check, Finding, ListRequest, ListsError, Refuted, Replacement, Verification,
};
use super::zeros::Zeros;

/// After this time, the next read of an unreadable page asks for it again.
pub(super) const BELIEVED_FOR: Duration = Duration::from_secs(10);

/// Conditions on the file that a join yields.
#[derive(Clone, Debug, Default)]
pub struct Pin {
    /// Version that the file must have; `None` accepts the version of the first answer.
    pub etag: Option<Etag>,
    /// Exact size, if known beforehand.
    pub size: Option<u64>,
    /// Hash of the content, if known beforehand.
    pub content: Option<ContentId>,
}

/// Proof that bytes need before they may be read. docs/SEMANTICS.md, "Verification".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// The hash of their leaf.
    Leaf,
    /// The tag of their datagram.
    #[default]
    Tag,
}

/// Source of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A datagram, a repaired block, or HTTP.
    Wire,
    /// The zero map.
    ZeroMap,
}

/// Pages of one version.
#[derive(Debug)]
pub(super) struct Content {
    pin: Pin,
    /// Pages that arrived; `None` until the first answer states the page size.
    assembly: Option<Assembly>,
    verify: Verify,
    /// Whether the server has hashes: it said so, or an earlier use knew the content id.
    has_hashes: bool,
    /// Verified leaves; `None` before the size is known, and where nothing is verified.
    verification: Option<Verification>,
    zeros: Zeros,
    unreadable: Unreadable,
}

impl Content {
    /// Content of the version that `pin` describes. `kept` is what the cache kept of it.
    pub(super) fn new(pin: Pin, kept: Option<Assembly>) -> Self {
        Self {
            has_hashes: pin.content.is_some(),
            pin,
            assembly: kept,
            verify: Verify::Tag,
            verification: None,
            zeros: Zeros::default(),
            unreadable: Unreadable::default(),
        }
    }

    /// Sets the proof that bytes need before they may be read.
    pub(super) fn set_verify(&mut self, verify: Verify) {
        self.verify = verify;
    }

    /// Proof that bytes need before they may be read.
    pub(super) fn verify(&self) -> Verify {
        self.verify
    }

    /// Whether leaves are verified.
    fn verifies(&self) -> bool {
        self.verify == Verify::Leaf && self.has_hashes
    }

    /// Starts the verification once the size is known. What the cache kept is checked as well.
    pub(super) fn begin_verification(&mut self) {
        let Some(assembly) = self.assembly.as_ref().filter(|_| self.verification.is_none()) else {
            return;
        };
        if let Some(size) = assembly.size().filter(|_| self.verifies()) {
            let tree = ContentTree::new(size);
            let mut verification = Verification::new(tree, self.pin.content);
            if !assembly.arrived().is_empty() {
                verification.handle_restored(|bytes| assembly.holds(bytes));
            }
            self.verification = Some(verification);
        }
    }

    /// Accepts the answer if it has the pinned version, or pins its version. Returns `false` for
    /// another version.
    pub(super) fn adopt(&mut self, answer: &JoinAnswer) -> bool {
        let Extensions { etag, size, content_id, leaf_bytes, .. } = &answer.extensions;
        let has_other_content = differ(self.pin.content, *content_id);
        if differ(self.pin.etag.as_ref(), etag.as_ref())
            || differ(self.pin.size, *size)
            || has_other_content
        {
            return false;
        }
        let page_size = self.assembly.as_ref().map(Assembly::page_size);
        let fits = if let Some(assembly) = &mut self.assembly {
            assembly.continue_with(answer)
        } else {
            self.assembly = Some(Assembly::begin(answer, self.pin.size));
            true
        };
        self.pin.etag = self.pin.etag.take().or_else(|| etag.clone());
        self.pin.size = self.pin.size.or(*size);
        self.pin.content = self.pin.content.or(*content_id);
        self.has_hashes |= *leaf_bytes == Some(LEAF_BYTES) && etag.is_some();
        if page_size.is_some() && page_size != self.assembly.as_ref().map(Assembly::page_size) {
            // Other pages lie wholly in leaves of zeros.
            self.zeros = Zeros::default();
        }
        if let (Some(verification), Some(assembly)) = (&mut self.verification, &self.assembly)
            && page_size != Some(assembly.page_size())
        {
            // Pages with other borders may come again, over bytes that were verified.
            verification.handle_restored(|bytes| assembly.holds(bytes));
        }
        self.begin_verification();
        fits && self.adopt_id(*content_id)
    }

    /// Takes the content id that a join answer names. Returns `false` for another content.
    fn adopt_id(&mut self, id: Option<ContentId>) -> bool {
        let Some(verification) = &mut self.verification else { return true };
        id.is_none_or(|id| verification.handle_id(id).is_ok())
    }

    /// Whether leaf lists are of use, should the server have them.
    pub(super) fn wants_leaf_lists(&self) -> bool {
        self.verify == Verify::Leaf
    }

    /// Sets whether the present cast brings leaf lists.
    pub(super) fn expect_leaf_lists(&mut self, expects: bool) {
        if let Some(verification) = &mut self.verification {
            verification.set_lists_in_cast(expects);
        }
    }

    /// Verifies everything that arrived from now on, whether somebody reads it or not.
    pub(super) fn check_all(&mut self) {
        if let Some(verification) = &mut self.verification {
            verification.check_all();
        }
    }

    /// Pages that arrived, once the page size is known.
    pub(super) fn assembly(&self) -> Option<&Assembly> {
        self.assembly.as_ref()
    }

    /// Like [`Self::assembly`], to look at what changed.
    pub(super) fn assembly_mut(&mut self) -> Option<&mut Assembly> {
        self.assembly.as_mut()
    }

    /// Geometry of the file, once the page size is known.
    pub(super) fn geometry(&self) -> Option<&Geometry> {
        self.assembly.as_ref().map(Assembly::geometry)
    }

    /// Checks a datagram of the present cast.
    pub(super) fn check<'a>(&mut self, datagram: &'a [u8]) -> Option<Arrival<'a>> {
        self.assembly.as_mut().map(|assembly| assembly.check(datagram))
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
    pub(super) fn store(&mut self, pages: PageRange, source: Source) -> bool {
        let Some(assembly) = &mut self.assembly else { return false };
        assembly.stored(pages);
        if let Some(verification) = &mut self.verification {
            let bytes = assembly.geometry().byte_range(pages);
            verification.record_stored(&bytes);
            let holds = |bytes: &Range<u64>| assembly.holds(bytes);
            match source {
                Source::Wire => verification.handle_arrived(&bytes, holds),
                Source::ZeroMap => verification.handle_zeros_arrived(&bytes, holds),
            }
        } else {
            self.begin_verification();
        }
        true
    }

    /// Marks pages as missing, because their bytes are dropped. Returns `false`, and does nothing,
    /// while leaves with some of their bytes are being checked.
    pub(super) fn drop_pages(&mut self, pages: PageRange) -> bool {
        let Some(assembly) = &mut self.assembly else { return false };
        let bytes = assembly.geometry().byte_range(pages);
        if let Some(verification) = &mut self.verification
            && !verification.drop_bytes(&bytes)
        {
            return false;
        }
        assembly.drop_pages(pages);
        true
    }

    /// Whether to request the zero map now.
    pub(super) fn poll_zero_map(&mut self, now: Instant) -> bool {
        self.needs_zero_map() && self.zeros.poll_request(now)
    }

    /// When [`Self::poll_zero_map`] is due.
    pub(super) fn zero_map_timeout(&self) -> Option<Instant> {
        self.zeros.poll_timeout().filter(|_| self.needs_zero_map())
    }

    fn needs_zero_map(&self) -> bool {
        let is_missing_pages = self.assembly.as_ref().is_some_and(|it| !it.is_complete());
        let is_of_use = match self.verify {
            // The server has the map if it knows the content id.
            Verify::Leaf => self.pin.content.is_some(),
            // Nothing would find out what a wrong map claims.
            Verify::Tag => false,
        };
        is_missing_pages && self.has_hashes && is_of_use
    }

    /// Handles the zero map, before any of its pages are taken. `is_lazy`: segments of zeros are
    /// verified only if somebody reads them.
    pub(super) fn begin_zeros(&mut self, map: &ZeroMap, is_lazy: bool) {
        self.begin_verification();
        if let Some(verification) = &mut self.verification {
            verification.handle_zero_map(map, is_lazy);
        }
    }

    /// Handles that all pages of the zero map arrived.
    pub(super) fn handle_zeros_taken(&mut self) {
        self.zeros.handle_taken();
    }

    /// Handles a request for the zero map that brought none.
    pub(super) fn handle_no_zeros(&mut self, after: Duration, now: Instant) {
        self.zeros.handle_failed(after, now);
    }

    /// Whether all pages of the zero map arrived, so that the cast need not bring them.
    pub(super) fn has_zeros(&self) -> bool {
        self.zeros.is_taken()
    }

    /// Describes the file to others of this machine; `None` until its exact size is known.
    pub(super) fn describe(&self) -> Option<Description> {
        let assembly = self.assembly.as_ref()?;
        assembly.size()?;
        let (geometry, content) = (*assembly.geometry(), self.pin.content);
        Some(Description { geometry, content, has_hashes: self.has_hashes })
    }

    /// Begins with a file that another process of this machine describes. Nothing of it counts as
    /// here. Returns `false`, and changes nothing, if it is another file.
    pub(super) fn adopt_description(&mut self, file: &Description) -> bool {
        let size = file.geometry.size();
        let is_other = differ(self.pin.size, Some(size)) || differ(self.pin.content, file.content);
        if is_other {
            return false;
        }
        let nothing = PageSet::new(file.geometry.pages());
        self.assembly = Some(Assembly::resume(file.geometry, nothing));
        self.pin.size = Some(size);
        self.pin.content = self.pin.content.or(file.content);
        self.has_hashes |= file.has_hashes;
        match &mut self.verification {
            Some(verification) => verification.handle_restored(|_| false),
            None => self.begin_verification(),
        }
        self.adopt_id(file.content)
    }

    /// Takes the content id that the cache has for this version. Returns `false` for another
    /// content.
    pub(super) fn adopt_content(&mut self, id: Option<ContentId>) -> bool {
        if differ(self.pin.content, id) {
            return false;
        }
        self.pin.content = self.pin.content.or(id);
        self.has_hashes |= id.is_some();
        self.adopt_id(id)
    }

    /// Counts everything as missing.
    pub(super) fn forget_pages(&mut self) {
        if let Some(file) = self.describe() {
            self.adopt_description(&file);
        }
    }

    /// Whether leaves are verified, so that others can be told of them.
    pub(super) fn tells_leaves(&self) -> bool {
        self.verifies()
    }

    /// Handles leaves that another process of this machine has stored and verified.
    /// Returns the number of pages that are here since.
    pub(super) fn handle_told_leaves(&mut self, leaves: &Range<u64>) -> u32 {
        self.begin_verification();
        let (Some(verification), Some(assembly)) = (&mut self.verification, &mut self.assembly)
        else {
            return 0;
        };
        let leaves = leaves.start..leaves.end.min(verification.tree().leaves());
        if leaves.is_empty() {
            return 0;
        }
        verification.handle_told(&leaves);
        let bytes = verification.bytes_of(&leaves);
        let geometry = *assembly.geometry();
        let pages = whole_pages(&geometry, &bytes, |page| verification.has_verified(page));
        assembly.stored(pages);
        pages.len()
    }

    /// Returns what may be read and was not told yet; `None` if something that was told may not be
    /// read any more.
    pub(super) fn news(&self, told: &mut Told) -> Option<Vec<Range<u64>>> {
        match (&mut told.0, &self.verification, &self.assembly) {
            (ToldOf::Leaves(told), Some(verification), _) => verification.news(told),
            (ToldOf::Pages(told), _, Some(assembly)) => {
                let readable = |page: &Range<u64>| self.holds(page);
                following::new_pages(told, assembly, readable)
            }
            (ToldOf::Leaves(_), None, _) | (ToldOf::Pages(_), _, None) => Some(Vec::new()),
        }
    }

    /// Forgets all pages, because the store may have lost them.
    pub(super) fn discard(&mut self) {
        self.assembly = None;
        self.verification = None;
    }

    /// Whether every page is here, so that nothing more need come.
    pub(super) fn has_all_pages(&self) -> bool {
        self.assembly.as_ref().is_some_and(Assembly::is_complete)
    }

    /// Whether all bytes may be read.
    pub(super) fn is_complete(&self) -> bool {
        let is_verified = || self.verification.as_ref().is_some_and(Verification::is_complete);
        self.has_all_pages() && (!self.verifies() || is_verified())
    }

    /// Whether some page is here.
    pub(super) fn has_pages(&self) -> bool {
        self.assembly.as_ref().is_some_and(|assembly| !assembly.arrived().is_empty())
    }

    /// Number of missing pages, once the page size is known.
    pub(super) fn missing_pages(&self) -> Option<u32> {
        self.assembly.as_ref().map(Assembly::missing)
    }

    /// Whether all of these bytes may be read.
    pub(super) fn holds(&self, bytes: &Range<u64>) -> bool {
        if self.verifies() {
            return self.verification.as_ref().is_some_and(|it| it.has_verified(bytes));
        }
        self.assembly.as_ref().is_some_and(|assembly| assembly.holds(bytes))
    }

    /// First of these bytes that may be read, without a gap.
    pub(super) fn first_readable(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        if self.holds(bytes) {
            return Some(bytes.clone());
        }
        let next = |at: u64| (at / LEAF_BYTES + 1) * LEAF_BYTES;
        let part = |at: u64| at..next(at).min(bytes.end);
        let mut start = bytes.start;
        while start < bytes.end && !self.holds(&part(start)) {
            start = next(start);
        }
        let mut end = start;
        while end < bytes.end && self.holds(&part(end)) {
            end = part(end).end;
        }
        (start < end).then_some(start..end)
    }

    /// Length of the verified part at the start, in bytes. `None` where leaves are not verified.
    pub(super) fn verified_contiguous(&self) -> Option<u64> {
        self.verifies().then(|| self.verification.as_ref().map_or(0, Verification::contiguous))
    }

    /// Handles a reader that waits for these bytes. Returns the bytes that must arrive for it.
    pub(super) fn handle_read(&mut self, bytes: &Range<u64>) -> Range<u64> {
        self.begin_verification();
        if let Some(verification) = &mut self.verification {
            verification.handle_read(bytes);
        }
        self.needed_for(bytes)
    }

    /// Bytes that must arrive before these may be read; `None` if all of them are here.
    pub(super) fn lacking(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        let needed = self.needed_for(bytes);
        let has_arrived = self.assembly.as_ref().is_some_and(|assembly| assembly.holds(&needed));
        (!has_arrived).then_some(needed)
    }

    /// Returns the bytes that must have arrived before these may be read.
    pub(super) fn needed_for(&self, bytes: &Range<u64>) -> Range<u64> {
        let verification = self.verification.as_ref();
        verification.map_or_else(|| bytes.clone(), |it| it.whole_leaves(bytes))
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
    pub(super) fn settled(&self, layout: Option<BlockLayout>) -> u64 {
        let Some(assembly) = &self.assembly else { return 0 };
        let Some(layout) = layout else { return assembly.contiguous() };
        let first = assembly.arrived().first_missing(assembly.geometry().all());
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
        let pages = assembly.geometry().pages_covering(self.needed_for(bytes));
        let missing = self.unreadable.first_missing(pages, assembly.arrived())?;
        Some(assembly.geometry().byte_range(missing))
    }

    /// Whether pages are missing and the server can read none of them.
    pub(super) fn lacks_only_unreadable(&self) -> bool {
        let Some(assembly) = self.assembly.as_ref().filter(|_| !self.unreadable.is_empty()) else {
            return false;
        };
        let missing = assembly.missing();
        missing > 0 && self.unreadable.missing(assembly.arrived()) == missing
    }

    /// Up to `limit` missing pages that the server can read, if an unreadable page keeps the block
    /// of each from being rebuilt. Empty if any other page is missing.
    pub(super) fn cut_off_pages(&self, layout: BlockLayout, limit: usize) -> Vec<PageIndex> {
        let Some(assembly) = &self.assembly else { return Vec::new() };
        self.unreadable.cut_off_pages(layout, assembly.arrived(), limit)
    }

    /// Returns why these bytes will not be verified for now, if that is so.
    pub(super) fn refuted(&self, bytes: &Range<u64>) -> Option<Refuted> {
        self.verification.as_ref()?.refuted(bytes)
    }

    /// Handles a part of a leaf list that came in the cast.
    pub(super) fn handle_cast_leaves(&mut self, list: &LeafList<'_>) {
        let Some(verification) = &mut self.verification else { return };
        if let Ok((leaves, values)) = list.in_file(verification.tree()) {
            let (segment, first) = (leaves.start / SEGMENT_LEAVES, leaves.start % SEGMENT_LEAVES);
            verification.handle_cast_leaves(segment, first, values);
        }
    }

    /// Handles the answer to a request for hashes.
    pub(super) fn handle_lists(
        &mut self,
        request: &ListRequest,
        id: Option<ContentId>,
        values: &[Value],
        now: Instant,
    ) -> Result<(), ListsError> {
        let Some(verification) = &mut self.verification else { return Ok(()) };
        let Some(id) = id else {
            return verification.handle_early_lists(request, values, now);
        };
        verification.handle_id(id)?;
        self.pin.content = Some(id);
        verification.handle_lists(request, values, now)
    }

    /// Handles that the server no longer has the version. Returns whether all leaves are verified,
    /// so that nothing is needed from it.
    pub(super) fn accept_unproven(&mut self) -> bool {
        self.verification.as_mut().is_some_and(Verification::accept_unproven)
    }

    /// Handles hashes that an earlier use left. Returns whether they are proven.
    pub(super) fn handle_stored_lists(
        &mut self,
        request: &ListRequest,
        values: &[Value],
        now: Instant,
    ) -> bool {
        let verification = self.verification.as_mut();
        verification.is_some_and(|it| it.handle_stored_lists(request, values, now))
    }

    /// Handles a request for hashes that failed for a reason that may pass.
    pub(super) fn handle_lists_failed(
        &mut self,
        request: &ListRequest,
        after: Duration,
        now: Instant,
    ) {
        if let Some(verification) = &mut self.verification {
            verification.handle_request_failed(request, after, now);
        }
    }

    /// Whether a check is of the bytes and the hashes that there are now.
    pub(super) fn is_current(&self, check: &Check) -> bool {
        self.verification.as_ref().is_some_and(|verification| verification.is_current(check))
    }

    /// Handles the result of a check.
    pub(super) fn handle_checked(&mut self, check: &Check, finding: &Finding, now: Instant) {
        if let Some(verification) = &mut self.verification {
            verification.handle_checked(check, finding, now);
        }
    }

    /// Handles leaves that were read from an older version and stored, except those that are
    /// `wrong`. Returns the pages that arrived with them, in runs. `in_flight` tells whether pages
    /// are being stored that came otherwise.
    pub(super) fn handle_reused(
        &mut self,
        check: &Check,
        wrong: &[u64],
        in_flight: impl Fn(PageRange) -> bool,
    ) -> Vec<PageRange> {
        let (Some(verification), Some(assembly)) = (&mut self.verification, &mut self.assembly)
        else {
            return Vec::new();
        };
        let geometry = *assembly.geometry();
        let mut arrived = Vec::new();
        for leaves in verification.handle_reused(check, wrong) {
            let bytes = verification.bytes_of(&leaves);
            let pages = whole_pages(&geometry, &bytes, |page| verification.has_reused(page));
            assembly.stored(pages);
            // A page at either end may have been the last one of the leaf next to it.
            let around = geometry.byte_range(pages);
            let around = around.start.min(bytes.start)..around.end.max(bytes.end);
            verification.handle_arrived(&around, |bytes| assembly.holds(bytes));
            verification
                .handle_right(&leaves, |bytes| in_flight(geometry.pages_covering(bytes.clone())));
            arrived.push(pages);
        }
        arrived
    }

    /// Takes nothing more from an older version. Returns how many leaves it had.
    pub(super) fn end_reuse(&mut self) -> u64 {
        self.verification.as_mut().map_or(0, Verification::end_reuse)
    }

    /// Handles the result of fetching wrong leaves.
    pub(super) fn handle_replaced(
        &mut self,
        leaves: &Replacement,
        wrong: Option<&[u64]>,
        now: Instant,
    ) {
        if let Some(verification) = &mut self.verification {
            verification.handle_replaced(leaves, wrong, now);
        }
    }

    /// Verified leaves; `None` before the size is known, and where nothing is verified.
    pub(super) fn verification(&self) -> Option<&Verification> {
        self.verification.as_ref()
    }

    /// Verified leaves, to poll what is to be done.
    pub(super) fn verification_mut(&mut self) -> Option<&mut Verification> {
        self.verification.as_mut()
    }

    /// Hash of the content, once known.
    pub(super) fn content_id(&self) -> Option<ContentId> {
        self.pin.content
    }

    /// Pages that need not be fetched: those here, and those that cannot arrive.
    pub(super) fn not_to_fetch(&self) -> Option<Cow<'_, PageSet>> {
        self.assembly.as_ref().map(|assembly| self.unreadable.or_held(assembly.arrived()))
    }
}

/// Returns the pages with bytes of this range, but the first and the last one only if all bytes
/// around them are here.
fn whole_pages(
    geometry: &Geometry,
    bytes: &Range<u64>,
    is_here: impl Fn(&Range<u64>) -> bool,
) -> PageRange {
    let mut pages = geometry.pages_covering(bytes.clone());
    let lacks = |page: PageIndex| !is_here(&geometry.byte_range(PageRange::single(page)));
    if !pages.is_empty() && lacks(pages.start) {
        pages.start.0 += 1;
    }
    if !pages.is_empty() && lacks(PageIndex(pages.end.0 - 1)) {
        pages.end.0 -= 1;
    }
    pages
}

/// Whether both are known and differ.
fn differ<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}
