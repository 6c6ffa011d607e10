//! Reads a file into page datagrams. One system call reads many pages, each directly behind the
//! space for its header.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::sync::Arc;

use bootcast_proto::wire::HEADER_LEN;
use bootcast_proto::{BlockLayout, DatagramKey, Geometry, Layout, PageIndex, PageRange};
use rustix::fs::Advice;
use rustix::io::Errno;

use super::reading::{is_local_to_bytes, read_exact};
use super::repair_reader::RepairReader;
use crate::source::{OpenFile, Version};

/// Maximum number of pages in one `preadv`: `IOV_MAX`.
const MAX_READ_PAGES: u32 = 1024;

/// Why a read from the file of a cast failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file is no longer the announced version.
    #[error("the file changed")]
    Changed,
    /// A system call failed.
    #[error("cannot read the file: {0}")]
    Io(Errno),
}

/// Reads one version of one file, many pages at a time, and keeps the datagrams of the last read.
#[derive(Debug)]
pub struct PageReader {
    file: Arc<File>,
    version: Version,
    geometry: Geometry,
    layout: Layout,
    /// Key that tags the datagrams; `None` leaves them without tags.
    key: Option<DatagramKey>,
    /// Pages whose datagrams are in `buffer`.
    loaded: PageRange,
    /// Consecutive datagrams of the `loaded` pages. All are full except the last one of the file.
    buffer: Vec<u8>,
    bytes_read: u64,
}

impl PageReader {
    /// Creates a reader; nothing is read yet.
    pub fn new(open: OpenFile, geometry: Geometry, layout: Layout) -> Self {
        // A hint to the kernel; without it reads are only slower.
        let _ = rustix::fs::fadvise(&open.file, 0, None, Advice::Sequential);
        Self {
            file: Arc::new(open.file),
            version: open.version,
            geometry,
            layout,
            key: None,
            loaded: PageRange::default(),
            buffer: Vec::new(),
            bytes_read: 0,
        }
    }

    /// Sets the key that tags the datagrams of this reader and of readers created from it. Ignored
    /// for the reference layout, which has no room for tags.
    #[must_use]
    pub fn tagged(mut self, key: Option<DatagramKey>) -> Self {
        self.key = key.filter(|_| self.layout == Layout::Base);
        self
    }

    /// Creates a reader of repair symbols of the same version.
    pub fn for_repair(&self, layout: BlockLayout) -> RepairReader {
        RepairReader::new(Arc::clone(&self.file), self.version, self.geometry, layout)
            .tagged(self.key)
    }

    /// Creates a reader of the same version for demanded pages, with a buffer of its own.
    #[must_use]
    pub fn for_demand(&self) -> Self {
        Self {
            file: Arc::clone(&self.file),
            loaded: PageRange::default(),
            buffer: Vec::new(),
            bytes_read: 0,
            ..*self
        }
    }

    /// Returns the number of bytes read from the file so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Returns the version that is being sent.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns the datagrams of the first pages of `run`, at least one. If they are not in the
    /// buffer, reads about `read_bytes` from there on, but at least the run.
    pub fn datagrams(
        &mut self,
        run: PageRange,
        read_bytes: usize,
    ) -> Result<(PageRange, &[u8]), ReadError> {
        if !self.loaded.contains(run.start) {
            self.load(run, read_bytes)?;
        }
        let pages = PageRange::new(run.start.0, run.end.0.min(self.loaded.end.0));
        let datagram = self.datagram_len();
        let start = (pages.start.0 - self.loaded.start.0) as usize * datagram;
        let end = (start + pages.len() as usize * datagram).min(self.buffer.len());
        Ok((pages, &self.buffer[start..end]))
    }

    /// Returns the length of a full datagram in bytes.
    fn datagram_len(&self) -> usize {
        HEADER_LEN + self.geometry.page_size().get() as usize
    }

    /// Loads about `read_bytes` from the start of `run` on. If that fails with an I/O error, tries
    /// `run` alone, because the unreadable part may lie behind it.
    fn load(&mut self, run: PageRange, read_bytes: usize) -> Result<(), ReadError> {
        let wanted = u32::try_from(read_bytes / self.datagram_len()).unwrap_or(MAX_READ_PAGES);
        // A whole number of runs, so that the end of the buffer splits no later run.
        let runs = wanted.min(MAX_READ_PAGES) / run.len().max(1);
        let pages = (runs.max(1) * run.len()).min(MAX_READ_PAGES);
        match self.load_pages(run.start, pages) {
            Err(ReadError::Io(_)) if pages > run.len() => {
                self.load_pages(run.start, run.len().min(MAX_READ_PAGES))
            }
            loaded => loaded,
        }
    }

    /// Fills the buffer with the datagrams of these pages.
    fn load_pages(&mut self, start: PageIndex, pages: u32) -> Result<(), ReadError> {
        let datagram = self.datagram_len();
        let end = start.0.saturating_add(pages).min(self.geometry.pages());
        let loaded = PageRange::new(start.0, end);
        let bytes = self.geometry.byte_range(loaded);
        let len = usize::try_from(bytes.end - bytes.start).expect("1024 pages fit memory");
        self.loaded = PageRange::default();
        self.buffer.resize(len + loaded.len() as usize * HEADER_LEN, 0);
        self.read_payloads(bytes.start)?;
        // Checked after the read: if the version is still the same, the bytes belong to it.
        if Version::of_file(&self.file).map_err(ReadError::Io)? != self.version {
            return Err(ReadError::Changed);
        }
        let announced = self.layout.announced_pages(&self.geometry);
        for (page, datagram) in loaded.iter().zip(self.buffer.chunks_mut(datagram)) {
            let (header, payload) = datagram.split_at_mut(HEADER_LEN);
            header.copy_from_slice(&self.layout.header(page, announced, payload));
        }
        if let Some(key) = &self.key {
            key.seal_all(&mut self.buffer, datagram);
        }
        self.bytes_read += len as u64;
        self.loaded = loaded;
        // A hint to the kernel: the disk reads the next pages while these are sent.
        let _ = rustix::fs::fadvise(
            &self.file,
            bytes.end,
            NonZeroU64::new(len as u64),
            Advice::WillNeed,
        );
        Ok(())
    }

