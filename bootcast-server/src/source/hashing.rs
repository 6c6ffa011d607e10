//! Computes the manifest of a served file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bootcast_proto::manifest::{
    ContentTree, LEAF_BYTES, Manifest, PartialManifest, SEGMENT_BYTES, Value,
};

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

/// Values of a file that are known while it is hashed. Shared with those who wait for them.
#[derive(Debug)]
pub struct HashProgress {
    tree: ContentTree,
    /// `None` once the manifest is finished.
    manifest: Mutex<Option<PartialManifest>>,
}

impl HashProgress {
    /// Creates the progress of a file of `size` bytes, of which nothing is hashed.
    pub fn new(size: u64) -> Self {
        let tree = ContentTree::new(size);
        Self { tree, manifest: Mutex::new(Some(PartialManifest::new(tree))) }
    }

    /// Returns the division of the file.
    pub fn tree(&self) -> &ContentTree {
        &self.tree
    }

    /// Returns the number of bytes that are hashed.
    pub fn hashed(&self) -> u64 {
        let segments = self.lock().as_ref().map(|manifest| manifest.segments().len() as u64);
        segments.map_or(self.tree.size(), |segments| self.tree.segment(segments).start)
    }

    /// Returns the values of the segments that are hashed; `None` if the manifest is finished.
    pub fn segments(&self) -> Option<Vec<Value>> {
        Some(self.lock().as_ref()?.segments().to_vec())
    }

    /// Returns the values of the leaves of those of these segments that are hashed: from the first
    /// one on, without a gap. `None` if the manifest is finished.
    pub fn leaves_of(&self, segments: Range<u64>) -> Option<Vec<Value>> {
        Some(self.lock().as_ref()?.leaves_of(segments).to_vec())
    }

    fn push(&self, leaves: &[Value]) {
        if let Some(manifest) = self.lock().as_mut() {
            manifest.push(leaves);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<PartialManifest>> {
        // A panic cannot leave the values half added: it comes before them.
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the whole file and computes its manifest. Fails if the file is no longer the version that
/// was opened. May block for as long as the disk takes. `progress` must be new, and gets the values
/// one segment after the other. Calls `go_on` after each segment with the number of bytes that are
/// done, and returns `None` once that is false.
pub fn hash_while(
    open: &OpenFile,
    progress: &HashProgress,
    mut go_on: impl FnMut(u64) -> bool,
) -> Result<Option<Manifest>, HashError> {
    let tree = progress.tree;
    debug_assert_eq!(tree.size(), open.version.size(), "the progress of another file");
    let mut buffer = vec![0; usize::try_from(SEGMENT_BYTES.min(tree.size())).expect("4 MiB")];
    for segment in 0..tree.segments() {
        let range = tree.segment(segment);
        let bytes = &mut buffer[..usize::try_from(range.end - range.start).expect("4 MiB")];
        read(&open.file, bytes, range.start)?;
        let parts = bytes.chunks(usize::try_from(LEAF_BYTES).expect("16 KiB"));
        let leaves = tree.leaves_of(segment).zip(parts);
        let values: Vec<_> = leaves.map(|(leaf, part)| tree.leaf_value(leaf, part)).collect();
        progress.push(&values);
        if !go_on(range.end) {
            return Ok(None);
        }
    }
    if Version::of_file(&open.file).map_err(io::Error::from)? != open.version {
        return Err(HashError::Changed);
    }
    let manifest = progress.lock().take().expect("a new progress is not finished");
    Ok(Some(manifest.finish()))
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

    fn hash(open: &OpenFile) -> Result<Manifest, HashError> {
        let progress = HashProgress::new(open.version.size());
        Ok(hash_while(open, &progress, |_| true)?.expect("it goes on"))
    }

    fn open(bytes: &[u8]) -> OpenFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        OpenFile { version: Version::of_file(&file).unwrap(), file }
    }

    #[test]
    fn the_id_is_the_hash_of_the_bytes() {
        for size in [0, 1, 20_000, 5 << 20] {
            let bytes: Vec<u8> = (0..size).map(|at: u32| at.to_le_bytes()[1]).collect();
            let progress = HashProgress::new(size.into());
            assert_eq!(progress.hashed(), 0);
            let mut hashed = 0;
            let go_on = |bytes| {
                hashed = bytes;
                true
            };
            let manifest = hash_while(&open(&bytes), &progress, go_on).unwrap().unwrap();
            assert_eq!((progress.hashed(), hashed), (u64::from(size), u64::from(size)));
            assert_eq!(manifest.id().as_bytes(), blake3::hash(&bytes).as_bytes(), "{size}");
        }
    }

    #[test]
    fn a_file_that_is_no_longer_the_opened_version_has_no_manifest() {
        let mut longer = open(b"abc");
        longer.file.write_all(b"d").unwrap();
        assert!(matches!(hash(&longer), Err(HashError::Changed)));
        let mut shorter = open(b"abc");
        shorter.file.set_len(2).unwrap();
        shorter.file.rewind().unwrap();
        assert!(matches!(hash(&shorter), Err(HashError::Changed)));
    }

    #[test]
    fn hashing_ends_where_it_is_told_to_and_shows_what_is_known() {
        let file = open(b"");
        file.file.set_len(3 * SEGMENT_BYTES).unwrap();
        let file = OpenFile { version: Version::of_file(&file.file).unwrap(), ..file };
        let whole = hash(&file).unwrap();
        let mut calls = Vec::new();
        let go_on = |bytes| {
            calls.push(bytes);
            bytes < 2 * SEGMENT_BYTES
        };
        let progress = HashProgress::new(3 * SEGMENT_BYTES);
        assert_eq!(hash_while(&file, &progress, go_on).unwrap(), None);
        assert_eq!(calls, [SEGMENT_BYTES, 2 * SEGMENT_BYTES]);
        assert_eq!(progress.hashed(), 2 * SEGMENT_BYTES);
        assert_eq!(progress.segments().unwrap(), whole.segments()[..2]);
        assert_eq!(progress.leaves_of(1..3).unwrap(), whole.leaves()[256..512]);
        assert_eq!(progress.leaves_of(2..3), Some(vec![]));
    }
}
