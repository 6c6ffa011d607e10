//! Reads pages into datagrams. One system call reads many pages, each directly behind the space for
//! its header.

use std::io::IoSliceMut;
use std::sync::Arc;

use bootcast_proto::wire::HEADER_LEN;
use bootcast_proto::{BlockLayout, DatagramKey, Geometry, Layout, PageIndex, PageRange};

use super::ReadFailure;
use super::cached::Cached;
use super::proof::{PartialLeaves, prove};
use super::source::{PageSource, ReadError};
use super::symbols::SymbolReader;

/// Maximum number of pages in one `preadv`: `IOV_MAX`.
pub const MAX_READ_PAGES: u32 = 1024;

/// Reads pages of one version of one file.
#[derive(Clone, Debug)]
pub struct PageReader {
    source: Arc<dyn PageSource>,
    geometry: Geometry,
    layout: Layout,
    /// Key that tags the datagrams; `None` leaves them without tags.
    key: Option<DatagramKey>,
    /// Whether it reads the pages of a stream.
    is_of_stream: bool,
}

/// Consecutive pages as datagrams that are ready to be sent.
#[derive(Debug, Default)]
pub struct PageBuffer {
    pages: PageRange,
    /// Length of a full datagram in bytes.
    datagram_len: usize,
    /// Datagrams of the pages. All are full except the last one of the file.
    datagrams: Vec<u8>,
}

impl PageReader {
    /// Creates a reader; nothing is read yet.
    pub fn new(source: Arc<dyn PageSource>, geometry: Geometry, layout: Layout) -> Self {
        Self { source, geometry, layout, key: None, is_of_stream: false }
    }

    /// Sets the key that tags the datagrams of this reader and of readers created from it. Ignored
    /// for the reference layout, which has no room for tags.
    #[must_use]
    pub fn tagged(mut self, key: Option<DatagramKey>) -> Self {
        self.key = key.filter(|_| self.layout == Layout::Base);
        self
    }

    /// Makes this a reader of a stream, which may take what was just hashed.
    #[must_use]
    pub fn of_stream(self) -> Self {
        Self { is_of_stream: true, ..self }
    }

    /// Creates a reader of repair symbols of the same version.
    pub fn for_repair(&self, layout: BlockLayout) -> SymbolReader {
        SymbolReader::new(Arc::clone(&self.source), self.geometry, layout).tagged(self.key)
    }

    /// Returns the source of the pages.
    pub fn source(&self) -> &Arc<dyn PageSource> {
        &self.source
    }

    /// Returns the number of pages in the file.
    pub fn pages(&self) -> u32 {
        self.geometry.pages()
    }

    /// Returns the length of a full datagram in bytes.
    pub fn datagram_len(&self) -> usize {
        HEADER_LEN + self.geometry.page_size().get() as usize
    }

    /// Reads about `read_bytes` from the start of `run` on, but at least the run. If that fails
    /// with an I/O error, tries `run` alone, because the unreadable part may lie behind it; then
    /// each of its pages. Uses the memory of `spare`. May block.
    pub fn read(
        &self,
        run: PageRange,
        read_bytes: usize,
        spare: PageBuffer,
    ) -> Result<PageBuffer, ReadFailure> {
        let pages = self.pages_of_read(run, read_bytes);
        let mut buffer = spare.datagrams;
        let read = match self.read_pages(run.start, pages, &mut buffer) {
            Err(ReadError::Io(_)) if pages > run.len() => {
                self.read_pages(run.start, run.len().min(MAX_READ_PAGES), &mut buffer)
            }
            read => read,
        };
        match read {
            Ok(pages) => {
                let datagram_len = self.datagram_len();
                Ok(PageBuffer { pages, datagram_len, datagrams: buffer })
            }
            Err(error) => Err(self.failure(error, run.iter())),
        }
    }

    /// Like [`Self::read`] without blocking: fails with the memory unless the bytes are in the page
    /// cache, and the right ones.
    pub fn read_cached(
        &self,
        run: PageRange,
        read_bytes: usize,
        spare: PageBuffer,
    ) -> Result<PageBuffer, PageBuffer> {
        let source = Arc::new(Cached::new(Arc::clone(&self.source)));
        let reader = Self { source: Arc::clone(&source) as Arc<dyn PageSource>, ..self.clone() };
        let mut datagrams = spare.datagrams;
        let pages = self.pages_of_read(run, read_bytes);
        let read = reader.read_pages(run.start, pages, &mut datagrams);
        let datagram_len = self.datagram_len();
        match read {
            Ok(pages) if !source.has_failed() => Ok(PageBuffer { pages, datagram_len, datagrams }),
            Ok(_) | Err(_) => {
                datagrams.clear();
                Err(PageBuffer { datagrams, ..PageBuffer::default() })
            }
        }
    }

