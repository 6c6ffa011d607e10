//! Compares the bytes that were read with the manifest of their version.
//!
//! The attributes of a file do not always tell that its content changed: a program may write
//! through `mmap`, and file systems store whole seconds, or times from an image. Where the manifest
//! is known, no byte is sent that is not the one of the announced version.

use std::io::IoSliceMut;
use std::ops::Range;

use bootcast_proto::Manifest;
use bootcast_proto::manifest::LEAF_BYTES;

use super::source::{PageSource, ReadError};
use crate::source::is_leaf;

/// Treatment of leaves of which a range has only a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartialLeaves {
    /// Their rest is read as well, so that every byte of the range is compared.
    Complete,
    /// They are not compared. For repair symbols: their rows are short, and reading the leaves
    /// around them would multiply the work. A member that rebuilds a wrong page notices it by the
    /// hash of the leaf, and fetches that leaf over HTTP, where it is compared.
    Skip,
}

/// Whether bytes could be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// They are the right ones.
    Proven,
    /// The rest of a leaf cannot be read, so nothing is known.
    Unknown,
}

/// Proves that the bytes of consecutive ranges belong to the version, by its manifest if that is
/// known, otherwise by the attributes of the file. Each range comes with its bytes in parts.
pub fn prove<'a, P: Iterator<Item = &'a [u8]>>(
    source: &dyn PageSource,
    partial: PartialLeaves,
    ranges: impl Iterator<Item = (Range<u64>, P)>,
) -> Result<(), ReadError> {
    // Checked after the reads: if the version is still the same, the bytes belong to it.
    let Some(manifest) = source.manifest() else { return source.check_version() };
    let mut proof = Proof::Proven;
    for (range, parts) in ranges.filter(|(range, _)| !range.is_empty()) {
        match prove_range(source, &manifest, partial, range, parts) {
            Ok(Proof::Proven) => {}
            Ok(Proof::Unknown) => proof = Proof::Unknown,
            Err(other) => {
                source.handle_other_bytes(other);
                return Err(ReadError::Changed);
            }
        }
    }
    if proof == Proof::Unknown { source.check_version() } else { Ok(()) }
}

/// Compares the leaves that overlap a range. The range may have only a part of the first and of the
/// last one. Fails with the bytes of the first leaf that has other bytes.
fn prove_range<'a>(
    source: &dyn PageSource,
    manifest: &Manifest,
    partial: PartialLeaves,
    range: Range<u64>,
    parts: impl Iterator<Item = &'a [u8]>,
) -> Result<Proof, Range<u64>> {
    let mut leaves = Leaves { manifest, leaf: range.start / LEAF_BYTES, bytes: Vec::new() };
    let is_completed = partial == PartialLeaves::Complete;
    let mut proof = Proof::Proven;
    let mut at = leaves.range().start;
    if at < range.start {
        if !is_completed {
            leaves.leaf += 1;
        } else if let Some(head) = read(source, at..range.start) {
            leaves.add(&head)?;
        } else {
            proof = Proof::Unknown;
            leaves.leaf += 1;
        }
    }
    at = range.start;
    for part in parts {
        let end = at + part.len() as u64;
        let skipped = leaves.range().start.saturating_sub(at).min(part.len() as u64);
        leaves.add(&part[usize::try_from(skipped).unwrap_or(part.len())..])?;
        at = end;
    }
    debug_assert_eq!(at, range.end, "the parts are not those of the range");
    let last = leaves.range();
    if is_completed && !leaves.bytes.is_empty() {
        match read(source, range.end..last.end) {
            Some(tail) => leaves.add(&tail)?,
            None => proof = Proof::Unknown,
        }
    }
    Ok(proof)
}

/// Consecutive leaves that are compared one after the other.
struct Leaves<'a> {
    manifest: &'a Manifest,
    leaf: u64,
    /// Bytes of the present leaf that were added.
    bytes: Vec<u8>,
}

impl Leaves<'_> {
    /// Returns the bytes of the present leaf.
    fn range(&self) -> Range<u64> {
        self.manifest.tree().leaf(self.leaf)
    }

    /// Adds bytes, and compares each leaf that becomes complete.
    fn add(&mut self, mut bytes: &[u8]) -> Result<(), Range<u64>> {
        while !bytes.is_empty() {
            let range = self.range();
            let len = usize::try_from(range.end - range.start).expect("at most 16 KiB");
            let missing = len.checked_sub(self.bytes.len()).filter(|missing| *missing > 0);
            // Bytes behind the end of the file.
            let Some(missing) = missing else { return Err(range) };
            let (own, rest) = bytes.split_at(missing.min(bytes.len()));
            self.bytes.extend_from_slice(own);
            bytes = rest;
            if self.bytes.len() == len {
                if !is_leaf(self.manifest, self.leaf, &self.bytes) {
                    return Err(range);
                }
                self.leaf += 1;
                self.bytes.clear();
            }
        }
        Ok(())
    }
}

