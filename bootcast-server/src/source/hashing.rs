//! Computes the manifest of a served file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bootcast_proto::manifest::{
    ContentTree, LEAF_BYTES, Manifest, PartialManifest, UNKNOWN, Value,
};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::lead::{Lead, PIECE_BYTES, Turn};
use super::{OpenFile, Version};

/// Length of a full leaf in bytes.
const LEAF_LEN: usize = 16 << 10;

/// Length of a full piece in bytes.
const PIECE_LEN: usize = 256 << 10;

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
    /// Segments that are being hashed on request.
    requested: Mutex<BTreeSet<u64>>,
    /// Signals that one of them is done.
    request_done: Condvar,
}

impl HashProgress {
    /// Creates the progress of a file of `size` bytes, of which nothing is hashed.
    pub fn new(size: u64) -> Self {
        let tree = ContentTree::new(size);
        Self { manifest: Mutex::new(Some(PartialManifest::new(tree))), ..Self::finished(tree) }
    }

    /// Creates the progress of a file whose manifest is finished.
    pub fn finished(tree: ContentTree) -> Self {
        let (requested, request_done) = (Mutex::default(), Condvar::new());
        Self { tree, manifest: Mutex::new(None), requested, request_done }
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

    /// Claims a segment that is to be hashed on request. Waits while another request has it.
    /// Returns `None` if it is hashed.
    fn claim(&self, segment: u64) -> Option<Claim<'_>> {
        let is_taken = |requested: &mut BTreeSet<u64>| requested.contains(&segment);
        let free = self.request_done.wait_while(self.requested(), is_taken);
        let mut requested = free.unwrap_or_else(PoisonError::into_inner);
        let is_new = !self.has(segment) && requested.insert(segment);
        is_new.then(|| Claim { progress: self, segment })
    }

