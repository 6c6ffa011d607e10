//! Reads only what is in memory, for a thread that must not wait for a disk.

use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bootcast_proto::Manifest;
use rustix::io::Errno;

use super::source::{PageSource, ReadError};
use crate::source::Version;

/// Source that fails where it would have to wait, and records that it did.
#[derive(Debug)]
pub(super) struct Cached {
    inner: Arc<dyn PageSource>,
    has_failed: AtomicBool,
}

impl Cached {
    pub(super) fn new(inner: Arc<dyn PageSource>) -> Self {
        Self { inner, has_failed: AtomicBool::new(false) }
    }

    /// Whether something was not in memory, or not as it should be. Then the outcome of a read says
    /// nothing.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    fn fail(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    fn read_as(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        offset: u64,
        of_stream: bool,
    ) -> Result<(), ReadError> {
        let is_cached = self.inner.read_cached(buffers, offset, of_stream);
        is_cached.then_some(()).ok_or_else(|| {
            self.fail();
            ReadError::Io(Errno::AGAIN)
        })
    }
}

impl PageSource for Cached {
    fn version(&self) -> Version {
        self.inner.version()
    }

    fn read(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), ReadError> {
        self.read_as(buffers, offset, false)
    }

    fn read_stream(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), ReadError> {
        self.read_as(buffers, offset, true)
    }

    /// Looks at the attributes of a file whose bytes are in memory: the kernel has them, too.
    fn check_version(&self) -> Result<(), ReadError> {
        self.inner.check_version()
    }

    fn manifest(&self) -> Option<Arc<Manifest>> {
        self.inner.manifest()
    }

    /// Leaves other bytes to a reader that may wait.
    fn handle_other_bytes(&self, _bytes: Range<u64>) {
        self.fail();
    }

    /// Gives no hint: that may start to read.
    fn will_need(&self, _bytes: Range<u64>) {}
}

#[cfg(test)]
mod tests {
    use bootcast_proto::{Geometry, Layout, PageIndex, PageRange, PageSize};

    use super::super::memory::Memory;
    use super::super::pages::{PageBuffer, PageReader};
    use super::*;

    const SIZE: u64 = 100_000;
    const LEAF: u64 = 16 << 10;

    fn reader(source: &Arc<Memory>) -> PageReader {
        let geometry = Geometry::new(SIZE, PageSize::new(1000).unwrap()).unwrap();
        PageReader::new(Arc::clone(source) as Arc<dyn PageSource>, geometry, Layout::Base)
    }

    fn source(cached: Range<u64>) -> Memory {
        let mut source = Memory::new(SIZE);
        source.cached = cached;
        source
    }

    #[test]
    fn what_is_in_memory_gives_the_same_datagrams() {
        let source = Arc::new(source(0..SIZE));
        let (reader, run) = (reader(&source), PageRange::new(20, 30));
        let cached = reader.read_cached(run, 20_000, PageBuffer::default()).unwrap();
        let read = reader.read(run, 20_000, PageBuffer::default()).unwrap();
        assert_eq!((cached.pages(), cached.bytes()), (read.pages(), read.bytes()));
        assert_eq!(cached.datagrams(run), read.datagrams(run));
    }

    #[test]
    fn bytes_that_are_not_in_memory_are_left_to_a_reader_that_waits() {
        // The pages and the leaves that they touch; then without the beginning of the first leaf.
        let pages = PageRange::new(20, 30);
        for (cached, is_read) in [(LEAF..2 * LEAF, true), (20_000..30_000, false), (0..0, false)] {
            let reader = reader(&Arc::new(source(cached.clone())));
            let read = reader.read_cached(pages, 0, PageBuffer::default());
            assert_eq!(read.is_ok(), is_read, "{cached:?}");
            let left = read.unwrap_or_else(|memory| memory);
            assert_eq!(left.datagrams(PageRange::single(PageIndex(20))).is_some(), is_read);
        }
    }

    #[test]
    fn other_bytes_and_other_attributes_are_left_to_a_reader_that_reports_them() {
        let mut other = source(0..SIZE);
        other.bytes[25_000] ^= 1;
        let other = Arc::new(other);
        let pages = PageRange::new(20, 30);
        assert!(reader(&other).read_cached(pages, 0, PageBuffer::default()).is_err());
        assert_eq!(other.other(), None);
        assert!(reader(&other).read(pages, 0, PageBuffer::default()).is_err());
        assert_eq!(other.other(), Some(LEAF..2 * LEAF));
    }
}
