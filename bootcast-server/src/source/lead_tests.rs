//! A stream takes what is hashed ahead of it. Nothing is read twice, and nobody waits forever.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use bootcast_proto::Manifest;
use bootcast_proto::manifest::LEAF_BYTES;
use proptest::prelude::*;
use tokio::sync::Semaphore;

use super::super::hashing::{HashError, HashProgress, HashRun, ReadAt, SegmentHasher};
use super::super::{OpenFile, may_go_on};
use super::*;

/// Bytes of one read of a stream. They end within pieces and leaves.
const STREAM_READ: u64 = 1456 * 700;

fn room() -> OwnedSemaphorePermit {
    Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap()
}

fn content(size: u64) -> Vec<u8> {
    (0..size).map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]).collect()
}

/// A file in memory that counts the bytes read from it.
struct Counted {
    bytes: Vec<u8>,
    read: AtomicU64,
    /// Lets one read go on for each message; `None` if reads need not wait.
    slow: Option<Mutex<mpsc::Receiver<()>>>,
}

impl ReadAt for Counted {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(slow) = &self.slow {
            slow.lock().unwrap().recv().unwrap();
        }
        let start = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.bytes[start..start + buffer.len()]);
        self.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn data_from(&self, offset: u64) -> u64 {
        offset
    }
}

/// A file with its hasher and its stream.
struct Fixture {
    file: Counted,
    /// Empty file of the same size, for its version.
    open: OpenFile,
    progress: HashProgress,
    lead: Arc<Lead>,
    run: Mutex<HashRun>,
}

impl Fixture {
    fn new(size: u64) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        let open = OpenFile::new(file).unwrap();
        Self {
            file: Counted { bytes: content(size), read: AtomicU64::new(0), slow: None },
            progress: HashProgress::new(size),
            lead: Arc::new(Lead::new(&open, room(), 3)),
            run: Mutex::default(),
            open,
        }
    }

    fn size(&self) -> u64 {
        self.file.bytes.len() as u64
    }

    fn read(&self) -> u64 {
        self.file.read.load(Ordering::Relaxed)
    }

    /// Hashes as far as the stream allows it.
    fn hash(&self) -> Result<Option<Manifest>, HashError> {
        let hasher = SegmentHasher::new(&self.open, &self.progress, &self.file);
        let lead = Some(&*self.lead).filter(|lead| lead.is_open());
        hasher.hash_with_stream(lead, &mut self.run.lock().unwrap())
    }

    fn may_go_on(&self) -> bool {
        may_go_on(&self.progress, &self.lead, &self.run.lock().unwrap())
    }

    /// Reads these bytes as a stream does, in buffers of different lengths. Returns how many it had
    /// to read from the file.
    fn stream(&self, bytes: Range<u64>) -> u64 {
        let mut payload = vec![0; usize::try_from(bytes.end - bytes.start).unwrap()];
        let mut buffers: Vec<_> = payload.chunks_mut(1456).map(IoSliceMut::new).collect();
        let (taken, rest) = self.lead.take(&mut buffers, bytes.start);
        let mut at = bytes.start + taken;
        let own = bytes.end - at;
        for buffer in rest {
            self.file.read_exact_at(buffer, at).unwrap();
            at += buffer.len() as u64;
        }
        self.lead.advance(bytes.end);
        let index = |byte| usize::try_from(byte).unwrap();
        assert!(payload == self.file.bytes[index(bytes.start)..index(bytes.end)], "{bytes:?}");
        own
    }

    /// Reads this part of the file as a stream does, in steps. The hasher goes on between them.
    fn stream_and_hash(&self, bytes: Range<u64>) -> Option<Manifest> {
        let mut hashed = None;
        let mut at = bytes.start;
        while at < bytes.end {
            hashed = hashed.or(if self.may_go_on() { self.hash().unwrap() } else { None });
            assert!(self.lead.lock().pieces.len() as u64 <= MAX_PIECES);
            let end = (at + STREAM_READ).min(bytes.end);
            self.stream(at..end);
            at = end;
        }
        hashed
    }

    fn id(&self) -> [u8; 32] {
        *blake3::hash(&self.file.bytes).as_bytes()
    }
}

