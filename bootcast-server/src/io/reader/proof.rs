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
    ranges: impl Iterator<Item = (Range<u64>, P)>,
) -> Result<(), ReadError> {
    // Checked after the reads: if the version is still the same, the bytes belong to it.
    let Some(manifest) = source.manifest() else { return source.check_version() };
    let mut proof = Proof::Proven;
    for (range, parts) in ranges.filter(|(range, _)| !range.is_empty()) {
        match prove_range(source, &manifest, range, parts) {
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

/// Compares the leaves that overlap a range. Reads what the range lacks of the first and of the last
/// one. Fails with the bytes of the first leaf that has other bytes.
fn prove_range<'a>(
    source: &dyn PageSource,
    manifest: &Manifest,
    range: Range<u64>,
    parts: impl Iterator<Item = &'a [u8]>,
) -> Result<Proof, Range<u64>> {
    let mut leaves = Leaves { manifest, leaf: range.start / LEAF_BYTES, bytes: Vec::new() };
    let mut proof = Proof::Proven;
    let mut at = leaves.range().start;
    if at < range.start {
        if let Some(head) = read(source, at..range.start) {
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
    if !leaves.bytes.is_empty() {
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
