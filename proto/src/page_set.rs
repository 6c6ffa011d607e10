//! Set of pages of a file, one bit for each page. What is missing from a set is said of a file with
//! this many pages.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::ids::{PageIndex, PageRange};

const WORD: u32 = u64::BITS;

/// Set of pages out of `0..pages`, such as those that arrived or those that are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    /// Page `p` is bit `p % 64` of word `p / 64`. Bits beyond `pages` are 0.
    words: Vec<u64>,
    pages: u32,
    len: u32,
}

impl PageSet {
    /// Creates the empty set for a file of `pages` pages.
    pub fn new(pages: u32) -> Self {
        Self { words: vec![0; pages.div_ceil(WORD) as usize], pages, len: 0 }
    }

    /// Number of pages in the file.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Number of pages in the set.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether every page is in the set. Always true for a file without pages.
    pub fn is_full(&self) -> bool {
        self.len == self.pages
    }

    /// Whether `page` is in the set; `false` for pages out of range.
    pub fn contains(&self, page: PageIndex) -> bool {
        page.0 < self.pages && self.words[(page.0 / WORD) as usize] & (1 << (page.0 % WORD)) != 0
    }

    /// Whether all pages of `range` are in the set. True for an empty range, `false` if any page is
    /// out of range.
    pub fn contains_all(&self, range: PageRange) -> bool {
        self.first_missing(range).is_none()
    }

    /// First page of `range` that is missing. Pages out of range count as missing.
    pub fn first_missing(&self, range: PageRange) -> Option<PageIndex> {
        let known = range.start.0..range.end.0.min(self.pages);
        let found = first_one(known.clone(), |at| !self.words[at]);
        let beyond =
            (range.start.0.max(known.end) < range.end.0).then(|| range.start.0.max(known.end));
        found.or(beyond).map(PageIndex)
    }

    /// Adds `page`. Returns `false` if it was in the set already or is out of range.
    pub fn insert(&mut self, page: PageIndex) -> bool {
        if page.0 >= self.pages || self.contains(page) {
            return false;
        }
        self.words[(page.0 / WORD) as usize] |= 1 << (page.0 % WORD);
        self.len += 1;
        true
    }

    /// Adds the pages of `range` that the file has. Returns how many of them were missing before.
    pub fn insert_range(&mut self, range: PageRange) -> u32 {
        let before = self.len;
        for page in range.start.0..range.end.0.min(self.pages) {
            self.insert(PageIndex(page));
        }
        self.len - before
    }

    /// Removes the pages of `range`.
    pub fn remove_range(&mut self, range: PageRange) {
        for page in range.start.0..range.end.0.min(self.pages) {
            if self.contains(PageIndex(page)) {
                self.words[(page / WORD) as usize] &= !(1 << (page % WORD));
                self.len -= 1;
            }
        }
    }

    /// Runs of pages in the set, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = PageRange> + '_ {
        runs(self.pages, |at| self.words[at])
    }

    /// Runs of missing pages, ascending.
    pub fn missing_ranges(&self) -> impl Iterator<Item = PageRange> + '_ {
        runs(self.pages, |at| !self.words[at])
    }

    /// Runs of pages that are in this set and not in `other`, ascending.
    ///
    /// # Panics
    ///
    /// If the sets are of files with different numbers of pages.
    pub fn ranges_without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = PageRange> + 'a {
        assert_eq!(self.pages, other.pages, "the sets are of different files");
        runs(self.pages, |at| self.words[at] & !other.words[at])
    }

    /// Returns a copy of the set, cut to the first `pages` pages.
    #[must_use]
    pub fn truncated(&self, pages: u32) -> Self {
        let mut cut = Self::new(pages.min(self.pages));
        for page in 0..cut.pages {
            if self.contains(PageIndex(page)) {
                cut.insert(PageIndex(page));
            }
        }
        cut
    }

    /// Returns the bits as bytes, page 0 in the lowest bit of byte 0. The cache stores this form on
    /// disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.pages.div_ceil(8) as usize);
        bytes
    }

    /// Returns the bits of some pages as [`Self::to_bytes`] does.
    ///
    /// # Panics
    ///
    /// If `pages` does not begin at a multiple of 64.
    pub fn bytes_of(&self, pages: PageRange) -> Vec<u8> {
        assert!(pages.start.0.is_multiple_of(WORD), "pages {} are not whole words", pages.start);
        let end = pages.end.0.min(self.pages);
        let words = (pages.start.0 / WORD).min(end.div_ceil(WORD))..end.div_ceil(WORD);
        let words = &self.words[words.start as usize..words.end as usize];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(end.saturating_sub(pages.start.0).div_ceil(8) as usize);
        bytes
    }

    /// Adds the pages from `start` on whose bits are set in the output of [`Self::bytes_of`].
    /// Returns `false` if the file has fewer pages.
    pub fn insert_bytes(&mut self, start: PageIndex, bytes: &[u8]) -> bool {
        let bits = (0..).zip(bytes).flat_map(|(at, byte): (u32, _)| {
            (0..8).filter(move |bit| byte & (1 << bit) != 0).map(move |bit| at * 8 + bit)
        });
        let mut fit = true;
        for bit in bits {
            let page = start.0.saturating_add(bit);
            fit &= page < self.pages;
            self.insert(PageIndex(page));
        }
        fit
    }

    /// Parses the output of [`Self::to_bytes`]. `None` if the length is wrong or a bit beyond the
    /// last page is set.
    pub fn from_bytes(pages: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != pages.div_ceil(8) as usize {
            return None;
        }
        let mut set = Self::new(pages);
        for (word, chunk) in set.words.iter_mut().zip(bytes.chunks(8)) {
            let mut le = [0; 8];
            le[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(le);
        }
        let bits_in_last_word = pages % WORD;
        if bits_in_last_word != 0
            && set.words.last().is_some_and(|word| word >> bits_in_last_word != 0)
        {
            return None;
        }
        set.len = set.words.iter().map(|word| word.count_ones()).sum();
        Some(set)
    }
}

