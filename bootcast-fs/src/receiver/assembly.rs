//! Tracks which pages of one version of a file arrived, and which datagrams bring new ones.

use std::collections::BTreeSet;
use std::ops::Range;

use bootcast_proto::wire::{DataError, Page};
use bootcast_proto::{Geometry, JoinAnswer, Layout, PageIndex, PageRange, PageSet, PageSize};

/// Passes without the last page after which it counts as a phantom. docs/PROTOCOL.md, "The
/// reference layout".
const PHANTOM_WRAPS: u32 = 3;

/// Number of pages whose arrival is saved together: as many bits as fit into a block of `state`.
pub const GROUP_PAGES: u32 = (4096 - 32) * 8;

/// Pages of one version of a file that arrived: they are stored.
#[derive(Debug)]
pub struct Assembly {
    geometry: Geometry,
    /// Whether `geometry` has the file's exact size. Otherwise it has the largest size that the
    /// answer allows.
    exact: bool,
    /// Pages that the present cast announced. May include the phantom page, which `geometry` does
    /// not have.
    announced: u32,
    /// Layout of the present cast; `None` until its first datagram.
    layout: Option<Layout>,
    arrived: PageSet,
    /// Groups of [`GROUP_PAGES`] with pages that changed since [`Self::take_changed`].
    changed: BTreeSet<u32>,
    last_seen: Option<PageIndex>,
    wraps_without_last: u32,
}

