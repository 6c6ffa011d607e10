//! A set of leaves of one segment.

use bootcast_proto::manifest::SEGMENT_LEAVES;

const WORD: u64 = 128;

/// Set of leaves, counted from the first leaf of their segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeafBits([u128; 2]);

const _: () = assert!(SEGMENT_LEAVES == 2 * WORD, "one bit for each leaf of a segment");

impl LeafBits {
    /// Adds a leaf. Returns whether it is new.
    pub(super) fn insert(&mut self, leaf: u64) -> bool {
        let is_new = !self.contains(leaf);
        *self.word(leaf) |= bit(leaf);
        is_new
    }

    /// Adds `count` leaves from `first` on.
    pub(super) fn insert_all(&mut self, first: u64, count: u64) {
        for leaf in first..first + count {
            self.insert(leaf);
        }
    }

    /// Adds the leaves of another set.
    pub(super) fn insert_set(&mut self, other: Self) {
        self.0 = [self.0[0] | other.0[0], self.0[1] | other.0[1]];
    }

    /// Removes a leaf.
    pub(super) fn remove(&mut self, leaf: u64) {
        *self.word(leaf) &= !bit(leaf);
    }

    /// Whether the leaf is in the set.
    pub(super) fn contains(&self, leaf: u64) -> bool {
        leaf < SEGMENT_LEAVES && self.0[place(leaf)] & bit(leaf) != 0
    }

    /// Returns the leaves that are not in `other`.
    pub(super) fn without(self, other: Self) -> Self {
        Self([self.0[0] & !other.0[0], self.0[1] & !other.0[1]])
    }

    /// Returns the leaves that are in both sets.
    pub(super) fn and(self, other: Self) -> Self {
        Self([self.0[0] & other.0[0], self.0[1] & other.0[1]])
    }

    /// Whether no leaf is in the set.
    pub(super) fn is_empty(self) -> bool {
        self.0 == [0, 0]
    }

    /// Returns the number of leaves in the set.
    pub(super) fn len(self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Returns the lowest leaf in the set.
    pub(super) fn first(self) -> Option<u64> {
        match self.0 {
            [0, 0] => None,
            [0, high] => Some(WORD + u64::from(high.trailing_zeros())),
            [low, _] => Some(low.trailing_zeros().into()),
        }
    }

    /// Returns the number of consecutive leaves in the set from `first` on.
    pub(super) fn run_from(self, first: u64) -> u64 {
        (first..SEGMENT_LEAVES).take_while(|leaf| self.contains(*leaf)).count() as u64
    }

    fn word(&mut self, leaf: u64) -> &mut u128 {
        assert!(leaf < SEGMENT_LEAVES, "leaf {leaf} of a segment");
        &mut self.0[place(leaf)]
    }
}

fn place(leaf: u64) -> usize {
    usize::from(leaf >= WORD)
}

fn bit(leaf: u64) -> u128 {
    1 << (leaf % WORD)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(added in proptest::collection::vec(0..SEGMENT_LEAVES, 0..300),
                              removed in proptest::collection::vec(0..SEGMENT_LEAVES, 0..99)) {
            let (mut bits, mut other) = (LeafBits::default(), LeafBits::default());
            let mut model = BTreeSet::new();
            for leaf in added {
                prop_assert_eq!(bits.insert(leaf), model.insert(leaf));
            }
            for leaf in removed {
                other.insert(leaf);
                model.remove(&leaf);
            }
            let left = bits.without(other);
            prop_assert_eq!(bits.and(other).len(), bits.len() - left.len());
            prop_assert_eq!(left.len(), model.len() as u64);
            prop_assert_eq!(left.first(), model.first().copied());
            prop_assert_eq!(left.is_empty(), model.is_empty());
            if let Some(&first) = model.first() {
                let run = (first..SEGMENT_LEAVES).take_while(|leaf| model.contains(leaf));
                prop_assert_eq!(left.run_from(first), run.count() as u64);
            }
        }
    }
}
