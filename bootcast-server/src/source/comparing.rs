//! Compares a served file with the manifest of a version.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bootcast_proto::Manifest;
use bootcast_proto::manifest::{LEAF_BYTES, SEGMENT_BYTES};

use super::{OpenFile, Version};

/// Result of [`compare`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The file has this content.
    Equal,
    /// The file has another content: the first leaf with other bytes.
    Other(Range<u64>),
    /// The file has other attributes than when it was opened.
    Changed,
    /// The caller ended the comparison.
    Ended,
}

/// Reads the file and compares it with a manifest, up to the first difference. May block for as
/// long as the disk takes. Calls `go_on` after each segment, and ends once that is false.
pub fn compare(
    open: &OpenFile,
    manifest: &Manifest,
    mut go_on: impl FnMut() -> bool,
) -> io::Result<Comparison> {
    let tree = manifest.tree();
    if tree.size() != open.present.size() {
        return Ok(Comparison::Changed);
    }
    let mut buffer = vec![0; usize::try_from(SEGMENT_BYTES.min(tree.size())).expect("4 MiB")];
    for segment in 0..tree.segments() {
        let range = tree.segment(segment);
        let bytes = &mut buffer[..usize::try_from(range.end - range.start).expect("4 MiB")];
        match open.file.read_exact_at(bytes, range.start) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Comparison::Changed);
            }
            read => read?,
        }
        let parts = bytes.chunks(usize::try_from(LEAF_BYTES).expect("16 KiB"));
        for (leaf, part) in tree.leaves_of(segment).zip(parts) {
            if !is_leaf(manifest, leaf, part) {
                return Ok(Comparison::Other(tree.leaf(leaf)));
            }
        }
        if !go_on() {
            return Ok(Comparison::Ended);
        }
    }
    let is_unchanged = Version::of_file(&open.file)? == open.present;
    Ok(if is_unchanged { Comparison::Equal } else { Comparison::Changed })
}

/// Whether these are the bytes of a leaf. There must be as many as the leaf has.
pub fn is_leaf(manifest: &Manifest, leaf: u64, bytes: &[u8]) -> bool {
    let expected = usize::try_from(leaf).ok().and_then(|leaf| manifest.leaves().get(leaf));
    expected.is_some_and(|expected| *expected == manifest.tree().leaf_value(leaf, bytes))
}