    fn requested(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        // A panic cannot leave the set half changed.
        self.requested.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<PartialManifest>> {
        // A panic cannot leave the values half added: it comes before them.
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A segment that one request hashes, until this is dropped.
struct Claim<'a> {
    progress: &'a HashProgress,
    segment: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.progress.requested().remove(&self.segment);
        self.progress.request_done.notify_all();
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
    let hasher = SegmentHasher::new(open, progress, &open.file);
    hasher.hash_all(&mut HashRun::default(), 0, go_on)
}

/// Like [`hash_while`], but goes on behind up to `MAX_FAILURES` leaves that cannot be read. When it
/// fails for them, `progress` has [`UNKNOWN`] as their values. With a lead, it returns `None` where
/// the stream has to move first, or when the lead is closed: call it again, with the same `run`.
pub fn hash_with_stream(
    open: &OpenFile,
    progress: &HashProgress,
    lead: Option<&Lead>,
    run: &mut HashRun,
) -> Result<Option<Manifest>, HashError> {
    // Holes are not read, and members need the zero map to be spared them.
    if let Some(lead) = lead
        && !std::mem::replace(&mut run.has_begun, true)
        && is_sparse(&open.file)
    {
        lead.close();
        return Ok(None);
    }
    SegmentHasher::new(open, progress, &open.file).hash_with_stream(lead, run)
}

/// Whether a hasher that waits for the stream may go on.
pub fn may_go_on(progress: &HashProgress, lead: &Lead, run: &HashRun) -> bool {
    lead.turn(|segment| run.is_done(progress, segment)) != Turn::Hold
}

/// What was done of a file that is hashed in several steps.
#[derive(Debug, Default)]
pub struct HashRun {
    has_begun: bool,
    failures: Failures,
    /// Segments with leaves that could not be read.
    failed: BTreeSet<u64>,
    /// Number of segments at the beginning of the file that are done, or fewer.
    done: u64,
}

impl HashRun {
    /// Whether the segment need not be hashed.
    fn is_done(&self, progress: &HashProgress, segment: u64) -> bool {
        self.failed.contains(&segment) || progress.is_known(segment)
    }

    /// Returns the first segment that is not done.
    fn first_undone(&mut self, progress: &HashProgress) -> Option<u64> {
        let segments = progress.tree.segments();
        self.done = (self.done..segments)
            .find(|segment| !self.is_done(progress, *segment))
            .unwrap_or(segments);
        (self.done < segments).then_some(self.done)
    }
}

/// Hashes those of these segments that are not hashed, or waits for another request that does.
/// Their leaves that cannot be read get the value [`UNKNOWN`] in `progress`. May block for as long
/// as the disk takes.
pub fn hash_segments(
    open: &OpenFile,
    progress: &HashProgress,
    segments: Range<u64>,
) -> Result<(), HashError> {
    SegmentHasher::new(open, progress, &open.file).hash_requested(segments)
}

/// Bytes of a served file. Tests replace it by one that cannot be read.
pub(super) trait ReadAt {
    /// Fills the buffer with the bytes from `offset` on.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Returns the first byte from `offset` on that is in no hole; `u64::MAX` if there is none.
    fn data_from(&self, offset: u64) -> u64;
}

/// Whether at least an eighth of a file lies in holes, as far as its file system tells.
fn is_sparse(file: &File) -> bool {
    let (Ok(stat), Ok(hole)) = (rustix::fs::fstat(file), rustix::fs::seek(file, SeekFrom::Hole(0)))
    else {
        return false;
    };
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let stored = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    // File systems without holes may not count blocks, so the count alone says nothing.
    hole < size && stored < size / 8 * 7
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
pub(super) struct SegmentHasher<'a, R> {
    open: &'a OpenFile,
    bytes: &'a R,
    progress: &'a HashProgress,
    /// Lead over the stream, which takes what is read; `None` if there is no stream.
    lead: Option<&'a Lead>,
    /// Piece of the file. The lead may keep it.
    buffer: Arc<Vec<u8>>,
    /// Hole in the file that was found last; empty if there was none.
    hole: Range<u64>,
    /// Whether others use the CPU first, if they need it.
    yields: bool,
}

impl<'a, R: ReadAt> SegmentHasher<'a, R> {
    pub(super) fn new(open: &'a OpenFile, progress: &'a HashProgress, bytes: &'a R) -> Self {
        let size = progress.tree.size();
        debug_assert_eq!(size, open.version.size(), "the progress of another file");
        Self {
            open,
            bytes,
            progress,
            lead: None,
            buffer: Arc::default(),
            hole: 0..0,
            yields: false,
        }
    }

    /// Hashes the segments whose values are not known, and completes the manifest. Returns `None`
    /// if `go_on` or the lead ends it early. Fails early if more than `max_failures` leaves cannot
    /// be read.
    fn hash_all(
        mut self,
        run: &mut HashRun,
        max_failures: usize,
        mut go_on: impl FnMut(u64) -> bool,
    ) -> Result<Option<Manifest>, HashError> {
        self.yields = self.lead.is_none();
        while let Some(first) = run.first_undone(self.progress) {
            let turn = self
                .lead
                .map_or(Turn::Any, |lead| lead.turn(|segment| run.is_done(self.progress, segment)));
            let segment = match turn {
                Turn::Segment(segment) => segment,
                Turn::Any => first,
                Turn::Hold => return Ok(None),
            };
            self.lead.inspect(|lead| lead.begin(segment));
            let Failures { leaves, error } = self.hash(segment)?;
            if let Some(error) = error {
                run.failures.add(leaves, error);
                run.failed.insert(segment);
            }
            if run.failures.leaves > max_failures {
                break;
            }
            if !go_on(self.progress.tree.segment(segment).end) {
                return Ok(None);
            }
        }
        if let Some(error) = run.failures.error.take() {
            return Err(error.into());
        }
        self.check_version()?;
        let manifest = self.progress.lock().take().expect("one thread finishes a progress");
        Ok(Some(manifest.finish()))
    }

    /// Like [`Self::hash_all`], but stays near the stream until the lead is closed.
    pub(super) fn hash_with_stream(
        mut self,
        lead: Option<&'a Lead>,
        run: &mut HashRun,
    ) -> Result<Option<Manifest>, HashError> {
        self.lead = lead;
        let hashed = self.hash_all(run, MAX_FAILURES, |_| lead.is_none_or(Lead::is_open));
        lead.inspect(|lead| lead.pause());
        hashed
    }

    fn hash_requested(mut self, segments: Range<u64>) -> Result<(), HashError> {
        for segment in segments {
            if let Some(_claim) = self.progress.claim(segment) {
                self.hash(segment)?;
            }
        }
        Ok(())
    }

    /// Computes the leaf values of a segment, and shows them to those who wait. Returns the leaves
    /// that cannot be read.
    fn hash(&mut self, segment: u64) -> Result<Failures, HashError> {
        let tree = self.progress.tree;
        let Range { start, end } = tree.segment(segment);
        let mut values = SegmentValues::default();
        for piece in start / PIECE_BYTES..end.div_ceil(PIECE_BYTES) {
            // Whatever its priority, Linux lets a thread use up its slice of some milliseconds.
            if self.yields {
                std::thread::yield_now();
            }
            self.hash_piece(piece, &mut values)?;
        }
        // Values of another version must not be shown.
        self.check_version()?;
        self.progress.set(segment, &values.leaves, &values.zeros);
        Ok(values.failures)
    }

    /// Adds the values of the leaves of a piece.
    fn hash_piece(&mut self, piece: u64, values: &mut SegmentValues) -> Result<(), HashError> {
        let range = piece * PIECE_BYTES..((piece + 1) * PIECE_BYTES).min(self.progress.tree.size());
        if values.is_given_up() || !self.read_piece(piece, &range)? {
            return self.hash_leaves(&range, values);
        }
        let len = usize::try_from(range.end - range.start).expect("256 KiB");
        let leaves = range.start / LEAF_BYTES..;
        for (leaf, bytes) in leaves.zip(self.buffer[..len].chunks(LEAF_LEN)) {
            values.add(self.progress.tree, leaf, bytes);
        }
        Ok(())
    }

    /// Adds the values of those leaves of a piece that can be read alone.
    fn hash_leaves(&self, range: &Range<u64>, values: &mut SegmentValues) -> Result<(), HashError> {
        let tree = self.progress.tree;
        let mut buffer = vec![0; LEAF_LEN];
        for leaf in range.start / LEAF_BYTES..range.end.div_ceil(LEAF_BYTES) {
            let Range { start, end } = tree.leaf(leaf);
            let bytes = &mut buffer[..usize::try_from(end - start).expect("16 KiB")];
            let error = match &values.failures.error {
                Some(first) if values.is_given_up() => Some(first.kind().into()),
                _ => read(self.bytes, bytes, start)?,
            };
            match error {
                Some(error) => values.add_unknown(error),
                None => values.add(tree, leaf, bytes),
            }
        }
        Ok(())
    }

    /// Fills the beginning of the buffer with a piece. Reads nothing if it lies in a hole. Returns
    /// `false` if some of its bytes cannot be read.
    fn read_piece(&mut self, piece: u64, range: &Range<u64>) -> Result<bool, HashError> {
        if Arc::get_mut(&mut self.buffer).is_none_or(|buffer| buffer.is_empty()) {
            // The lead keeps the former piece.
            self.buffer = Arc::new(vec![0; PIECE_LEN]);
        }
        let buffer = Arc::get_mut(&mut self.buffer).expect("nobody else has it");
        let bytes = &mut buffer[..usize::try_from(range.end - range.start).expect("256 KiB")];
        let is_in_hole = |hole: &Range<u64>| hole.start <= range.start && range.end <= hole.end;
        if !is_in_hole(&self.hole) {
            self.hole = range.start..self.bytes.data_from(range.start);
        }
        if is_in_hole(&self.hole) {
            bytes.fill(0);
            self.lead.inspect(|lead| lead.end_piece(piece, None));
            return Ok(true);
        }
        let Some(lead) = self.lead else {
            return Ok(read(self.bytes, bytes, range.start)?.is_none());
        };
        let read = read(self.bytes, bytes, range.start);
        match &read {
            Ok(None) => lead.end_piece(piece, Some(&self.buffer)),
            Ok(Some(_)) | Err(_) => lead.pause(),
        }
        Ok(read?.is_none())
    }

    fn check_version(&self) -> Result<(), HashError> {
        let present = Version::of_file(&self.open.file).map_err(io::Error::from)?;
        // The bytes of a suspect file may be those of another version than the announced one.
        let is_unchanged = present == self.open.present && !self.open.is_suspect;
        if is_unchanged { Ok(()) } else { Err(HashError::Changed) }
    }
}

/// Values of the leaves of one segment.
#[derive(Debug, Default)]
struct SegmentValues {
    leaves: Vec<Value>,
    /// Leaves that consist of zeros.
    zeros: Vec<u64>,
    failures: Failures,
}

impl SegmentValues {
    fn add(&mut self, tree: ContentTree, leaf: u64, bytes: &[u8]) {
        self.leaves.push(tree.leaf_value(leaf, bytes));
        if is_zeros(bytes) {
            self.zeros.push(leaf);
        }
    }

    fn add_unknown(&mut self, error: io::Error) {
        self.leaves.push(UNKNOWN);
        self.failures.add(1, error);
    }

    /// Whether so many leaves cannot be read that the others are not tried.
    fn is_given_up(&self) -> bool {
        self.failures.leaves >= MAX_SEGMENT_FAILURES
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
#[path = "hashing_tests.rs"]
mod tests;
