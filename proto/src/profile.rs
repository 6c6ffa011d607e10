//! The profile of a content: the leaves that readers want first after an open. docs/PROTOCOL.md,
//! "Profile".

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::ops::Range;

use crate::geometry::Geometry;
use crate::ids::PageRange;
use crate::manifest::{ContentId, ContentTree, LEAF_BYTES};

/// Maximum number of leaves in a profile: 256 MiB of the content.
pub const PROFILE_LEAVES: usize = 16_384;

/// First line of the text form. The number is the version of the format.
const FIRST_LINE: &str = "bootcast profile 1";

/// Leaves of one content, in the order in which readers first wanted them. Each leaf is in it once,
/// and there are at most [`PROFILE_LEAVES`] of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    tree: ContentTree,
    /// Runs of consecutive leaves, in order. None is empty.
    runs: Vec<Range<u64>>,
    /// The same leaves in ascending order.
    leaves: BTreeSet<u64>,
    /// Leaves that one reader wanted besides: they become part of the profile when another does. At
    /// most [`PROFILE_LEAVES`] of them, none of which is in `leaves`.
    candidates: BTreeSet<u64>,
}

/// Why a text is not the profile of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// The text does not have the form of this version.
    #[error("line {0} of the profile is malformed")]
    Malformed(usize),
    /// The text is the profile of another content.
    #[error("the profile is of another content")]
    OtherContent,
}

