//! Checks: stored or fetched bytes, and the hashes that they must have.

use std::ops::Range;
use std::sync::Arc;

use bootcast_proto::manifest::{ContentTree, LEAF_BYTES, SEGMENT_LEAVES, Value};

use super::index;

/// Maximum number of leaves in one check against their values, or in one fetch of wrong leaves:
/// 1 MiB, about a third of a millisecond of hashing.
pub(super) const CHECK_LEAVES: u64 = 64;

/// A leaf of zeros.
static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// Leaves whose bytes have arrived, and the hashes that they must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub(super) tree: ContentTree,
    pub(super) leaves: Range<u64>,
    /// Values of all leaves of the segment. `None`: the leaves are a whole segment, whose value
    /// is known.
    pub(super) values: Option<Arc<[Value]>>,
    pub(super) round: u32,
}

/// Result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The leaves that are wrong.
    Wrong(Vec<u64>),
    /// The values of all leaves of a segment, which its value proves or refutes.
    Values(Vec<Value>),
}

impl Check {
    /// Returns the bytes of the file to read.
    pub fn bytes(&self) -> Range<u64> {
        self.tree.leaf(self.leaves.start).start..self.tree.leaf(self.leaves.end - 1).end
    }

    /// Returns the leaves.
    pub fn leaves(&self) -> Range<u64> {
        self.leaves.clone()
    }

    /// Whether the values of the leaves are known, and not only that of their segment.
    pub fn has_leaf_values(&self) -> bool {
        self.values.is_some()
    }

    /// Divides the bytes into leaves. Returns of each its number, where it begins in the file, and
    /// its bytes.
    pub(in crate::receiver) fn leaves_of<'a>(
        &self,
        bytes: &'a [u8],
    ) -> impl Iterator<Item = (u64, u64, &'a [u8])> {
        let leaves = self.leaves.clone().zip(bytes.chunks(index(LEAF_BYTES)));
        leaves.map(|(leaf, own)| (leaf, leaf * LEAF_BYTES, own))
    }

    /// Hashes the bytes of leaves whose values are known, and returns those that are wrong.
    ///
    /// # Panics
    ///
    /// If `bytes` are not as many as [`Self::bytes`] says, or if the values are not known.
    pub fn wrong_leaves(&self, bytes: &[u8]) -> Vec<u64> {
        match self.examine(bytes) {
            Finding::Wrong(wrong) => wrong,
            Finding::Values(_) => unreachable!("leaves are compared with their values"),
        }
    }

    /// Hashes the bytes.
    ///
    /// # Panics
    ///
    /// If `bytes` are not as many as [`Self::bytes`] says.
    pub fn examine(&self, bytes: &[u8]) -> Finding {
        let range = self.bytes();
        assert_eq!(bytes.len() as u64, range.end - range.start, "leaves are checked as a whole");
        self.find(bytes.chunks(index(LEAF_BYTES)))
    }

    /// Hashes zeros instead of the bytes, which are known to be zeros.
    pub fn examine_zeros(&self) -> Finding {
        let len = |leaf| self.tree.leaf(leaf).end - self.tree.leaf(leaf).start;
        self.find(self.leaves.clone().map(|leaf| &ZEROS[..index(len(leaf))]))
    }

    fn find<'a>(&self, parts: impl Iterator<Item = &'a [u8]>) -> Finding {
        let values = parts.zip(self.leaves.clone());
        let values = values.map(|(own, leaf)| (leaf, self.tree.leaf_value(leaf, own)));
        match &self.values {
            None => Finding::Values(values.map(|(_, value)| value).collect()),
            Some(right) => {
                let is_wrong =
                    |(leaf, value): &(u64, Value)| *value != right[index(leaf % SEGMENT_LEAVES)];
                Finding::Wrong(values.filter(is_wrong).map(|(leaf, _)| leaf).collect())
            }
        }
    }
}

/// Consecutive wrong leaves that are to be fetched over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement(pub(super) Check);

impl Replacement {
    /// Returns the bytes of the file to fetch.
    pub fn bytes(&self) -> Range<u64> {
        self.0.bytes()
    }

    /// Returns the check of the bytes that were fetched.
    pub fn check(&self) -> &Check {
        &self.0
    }

    /// Hashes the bytes that were fetched. Returns the leaves that are wrong again, and the ranges
    /// of the file that are right.
    ///
    /// # Panics
    ///
    /// If `bytes` are not as many as [`Self::bytes`] says.
    pub fn examine(&self, bytes: &[u8]) -> (Vec<u64>, Vec<Range<u64>>) {
        let wrong = self.0.wrong_leaves(bytes);
        let right = self.0.leaves.clone().filter(|leaf| !wrong.contains(leaf));
        let right = right.map(|leaf| self.0.tree.leaf(leaf)).collect();
        (wrong, right)
    }
}