/// Result of a datagram with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival<'a> {
    /// A missing page: store it, then call [`Assembly::stored`].
    New(Page<'a>),
    /// A page that arrived before.
    Duplicate(Page<'a>),
    /// A page that is not the server's, or whose hash is not known yet: it counts as lost.
    Ignored,
    /// Not a page of this cast.
    Bad(DataError),
}

impl Assembly {
    /// Resumes from what the cache kept of this version: the exact size and the stored pages.
    pub fn resume(geometry: Geometry, arrived: PageSet) -> Self {
        let announced = geometry.pages();
        let assembly = Self { arrived, ..Self::empty(geometry, true, announced) };
        assembly.assert_invariants();
        assembly
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        let pages = self.geometry.pages();
        // Otherwise pages would be taken for others, or the file would never be complete.
        assert!(
            self.arrived.pages() == pages,
            "{} pages are tracked of a file of {pages}",
            self.arrived.pages()
        );
        debug_assert!(
            self.exact || self.announced == pages,
            "a file of unknown size has {pages} pages, but {} were announced",
            self.announced
        );
    }

    /// Starts with only a join answer. `size` is the exact size if it is known from elsewhere.
    pub fn begin(answer: &JoinAnswer, size: Option<u64>) -> Self {
        let exact = size.and_then(|size| Geometry::new(size, answer.page_size).ok());
        let geometry = exact.or_else(|| answer.geometry());
        let full = || Geometry::all_full(answer.pages, answer.page_size);
        // A file without pages has no page that could tell its size.
        let exact = geometry.is_some() || answer.pages == 0;
        Self::empty(geometry.unwrap_or_else(full), exact, answer.pages)
    }

    fn empty(geometry: Geometry, exact: bool, announced: u32) -> Self {
        Self {
            geometry,
            exact,
            announced,
            layout: None,
            arrived: PageSet::new(geometry.pages()),
            changed: BTreeSet::new(),
            last_seen: None,
            wraps_without_last: 0,
        }
    }

    /// Continues with another cast of the same version. Returns `false` if the answer cannot belong
    /// to this version.
    ///
    /// The page size may differ. Pages whose bytes are all stored count as arrived.
    pub fn continue_with(&mut self, answer: &JoinAnswer) -> bool {
        let same_pages = answer.page_size == self.geometry.page_size();
        let size = self.exact.then(|| self.geometry.size());
        let next = Self::begin(answer, size);
        let fits = match size {
            Some(size) => {
                answer.extensions.size.is_none_or(|announced| announced == size)
                    && (answer.pages == next.geometry.pages()
                        || answer.pages == Layout::Reference.announced_pages(&next.geometry))
            }
            None => same_pages && answer.pages == self.announced,
        };
        if !fits {
            return false;
        }
        let mut arrived =
            if same_pages { self.arrived.clone() } else { self.regrouped(&next.geometry) };
        if next.geometry.pages() < arrived.pages() {
            // The size, which only this answer states, shows that the last page is a phantom.
            arrived = arrived.truncated(next.geometry.pages());
        }
        let changed = std::mem::take(&mut self.changed);
        *self = Self { arrived, changed, exact: self.exact || next.exact, ..next };
        self.assert_invariants();
        true
    }

    /// Pages of `other` whose bytes are all stored.
    fn regrouped(&self, other: &Geometry) -> PageSet {
        let mut arrived = PageSet::new(other.pages());
        for page in other.all().iter() {
            if self.holds(&other.byte_range(PageRange::single(page))) {
                arrived.insert(page);
            }
        }
        arrived
    }

    /// Checks a datagram of the present cast.
    pub fn check<'a>(&mut self, datagram: &'a [u8]) -> Arrival<'a> {
        let layout = self.layout.or_else(|| Layout::detect(datagram, self.announced));
        // If neither layout fits, the error of the base layout is reported.
        let page = match layout.unwrap_or(Layout::Base).decode(datagram, self.announced) {
            Ok(page) => page,
            Err(error) => return Arrival::Bad(error),
        };
        if let Err(error) = self.check_len(&page) {
            return Arrival::Bad(error);
        }
        self.layout = layout;
        self.watch_for_phantom(page.index);
        // A longer payload would be stored over the beginning of the next page.
        debug_assert!(
            self.geometry
                .page_len(page.index)
                .is_some_and(|len| len as usize == page.payload.len()),
            "page {} has {} bytes",
            page.index,
            page.payload.len()
        );
        if self.arrived.contains(page.index) {
            Arrival::Duplicate(page)
        } else {
            Arrival::New(page)
        }
    }

    /// Checks that the page has the length of its position. The last page may reveal the exact
    /// size.
    fn check_len(&mut self, page: &Page<'_>) -> Result<(), DataError> {
        let expected = self.geometry.page_len(page.index).ok_or(DataError::Index)?;
        let len = u32::try_from(page.payload.len()).map_err(|_| DataError::Size)?;
        let is_last = page.index.0 + 1 == self.announced;
        if !self.exact && is_last && len <= expected {
            let size = self.geometry.offset(page.index) + u64::from(len);
            self.geometry = Geometry::new(size, self.geometry.page_size())
                .expect("not more pages than were announced");
            self.exact = true;
            return Ok(());
        }
        if len == expected { Ok(()) } else { Err(DataError::Size) }
    }

    fn watch_for_phantom(&mut self, index: PageIndex) {
        let before = self.last_seen.replace(index);
        let wrapped = index.0 == 0
            && before.is_some_and(|page| page.0.checked_add(2) == Some(self.announced));
        if wrapped && self.layout == Some(Layout::Reference) && !self.exact {
            self.wraps_without_last += 1;
            self.drop_phantom();
        }
    }

    /// Drops the last announced page as a phantom once enough passes went by without it.
    fn drop_phantom(&mut self) {
        let real = self.announced.saturating_sub(1);
        if !self.exact
            && self.wraps_without_last >= PHANTOM_WRAPS
            && self.arrived.contains_all(PageRange::new(0, real))
        {
            self.geometry = Geometry::all_full(real, self.geometry.page_size());
            self.arrived = self.arrived.truncated(real);
            self.exact = true;
        }
        self.assert_invariants();
    }

    /// Marks pages as arrived, after they were stored.
    pub fn stored(&mut self, pages: PageRange) {
        self.arrived.insert_range(pages);
        self.mark_changed(pages);
        self.drop_phantom();
    }

    /// Marks pages as missing, because their bytes are dropped.
    pub fn drop_pages(&mut self, pages: PageRange) {
        self.arrived.remove_range(pages);
        self.mark_changed(pages);
    }

    /// Records that what is saved of these pages is out of date.
    pub fn mark_changed(&mut self, pages: PageRange) {
        if !pages.is_empty() {
            self.changed.extend(pages.start.0 / GROUP_PAGES..=(pages.end.0 - 1) / GROUP_PAGES);
        }
    }

    /// Returns the groups with pages that changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.changed)
    }

    /// Whether every page arrived. Never true before the exact size is known.
    pub fn is_complete(&self) -> bool {
        self.exact && self.arrived.is_full()
    }

    /// Whether all of these bytes are stored. Ignores bytes beyond the end of the file.
    pub fn holds(&self, bytes: &Range<u64>) -> bool {
        self.arrived.contains_all(self.geometry.pages_covering(bytes.clone()))
    }

    /// Length of the gapless part at the start of the file, in bytes.
    pub fn contiguous(&self) -> u64 {
        match self.arrived.first_missing(self.geometry.all()) {
            Some(page) => self.geometry.offset(page),
            None => self.geometry.size(),
        }
    }

    /// Exact size in bytes; `None` until it is known.
    pub fn size(&self) -> Option<u64> {
        self.exact.then(|| self.geometry.size())
    }

    /// Pages that arrived.
    pub fn arrived(&self) -> &PageSet {
        &self.arrived
    }

    /// Number of missing pages.
    pub fn missing(&self) -> u32 {
        self.arrived.pages() - self.arrived.len()
    }

    /// Number of bytes that arrived, up to a page too many.
    pub fn arrived_bytes(&self) -> u64 {
        u64::from(self.arrived.len()) * u64::from(self.page_size().get())
    }

    /// Number of missing bytes, up to a page too many.
    pub fn missing_bytes(&self) -> u64 {
        u64::from(self.missing()) * u64::from(self.page_size().get())
    }

    /// Geometry of the file. Its size is an upper bound until [`Self::size`] is known.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Size of a full page in bytes.
    pub fn page_size(&self) -> PageSize {
        self.geometry.page_size()
    }
}

