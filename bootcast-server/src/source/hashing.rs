//! Computes the manifest of a served file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bootcast_proto::manifest::{ContentTree, LEAF_BYTES, Manifest, SEGMENT_BYTES};

use super::{OpenFile, Version};

/// Why a file has no manifest.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// The file changed while it was read.
    #[error("the file changed while it was hashed: try again later")]
    Changed,
    /// The file cannot be read.
    #[error("cannot read the file: {0}")]
    Io(#[from] io::Error),
}

/// Reads the whole file and computes its manifest. Fails if the file is no longer the version that
/// was opened. May block for as long as the disk takes. Calls `go_on` after each segment with the
/// number of bytes that are done, and returns `None` once that is false.
pub fn hash_while(
    open: &OpenFile,
    mut go_on: impl FnMut(u64) -> bool,
) -> Result<Option<Manifest>, HashError> {
    let tree = ContentTree::new(open.version.size());
    let mut leaves = Vec::new();
    let mut buffer = vec![0; usize::try_from(SEGMENT_BYTES.min(tree.size())).expect("4 MiB")];
    for segment in 0..tree.segments() {
        let range = tree.segment(segment);
        let bytes = &mut buffer[..usize::try_from(range.end - range.start).expect("4 MiB")];
        read(&open.file, bytes, range.start)?;
        let parts = bytes.chunks(usize::try_from(LEAF_BYTES).expect("16 KiB"));
        leaves.extend(
            tree.leaves_of(segment).zip(parts).map(|(leaf, part)| tree.leaf_value(leaf, part)),
        );
        if !go_on(range.end) {
            return Ok(None);
        }
    }
    if Version::of_file(&open.file).map_err(io::Error::from)? != open.version {
        return Err(HashError::Changed);
    }
    Ok(Some(Manifest::new(tree, leaves)))
}

fn read(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), HashError> {
    file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => HashError::Changed,
        _ => HashError::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn open(bytes: &[u8]) -> OpenFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        OpenFile { version: Version::of_file(&file).unwrap(), file }
    }

    #[test]
    fn the_id_is_the_hash_of_the_bytes() {
        for size in [0, 1, 20_000, 5 << 20] {
            let bytes: Vec<u8> = (0..size).map(|at: u32| at.to_le_bytes()[1]).collect();
            let mut hashed = 0;
            let go_on = |bytes| {
                hashed = bytes;
                true
            };
            let manifest = hash_while(&open(&bytes), go_on).unwrap().unwrap();
            assert_eq!(hashed, u64::from(size));
            assert_eq!(manifest.id().as_bytes(), blake3::hash(&bytes).as_bytes(), "{size}");
        }
    }

    #[test]
    fn a_file_that_is_no_longer_the_opened_version_has_no_manifest() {
        let mut longer = open(b"abc");
        longer.file.write_all(b"d").unwrap();
        assert!(matches!(hash_while(&longer, |_| true), Err(HashError::Changed)));
        let mut shorter = open(b"abc");
        shorter.file.set_len(2).unwrap();
        shorter.file.rewind().unwrap();
        assert!(matches!(hash_while(&shorter, |_| true), Err(HashError::Changed)));
    }

    #[test]
    fn hashing_ends_where_it_is_told_to() {
        let file = open(b"");
        file.file.set_len(3 * SEGMENT_BYTES).unwrap();
        let file = OpenFile { version: Version::of_file(&file.file).unwrap(), ..file };
        let mut calls = Vec::new();
        let go_on = |bytes| {
            calls.push(bytes);
            bytes < 2 * SEGMENT_BYTES
        };
        assert_eq!(hash_while(&file, go_on).unwrap(), None);
        assert_eq!(calls, [SEGMENT_BYTES, 2 * SEGMENT_BYTES]);
    }
}