fn read(source: &dyn PageSource, bytes: Range<u64>) -> Option<Vec<u8>> {
    let mut buffer = vec![0; usize::try_from(bytes.end - bytes.start).ok()?];
    source.read(&mut [IoSliceMut::new(&mut buffer)], bytes.start).ok()?;
    Some(buffer)
}

#[cfg(test)]
mod tests {
    use std::iter::once;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::io::reader::memory::Memory;

    /// Proves a range in parts of this length.
    fn prove_parts(source: &Memory, range: Range<usize>, part_len: usize) -> Result<(), ReadError> {
        let bytes = range.start as u64..range.end as u64;
        let ranges = once((bytes, source.bytes[range].chunks(part_len)));
        prove(source, PartialLeaves::Complete, ranges)
    }

    const SIZE: usize = 50_000;
    const LEAF: usize = 16 << 10;

    #[test]
    fn the_right_bytes_are_proven_in_any_range_also_under_other_attributes() {
        let source = Memory::new(SIZE as u64);
        source.is_changed.store(true, Ordering::Relaxed);
        for start in [0, 1, LEAF - 1, LEAF, LEAF + 1, 3 * LEAF, SIZE - 1] {
            for len in [0, 1, 1456, LEAF, LEAF + 1, SIZE] {
                let range = start..(start + len).min(SIZE);
                for part_len in [1456, LEAF, SIZE] {
                    assert!(prove_parts(&source, range.clone(), part_len).is_ok(), "{range:?}");
                }
            }
        }
        assert_eq!(source.other(), None);
    }

    #[test]
    fn another_byte_in_a_leaf_that_the_range_touches_is_found_and_named() {
        for at in [0, LEAF - 1, LEAF, SIZE - 1] {
            let mut source = Memory::new(SIZE as u64);
            source.bytes[at] ^= 1;
            let leaf = at / LEAF * LEAF..(at / LEAF * LEAF + LEAF).min(SIZE);
            // A part of the leaf, with the byte or without it.
            for range in [0..SIZE, leaf.start..leaf.start + 1, leaf.end - 1..leaf.end] {
                let proven = prove_parts(&source, range, 1456);
                assert!(matches!(proven, Err(ReadError::Changed)), "{at}");
                let other = source.other();
                assert_eq!(other, Some(leaf.start as u64..leaf.end as u64));
            }
            let behind = (leaf.end..SIZE).chain(0..leaf.start).next();
            let behind = behind.expect("the file has several leaves");
            assert!(prove_parts(&source, behind..behind + 1, 1456).is_ok());
        }
    }

    #[test]
    fn partial_leaves_of_symbols_are_not_compared_also_under_other_attributes() {
        let mut source = Memory::new(SIZE as u64);
        source.bytes[LEAF + 5] ^= 1;
        source.is_changed.store(true, Ordering::Relaxed);
        let prove = |source: &Memory, range: Range<usize>| {
            let bytes = range.start as u64..range.end as u64;
            let ranges = once((bytes, source.bytes[range].chunks(1456)));
            prove(source, PartialLeaves::Skip, ranges)
        };
        for range in [LEAF..2 * LEAF - 1, LEAF + 1..3 * LEAF, 0..LEAF + 6, LEAF..LEAF] {
            assert!(prove(&source, range.clone()).is_ok(), "{range:?}");
        }
        assert_eq!(source.other(), None);
        assert!(matches!(prove(&source, 99..2 * LEAF), Err(ReadError::Changed)));
        assert_eq!(source.other(), Some(LEAF as u64..2 * LEAF as u64));
    }

    #[test]
    fn where_the_rest_of_a_leaf_cannot_be_read_the_attributes_count() {
        let unreadable = [0, LEAF + 99, 2 * LEAF - 1].map(|at| at as u64..at as u64 + 1);
        for unreadable in unreadable {
            let mut source = Memory::new(SIZE as u64);
            source.unreadable = unreadable;
            let range = 99..LEAF + 50;
            assert!(prove_parts(&source, range.clone(), 1456).is_ok());
            source.is_changed.store(true, Ordering::Relaxed);
            assert!(matches!(prove_parts(&source, range, 1456), Err(ReadError::Changed)));
            assert_eq!(source.other(), None);
        }
    }
}