    /// Reads the bytes from `offset` on into the payloads of the datagrams in the buffer.
    fn read_payloads(&mut self, offset: u64) -> Result<(), ReadError> {
        let datagram = self.datagram_len();
        let mut payloads: Vec<_> = self
            .buffer
            .chunks_mut(datagram)
            .map(|datagram| IoSliceMut::new(&mut datagram[HEADER_LEN..]))
            .collect();
        read_exact(&self.file, &mut payloads, offset)
    }

    /// Tries to read this page alone. Returns whether that fails with an error of the page, not of
    /// the whole file.
    pub fn is_unreadable(&self, page: PageIndex) -> bool {
        let bytes = self.geometry.byte_range(PageRange::single(page));
        let mut payload = vec![0; usize::try_from(bytes.end - bytes.start).unwrap_or(0)];
        let read = read_exact(&self.file, &mut [IoSliceMut::new(&mut payload)], bytes.start);
        matches!(read, Err(ReadError::Io(errno)) if is_local_to_bytes(errno))
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
    use crate::io::reading::faults;

    fn reader(file: &NamedTempFile, page_size: u64, layout: Layout) -> PageReader {
        let file = file.reopen().unwrap();
        let version = Version::of_file(&file).unwrap();
        let page_size = PageSize::new(page_size).unwrap();
        let geometry = Geometry::new(version.size(), page_size).unwrap();
        PageReader::new(OpenFile { file, version }, geometry, layout)
    }

    fn file(content: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn pages_that_were_read_ahead_are_not_read_again() {
        let file = file(&[7; 5000]);
        let mut reader = reader(&file, 100, Layout::Base);
        for start in [0, 10, 20, 30, 40] {
            let run = PageRange::new(start, start + 10);
            assert_eq!(reader.datagrams(run, 1 << 20).unwrap().0, run);
        }
        assert_eq!(reader.bytes_read(), 5000);
    }

    #[test]
    fn a_change_of_the_file_is_detected_at_the_next_read() {
        let changes: [fn(&NamedTempFile); 2] = [
            |file| file.as_file().set_len(100).unwrap(),
            |file| file.as_file().write_all(b"x").unwrap(),
        ];
        for change in changes {
            let file = file(&[7; 5000]);
            let mut reader = reader(&file, 100, Layout::Base);
            reader.datagrams(PageRange::new(0, 10), 1160).unwrap();
            change(&file);
            let next = reader.datagrams(PageRange::new(10, 20), 1160);
            assert!(matches!(next, Err(ReadError::Changed)));
        }
    }

    #[test]
    fn an_unreadable_page_behind_a_run_does_not_fail_the_run() {
        let file = file(&[7; 5000]);
        let mut reader = reader(&file, 100, Layout::Base);
        let byte = 2050..2051;
        faults::set_unreadable(std::slice::from_ref(&byte));
        assert!(reader.datagrams(PageRange::new(0, 10), 1 << 20).is_ok());
        let failed = reader.datagrams(PageRange::new(15, 25), 1 << 20);
        assert!(matches!(failed, Err(ReadError::Io(Errno::IO))));
        let unreadable = (0..50).map(PageIndex).filter(|page| reader.is_unreadable(*page));
        assert_eq!(unreadable.collect::<Vec<_>>(), [PageIndex(20)]);
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
            let mut reader = reader(&file, page_size, layout).tagged(key);
            let key = key.filter(|_| !reference);
            let geometry = reader.geometry;
            let announced = layout.announced_pages(&geometry);
            let mut next = 0;
            while next < geometry.pages() {
                let run = PageRange::new(next, (next + run).min(geometry.pages()));
                let (pages, datagrams) = reader.datagrams(run, read_bytes).unwrap();
                prop_assert!(!pages.is_empty() && pages.start == run.start && pages.end <= run.end);
                let mut seen = 0;
                let full = HEADER_LEN + usize::try_from(page_size).unwrap();
                for (index, datagram) in pages.iter().zip(datagrams.chunks(full)) {
                    let bytes = geometry.byte_range(PageRange::single(index));
                    let place = |offset| usize::try_from(offset).unwrap();
                    let payload = &content[place(bytes.start)..place(bytes.end)];
                    prop_assert_eq!(
                        layout.decode(datagram, announced),
                        Ok(Page { index: PageIndex(index.0), payload })
                    );
                    prop_assert!(key.is_none_or(|key| key.is_genuine(datagram)));
                    prop_assert!(key.is_some() || reference || datagram[TAG] == [0; 8]);
                    seen += datagram.len();
                }
                prop_assert_eq!(seen, datagrams.len());
                next = pages.end.0;
            }
            prop_assert_eq!(reader.bytes_read(), size as u64);
        }
    }
}
