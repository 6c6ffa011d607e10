//! Content ids and manifests: how parts of a file are proven by one hash.
//!
//! The *content id* of a file is its BLAKE3 hash, as `b3sum` prints it. A *leaf* is 16 KiB of the
//! file, a *segment* 256 leaves; the last ones may be shorter. BLAKE3 hashes a file as a binary
//! tree, and leaves and segments are subtrees of it. The *manifest* holds their values:
//!
//! ```text
//! content id          proves the list of segment values
//!   segment values    each proves the list of its leaf values (8 KiB)
//!     leaf values     each proves 16 KiB of the file
//! ```
//!
//! The value of a subtree is its BLAKE3 chaining value. The value of the whole file is the content
//! id, also if the file is a single segment or a single leaf. Source of the tree's shape: the
//! BLAKE3 paper, section 2.1.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::str::FromStr;

use blake3::hazmat::{self, HasherExt, Mode};
use serde::{Deserialize, Serialize};

use crate::zero_map::ZeroMap;

/// Bytes of a full leaf: 16 chunks of BLAKE3.
pub const LEAF_BYTES: u64 = 16 << 10;

/// Leaves of a full segment.
pub const SEGMENT_LEAVES: u64 = 256;

/// Bytes of a full segment.
pub const SEGMENT_BYTES: u64 = SEGMENT_LEAVES * LEAF_BYTES;

/// Response header of `GET /manifest/`: the content id.
pub const HEADER_CONTENT_ID: &str = "x-bootcast-b3";

/// Maximum number of segments whose leaf values one answer of `GET /manifest/` holds: 2 MiB.
pub const MANIFEST_SEGMENTS_MAX: u64 = 256;

/// Value of a subtree: a leaf, a segment or the whole file.
pub type Value = [u8; 32];

/// Stands for the value of a leaf that cannot be read, or of a segment with such a leaf.
pub const UNKNOWN: Value = [0; 32];

/// BLAKE3 hash of a file's content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "&str", into = "alloc::string::String")]
pub struct ContentId(Value);

/// Error: the text is not a content id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a content id is 64 hexadecimal digits, as b3sum prints them")]
pub struct ContentIdError;

impl ContentId {
    /// Computes the content id of a file from all of its bytes.
    pub fn of_content(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    /// Wraps a BLAKE3 hash.
    pub fn from_bytes(hash: Value) -> Self {
        Self(hash)
    }

    /// Returns the hash.
    pub fn as_bytes(&self) -> &Value {
        &self.0
    }
}

impl FromStr for ContentId {
    type Err = ContentIdError;

    fn from_str(text: &str) -> Result<Self, ContentIdError> {
        blake3::Hash::from_hex(text).map(|hash| Self(hash.into())).map_err(|_| ContentIdError)
    }
}

impl TryFrom<&str> for ContentId {
    type Error = ContentIdError;

