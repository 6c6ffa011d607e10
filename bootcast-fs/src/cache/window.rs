//! Bytes for which the cache has no room: they are in memory for a while, for those who read them.
//! docs/SEMANTICS.md, "When there is no room".

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lru::LruCache;
use rustix::fs::{FallocateFlags, MemfdFlags};

use super::room;
use crate::panics::lock;

/// Most bytes in all windows of this process, or 1 / [`MEMORY_DIVISOR`] of the memory if that is
/// less.
const TOTAL_BYTES: u64 = 64 << 20;
const MEMORY_DIVISOR: u64 = 16;
/// Least bytes of a window, however many there are: a few reads of the kernel.
const LEAST_BYTES: u64 = 1 << 20;
/// Bytes that are used, and dropped, together.
const CHUNK: u64 = 64 << 10;

/// Number of windows with bytes in this process.
static WINDOWS: AtomicU64 = AtomicU64::new(0);

/// Bytes of one version that are not in the cache. The same bytes are never missing in both while
/// they count as held.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Whether there ever were any. Set before the first ones count as held.
    was_used: AtomicBool,
    bytes: Mutex<Bytes>,
}

#[derive(Debug, Default)]
struct Bytes {
    /// Sparse file in memory; `None` while there are no bytes.
    file: Option<Memory>,
    /// Ends of the ranges of bytes, by their start. No two touch each other.
    ranges: BTreeMap<u64, u64>,
    len: u64,
}

/// File of a window, counted as one.
#[derive(Debug)]
struct Memory {
    file: File,
    /// Chunks with bytes, in the order of their last use.
    chunks: LruCache<u64, ()>,
}

impl Memory {
    fn new() -> io::Result<Self> {
        let file = rustix::fs::memfd_create("bootcast-window", MemfdFlags::CLOEXEC)?.into();
        WINDOWS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { file, chunks: LruCache::unbounded() })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        WINDOWS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the most bytes that one window may have at present.
pub(super) fn share() -> u64 {
    let total = TOTAL_BYTES.min(room::memory() / MEMORY_DIVISOR);
    (total / WINDOWS.load(Ordering::Relaxed).max(1)).max(LEAST_BYTES)
}

impl Window {
    /// Whether bytes may have been dropped, or may be from now on.
    pub(super) fn was_used(&self) -> bool {
        self.was_used.load(Ordering::SeqCst)
    }

    /// Number of bytes.
    pub(super) fn len(&self) -> u64 {
        if self.was_used() { lock(&self.bytes).len } else { 0 }
    }

    /// Writes `slices` one after another, starting at `offset`. Fails if that were too many bytes.
    pub(super) fn write(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.was_used.store(true, Ordering::SeqCst);
        let mut bytes = lock(&self.bytes);
        let len = slices.iter().map(|slice| slice.len() as u64).sum::<u64>();
        if bytes.len + len > share() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let memory = match &mut bytes.file {
            Some(memory) => memory,
            none => none.insert(Memory::new()?),
        };
        let mut at = offset;
        for slice in slices {
            memory.file.write_all_at(slice, at)?;
            at += slice.len() as u64;
        }
        for chunk in chunks(&(offset..at)) {
            memory.chunks.push(chunk, ());
        }
        bytes.insert(offset..at);
        Ok(())
    }

    /// Fills `buffer` with the bytes at `offset`, which are here or in `data`. Fails if the file
    /// ends before.
    pub(super) fn read_exact_at(
        &self,
        data: &File,
        buffer: &mut [u8],
        offset: u64,
    ) -> io::Result<()> {
        if !self.was_used() {
            return data.read_exact_at(buffer, offset);
        }
        // Bytes that move from here to `data` must be found in one of them.
        let mut bytes = lock(&self.bytes);
        let end = offset + buffer.len() as u64;
        let wanted = offset..end;
        let read = read_up_to(data, buffer, offset)?;
        // The file may be shorter than what is here.
        let rest = offset + read as u64..end;
        if bytes.within(&rest).map(|own| own.end - own.start).sum::<u64>() < rest.end - rest.start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let own: Vec<_> = bytes.within(&wanted).collect();
        let Some(memory) = &mut bytes.file else { return Ok(()) };
        for range in own {
            let at = |position: u64| usize::try_from(position - offset).expect("within the buffer");
            memory.file.read_exact_at(&mut buffer[at(range.start)..at(range.end)], range.start)?;
            for chunk in chunks(&range) {
                memory.chunks.promote(&chunk);
            }
        }
        Ok(())
    }

    /// Drops these bytes, because they are in the cache or count as missing.
    pub(super) fn remove(&self, range: &Range<u64>) {
        if self.was_used() {
            lock(&self.bytes).remove(range);
        }
    }

    /// Whether any of these bytes are here.
    pub(super) fn overlaps(&self, range: &Range<u64>) -> bool {
        self.was_used() && lock(&self.bytes).within(range).next().is_some()
    }

    /// Returns the ranges of these bytes that are here.
    pub(super) fn within(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        if self.was_used() { lock(&self.bytes).within(range).collect() } else { Vec::new() }
    }

