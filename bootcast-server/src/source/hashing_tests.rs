use std::io::{Seek, Write};

use bootcast_proto::manifest::SEGMENT_BYTES;

use super::*;

fn hash(open: &OpenFile) -> Result<Manifest, HashError> {
    let progress = HashProgress::new(open.version.size());
    Ok(hash_while(open, &progress, |_| true)?.expect("it goes on"))
}

fn hash_all<R: ReadAt>(hasher: SegmentHasher<'_, R>) -> Result<Option<Manifest>, HashError> {
    hasher.hash_all(&mut HashRun::default(), MAX_FAILURES, |_| true)
}

fn hash_readable(open: &OpenFile, progress: &HashProgress) -> Manifest {
    let hashed = hash_with_stream(open, progress, None, &mut HashRun::default());
    hashed.unwrap().expect("it waits for no stream")
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
    assert_eq!(hash_all(hasher).unwrap(), Some(whole));
    assert!(progress.has(1), "nothing is to be hashed any more");
}

/// File that is read when it is told to.
struct Slow<'a>(&'a File, Mutex<std::sync::mpsc::Receiver<()>>);

impl ReadAt for Slow<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.lock().unwrap().recv().map_err(io::Error::other)?;
        FileExt::read_exact_at(self.0, buffer, offset)
    }

    fn data_from(&self, offset: u64) -> u64 {
        offset
    }
}

#[test]
fn a_segment_that_several_requests_want_is_read_once() {
    let file = large();
    let progress = HashProgress::new(file.version.size());
    let (go_on, messages) = std::sync::mpsc::channel();
    let slow = Slow(&file.file, Mutex::new(messages));
    let both = std::sync::Barrier::new(3);
    std::thread::scope(|scope| {
        let begin = || {
            let hasher = SegmentHasher::new(&file, &progress, &slow);
            scope.spawn(|| {
                both.wait();
                hasher.hash_requested(1..2)
            })
        };
        let requests = [begin(), begin()];
        both.wait();
        (0..SEGMENT_BYTES / PIECE_BYTES).for_each(|_| go_on.send(()).unwrap());
        drop(go_on);
        for request in requests {
            request.join().unwrap().unwrap();
        }
    });
    assert!(!progress.leaves_of(1..2).unwrap().contains(&UNKNOWN), "further reads have failed");
    assert!(progress.requested().is_empty());
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
    let manifest = hash_readable(&file, &progress);
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
    let again = hash_all(SegmentHasher::new(&file, &progress, &damaged));
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
    let failed = hash_all(hasher);
    assert!(matches!(failed, Err(HashError::Io(_))), "{failed:?}");
    let mut expected = whole.leaves().to_vec();
    for leaf in [1, 255, 256] {
        expected[leaf] = UNKNOWN;
    }
    assert_eq!(progress.leaves_of(0..4), Some(expected));
    let segments = [UNKNOWN, UNKNOWN, whole.segments()[2], whole.segments()[3]];
    assert_eq!(progress.segments(), Some(segments.to_vec()));
    // When they can be read again, the manifest is completed.
    assert_eq!(hash_readable(&file, &progress), whole);
}

#[test]
fn a_disk_that_fails_is_not_read_to_the_end() {
    let file = large();
    let reads = std::cell::Cell::new(0);
    let progress = HashProgress::new(file.version.size());
    let failing = Failing(&reads);
    let failed = hash_all(SegmentHasher::new(&file, &progress, &failing));
    assert!(matches!(failed, Err(HashError::Io(_))), "{failed:?}");
    assert_eq!(reads.get(), 1 + MAX_SEGMENT_FAILURES);
    assert_eq!(progress.leaves_of(0..9), Some(vec![UNKNOWN; 256]));
}
