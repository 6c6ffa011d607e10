//! Computes the manifest of a served file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bootcast_proto::manifest::{
    ContentTree, LEAF_BYTES, Manifest, PartialManifest, SEGMENT_BYTES, UNKNOWN, Value,
};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{OpenFile, Version};

/// Maximum number of leaves of one file that may fail to be read. Then the rest is hashed only on
/// request: each failure of a broken disk can take a second and longer.
const MAX_FAILURES: usize = 64;

/// Maximum number of leaves of one segment that may fail to be read. Then the rest of the segment
/// counts as unreadable.
const MAX_SEGMENT_FAILURES: usize = 16;

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

    /// Creates the progress of a file whose manifest is finished.
    pub fn finished(tree: ContentTree) -> Self {
        Self { tree, manifest: Mutex::new(None) }
    }

    /// Returns the division of the file.
    pub fn tree(&self) -> &ContentTree {
        &self.tree
    }

    /// Returns the number of bytes that are hashed, from the beginning of the file on.
    pub fn hashed(&self) -> u64 {
        let segments = self.lock().as_ref().map(|manifest| manifest.segments().len() as u64);
        segments.map_or(self.tree.size(), |segments| self.tree.segment(segments).start)
    }

    /// Returns the values of the first segments that are hashed; `None` if the manifest is
    /// finished.
    pub fn segments(&self) -> Option<Vec<Value>> {
        Some(self.lock().as_ref()?.segments().to_vec())
    }

    /// Returns the values of the leaves of those of these segments that are hashed: from the first
    /// one on, without a gap. `None` if the manifest is finished.
    pub fn leaves_of(&self, segments: Range<u64>) -> Option<Vec<Value>> {
        Some(self.lock().as_ref()?.leaves_of(segments))
    }

    /// Whether the segment was hashed. Leaves of it may be unreadable.
    pub fn has(&self, segment: u64) -> bool {
        self.lock().as_ref().is_none_or(|manifest| manifest.leaves(segment).is_some())
    }

    /// Whether the values of all leaves of the segment are known.
    fn is_known(&self, segment: u64) -> bool {
        let manifest = self.lock();
        let leaves = manifest.as_ref().map(|manifest| manifest.leaves(segment));
        leaves.is_none_or(|leaves| leaves.is_some_and(|leaves| !leaves.contains(&UNKNOWN)))
    }

    /// Sets the values of a segment's leaves. `zeros` are those that consist of zeros.
    fn set(&self, segment: u64, leaves: &[Value], zeros: &[u64]) {
        if let Some(manifest) = self.lock().as_mut() {
            manifest.set(segment, leaves);
            for leaf in zeros {
                manifest.set_zeros(*leaf);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<PartialManifest>> {
        // A panic cannot leave the values half added: it comes before them.
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the whole file and computes its manifest. Fails if the file is no longer the version that
/// was opened. May block for as long as the disk takes. `progress` gets the values one segment
/// after the other; those that it has are not computed again. Calls `go_on` after each segment with
/// the number of bytes that are done, and returns `None` once that is false.
pub fn hash_while(
    open: &OpenFile,
    progress: &HashProgress,
    go_on: impl FnMut(u64) -> bool,
) -> Result<Option<Manifest>, HashError> {
    SegmentHasher::new(open, progress, &open.file).hash_all(0, go_on)
}

/// Like [`hash_while`], to the end, but goes on behind up to `MAX_FAILURES` leaves that cannot be
/// read. When it fails for them, `progress` has [`UNKNOWN`] as their values.
pub fn hash_readable(open: &OpenFile, progress: &HashProgress) -> Result<Manifest, HashError> {
    let hasher = SegmentHasher::new(open, progress, &open.file);
    Ok(hasher.hash_all(MAX_FAILURES, |_| true)?.expect("nothing ends it early"))
}

/// Hashes those of these segments that were not hashed. Their leaves that cannot be read get the
/// value [`UNKNOWN`] in `progress`. May block for as long as the disk takes.
pub fn hash_segments(
    open: &OpenFile,
    progress: &HashProgress,
    segments: Range<u64>,
) -> Result<(), HashError> {
    let mut hasher = SegmentHasher::new(open, progress, &open.file);
    for segment in segments {
        if !progress.has(segment) {
            hasher.hash(segment)?;
        }
    }
    Ok(())
}

/// Bytes of a served file. Tests replace it by one that cannot be read.
trait ReadAt {
    /// Fills the buffer with the bytes from `offset` on.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Returns the first byte from `offset` on that is in no hole; `u64::MAX` if there is none.
    fn data_from(&self, offset: u64) -> u64;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn data_from(&self, offset: u64) -> u64 {
        match rustix::fs::seek(self, SeekFrom::Data(offset)) {
            Ok(data) => data,
            Err(Errno::NXIO) => u64::MAX,
            // The file system knows no holes.
            Err(_) => offset,
        }
    }
}

/// Leaves that cannot be read.
#[derive(Debug, Default)]
struct Failures {
    /// Number of leaves that could not be read, and of those that were given up with them.
    leaves: usize,
    /// Error of the first one.
    error: Option<io::Error>,
}

impl Failures {
    fn add(&mut self, leaves: usize, error: io::Error) {
        self.leaves += leaves;
        self.error.get_or_insert(error);
    }
}

/// Hashes segments of one file.
struct SegmentHasher<'a, R> {
    open: &'a OpenFile,
    bytes: &'a R,
    progress: &'a HashProgress,
    buffer: Vec<u8>,
    /// Hole in the file that was found last; empty if there was none.
    hole: Range<u64>,
}

impl<'a, R: ReadAt> SegmentHasher<'a, R> {
    fn new(open: &'a OpenFile, progress: &'a HashProgress, bytes: &'a R) -> Self {
        let size = progress.tree.size();
        debug_assert_eq!(size, open.version.size(), "the progress of another file");
        let buffer = vec![0; usize::try_from(SEGMENT_BYTES.min(size)).expect("4 MiB")];
        Self { open, bytes, progress, buffer, hole: 0..0 }
    }

    /// Hashes the segments whose values are not known, and completes the manifest. Fails early if
    /// more than `max_failures` leaves cannot be read.
    fn hash_all(
        mut self,
        max_failures: usize,
        mut go_on: impl FnMut(u64) -> bool,
    ) -> Result<Option<Manifest>, HashError> {
        let tree = self.progress.tree;
        let mut all = Failures::default();
        for segment in 0..tree.segments() {
            if !self.progress.is_known(segment) {
                let Failures { leaves, error } = self.hash(segment)?;
                if let Some(error) = error {
                    all.add(leaves, error);
                }
            }
            if all.leaves > max_failures {
                break;
            }
            if !go_on(tree.segment(segment).end) {
                return Ok(None);
            }
        }
        if let Some(error) = all.error {
            return Err(error.into());
        }
        self.check_version()?;
        let manifest = self.progress.lock().take().expect("one thread finishes a progress");
        Ok(Some(manifest.finish()))
    }

    /// Computes the leaf values of a segment, and shows them to those who wait. Returns the leaves
    /// that cannot be read.
    fn hash(&mut self, segment: u64) -> Result<Failures, HashError> {
        let tree = self.progress.tree;
        let range = tree.segment(segment);
        let is_whole = self.fill_buffer(&range)?;
        let bytes = &mut self.buffer[..usize::try_from(range.end - range.start).expect("4 MiB")];
        let parts = bytes.chunks_mut(usize::try_from(LEAF_BYTES).expect("16 KiB"));
        let mut failures = Failures::default();
        let (mut values, mut zeros) = (Vec::with_capacity(parts.len()), Vec::new());
        for (leaf, part) in tree.leaves_of(segment).zip(parts) {
            let is_given_up = failures.leaves >= MAX_SEGMENT_FAILURES;
            let error = match &failures.error {
                _ if is_whole => None,
                Some(first) if is_given_up => Some(first.kind().into()),
                _ => read(self.bytes, part, tree.leaf(leaf).start)?,
            };
            if let Some(error) = error {
                values.push(UNKNOWN);
                failures.add(1, error);
                continue;
            }
            values.push(tree.leaf_value(leaf, part));
            if is_zeros(part) {
                zeros.push(leaf);
            }
        }
        // Values of another version must not be shown.
        self.check_version()?;
        self.progress.set(segment, &values, &zeros);
        Ok(failures)
    }

    /// Fills the beginning of the buffer with these bytes. Reads nothing if they lie in a hole.
    /// Returns `false` if some of them cannot be read.
    fn fill_buffer(&mut self, range: &Range<u64>) -> Result<bool, HashError> {
        let bytes = &mut self.buffer[..usize::try_from(range.end - range.start).expect("4 MiB")];
        let is_in_hole = |hole: &Range<u64>| hole.start <= range.start && range.end <= hole.end;
        if !is_in_hole(&self.hole) {
            self.hole = range.start..self.bytes.data_from(range.start);
        }
        if is_in_hole(&self.hole) {
            bytes.fill(0);
            return Ok(true);
        }
        Ok(read(self.bytes, bytes, range.start)?.is_none())
    }

    fn check_version(&self) -> Result<(), HashError> {
        let present = Version::of_file(&self.open.file).map_err(io::Error::from)?;
        // The bytes of a suspect file may be those of another version than the announced one.
        let is_unchanged = present == self.open.present && !self.open.is_suspect;
        if is_unchanged { Ok(()) } else { Err(HashError::Changed) }
    }
}

/// Whether all bytes are 0.
fn is_zeros(bytes: &[u8]) -> bool {
    // Without a branch for each byte: the compiler makes few instructions of it.
    bytes.chunks(1024).all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}

/// Reads a part of a file. Returns the error if it cannot be read.
fn read(
    file: &impl ReadAt,
    buffer: &mut [u8],
    offset: u64,
) -> Result<Option<io::Error>, HashError> {
    match file.read_exact_at(buffer, offset) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(HashError::Changed),
        Err(error) => Ok(Some(error)),
    }
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
        OpenFile::new(file).unwrap()
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
        let file = OpenFile::new(file.file).unwrap();
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

    /// File whose bytes in these ranges cannot be read.
    struct Damaged<'a>(&'a File, &'a [Range<u64>]);

    impl ReadAt for Damaged<'_> {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let end = offset + buffer.len() as u64;
            if self.1.iter().any(|bad| bad.start < end && offset < bad.end) {
                return Err(Errno::IO.into());
            }
            FileExt::read_exact_at(self.0, buffer, offset)
        }

        fn data_from(&self, offset: u64) -> u64 {
            self.0.data_from(offset)
        }
    }

    /// File of which nothing can be read. Counts the attempts.
    struct Failing<'a>(&'a std::cell::Cell<usize>);

    impl ReadAt for Failing<'_> {
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            self.0.set(self.0.get() + 1);
            Err(Errno::IO.into())
        }

        fn data_from(&self, offset: u64) -> u64 {
            offset
        }
    }

    /// File of three segments and a bit, in which no two leaves are equal.
    fn large() -> OpenFile {
        let size = u32::try_from(3 * SEGMENT_BYTES + 1).unwrap();
        let bytes: Vec<u8> = (0..size).map(|at| (at ^ (at >> 14)).to_le_bytes()[0]).collect();
        open(&bytes)
    }

    #[test]
    fn segments_that_were_hashed_on_request_are_not_hashed_again() {
        let file = large();
        let whole = hash(&file).unwrap();
        let progress = HashProgress::new(file.version.size());
        hash_segments(&file, &progress, 2..4).unwrap();
        assert!(progress.has(2) && progress.has(3) && !progress.has(1));
        assert_eq!(progress.leaves_of(2..9), Some(whole.leaves()[512..].to_vec()));
        assert_eq!((progress.hashed(), progress.segments()), (0, Some(vec![])));
        let last_two = 2 * SEGMENT_BYTES..u64::MAX;
        let damaged = Damaged(&file.file, &[last_two]);
        let hasher = SegmentHasher::new(&file, &progress, &damaged);
        assert_eq!(hasher.hash_all(0, |_| true).unwrap(), Some(whole));
        assert!(progress.has(1), "nothing is to be hashed any more");
    }

    #[test]
    fn leaves_of_zeros_are_in_the_zero_map_and_holes_are_not_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 20_000]).unwrap();
        file.write_all(&vec![0; 50_000]).unwrap();
        file.set_len(3 * SEGMENT_BYTES + 5).unwrap();
        let end = 2 * SEGMENT_BYTES + LEAF_BYTES;
        FileExt::write_all_at(&file, &[7], end).unwrap();
        let file = OpenFile::new(file).unwrap();
        let progress = HashProgress::new(file.version.size());
        let manifest = hash_readable(&file, &progress).unwrap();
        let runs: Vec<_> = manifest.zeros().runs().collect();
        assert_eq!(runs, [2..513, 514..769]);
        let mut bytes = vec![0; usize::try_from(file.version.size()).unwrap()];
        FileExt::read_exact_at(&file.file, &mut bytes, 0).unwrap();
        assert_eq!(manifest.id().as_bytes(), blake3::hash(&bytes).as_bytes());

        // The segment in the middle is a hole, where the file system has holes.
        let middle = SEGMENT_BYTES..2 * SEGMENT_BYTES;
        let damaged = Damaged(&file.file, std::slice::from_ref(&middle));
        let progress = HashProgress::new(file.version.size());
        let has_holes = file.file.data_from(SEGMENT_BYTES) > SEGMENT_BYTES;
        let again = SegmentHasher::new(&file, &progress, &damaged).hash_all(0, |_| true);
        assert_eq!(again.ok().flatten(), has_holes.then_some(manifest));
    }

    #[test]
    fn a_leaf_that_cannot_be_read_is_unknown_and_all_others_are_known() {
        let file = large();
        let whole = hash(&file).unwrap();
        let bad = [LEAF_BYTES + 1..LEAF_BYTES + 2, SEGMENT_BYTES - 1..SEGMENT_BYTES + 1];
        let damaged = Damaged(&file.file, &bad);
        let progress = HashProgress::new(file.version.size());
        let hasher = SegmentHasher::new(&file, &progress, &damaged);
        let failed = hasher.hash_all(MAX_FAILURES, |_| true);
        assert!(matches!(failed, Err(HashError::Io(_))), "{failed:?}");
        let mut expected = whole.leaves().to_vec();
        for leaf in [1, 255, 256] {
            expected[leaf] = UNKNOWN;
        }
        assert_eq!(progress.leaves_of(0..4), Some(expected));
        let segments = [UNKNOWN, UNKNOWN, whole.segments()[2], whole.segments()[3]];
        assert_eq!(progress.segments(), Some(segments.to_vec()));
        // When they can be read again, the manifest is completed.
        assert_eq!(hash_readable(&file, &progress).unwrap(), whole);
    }

    #[test]
    fn a_disk_that_fails_is_not_read_to_the_end() {
        let file = large();
        let reads = std::cell::Cell::new(0);
        let progress = HashProgress::new(file.version.size());
        let failing = Failing(&reads);
        let failed = SegmentHasher::new(&file, &progress, &failing).hash_all(64, |_| true);
        assert!(matches!(failed, Err(HashError::Io(_))), "{failed:?}");
        assert_eq!(reads.get(), 1 + MAX_SEGMENT_FAILURES);
        assert_eq!(progress.leaves_of(0..9), Some(vec![UNKNOWN; 256]));
    }
}