    /// Returns ranges of bytes to drop, the least recently used first.
    pub(super) fn oldest(&self) -> Vec<Range<u64>> {
        let bytes = lock(&self.bytes);
        let chunks = bytes.file.iter().flat_map(|memory| memory.chunks.iter().rev());
        let ranges = chunks.map(|(chunk, ())| chunk * CHUNK..(chunk + 1) * CHUNK);
        ranges.flat_map(|range| bytes.within(&range).collect::<Vec<_>>()).collect()
    }
}

impl Bytes {
    fn insert(&mut self, range: Range<u64>) {
        self.cut(&range);
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &touching)) = self.ranges.range(..start).next_back()
            && touching == start
        {
            self.ranges.remove(&before);
            start = before;
        }
        if let Some(behind) = self.ranges.remove(&end) {
            end = behind;
        }
        self.ranges.insert(start, end);
        self.len += range.end - range.start;
    }

    fn remove(&mut self, range: &Range<u64>) {
        self.cut(range);
        if self.ranges.is_empty() {
            self.file = None;
        }
        let Some(memory) = &mut self.file else { return };
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Whole units only: the kernel would write zeros to the others, whose bytes are kept.
        let (start, end) = (range.start.next_multiple_of(4096), range.end / 4096 * 4096);
        if start < end {
            // If this fails, the memory is freed with the window.
            let _ = rustix::fs::fallocate(&memory.file, hole, start, end - start);
        }
        let left: Vec<_> = chunks(range)
            .filter(|chunk| {
                within(&self.ranges, &(chunk * CHUNK..(chunk + 1) * CHUNK)).next().is_none()
            })
            .collect();
        for chunk in left {
            memory.chunks.pop(&chunk);
        }
    }

    /// Removes a range from the ranges.
    fn cut(&mut self, range: &Range<u64>) {
        let own: Vec<_> = within(&self.ranges, range).collect();
        for part in own {
            let (&start, &end) =
                self.ranges.range(..=part.start).next_back().expect("a part of a range");
            self.ranges.remove(&start);
            if start < part.start {
                self.ranges.insert(start, part.start);
            }
            if part.end < end {
                self.ranges.insert(part.end, end);
            }
            self.len -= part.end - part.start;
        }
    }

    fn within<'a>(&'a self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'a> {
        within(&self.ranges, range)
    }
}

/// Returns the parts of `ranges` within a range.
fn within<'a>(
    ranges: &'a BTreeMap<u64, u64>,
    range: &Range<u64>,
) -> impl Iterator<Item = Range<u64>> + use<'a> {
    let Range { start, end } = *range;
    let before = ranges.range(..start).next_back().filter(|(_, own)| **own > start);
    let behind = ranges.range(start..end.max(start));
    let all = before.into_iter().chain(behind);
    all.map(move |(first, last)| (*first).max(start)..(*last).min(end)).filter(|it| !it.is_empty())
}

/// Returns the chunks that have at least one of these bytes.
fn chunks(range: &Range<u64>) -> Range<u64> {
    range.start / CHUNK..range.end.div_ceil(CHUNK)
}

/// Reads until the buffer is full or the file ends. The rest of the buffer is zeros.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer[read..].fill(0);
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn bytes_are_read_from_the_window_and_the_rest_from_the_file() {
        let (window, data) = (Window::default(), file(&[1; 10]));
        let read = |range: Range<u64>| {
            let mut buffer = vec![9; usize::try_from(range.end - range.start).unwrap()];
            window.read_exact_at(&data, &mut buffer, range.start).map(|()| buffer)
        };
        assert_eq!(read(2..5).unwrap(), [1, 1, 1]);
        window.write(&[IoSlice::new(&[2]), IoSlice::new(&[3])], 3).unwrap();
        window.write(&[IoSlice::new(&[4; 5])], 10).unwrap();
        assert_eq!(read(2..6).unwrap(), [1, 2, 3, 1]);
        assert_eq!(read(9..15).unwrap(), [1, 4, 4, 4, 4, 4]);
        assert!(read(9..16).is_err(), "nobody has byte 15");
        window.remove(&(0..100));
        assert_eq!(read(2..6).unwrap(), [1; 4]);
        assert_eq!(window.len(), 0);
    }

    #[test]
    fn what_was_used_least_recently_is_dropped_first_and_too_much_is_refused() {
        let (window, data) = (Window::default(), file(&[]));
        let chunk = vec![1; usize::try_from(CHUNK).unwrap()];
        for at in 0..3 {
            window.write(&[IoSlice::new(&chunk)], at * CHUNK).unwrap();
        }
        window.read_exact_at(&data, &mut [0], 5).unwrap();
        assert_eq!(window.oldest(), [1, 2, 0].map(|at| at * CHUNK..(at + 1) * CHUNK));
        let too_much = vec![1; usize::try_from(TOTAL_BYTES).unwrap()];
        assert!(window.write(&[IoSlice::new(&too_much)], 0).is_err());
    }

    proptest! {
        #[test]
        fn ranges_are_a_set_of_bytes(
            steps in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..30),
        ) {
            let (mut bytes, mut model) = (Bytes::default(), BTreeSet::new());
            for (inserts, start, len) in steps {
                let range = start..start + len;
                if inserts && !range.is_empty() {
                    model.extend(range.clone());
                    bytes.insert(range);
                } else {
                    model.retain(|at| !range.contains(at));
                    bytes.remove(&range);
                }
                let all: Vec<_> = bytes.within(&(0..100)).collect();
                prop_assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert_eq!(bytes.len, model.len() as u64);
                prop_assert!(all.into_iter().flatten().eq(model.iter().copied()));
                let part: Vec<_> = bytes.within(&(20..40)).flatten().collect();
                prop_assert!(part.into_iter().eq(model.range(20..40).copied()));
            }
        }
    }
}
