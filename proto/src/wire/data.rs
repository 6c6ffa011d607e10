//! Data datagrams: a header of four `u32` in network byte order, then a page. docs/PROTOCOL.md,
//! "Data".

use core::ops::Range;

use crate::geometry::Geometry;
use crate::ids::PageIndex;

/// Bytes of the header before the page, the same in both layouts.
pub const HEADER_LEN: usize = 16;

/// Byte ranges of the base layout.
mod base {
    use super::Range;
    pub(super) const SIZE: Range<usize> = 0..4;
    pub(super) const INDEX: Range<usize> = 4..8;
    // 8..16 reserved
}

/// Byte ranges of the 2016 reference implementation's layout.
mod reference {
    use super::Range;
    pub(super) const INDEX: Range<usize> = 0..4;
    pub(super) const PAGES: Range<usize> = 4..8;
    pub(super) const CHECKSUM: Range<usize> = 8..12;
    pub(super) const SIZE: Range<usize> = 12..16;
}

/// Order and meaning of the four header words, the same in all datagrams of a cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Layout of the base protocol: size, page number, reserved, reserved.
    Base,
    /// Layout of the 2016 reference implementation: page number, page count, byte sum mod 256,
    /// size.
    Reference,
}

/// The page that a datagram carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<'a> {
    /// Position of the page in its file.
    pub index: PageIndex,
    /// Bytes of the page.
    pub payload: &'a [u8],
}

/// Reason why a datagram carries no page of this cast. The receiver counts each reason separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum DataError {
    /// The datagram is shorter than the header.
    #[error("the datagram is shorter than its header")]
    Short,
    /// The size in the header is 0 or does not fit the number of bytes after the header.
    #[error("the size in the header does not fit the payload")]
    Size,
    /// The page number is 0 or above the announced number of pages.
    #[error("the file has no page of this number")]
    Index,
    /// The page count or the checksum of the reference layout is wrong.
    #[error("the checksum or the page count is wrong")]
    Checksum,
}

impl Layout {
    /// Detects the layout of a cast from one of its datagrams; `None` if it fits neither layout.
    ///
    /// In the reference layout the second word is the announced page count and the fourth the
    /// length of the payload. In the base layout the fourth word is reserved: zero, or half of a
    /// tag, which equals the length once in 2^32 datagrams.
    pub fn detect(datagram: &[u8], pages: u32) -> Option<Self> {
        [Self::Reference, Self::Base]
            .into_iter()
            .find(|layout| layout.decode(datagram, pages).is_ok())
    }

    /// Number of pages that a join announces.
    ///
    /// The reference implementation announces `size / page_size + 1`: one page that never comes if
    /// the size is an exact multiple of the page size.
    pub fn announced_pages(self, geometry: &Geometry) -> u32 {
        match self {
            Self::Base => geometry.pages(),
            Self::Reference => {
                let full = geometry.size() / u64::from(geometry.page_size().get());
                u32::try_from(full).map_or(u32::MAX, |full| full.saturating_add(1))
            }
        }
    }

    /// Encodes the header of a page. `announced` is [`Self::announced_pages`].
    pub fn header(self, index: PageIndex, announced: u32, payload: &[u8]) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        let mut put = |field: Range<usize>, value: u32| {
            header[field].copy_from_slice(&value.to_be_bytes());
        };
        let size = u32::try_from(payload.len()).expect("a page is at most PageSize::MAX bytes");
        let number = index.0 + 1;
        match self {
            Self::Base => {
                put(base::SIZE, size);
                put(base::INDEX, number);
            }
            Self::Reference => {
                put(reference::INDEX, number);
                put(reference::PAGES, announced);
                put(reference::CHECKSUM, checksum(payload));
                put(reference::SIZE, size);
            }
        }
        header
    }

    /// Decodes a datagram of a cast that announced `pages` pages. In the base layout, bytes after
    /// the page are padding.
    pub fn decode(self, datagram: &[u8], pages: u32) -> Result<Page<'_>, DataError> {
        let (header, rest) = datagram.split_first_chunk::<HEADER_LEN>().ok_or(DataError::Short)?;
        let word = |field: Range<usize>| {
            u32::from_be_bytes(header[field].try_into().expect("each field is four bytes"))
        };
        let (size, number) = match self {
            Self::Base => (word(base::SIZE), word(base::INDEX)),
            Self::Reference => (word(reference::SIZE), word(reference::INDEX)),
        };
        let payload = rest.get(..size as usize).filter(|payload| !payload.is_empty());
        let payload = payload.ok_or(DataError::Size)?;
        let index = number.checked_sub(1).filter(|&index| index < pages).ok_or(DataError::Index)?;
        if self == Self::Reference {
            let exact = payload.len() == rest.len();
            if !exact {
                return Err(DataError::Size);
            }
            if word(reference::PAGES) != pages || word(reference::CHECKSUM) != checksum(payload) {
                return Err(DataError::Checksum);
            }
        }
        Ok(Page { index: PageIndex(index), payload })
    }
}