#[test]
fn a_file_is_read_once_for_its_stream_and_its_manifest() {
    let (leaf, segment) = (LEAF_BYTES, SEGMENT_BYTES);
    let ends = [0, leaf, PIECE_BYTES, segment, 5 * segment, 9 * segment + leaf];
    for size in ends.into_iter().flat_map(|end| [end.saturating_sub(1), end, end + 1]) {
        let all = Fixture::new(size);
        let hashed = all.stream_and_hash(0..size);
        let manifest = hashed.or_else(|| all.hash().unwrap()).expect("the stream has ended");
        assert_eq!(manifest.id().as_bytes(), &all.id(), "{size}");
        assert_eq!(all.read(), size, "each byte is read once");
        assert!(all.lead.lock().pieces.is_empty(), "the stream has passed them");
    }
}

#[test]
fn the_hasher_stays_near_the_stream_until_the_lead_is_closed() {
    let all = Fixture::new(9 * SEGMENT_BYTES);
    assert_eq!(all.hash().unwrap(), None);
    assert_eq!(all.progress.hashed(), LEAD_SEGMENTS * SEGMENT_BYTES);
    assert!(!all.may_go_on());
    all.stream(0..SEGMENT_BYTES - 1);
    assert!(!all.may_go_on());
    all.stream(SEGMENT_BYTES - 1..SEGMENT_BYTES);
    assert!(all.may_go_on());
    assert_eq!(all.hash().unwrap(), None);
    assert_eq!(all.progress.hashed(), (LEAD_SEGMENTS + 1) * SEGMENT_BYTES);
    all.lead.close();
    assert!(all.may_go_on() && all.lead.lock().pieces.is_empty());
    let manifest = all.hash().unwrap().unwrap();
    assert_eq!(manifest.id().as_bytes(), &all.id());
    assert_eq!(all.read(), all.size(), "the stream has read nothing by itself");
    assert_eq!(all.stream(SEGMENT_BYTES..2 * SEGMENT_BYTES), SEGMENT_BYTES);
}

#[test]
fn a_cast_that_ends_in_mid_file_leaves_the_rest_to_the_hasher() {
    let all = Fixture::new(9 * SEGMENT_BYTES);
    let streams = [0, 1].map(|_| LeadStream::new(Arc::clone(&all.lead)));
    assert_eq!(all.stream_and_hash(0..2 * SEGMENT_BYTES), None);
    assert!(!all.may_go_on() || all.hash().unwrap().is_none());
    let [first, second] = streams;
    drop(first);
    assert!(all.lead.is_open(), "another stream takes the pieces");
    drop(second);
    let manifest = all.hash().unwrap().unwrap();
    assert_eq!((manifest.id().as_bytes(), all.read()), (&all.id(), all.size()));
}

#[test]
fn a_lead_closes_when_the_stream_has_passed_what_was_hashed() {
    let all = Fixture::new(2 * SEGMENT_BYTES);
    let stream = LeadStream::new(Arc::clone(&all.lead));
    assert!(all.hash().unwrap().is_some());
    stream.end();
    assert!(stream.is_open(), "the pieces are kept");
    assert_eq!(all.stream(0..SEGMENT_BYTES), 0);
    assert!(stream.is_open());
    assert_eq!(all.stream(SEGMENT_BYTES..2 * SEGMENT_BYTES), 0);
    assert!(!stream.is_open(), "the stream has all");
    let empty = Fixture::new(0);
    empty.lead.end();
    assert!(!empty.lead.is_open(), "nothing is kept");
}

