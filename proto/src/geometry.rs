//! Division of a file into pages.

use core::ops::Range;

use crate::ids::{PageIndex, PageRange};
use crate::units::PageSize;

/// Size of a file and of its pages, and the page numbers and offsets that follow from them.
///
/// Every page is full except the last, which holds 1 to `page_size` bytes. An empty file has no
/// page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size: u64,
    page_size: PageSize,
}

/// Error: the file has more pages than a datagram can number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{size} bytes are more than {} pages of {page_size}: take a larger page size", u32::MAX)]
pub struct TooManyPages {
    /// Size of the file in bytes.
    pub size: u64,
    /// Requested page size.
    pub page_size: PageSize,
}

impl Geometry {
    /// Divides a file of `size` bytes into pages of `page_size`.
    pub fn new(size: u64, page_size: PageSize) -> Result<Self, TooManyPages> {
        if size.div_ceil(u64::from(page_size.get())) > u64::from(u32::MAX) {
            return Err(TooManyPages { size, page_size });
        }
        Ok(Self { size, page_size })
    }

    /// Geometry of the largest file with `pages` pages: every page is full. For plain servers,
    /// which do not state the exact size.
    pub fn all_full(pages: u32, page_size: PageSize) -> Self {
        Self { size: u64::from(pages) * u64::from(page_size.get()), page_size }
    }

    /// Bytes in the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a full page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Number of pages.
    pub fn pages(&self) -> u32 {
        let pages = self.size.div_ceil(u64::from(self.page_size.get()));
        u32::try_from(pages).expect("new() refuses more pages than u32 counts")
    }

    /// All pages of the file.
    pub fn all(&self) -> PageRange {
        PageRange::new(0, self.pages())
    }

    /// Offset of a page in the file, in bytes. Not limited to the file's size: a page beyond the
    /// last one has an offset beyond the end.
    pub fn offset(&self, page: PageIndex) -> u64 {
        u64::from(page.0) * u64::from(self.page_size.get())
    }

    /// Bytes in a page; `None` if the file has no such page.
    pub fn page_len(&self, page: PageIndex) -> Option<u32> {
        let left = self.size.checked_sub(self.offset(page)).filter(|&left| left > 0)?;
        let full = self.page_size.get();
        Some(u32::try_from(left).map_or(full, |left| left.min(full)))
    }

    /// Byte range of these pages, cut at the end of the file.
    pub fn byte_range(&self, pages: PageRange) -> Range<u64> {
        self.offset(pages.start).min(self.size)..self.offset(pages.end).min(self.size)
    }

    /// Pages that contain any of these bytes. Bytes beyond the end of the file lie in no page.
    pub fn pages_covering(&self, bytes: Range<u64>) -> PageRange {
        let end = bytes.end.min(self.size);
        if bytes.start >= end {
            return PageRange::default();
        }
        let page_size = u64::from(self.page_size.get());
        let page = |number: u64| u32::try_from(number).expect("below pages(), which u32 counts");
        PageRange::new(page(bytes.start / page_size), page(end.div_ceil(page_size)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn geometry(size: u64, page_size: u64) -> Geometry {
        Geometry::new(size, PageSize::new(page_size).unwrap()).unwrap()
    }

    #[test]
    fn an_empty_file_has_no_page() {
        let empty = geometry(0, 1456);
        assert_eq!(empty.pages(), 0);
        assert_eq!(empty.page_len(PageIndex(0)), None);
        assert!(empty.pages_covering(0..100).is_empty());
    }

    #[test]
    fn an_exact_multiple_ends_with_a_full_page() {
        let file = geometry(2912, 1456);
        assert_eq!(file.pages(), 2);
        assert_eq!(file.page_len(PageIndex(1)), Some(1456));
        assert_eq!(file.page_len(PageIndex(2)), None);
    }

    #[test]
    fn one_byte_beyond_a_multiple_adds_a_page() {
        let file = geometry(2913, 1456);
        assert_eq!(file.pages(), 3);
        assert_eq!(file.page_len(PageIndex(2)), Some(1));
    }

    #[test]
    fn more_pages_than_u32_counts_are_refused() {
        let one = PageSize::new(1).unwrap();
        assert!(Geometry::new(u64::from(u32::MAX), one).is_ok());
        assert!(Geometry::new(u64::from(u32::MAX) + 1, one).is_err());
    }

    proptest! {
        #[test]
        fn pages_tile_the_file(size in 0u64..200_000, page_size in 1u64..9000) {
            let file = geometry(size, page_size);
            let mut end = 0;
            for page in file.all().iter() {
                prop_assert_eq!(file.offset(page), end);
                end += u64::from(file.page_len(page).unwrap());
            }
            prop_assert_eq!(end, size);
        }

        #[test]
        fn covering_pages_contain_the_bytes_and_are_the_fewest(
            size in 1u64..100_000, page_size in 1u64..5000,
            start in 0u64..120_000, len in 0u64..50_000,
        ) {
            let file = geometry(size, page_size);
            let pages = file.pages_covering(start..start + len);
            let wanted = start.min(size)..(start + len).min(size);
            if wanted.is_empty() {
                prop_assert!(pages.is_empty());
            } else {
                let covered = file.byte_range(pages);
                prop_assert!(covered.start <= wanted.start && wanted.end <= covered.end);
                prop_assert!(wanted.start - covered.start < page_size);
                prop_assert!(covered.end - wanted.end < page_size);
            }
        }
    }
}