/// Checksum of the reference implementation: sum of the bytes mod 256.
fn checksum(payload: &[u8]) -> u32 {
    u32::from(payload.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::units::PageSize;

    fn datagram(layout: Layout, index: u32, announced: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = layout.header(PageIndex(index), announced, payload).to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn the_worked_hexdump_is_page_3_of_a_4000_byte_file() {
        // docs/PROTOCOL.md, "Data": the last page, 1088 bytes of 'z'.
        let sent = datagram(Layout::Base, 2, 3, &[b'z'; 1088]);
        assert_eq!(sent[..16], [0, 0, 4, 0x40, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(sent.len(), 1104);
    }

    #[test]
    fn the_reference_layout_is_recognised_and_the_base_layout_is_not_mistaken_for_it() {
        let payload = [7; 1450];
        // Page 1450 of 1450-byte pages: words 1 and 4 are equal.
        for index in [0, 1, 1449, 2999] {
            let reference = datagram(Layout::Reference, index, 3000, &payload);
            assert_eq!(Layout::detect(&reference, 3000), Some(Layout::Reference));
            let base = datagram(Layout::Base, index, 3000, &payload);
            assert_eq!(Layout::detect(&base, 3000), Some(Layout::Base));
        }
    }

    #[test]
    fn the_reference_layout_announces_a_phantom_page_after_an_exact_multiple() {
        let geometry = |size| Geometry::new(size, PageSize::new(1450).unwrap()).unwrap();
        assert_eq!(Layout::Reference.announced_pages(&geometry(2900)), 3);
        assert_eq!(Layout::Reference.announced_pages(&geometry(2901)), 3);
        assert_eq!(Layout::Base.announced_pages(&geometry(2900)), 2);
    }

    #[test]
    fn each_defect_of_a_datagram_has_its_own_error() {
        let good = datagram(Layout::Base, 0, 2, b"page");
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(Layout::Base.decode(&good[..15], 2), Err(DataError::Short));
        assert_eq!(Layout::Base.decode(&with(3, 5), 2), Err(DataError::Size));
        assert_eq!(Layout::Base.decode(&with(0, 255), 2), Err(DataError::Size));
        assert_eq!(Layout::Base.decode(&with(3, 0), 2), Err(DataError::Size));
        assert_eq!(Layout::Base.decode(&with(7, 0), 2), Err(DataError::Index));
        assert_eq!(Layout::Base.decode(&with(7, 3), 2), Err(DataError::Index));
        let mut flipped = datagram(Layout::Reference, 0, 2, b"page");
        flipped[16] ^= 1;
        assert_eq!(Layout::Reference.decode(&flipped, 2), Err(DataError::Checksum));
    }

    proptest! {
        #[test]
        fn every_page_reads_back(
            reference: bool, index in 0u32..5000, more in 1u32..100,
            payload in proptest::collection::vec(any::<u8>(), 1..1500),
        ) {
            let layout = if reference { Layout::Reference } else { Layout::Base };
            let sent = datagram(layout, index, index + more, &payload);
            prop_assert_eq!(
                layout.decode(&sent, index + more),
                Ok(Page { index: PageIndex(index), payload: &payload })
            );
            prop_assert_eq!(Layout::detect(&sent, index + more), Some(layout));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), pages: u32) {
            if let Some(layout) = Layout::detect(&bytes, pages) {
                prop_assert!(layout.decode(&bytes, pages).unwrap().index.0 < pages);
            }
        }
    }
}