#[test]
fn a_stream_that_begins_in_mid_file_is_hashed_first() {
    let all = Fixture::new(9 * SEGMENT_BYTES + 1);
    let start = 6 * SEGMENT_BYTES + 99;
    all.stream(start..start + 1);
    assert_eq!(all.hash().unwrap(), None);
    assert!(all.progress.has(6) && all.progress.has(9) && !all.progress.has(0));
    all.stream_and_hash(start + 1..all.size());
    // No stream is about to read the beginning.
    let manifest = all.hash().unwrap().unwrap();
    assert_eq!(manifest.id().as_bytes(), &all.id());
    assert_eq!(all.read(), all.size() + 1, "only the first byte was not hashed ahead");
}

#[test]
fn a_stream_beside_a_slow_file_waits_for_the_hasher_instead_of_reading_itself() {
    let (go_on, slow) = mpsc::channel();
    let mut all = Fixture::new(2 * SEGMENT_BYTES + 1);
    all.file.slow = Some(Mutex::new(slow));
    let pieces = all.size().div_ceil(PIECE_BYTES);
    let size = all.size();
    thread::scope(|scope| {
        let hasher = scope.spawn(|| all.hash());
        go_on.send(()).unwrap();
        // Until then the stream could be first.
        while all.progress.segments().is_none() || all.read() == 0 {
            thread::yield_now();
        }
        (1..pieces).for_each(|_| go_on.send(()).unwrap());
        let mut at = 0;
        while at < size {
            let end = (at + STREAM_READ).min(size);
            assert_eq!(all.stream(at..end), 0, "the hasher reads at {at}");
            at = end;
        }
        let manifest = hasher.join().unwrap().unwrap().unwrap();
        assert_eq!(manifest.id().as_bytes(), &all.id());
    });
    assert_eq!(all.read(), size);
}

#[test]
fn a_stream_that_waits_goes_on_when_the_lead_is_closed_or_the_hasher_pauses() {
    for ends in [Lead::close, Lead::pause] {
        let all = Fixture::new(PIECE_BYTES);
        all.lead.begin(0);
        thread::scope(|scope| {
            let stream = scope.spawn(|| all.stream(0..10));
            ends(&all.lead);
            assert_eq!(stream.join().unwrap(), 10);
        });
    }
}

#[test]
fn many_members_do_not_wait_for_the_stream_with_their_lists() {
    let all = Fixture::new(9 * SEGMENT_BYTES);
    (0..3).for_each(|_| all.lead.add_member());
    assert!(all.lead.is_open());
    all.lead.add_member();
    assert!(!all.lead.is_open());
}

#[test]
fn a_file_that_changes_while_it_is_streamed_has_no_manifest() {
    let mut all = Fixture::new(9 * SEGMENT_BYTES);
    assert_eq!(all.stream_and_hash(0..SEGMENT_BYTES), None);
    all.open.file.write_all(b"x").unwrap();
    all.stream(SEGMENT_BYTES..2 * SEGMENT_BYTES);
    let hashed = all.hash();
    assert!(matches!(hashed, Err(HashError::Changed)), "{hashed:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Reads of the stream and steps of the hasher in any order, at any places.
    #[test]
    fn a_stream_gets_the_bytes_of_the_file_wherever_it_reads(
        size in 1..6 * SEGMENT_BYTES,
        steps in prop::collection::vec((any::<u64>(), 1..2_000_000u64, any::<bool>()), 1..20),
    ) {
        let all = Fixture::new(size);
        let mut manifest = None;
        for (at, len, is_hashed_before) in steps {
            if is_hashed_before && manifest.is_none() {
                manifest = all.hash().unwrap();
            }
            let start = at % size;
            all.stream(start..(start + len).min(size));
        }
        all.lead.close();
        let manifest = match manifest {
            Some(manifest) => manifest,
            None => all.hash().unwrap().expect("it waits for no stream"),
        };
        prop_assert_eq!(*manifest.id().as_bytes(), all.id());
    }
}