/// Returns the runs of ones among the first `pages` bits of some words.
fn runs(pages: u32, word: impl Fn(usize) -> u64) -> impl Iterator<Item = PageRange> {
    let mut next = 0;
    core::iter::from_fn(move || {
        let start = first_one(next..pages, &word)?;
        next = first_one(start..pages, |at| !word(at)).unwrap_or(pages);
        Some(PageRange::new(start, next))
    })
}

/// Returns the first of these bits of some words that is 1.
fn first_one(bits: Range<u32>, word: impl Fn(usize) -> u64) -> Option<u32> {
    let mut bit = bits.start;
    while bit < bits.end {
        let ones = word((bit / WORD) as usize) >> (bit % WORD);
        if ones != 0 {
            let found = bit + ones.trailing_zeros();
            return (found < bits.end).then_some(found);
        }
        bit = (bit / WORD + 1).saturating_mul(WORD);
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_set_for_zero_pages_is_full() {
        assert!(PageSet::new(0).is_full());
        assert!(!PageSet::new(1).is_full());
    }

    #[test]
    fn pages_out_of_range_are_never_in_the_set() {
        let mut set = PageSet::new(3);
        assert!(!set.insert(PageIndex(3)));
        assert_eq!(set.insert_range(PageRange::new(1, u32::MAX)), 2);
        assert_eq!(set.first_missing(PageRange::new(1, 9)), Some(PageIndex(3)));
    }

    #[test]
    fn bits_beyond_the_last_page_are_refused() {
        assert!(PageSet::from_bytes(3, &[0b111]).unwrap().is_full());
        assert_eq!(PageSet::from_bytes(3, &[0b1111]), None);
        assert_eq!(PageSet::from_bytes(3, &[]), None);
    }

    proptest! {
        #[test]
        fn behaves_like_a_set_of_page_numbers(
            pages in 1u32..300, ranges in proptest::collection::vec((0u32..320, 0u32..80), 0..12),
        ) {
            let mut set = PageSet::new(pages);
            let mut model = BTreeSet::new();
            for (start, len) in ranges {
                let before = model.len();
                model.extend(start.min(pages)..(start + len).min(pages));
                let new = set.insert_range(PageRange::new(start, start + len));
                prop_assert_eq!(new as usize, model.len() - before);
            }
            prop_assert_eq!(set.len() as usize, model.len());
            let missing: BTreeSet<u32> =
                set.missing_ranges().flat_map(PageRange::iter).map(|page| page.0).collect();
            prop_assert_eq!(missing, (0..pages).filter(|page| !model.contains(page)).collect());
            let present = set.ranges().flat_map(PageRange::iter).map(|page| page.0);
            prop_assert!(present.eq(model.iter().copied()));
            let mut fewer = set.clone();
            fewer.remove_range(PageRange::new(pages / 3, pages / 2));
            let left = model.iter().filter(|page| !(pages / 3..pages / 2).contains(*page));
            prop_assert_eq!(fewer.len() as usize, left.count());
            prop_assert!(!(pages / 3..pages / 2).any(|page| fewer.contains(PageIndex(page))));
            let removed = set.ranges_without(&fewer).flat_map(PageRange::iter).map(|page| page.0);
            prop_assert!(removed.eq(model.range(pages / 3..(pages / 2).max(pages / 3)).copied()));
            prop_assert_eq!(fewer.ranges_without(&set).count(), 0);
            let cut = set.truncated(pages / 2);
            prop_assert_eq!(cut.len() as usize, model.range(..pages / 2).count());
            let mut parts = PageSet::new(pages);
            for start in (0..pages).step_by(64) {
                let part = set.bytes_of(PageRange::new(start, start + 64));
                prop_assert!(parts.insert_bytes(PageIndex(start), &part));
            }
            prop_assert_eq!(&parts, &set);
            prop_assert!(!parts.insert_bytes(PageIndex(pages), &[1]));
            prop_assert_eq!(PageSet::from_bytes(pages, &set.to_bytes()), Some(set));
        }
    }
}