#[cfg(test)]
mod tests {
    use bootcast_proto::Token;
    use bootcast_proto::join::Extensions;

    use super::*;

    const PAGE: u32 = 4;

    fn answer(pages: u32, size: Option<u64>) -> JoinAnswer {
        JoinAnswer {
            connect: "239.255.0.1:9000".parse().unwrap(),
            token: Token::from_random(1),
            pages,
            page_size: PageSize::new(PAGE.into()).unwrap(),
            extensions: Extensions { size, ..Extensions::default() },
        }
    }

    fn datagram(layout: Layout, announced: u32, number: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = layout.header(PageIndex(number - 1), announced, payload).to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Feeds page `number` and marks it as arrived if it is new.
    fn feed(assembly: &mut Assembly, layout: Layout, number: u32, payload: &[u8]) {
        let bytes = datagram(layout, assembly.announced, number, payload);
        if let Arrival::New(page) = assembly.check(&bytes) {
            assembly.stored(PageRange::single(page.index));
        }
    }

    #[test]
    fn a_plain_servers_last_page_tells_the_size() {
        let mut file = Assembly::begin(&answer(2, None), None);
        feed(&mut file, Layout::Base, 1, b"aaaa");
        assert_eq!((file.size(), file.is_complete()), (None, false));
        feed(&mut file, Layout::Base, 2, b"bb");
        assert_eq!((file.size(), file.is_complete()), (Some(6), true));
    }

    #[test]
    fn a_page_of_the_wrong_length_is_bad() {
        let mut file = Assembly::begin(&answer(2, Some(6)), None);
        for (number, payload) in [(1, &b"aaa"[..]), (2, b"bbb"), (2, b"b")] {
            let bytes = datagram(Layout::Base, 2, number, payload);
            assert_eq!(file.check(&bytes), Arrival::Bad(DataError::Size));
        }
    }

    #[test]
    fn a_page_counts_only_once_it_is_stored() {
        let mut file = Assembly::begin(&answer(1, Some(4)), None);
        let bytes = datagram(Layout::Base, 1, 1, b"aaaa");
        assert!(matches!(file.check(&bytes), Arrival::New(_)));
        assert!(matches!(file.check(&bytes), Arrival::New(_)));
        file.stored(PageRange::new(0, 1));
        assert!(matches!(file.check(&bytes), Arrival::Duplicate(page) if page.index.0 == 0));
        assert!(file.is_complete());
    }

    #[test]
    fn a_reference_server_with_an_exact_multiple_is_finished_in_spite_of_the_phantom_page() {
        let mut file = Assembly::begin(&answer(3, None), None);
        for pass in 1..=4 {
            assert_eq!(file.is_complete(), pass > 4, "pass {pass}");
            feed(&mut file, Layout::Reference, 1, b"aaaa");
            feed(&mut file, Layout::Reference, 2, b"bbbb");
        }
        assert_eq!((file.size(), file.is_complete()), (Some(8), true));
        assert_eq!(file.contiguous(), 8);
    }

    #[test]
    fn a_size_that_only_a_later_answer_states_shows_that_the_last_page_is_a_phantom() {
        let mut file = Assembly::begin(&answer(3, None), None);
        feed(&mut file, Layout::Reference, 1, b"aaaa");
        feed(&mut file, Layout::Reference, 2, b"bbbb");
        assert!(file.continue_with(&answer(3, Some(8))));
        assert_eq!((file.size(), file.is_complete()), (Some(8), true));
    }

    #[test]
    fn a_last_page_that_was_lost_twice_is_not_taken_for_a_phantom() {
        let mut file = Assembly::begin(&answer(3, None), None);
        for _ in 0..3 {
            feed(&mut file, Layout::Reference, 1, b"aaaa");
            feed(&mut file, Layout::Reference, 2, b"bbbb");
        }
        feed(&mut file, Layout::Reference, 3, b"c");
        assert_eq!((file.size(), file.is_complete()), (Some(9), true));
    }

    #[test]
    fn a_wrap_with_other_losses_is_no_evidence_of_a_phantom() {
        let mut file = Assembly::begin(&answer(3, None), None);
        feed(&mut file, Layout::Reference, 1, b"aaaa");
        feed(&mut file, Layout::Reference, 2, b"bbbb");
        for _ in 0..10 {
            feed(&mut file, Layout::Reference, 1, b"aaaa"); // page 2 lost, and perhaps page 3
        }
        assert_eq!(file.size(), None);
    }

    #[test]
    fn an_empty_file_is_complete_at_once() {
        assert!(Assembly::begin(&answer(0, None), None).is_complete());
        assert!(Assembly::begin(&answer(0, Some(0)), None).is_complete());
    }

    #[test]
    fn another_page_size_keeps_the_bytes_that_are_here() {
        let mut file = Assembly::begin(&answer(4, Some(14)), None);
        for number in [1, 2, 4] {
            feed(&mut file, Layout::Base, number, &b"abcd"[..if number == 4 { 2 } else { 4 }]);
        }
        let larger =
            JoinAnswer { pages: 3, page_size: PageSize::new(6).unwrap(), ..answer(3, Some(14)) };
        assert!(file.continue_with(&larger));
        assert!(file.holds(&(0..6)) && !file.holds(&(6..12)) && file.holds(&(12..14)));
    }

    #[test]
    fn another_size_is_another_version() {
        let mut file = Assembly::begin(&answer(2, Some(6)), None);
        assert!(!file.continue_with(&answer(2, Some(7))));
        let mut plain = Assembly::begin(&answer(2, None), None);
        assert!(plain.continue_with(&answer(2, None)));
        assert!(!plain.continue_with(&answer(3, None)));
    }
}