    /// Returns how many pages a read of about `read_bytes` has: a whole number of runs, so that the
    /// end of the buffer splits no later run.
    fn pages_of_read(&self, run: PageRange, read_bytes: usize) -> u32 {
        debug_assert!(!run.is_empty(), "a read of no pages has no outcome");
        let wanted = u32::try_from(read_bytes / self.datagram_len()).unwrap_or(MAX_READ_PAGES);
        let runs = wanted.min(MAX_READ_PAGES) / run.len().max(1);
        (runs.max(1) * run.len()).min(MAX_READ_PAGES)
    }

    /// Fills the buffer with the datagrams of these pages, as far as the file has them.
    fn read_pages(
        &self,
        start: PageIndex,
        pages: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<PageRange, ReadError> {
        let datagram = self.datagram_len();
        let end = start.0.saturating_add(pages).min(self.geometry.pages());
        let pages = PageRange::new(start.0, end);
        let bytes = self.geometry.byte_range(pages);
        let len = usize::try_from(bytes.end - bytes.start).expect("1024 pages fit memory");
        buffer.resize(len + pages.len() as usize * HEADER_LEN, 0);
        let mut payloads: Vec<_> = buffer
            .chunks_mut(datagram)
            .map(|datagram| IoSliceMut::new(&mut datagram[HEADER_LEN..]))
            .collect();
        if self.is_of_stream {
            self.source.read_stream(&mut payloads, bytes.start)?;
        } else {
            self.source.read(&mut payloads, bytes.start)?;
        }
        let payloads = buffer.chunks(datagram).map(|datagram| &datagram[HEADER_LEN..]);
        prove(&*self.source, PartialLeaves::Complete, std::iter::once((bytes.clone(), payloads)))?;
        let announced = self.layout.announced_pages(&self.geometry);
        for (page, datagram) in pages.iter().zip(buffer.chunks_mut(datagram)) {
            let (header, payload) = datagram.split_at_mut(HEADER_LEN);
            header.copy_from_slice(&self.layout.header(page, announced, payload));
        }
        if let Some(key) = &self.key {
            key.seal_all(buffer, datagram);
        }
        // The disk reads the next pages while these are sent.
        self.source.will_need(bytes.end..bytes.end + len as u64);
        Ok(pages)
    }

    /// Finds the pages that cannot be read even alone, if the error may be theirs.
    pub(super) fn failure(
        &self,
        error: ReadError,
        pages: impl Iterator<Item = PageIndex>,
    ) -> ReadFailure {
        failure_of(&*self.source, &self.geometry, error, pages)
    }
}

/// Tries to read each of these pages alone if the error may be theirs, and names those that fail.
pub(super) fn failure_of(
    source: &dyn PageSource,
    geometry: &Geometry,
    error: ReadError,
    pages: impl Iterator<Item = PageIndex>,
) -> ReadFailure {
    let is_unreadable = |page: &PageIndex| {
        let bytes = geometry.byte_range(PageRange::single(*page));
        let mut payload = vec![0; usize::try_from(bytes.end - bytes.start).unwrap_or(0)];
        let read = source.read(&mut [IoSliceMut::new(&mut payload)], bytes.start);
        read.is_err_and(|error| error.is_local_to_bytes())
    };
    let unreadable =
        if error.is_local_to_bytes() { pages.filter(is_unreadable).collect() } else { Vec::new() };
    ReadFailure { error, unreadable }
}

impl PageBuffer {
    /// Returns the pages in the buffer.
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// Returns the number of bytes of the file in the buffer.
    pub fn bytes(&self) -> u64 {
        (self.datagrams.len() - self.pages.len() as usize * HEADER_LEN) as u64
    }