impl Profile {
    /// Creates an empty profile of a content of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self {
            tree: ContentTree::new(size),
            runs: Vec::new(),
            leaves: BTreeSet::new(),
            candidates: BTreeSet::new(),
        }
    }

    /// Size of the content in bytes.
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Runs of consecutive leaves, in the order in which they were first wanted.
    pub fn runs(&self) -> &[Range<u64>] {
        &self.runs
    }

    /// Number of leaves.
    pub fn len(&self) -> usize {
        self.leaves.len()
    }

    /// Whether no leaf is in the profile.
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// Number of bytes in all leaves of the profile.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| self.bytes_of(run)).map(|bytes| bytes.end - bytes.start).sum()
    }

    /// Returns the bytes of a run of leaves.
    pub fn bytes_of(&self, run: &Range<u64>) -> Range<u64> {
        let size = self.tree.size();
        (run.start * LEAF_BYTES).min(size)..(run.end * LEAF_BYTES).min(size)
    }

    /// Whether a leaf is in the profile.
    pub fn contains(&self, leaf: u64) -> bool {
        self.leaves.contains(&leaf)
    }

    /// Whether a leaf is a candidate.
    pub fn has_candidate(&self, leaf: u64) -> bool {
        self.candidates.contains(&leaf)
    }

    /// Adds the leaves of a run that are not in the profile, behind all others. Drops those that
    /// the content does not have, and those for which there is no room. Returns whether any was
    /// added.
    pub fn extend(&mut self, run: Range<u64>) -> bool {
        let before = self.leaves.len();
        for leaf in run.start..run.end.min(self.tree.leaves()) {
            if self.leaves.len() == PROFILE_LEAVES {
                break;
            }
            if self.leaves.insert(leaf) {
                self.candidates.remove(&leaf);
                self.push(leaf);
            }
        }
        self.leaves.len() > before
    }

    /// Makes a leaf a candidate, if there is room. Returns whether it became one.
    pub fn propose(&mut self, leaf: u64) -> bool {
        leaf < self.tree.leaves()
            && self.candidates.len() < PROFILE_LEAVES
            && !self.leaves.contains(&leaf)
            && self.candidates.insert(leaf)
    }

    /// Returns the leaves of pages that readers want, as far as the content has them. A leaf counts
    /// as wanted if the page with its middle byte is: the first and the last page of a leaf may be
    /// in its neighbours, too.
    pub fn leaves_wanted_by(&self, pages: PageRange, geometry: &Geometry) -> Range<u64> {
        debug_assert_eq!(geometry.size(), self.size(), "pages of another file");
        let bytes = geometry.byte_range(pages);
        let mut first = bytes.start / LEAF_BYTES;
        if first < self.tree.leaves() && self.middle_of(first) < bytes.start {
            first += 1;
        }
        let mut end = bytes.end.div_ceil(LEAF_BYTES);
        if end > first && self.middle_of(end - 1) >= bytes.end {
            end -= 1;
        }
        first..end.max(first)
    }

    /// Adds all leaves and candidates of another profile of this content that are not in this one.
    /// Returns whether there were any.
    pub fn merge(&mut self, other: &Self) -> bool {
        debug_assert_eq!(other.size(), self.size(), "the profile of another content");
        let grew = other.runs.iter().fold(false, |grew, run| self.extend(run.clone()) | grew);
        other.candidates.iter().fold(grew, |grew, leaf| self.propose(*leaf) | grew)
    }

    /// Encodes the profile of the content `id` as text.
    pub fn encode(&self, id: &ContentId) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{FIRST_LINE}\nb3 {id}\nsize {}", self.size());
        for run in &self.runs {
            let _ = writeln!(text, "{} {}", run.start, run.end - run.start);
        }
        for leaf in &self.candidates {
            let _ = writeln!(text, "? {leaf}");
        }
        text
    }

    /// Decodes the text form of a profile of any content. Returns the content id with it.
    pub fn parse(text: &str) -> Result<(ContentId, Self), ProfileError> {
        let mut lines = text.lines().zip(1..);
        let mut next = |prefix: &str| match lines.next() {
            Some((line, number)) => {
                line.strip_prefix(prefix).ok_or(ProfileError::Malformed(number))
            }
            None => Err(ProfileError::Malformed(1)),
        };
        if !next(FIRST_LINE)?.is_empty() {
            return Err(ProfileError::Malformed(1));
        }
        let id = next("b3 ")?.parse().map_err(|_| ProfileError::Malformed(2))?;
        let size = next("size ")?.parse().map_err(|_| ProfileError::Malformed(3))?;
        let mut profile = Self::new(size);
        for (line, number) in lines {
            let parsed = match line.strip_prefix("? ") {
                Some(leaf) => profile.parse_candidate(leaf),
                None => profile.parse_run(line),
            };
            parsed.ok_or(ProfileError::Malformed(number))?;
        }
        Ok((id, profile))
    }

    /// Decodes the profile of the content `id` with `size` bytes.
    pub fn parse_of(text: &str, id: &ContentId, size: u64) -> Result<Self, ProfileError> {
        let (found, profile) = Self::parse(text)?;
        if found != *id || profile.size() != size {
            return Err(ProfileError::OtherContent);
        }
        Ok(profile)
    }

    /// Adds a line of the text form: the first leaf of a run, and how many. All of them must be new
    /// and fit.
    fn parse_run(&mut self, line: &str) -> Option<()> {
        let (first, count) = line.split_once(' ')?;
        let (first, count): (u64, u64) = (first.parse().ok()?, count.parse().ok()?);
        let end = first.checked_add(count)?;
        let before = self.len() as u64;
        (count > 0 && end <= self.tree.leaves()).then_some(())?;
        self.extend(first..end);
        (self.len() as u64 == before + count).then_some(())
    }

    /// Adds a candidate of the text form, which must be new and fit.
    fn parse_candidate(&mut self, leaf: &str) -> Option<()> {
        let leaf = leaf.parse().ok()?;
        self.propose(leaf).then_some(())
    }

    /// Adds a leaf to the runs.
    fn push(&mut self, leaf: u64) {
        match self.runs.last_mut() {
            Some(last) if last.end == leaf => last.end += 1,
            Some(_) | None => self.runs.push(leaf..leaf + 1),
        }
    }

    /// Offset of the middle byte of a leaf that the content has.
    fn middle_of(&self, leaf: u64) -> u64 {
        let bytes = self.tree.leaf(leaf);
        bytes.start + (bytes.end - bytes.start) / 2
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::units::PageSize;

    const SIZE: u64 = 100 * LEAF_BYTES + 10;

    fn id() -> ContentId {
        ContentId::from_bytes([7; 32])
    }

    #[test]
    fn leaves_stay_in_the_order_of_the_first_want() {
        let mut profile = Profile::new(SIZE);
        assert!(profile.extend(50..52));
        assert!(profile.extend(3..5));
        assert!(!profile.extend(50..51), "known already");
        assert!(profile.extend(49..54));
        assert_eq!(profile.runs(), [50..52, 3..5, 49..50, 52..54]);
        assert_eq!((profile.len(), profile.bytes()), (7, 7 * LEAF_BYTES));
    }

    #[test]
    fn leaves_that_the_content_does_not_have_are_dropped() {
        let mut profile = Profile::new(SIZE);
        assert!(!profile.extend(101..u64::MAX));
        assert!(profile.extend(100..u64::MAX));
        assert_eq!((profile.len(), profile.bytes()), (1, 10));
    }

    #[test]
    fn a_profile_has_a_bounded_number_of_leaves() {
        let mut profile = Profile::new(u64::MAX);
        assert!(profile.extend(7..u64::MAX));
        assert_eq!(profile.len(), PROFILE_LEAVES);
        assert!(!profile.extend(0..1), "there is no room");
    }

    #[test]
    fn the_pages_of_one_leaf_are_that_leaf_alone() {
        for page_size in [1456, 8956, 65_490] {
            let geometry = Geometry::new(SIZE, PageSize::new(page_size).unwrap()).unwrap();
            // The last leaf, of 10 bytes, lies in the last page of the one before.
            for leaf in 0..99 {
                let profile = Profile::new(SIZE);
                let bytes = profile.bytes_of(&(leaf..leaf + 1));
                let wanted = profile.leaves_wanted_by(geometry.pages_covering(bytes), &geometry);
                assert!(wanted.contains(&leaf), "{leaf} at {page_size}");
                let neighbours = if page_size < 8192 { 0 } else { 8 };
                assert!(wanted.count() <= 1 + neighbours, "{leaf} at {page_size}");
            }
        }
    }

    #[test]
    fn the_text_form_is_the_documented_one() {
        let mut profile = Profile::new(1 << 20);
        profile.extend(50..52);
        profile.extend(3..4);
        assert!(profile.propose(60) && profile.propose(7));
        let text = format!("bootcast profile 1\nb3 {}\nsize 1048576\n50 2\n3 1\n? 7\n? 60\n", id());
        assert_eq!(profile.encode(&id()), text);
        assert_eq!(Profile::parse(&text), Ok((id(), profile.clone())));
        assert_eq!(Profile::parse_of(&text, &id(), 1 << 20), Ok(profile));
        let other = Err(ProfileError::OtherContent);
        assert_eq!(Profile::parse_of(&text, &id(), 5), other);
        assert_eq!(Profile::parse_of(&text, &ContentId::from_bytes([8; 32]), 1 << 20), other);
    }

    #[test]
    fn a_malformed_text_is_refused_with_its_line() {
        let head = format!("bootcast profile 1\nb3 {}\nsize 1048576\n", id());
        for (text, line) in [
            (String::new(), 1),
            ("bootcast profile 2\n".into(), 1),
            ("bootcast profile 1\nb3 12\n".into(), 2),
            (head.replace("1048576", "many"), 3),
            (format!("{head}1\n"), 4),
            (format!("{head}1 0\n"), 4),
            (format!("{head}63 2\n"), 4),
            (format!("{head}1 2\n2 1\n"), 5),
            (format!("{head}18446744073709551615 1\n"), 4),
            (format!("{head}1 2\n? 2\n"), 5),
            (format!("{head}? 64\n"), 4),
        ] {
            assert_eq!(Profile::parse(&text), Err(ProfileError::Malformed(line)), "{text}");
        }
    }

    #[test]
    fn a_candidate_is_no_leaf_of_the_profile_until_it_is_added() {
        let mut profile = Profile::new(u64::MAX);
        assert!(profile.propose(5) && !profile.propose(5));
        assert!(profile.is_empty() && profile.has_candidate(5));
        assert!(profile.extend(5..6));
        assert!(profile.contains(5) && !profile.has_candidate(5) && !profile.propose(5));
        let room = PROFILE_LEAVES as u64;
        assert!((10..10 + room).all(|leaf| profile.propose(leaf)));
        assert!(!profile.propose(9), "there is no room");
    }

    proptest! {
        #[test]
        fn any_profile_survives_the_text_form(
            runs in prop::collection::vec((0_u64..110, 1_u64..9), 0..40),
        ) {
            let mut profile = Profile::new(SIZE);
            for (first, count) in runs {
                profile.extend(first..first + count);
                profile.propose(first + count);
            }
            let parsed = Profile::parse_of(&profile.encode(&id()), &id(), SIZE).unwrap();
            prop_assert_eq!(&parsed, &profile);
            let all: Vec<u64> = profile.runs().iter().cloned().flatten().collect();
            let distinct: BTreeSet<u64> = all.iter().copied().collect();
            prop_assert_eq!(all.len(), distinct.len(), "a leaf is in it twice");
            let mut merged = Profile::new(SIZE);
            let is_empty = profile.is_empty() && profile.candidates.is_empty();
            prop_assert_eq!(merged.merge(&profile), !is_empty);
            prop_assert_eq!(&merged, &profile);
            prop_assert_eq!(vec![merged.merge(&profile)], vec![false]);
        }
    }
}