    fn try_from(text: &str) -> Result<Self, ContentIdError> {
        text.parse()
    }
}

impl From<ContentId> for alloc::string::String {
    fn from(id: ContentId) -> Self {
        alloc::format!("{id}")
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Division of a file into leaves and segments, and the rules for their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentTree {
    size: u64,
}

impl ContentTree {
    /// Divides a file of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self { size }
    }

    /// Returns the number of bytes in the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the number of leaves. An empty file has none.
    pub fn leaves(&self) -> u64 {
        self.size.div_ceil(LEAF_BYTES)
    }

    /// Returns the number of segments. An empty file has none.
    pub fn segments(&self) -> u64 {
        self.size.div_ceil(SEGMENT_BYTES)
    }

    /// Returns the bytes of a leaf; an empty range if there is no such leaf.
    pub fn leaf(&self, leaf: u64) -> Range<u64> {
        self.part(leaf, LEAF_BYTES)
    }

    /// Returns the bytes of a segment; an empty range if there is no such segment.
    pub fn segment(&self, segment: u64) -> Range<u64> {
        self.part(segment, SEGMENT_BYTES)
    }

    /// Returns the leaves of a segment.
    pub fn leaves_of(&self, segment: u64) -> Range<u64> {
        let first = segment.saturating_mul(SEGMENT_LEAVES).min(self.leaves());
        first..first.saturating_add(SEGMENT_LEAVES).min(self.leaves())
    }

    /// Computes the value of a leaf from its bytes.
    ///
    /// # Panics
    ///
    /// If the number of bytes is not that of the leaf.
    pub fn leaf_value(&self, leaf: u64, bytes: &[u8]) -> Value {
        let range = self.leaf(leaf);
        assert_eq!(range.end - range.start, bytes.len() as u64, "a leaf is hashed as a whole");
        if range.end - range.start == self.size {
            return blake3::hash(bytes).into();
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(range.start).update(bytes).finalize_non_root()
    }

    /// Computes the value of a segment from the values of its leaves, in order.
    ///
    /// # Panics
    ///
    /// If the number of values is not that of the segment's leaves.
    pub fn segment_value(&self, segment: u64, leaves: &[Value]) -> Value {
        let own = self.leaves_of(segment);
        assert_eq!(own.end - own.start, leaves.len() as u64, "a segment is proven as a whole");
        self.merge(leaves, LEAF_BYTES, self.segment(segment))
    }

    /// Computes the content id from the values of all segments, in order.
    ///
    /// # Panics
    ///
    /// If the number of values is not that of the file's segments.
    pub fn content_id(&self, segments: &[Value]) -> ContentId {
        assert_eq!(self.segments(), segments.len() as u64, "a file is proven as a whole");
        if segments.is_empty() {
            return ContentId::of_content(&[]);
        }
        ContentId(self.merge(segments, SEGMENT_BYTES, 0..self.size))
    }

    fn part(self, index: u64, len: u64) -> Range<u64> {
        let start = index.saturating_mul(len).min(self.size);
        start..start.saturating_add(len).min(self.size)
    }

    /// Merges the values of consecutive subtrees of `len` bytes, the last of which may be shorter.
    /// They cover `range`.
    fn merge(self, values: &[Value], len: u64, range: Range<u64>) -> Value {
        if let [value] = values {
            return *value;
        }
        let middle = hazmat::left_subtree_len(range.end - range.start);
        let count = usize::try_from(middle / len).expect("at most the number of values");
        let (left, right) = values.split_at(count);
        let split = range.start + middle;
        let left = self.merge(left, len, range.start..split);
        let right = self.merge(right, len, split..range.end);
        if range.end - range.start == self.size {
            hazmat::merge_subtrees_root(&left, &right, Mode::Hash).into()
        } else {
            hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    }
}

/// Values of all leaves and segments of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    tree: ContentTree,
    leaves: Vec<Value>,
    segments: Vec<Value>,
    zeros: ZeroMap,
    id: ContentId,
}

impl Manifest {
    /// Computes the manifest of a file from all of its bytes. No leaf is known to consist of zeros.
    pub fn of_content(bytes: &[u8]) -> Self {
        let tree = ContentTree::new(bytes.len() as u64);
        let leaves = bytes.chunks(index(LEAF_BYTES)).zip(0..);
        Self::new(tree, leaves.map(|(bytes, leaf)| tree.leaf_value(leaf, bytes)).collect())
    }

    /// Computes segment values and content id from the values of all leaves, in order. No leaf is
    /// known to consist of zeros.
    ///
    /// # Panics
    ///
    /// If the number of values is not that of the file's leaves.
    pub fn new(tree: ContentTree, leaves: Vec<Value>) -> Self {
        Self::with_zeros(tree, leaves, ZeroMap::new(tree.leaves()))
    }

    /// Like [`Self::new`], with a zero map.
    ///
    /// # Panics
    ///
    /// If the number of values is not that of the file's leaves.
    pub fn with_zeros(tree: ContentTree, leaves: Vec<Value>, zeros: ZeroMap) -> Self {
        assert_eq!(tree.leaves(), leaves.len() as u64, "a file is proven as a whole");
        let segments = leaves
            .chunks(usize::try_from(SEGMENT_LEAVES).expect("256"))
            .zip(0..)
            .map(|(leaves, segment)| tree.segment_value(segment, leaves))
            .collect();
        PartialManifest { tree, leaves, segments, ahead: BTreeMap::new(), zeros }.finish()
    }

    /// Returns the division of the file.
    pub fn tree(&self) -> &ContentTree {
        &self.tree
    }

    /// Returns the hash of the file.
    pub fn id(&self) -> ContentId {
        self.id
    }

    /// Returns the values of all segments.
    pub fn segments(&self) -> &[Value] {
        &self.segments
    }

    /// Returns the values of all leaves.
    pub fn leaves(&self) -> &[Value] {
        &self.leaves
    }

    /// Returns which leaves are known to consist of zeros.
    pub fn zeros(&self) -> &ZeroMap {
        &self.zeros
    }
}

/// Values of some segments of a file, of which the rest is not hashed yet.
#[derive(Debug)]
pub struct PartialManifest {
    tree: ContentTree,
    /// Values of the leaves of the first segments.
    leaves: Vec<Value>,
    /// Values of the first segments, without a gap.
    segments: Vec<Value>,
    /// Values of the leaves of segments behind a gap.
    ahead: BTreeMap<u64, Vec<Value>>,
    /// Leaves that consist of zeros.
    zeros: ZeroMap,
}

impl PartialManifest {
    /// Creates a manifest without values.
    pub fn new(tree: ContentTree) -> Self {
        let (leaves, segments, ahead) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { tree, leaves, segments, ahead, zeros: ZeroMap::new(tree.leaves()) }
    }

    /// Records that a leaf consists of zeros.
    ///
    /// # Panics
    ///
    /// If the file has no such leaf.
    pub fn set_zeros(&mut self, leaf: u64) {
        self.zeros.insert(leaf);
    }

    /// Sets the leaf values of a segment. [`UNKNOWN`] stands for those that cannot be computed.
    ///
    /// # Panics
    ///
    /// If the number of values is not that of the segment's leaves.
    pub fn set(&mut self, segment: u64, leaves: &[Value]) {
        let own = self.tree.leaves_of(segment);
        assert_eq!(own.end - own.start, leaves.len() as u64, "a segment is hashed as a whole");
        if segment < self.segments.len() as u64 {
            self.leaves[index(own.start)..index(own.end)].copy_from_slice(leaves);
            self.segments[index(segment)] = self.segment_value(segment, leaves);
            return;
        }
        self.ahead.insert(segment, leaves.to_vec());
        while let Some(leaves) = self.ahead.remove(&(self.segments.len() as u64)) {
            let value = self.segment_value(self.segments.len() as u64, &leaves);
            self.leaves.extend_from_slice(&leaves);
            self.segments.push(value);
        }
    }

    /// Returns the values of the first segments that were set, without a gap.
    pub fn segments(&self) -> &[Value] {
        &self.segments
    }

    /// Returns the values of the leaves of a segment; `None` if they were not set.
    pub fn leaves(&self, segment: u64) -> Option<&[Value]> {
        if segment < self.segments.len() as u64 {
            let own = self.tree.leaves_of(segment);
            return Some(&self.leaves[index(own.start)..index(own.end)]);
        }
        self.ahead.get(&segment).map(Vec::as_slice)
    }

    /// Returns the values of the leaves of those of these segments that were set: from the first
    /// one on, without a gap.
    pub fn leaves_of(&self, segments: Range<u64>) -> Vec<Value> {
        segments.map_while(|segment| self.leaves(segment)).flatten().copied().collect()
    }

    /// Computes the content id.
    ///
    /// # Panics
    ///
    /// If values of the file were not set, or are unknown.
    pub fn finish(self) -> Manifest {
        let Self { tree, leaves, segments, ahead, zeros } = self;
        assert!(ahead.is_empty() && !segments.contains(&UNKNOWN), "a file is proven as a whole");
        let id = tree.content_id(&segments);
        Manifest { tree, leaves, segments, zeros, id }
    }

    fn segment_value(&self, segment: u64, leaves: &[Value]) -> Value {
        if leaves.contains(&UNKNOWN) { UNKNOWN } else { self.tree.segment_value(segment, leaves) }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("the values are in memory")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that differ from leaf to leaf, so that exchanged leaves are noticed.
    fn content(size: u64, seed: u8) -> Vec<u8> {
        (0..size).map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0] ^ seed).collect()
    }

    #[test]
    fn the_content_id_is_the_hash_of_the_file() {
        let sizes = [0, 1, LEAF_BYTES, SEGMENT_BYTES, 2 * SEGMENT_BYTES, 3 * SEGMENT_BYTES];
        for size in sizes.into_iter().flat_map(|size| [size.saturating_sub(1), size, size + 1]) {
            let bytes = content(size, 0);
            assert_eq!(Manifest::of_content(&bytes).id(), ContentId::of_content(&bytes), "{size}");
        }
    }

    #[test]
    fn the_value_of_the_whole_file_is_the_content_id() {
        let bytes = content(LEAF_BYTES - 1, 0);
        let one_leaf = Manifest::of_content(&bytes);
        assert_eq!(one_leaf.leaves(), [*one_leaf.id().as_bytes()]);
        assert_eq!(one_leaf.segments(), one_leaf.leaves());
        let one_segment = Manifest::of_content(&content(SEGMENT_BYTES, 0));
        assert_eq!(one_segment.segments(), [*one_segment.id().as_bytes()]);
    }

    #[test]
    fn a_content_id_reads_back_from_its_text() {
        let id = Manifest::of_content(b"abc").id();
        let text = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(std::format!("{id}"), text);
        assert_eq!(text.parse(), Ok(id));
        for bad in ["", "6437", &text[1..], &text.replace('6', "g")] {
            assert_eq!(bad.parse::<ContentId>(), Err(ContentIdError), "{bad}");
        }
    }

    #[test]
    fn parts_beyond_the_end_are_empty() {
        let tree = ContentTree::new(SEGMENT_BYTES + 1);
        assert_eq!((tree.leaves(), tree.segments()), (257, 2));
        assert_eq!(tree.leaf(256), SEGMENT_BYTES..SEGMENT_BYTES + 1);
        assert!(tree.leaf(257).is_empty() && tree.segment(u64::MAX).is_empty());
        assert_eq!(tree.leaves_of(1), 256..257);
        assert!(tree.leaves_of(u64::MAX).is_empty());
    }

    #[test]
    fn a_manifest_grows_by_segments_and_shows_what_it_has() {
        let whole = Manifest::of_content(&content(2 * SEGMENT_BYTES + LEAF_BYTES + 1, 3));
        let mut partial = PartialManifest::new(*whole.tree());
        for (leaves, added) in whole.leaves().chunks(256).zip(0..) {
            assert_eq!(partial.segments(), &whole.segments()[..added]);
            let known = &whole.leaves()[..added * 256];
            assert_eq!(partial.leaves_of(0..9), known);
            assert_eq!(partial.leaves_of(1..2), &known[known.len().min(256)..known.len().min(512)]);
            assert!(partial.leaves_of(3..u64::MAX).is_empty());
            partial.set(added as u64, leaves);
        }
        assert_eq!(partial.leaves_of(1..9), &whole.leaves()[256..]);
        assert_eq!(partial.leaves_of(2..3), &whole.leaves()[512..]);
        assert_eq!(partial.finish(), whole);
    }

    #[test]
    fn segments_may_be_set_in_any_order_and_the_gap_ends_what_is_listed() {
        let whole = Manifest::of_content(&content(3 * SEGMENT_BYTES, 3));
        let leaves = |segment: usize| &whole.leaves()[256 * segment..256 * (segment + 1)];
        let mut partial = PartialManifest::new(*whole.tree());
        partial.set(1, leaves(1));
        assert!(partial.segments().is_empty());
        assert_eq!(partial.leaves(1), Some(leaves(1)));
        assert!(partial.leaves_of(0..3).is_empty());
        partial.set(0, leaves(0));
        assert_eq!(partial.segments(), &whole.segments()[..2]);
        assert_eq!(partial.leaves_of(0..3), &whole.leaves()[..512]);
        partial.set(2, leaves(2));
        assert_eq!(partial.finish(), whole);
    }

    #[test]
    fn an_unknown_leaf_makes_its_segment_unknown_until_it_is_set_again() {
        let whole = Manifest::of_content(&content(2 * SEGMENT_BYTES, 3));
        let mut partial = PartialManifest::new(*whole.tree());
        let mut damaged = whole.leaves()[..256].to_vec();
        damaged[7] = UNKNOWN;
        partial.set(0, &damaged);
        partial.set(1, &whole.leaves()[256..]);
        assert_eq!(partial.segments(), [UNKNOWN, whole.segments()[1]]);
        assert_eq!(partial.leaves(0), Some(&damaged[..]));
        partial.set(0, &whole.leaves()[..256]);
        assert_eq!(partial.finish(), whole);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_size_has_the_hash_of_the_blake3_crate(size in 0..3 * SEGMENT_BYTES, seed: u8) {
            let bytes = content(size, seed);
            prop_assert_eq!(*Manifest::of_content(&bytes).id().as_bytes(), *blake3::hash(&bytes).as_bytes());
        }

        #[test]
        fn each_list_is_proven_by_the_value_above_it_and_a_changed_one_is_not(
            size in 1..2 * SEGMENT_BYTES,
            at: proptest::sample::Index,
        ) {
            let bytes = content(size, 7);
            let (good, tree) = (Manifest::of_content(&bytes), ContentTree::new(size));
            prop_assert_eq!(tree.content_id(good.segments()), good.id());
            let leaf = at.index(good.leaves().len()) as u64;
            let segment = leaf / SEGMENT_LEAVES;
            let own = tree.leaves_of(segment);
            let mut leaves = good.leaves()[index(own.start)..index(own.end)].to_vec();
            let proven = good.segments()[index(segment)];
            prop_assert_eq!(tree.segment_value(segment, &leaves), proven);
            leaves[index(leaf - own.start)][31] ^= 1;
            prop_assert_ne!(tree.segment_value(segment, &leaves), proven);

            let range = tree.leaf(leaf);
            let mut part = bytes[index(range.start)..index(range.end)].to_vec();
            prop_assert_eq!(tree.leaf_value(leaf, &part), good.leaves()[index(leaf)]);
            part[0] ^= 1;
            prop_assert_ne!(tree.leaf_value(leaf, &part), good.leaves()[index(leaf)]);
        }
    }

    #[test]
    #[should_panic(expected = "a leaf is hashed as a whole")]
    fn a_leaf_of_a_wrong_length_is_a_bug() {
        ContentTree::new(100).leaf_value(0, &[0; 99]);
    }
}