    /// Returns the datagrams of the first pages of `run`; `None` if the first one is not in the
    /// buffer.
    pub fn datagrams(&self, run: PageRange) -> Option<&[u8]> {
        if !self.pages.contains(run.start) {
            return None;
        }
        let pages = PageRange::new(run.start.0, run.end.0.min(self.pages.end.0));
        let start = (pages.start.0 - self.pages.start.0) as usize * self.datagram_len;
        let end = start + pages.len() as usize * self.datagram_len;
        Some(&self.datagrams[start..end.min(self.datagrams.len())])
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bootcast_proto::PageSize;
    use bootcast_proto::tag::TAG;
    use bootcast_proto::wire::Page;
    use proptest::prelude::*;
    use tempfile::NamedTempFile;

    use super::*;
    use crate::io::reader::faults::{Faults, FaultySource};
    use crate::io::reader::source::FileSource;
    use crate::source::OpenFile;

    fn source(file: &NamedTempFile) -> Arc<dyn PageSource> {
        let file = file.reopen().unwrap();
        Arc::new(FileSource::from(OpenFile::new(file).unwrap()))
    }

    fn reader(source: Arc<dyn PageSource>, page_size: u64, layout: Layout) -> PageReader {
        let page_size = PageSize::new(page_size).unwrap();
        let geometry = Geometry::new(source.version().size(), page_size).unwrap();
        PageReader::new(source, geometry, layout)
    }

    fn file(content: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn read(
        reader: &PageReader,
        run: std::ops::Range<u32>,
        bytes: usize,
    ) -> Result<PageBuffer, ReadFailure> {
        reader.read(PageRange::new(run.start, run.end), bytes, PageBuffer::default())
    }

    #[test]
    fn a_read_ends_with_the_file() {
        let file = file(&[7; 5000]);
        let reader = reader(source(&file), 100, Layout::Base);
        let buffer = read(&reader, 10..20, 1 << 20).unwrap();
        assert_eq!((buffer.pages(), buffer.bytes()), (PageRange::new(10, 50), 4000));
    }

    #[test]
    fn a_change_of_the_file_is_detected_at_the_next_read() {
        let changes: [fn(&NamedTempFile); 2] = [
            |file| file.as_file().set_len(100).unwrap(),
            |file| file.as_file().write_all(b"x").unwrap(),
        ];
        for change in changes {
            let file = file(&[7; 5000]);
            let reader = reader(source(&file), 100, Layout::Base);
            assert!(read(&reader, 0..10, 1160).is_ok());
            change(&file);
            let failure = read(&reader, 10..20, 1160).unwrap_err();
            assert!(matches!(failure.error, ReadError::Changed) && failure.unreadable.is_empty());
        }
    }

    #[test]
    fn an_unreadable_page_behind_a_run_does_not_fail_the_run() {
        let file = file(&[7; 5000]);
        let faults = Faults::default();
        let source = FaultySource { inner: source(&file), faults: faults.clone() };
        let reader = reader(Arc::new(source), 100, Layout::Base);
        faults.unreadable.lock().unwrap().push(2050..2051);
        assert_eq!(read(&reader, 0..10, 1 << 20).unwrap().pages(), PageRange::new(0, 10));
        let failure = read(&reader, 15..25, 1 << 20).unwrap_err();
        assert!(failure.error.is_local_to_bytes());
        assert_eq!(failure.unreadable, [PageIndex(20)]);
    }

    proptest! {
        #[test]
        fn every_run_is_returned_as_the_datagrams_of_its_pages(
            size in 1usize..20_000, page_size in 1u64..3000, run in 1u32..60,
            read_bytes in 0usize..10_000, reference: bool, key: Option<[u8; 32]>,
        ) {
            let key = key.map(DatagramKey::from_random);
            let content: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let layout = if reference { Layout::Reference } else { Layout::Base };
            let file = file(&content);
            let reader = reader(source(&file), page_size, layout).tagged(key);
            let key = key.filter(|_| !reference);
            let geometry = reader.geometry;
            let announced = layout.announced_pages(&geometry);
            let (mut next, mut buffer, mut bytes_read) = (0, PageBuffer::default(), 0);
            while next < geometry.pages() {
                let run = PageRange::new(next, (next + run).min(geometry.pages()));
                if buffer.datagrams(run).is_none() {
                    buffer = reader.read(run, read_bytes, buffer).unwrap();
                    bytes_read += buffer.bytes();
                }
                let datagrams = buffer.datagrams(run).unwrap();
                prop_assert!(!datagrams.is_empty());
                let full = HEADER_LEN + usize::try_from(page_size).unwrap();
                let mut sent = 0;
                for (index, datagram) in run.iter().zip(datagrams.chunks(full)) {
                    let bytes = geometry.byte_range(PageRange::single(index));
                    let place = |offset| usize::try_from(offset).unwrap();
                    let payload = &content[place(bytes.start)..place(bytes.end)];
                    prop_assert_eq!(
                        layout.decode(datagram, announced),
                        Ok(Page { index: PageIndex(index.0), payload })
                    );
                    prop_assert!(key.is_none_or(|key| key.is_genuine(datagram)));
                    prop_assert!(key.is_some() || reference || datagram[TAG] == [0; 8]);
                    sent += datagram.len();
                    next += 1;
                }
                prop_assert_eq!(sent, datagrams.len());
            }
            prop_assert_eq!(bytes_read, size as u64);
        }
    }
}
