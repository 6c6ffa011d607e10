//! Map from pages to values, stored as runs: a run of 2^32 pages costs as much as one of ten.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::ids::PageRange;

/// Values for some of a file's pages. Its size grows with the number of runs, not of pages.
#[derive(Clone, Debug)]
pub struct RangeMap<V> {
    /// Maps the first page of each run to the page after its last and to its value. Runs do not
    /// overlap; adjacent runs of equal value are merged.
    runs: BTreeMap<u32, (u32, V)>,
}

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        Self { runs: BTreeMap::new() }
    }
}

impl<V: Copy + PartialEq> RangeMap<V> {
    /// Whether no page has a value.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// All runs with their values, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (PageRange, V)> {
        self.runs.iter().map(|(&start, &(end, value))| (PageRange::new(start, end), value))
    }

    /// Sets the value of these pages and replaces earlier values.
    pub fn insert(&mut self, range: PageRange, value: V) {
        if range.is_empty() {
            return;
        }
        self.remove(range);
        let (mut start, mut end) = (range.start.0, range.end.0);
        let before = self.runs.range(..start).next_back();
        if let Some((&before_start, &(before_end, before_value))) = before
            && (before_end, before_value) == (start, value)
        {
            start = before_start;
        }
        if let Some(&(after_end, after_value)) = self.runs.get(&end)
            && after_value == value
        {
            self.runs.remove(&end);
            end = after_end;
        }
        self.runs.insert(start, (end, value));
    }

    /// Removes the values of these pages.
    pub fn remove(&mut self, range: PageRange) {
        let touched: Vec<_> = self.touched(range).collect();
        for (start, end, value) in touched {
            self.runs.remove(&start);
            if start < range.start.0 {
                self.runs.insert(start, (range.start.0, value));
            }
            if range.end.0 < end {
                self.runs.insert(range.end.0, (end, value));
            }
        }
    }

    /// Parts of `range` that have a value, ascending.
    pub fn parts(&self, range: PageRange) -> impl Iterator<Item = (PageRange, V)> {
        self.touched(range).map(move |(start, end, value)| {
            (PageRange::new(start.max(range.start.0), end.min(range.end.0)), value)
        })
    }

    /// Parts of `range` that have no value, ascending.
    pub fn gaps(&self, range: PageRange) -> impl Iterator<Item = PageRange> {
        let end = PageRange::new(range.end.0, range.end.0);
        let mut next = range.start.0;
        self.parts(range).map(|(part, _)| part).chain([end]).filter_map(move |part| {
            let gap = PageRange::new(next, part.start.0);
            next = part.end.0;
            (!gap.is_empty()).then_some(gap)
        })
    }

    /// Whole runs (start, end, value) that share a page with `range`, ascending.
    fn touched(&self, range: PageRange) -> impl Iterator<Item = (u32, u32, V)> {
        let (from, to) = (range.start.0, range.end.0);
        let before = self.runs.range(..from).next_back().filter(|(_, (end, _))| from < *end);
        // An empty range touches no run, even if it lies inside one.
        let before = before.filter(|_| from < to);
        let rest = self.runs.range(from..to.max(from));
        before.into_iter().chain(rest).map(|(&start, &(end, value))| (start, end, value))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_of_four_billion_pages_can_have_a_value() {
        let mut map = RangeMap::default();
        map.insert(PageRange::new(0, u32::MAX), 1);
        map.insert(PageRange::new(u32::MAX - 1, u32::MAX), 2);
        let parts: Vec<_> = map.parts(PageRange::new(u32::MAX - 2, u32::MAX)).collect();
        let single = |page| PageRange::new(page, page + 1);
        assert_eq!(parts, [(single(u32::MAX - 2), 1), (single(u32::MAX - 1), 2)]);
    }

    #[test]
    fn adjacent_runs_of_equal_value_are_merged() {
        let mut map = RangeMap::default();
        for start in [0, 4, 2] {
            map.insert(PageRange::new(start, start + 2), ());
        }
        assert_eq!(map.runs.len(), 1);
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_of_single_pages(
            steps in proptest::collection::vec((0u32..60, 0u32..20, 0u8..4), 0..40),
            look in (0u32..60, 0u32..40),
        ) {
            let mut map = RangeMap::default();
            let mut model = BTreeMap::new();
            for (start, len, value) in steps {
                let range = PageRange::new(start, start + len);
                if value == 0 {
                    map.remove(range);
                    model.retain(|page, _| !(start..start + len).contains(page));
                } else {
                    map.insert(range, value);
                    model.extend((start..start + len).map(|page| (page, value)));
                }
            }
            let look = PageRange::new(look.0, look.0 + look.1);
            let pages = |(part, value): (PageRange, u8)| {
                part.iter().map(move |page| (page.0, value))
            };
            let actual: Vec<(u32, u8)> = map.parts(look).flat_map(pages).collect();
            let expected: Vec<_> = model
                .range(look.start.0..look.end.0)
                .map(|(page, value)| (*page, *value))
                .collect();
            prop_assert_eq!(actual, expected);
            let gaps: Vec<u32> =
                map.gaps(look).flat_map(PageRange::iter).map(|page| page.0).collect();
            let missing: Vec<u32> =
                (look.start.0..look.end.0).filter(|page| !model.contains_key(page)).collect();
            prop_assert_eq!(gaps, missing);
        }
    }
}
