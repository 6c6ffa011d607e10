//! Reads a file into datagrams: in large pieces, each page directly into its place behind its
//! header.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::sync::Arc;

use bootcast_proto::wire::HEADER_LEN;
use bootcast_proto::{BlockLayout, DatagramKey, Geometry, Layout, PageIndex, PageRange};
use rustix::fs::Advice;
use rustix::io::Errno;

use super::reading::{is_about_bytes, read_exact};
use super::repair_reader::RepairReader;
use crate::source::{OpenFile, Version};

/// Most pages in one `preadv`: `IOV_MAX`.
const MAX_WINDOW_PAGES: u32 = 1024;

/// Why the file of a cast cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file is no longer the announced version.
    #[error("the file changed")]
    Changed,
    /// A system call failed.
    #[error("cannot read the file: {0}")]
    Io(Errno),
}

/// Reads one version of one file in large windows, and keeps the last window.
#[derive(Debug)]
pub struct PageReader {
    file: Arc<File>,
    version: Version,
    geometry: Geometry,
    layout: Layout,
    /// Key for the datagrams' tags; `None`: they carry none.
    key: Option<DatagramKey>,
    /// Pages in `window`.
    loaded: PageRange,
    /// Consecutive datagrams of the pages `loaded`. All are full except the last one of the file.
    window: Vec<u8>,
    bytes_read: u64,
}

impl PageReader {
    /// Creates a reader; nothing is read yet.
    pub fn new(open: OpenFile, geometry: Geometry, layout: Layout) -> Self {
        // Only a hint: without it reading is slower, not wrong.
        let _ = rustix::fs::fadvise(&open.file, 0, None, Advice::Sequential);
        Self {
            file: Arc::new(open.file),
            version: open.version,
            geometry,
            layout,
            key: None,
            loaded: PageRange::default(),
            window: Vec::new(),
            bytes_read: 0,
        }
    }

    /// Makes this reader tag its datagrams, and those of its repair readers, with this key. The
    /// reference layout has no room for tags.
    #[must_use]
    pub fn tagged(mut self, key: Option<DatagramKey>) -> Self {
        self.key = key.filter(|_| self.layout == Layout::Base);
        self
    }

    /// Creates a reader of the same version for repair symbols.
    pub fn for_repair(&self, layout: BlockLayout) -> RepairReader {
        RepairReader::new(Arc::clone(&self.file), self.version, self.geometry, layout)
            .tagged(self.key)
    }

    /// Creates a reader of the same version for demanded pages.
    #[must_use]
    pub fn for_demand(&self) -> Self {
        Self {
            file: Arc::clone(&self.file),
            loaded: PageRange::default(),
            window: Vec::new(),
            bytes_read: 0,
            ..*self
        }
    }

    /// Bytes read from the file so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Version that is being sent.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns datagrams of the first pages of `run`, at least one. Reads about `window_bytes`
    /// ahead.
    pub fn datagrams(
        &mut self,
        run: PageRange,
        window_bytes: usize,
    ) -> Result<(PageRange, &[u8]), ReadError> {
        if !self.loaded.contains(run.start) {
            self.load(run, window_bytes)?;
        }
        let pages = PageRange::new(run.start.0, run.end.0.min(self.loaded.end.0));
        let datagram = self.datagram_len();
        let start = (pages.start.0 - self.loaded.start.0) as usize * datagram;
        let end = (start + pages.len() as usize * datagram).min(self.window.len());
        Ok((pages, &self.window[start..end]))
    }

    /// Length of a full datagram in bytes.
    fn datagram_len(&self) -> usize {
        HEADER_LEN + self.geometry.page_size().get() as usize
    }

    /// Loads a window that begins with `run`. Where that cannot be read, `run` alone is tried: the
    /// bad part may lie behind it.
    fn load(&mut self, run: PageRange, window_bytes: usize) -> Result<(), ReadError> {
        let wanted = u32::try_from(window_bytes / self.datagram_len()).unwrap_or(MAX_WINDOW_PAGES);
        // Whole runs, so that no later run is split by the window's end.
        let runs = wanted.min(MAX_WINDOW_PAGES) / run.len().max(1);
        let pages = (runs.max(1) * run.len()).min(MAX_WINDOW_PAGES);
        match self.load_pages(run.start, pages) {
            Err(ReadError::Io(_)) if pages > run.len() => {
                self.load_pages(run.start, run.len().min(MAX_WINDOW_PAGES))
            }
            loaded => loaded,
        }
    }

    fn load_pages(&mut self, start: PageIndex, pages: u32) -> Result<(), ReadError> {
        let datagram = self.datagram_len();
        let end = start.0.saturating_add(pages).min(self.geometry.pages());
        let window = PageRange::new(start.0, end);
        let bytes = self.geometry.byte_range(window);
        let len = usize::try_from(bytes.end - bytes.start).expect("a window fits memory");
        self.loaded = PageRange::default();
        self.window.resize(len + window.len() as usize * HEADER_LEN, 0);
        self.fill(bytes.start)?;
        // Checked after the read: if the version is still the same now, the bytes read before
        // belong to it.
        if Version::of_file(&self.file).map_err(ReadError::Io)? != self.version {
            return Err(ReadError::Changed);
        }
        let announced = self.layout.announced_pages(&self.geometry);
        for (page, datagram) in window.iter().zip(self.window.chunks_mut(datagram)) {
            let (header, payload) = datagram.split_at_mut(HEADER_LEN);
            header.copy_from_slice(&self.layout.header(page, announced, payload));
        }
        if let Some(key) = &self.key {
            key.seal_all(&mut self.window, datagram);
        }
        self.bytes_read += len as u64;
        self.loaded = window;
        // Only a hint: the disk fetches the next window while this one is sent.
        let _ = rustix::fs::fadvise(
            &self.file,
            bytes.end,
            NonZeroU64::new(len as u64),
            Advice::WillNeed,
        );
        Ok(())
    }

    /// Reads the payloads of `window`, which begin at `offset` in the file.
    fn fill(&mut self, offset: u64) -> Result<(), ReadError> {
        let datagram = self.datagram_len();
        let mut payloads: Vec<_> = self
            .window
            .chunks_mut(datagram)
            .map(|datagram| IoSliceMut::new(&mut datagram[HEADER_LEN..]))
            .collect();
        read_exact(&self.file, &mut payloads, offset)
    }

    /// Whether this page by itself cannot be read. Errors of the whole file are none of the page.
    pub fn is_unreadable(&self, page: PageIndex) -> bool {
        let bytes = self.geometry.byte_range(PageRange::single(page));
        let mut payload = vec![0; usize::try_from(bytes.end - bytes.start).unwrap_or(0)];
        let read = read_exact(&self.file, &mut [IoSliceMut::new(&mut payload)], bytes.start);
        matches!(read, Err(ReadError::Io(errno)) if is_about_bytes(errno))
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
    fn a_window_is_read_once_however_many_runs_it_serves() {
        let file = file(&[7; 5000]);
        let mut reader = reader(&file, 100, Layout::Base);
        for start in [0, 10, 20, 30, 40] {
            let run = PageRange::new(start, start + 10);
            assert_eq!(reader.datagrams(run, 1 << 20).unwrap().0, run);
        }
        assert_eq!(reader.bytes_read(), 5000);
    }

    #[test]
    fn a_file_that_changed_is_found_out_at_the_next_read() {
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
    fn a_bad_page_ahead_of_a_run_does_not_keep_the_run_from_being_read() {
        let file = file(&[7; 5000]);
        let mut reader = reader(&file, 100, Layout::Base);
        let bad = 2050..2051;
        faults::set(std::slice::from_ref(&bad));
        assert!(reader.datagrams(PageRange::new(0, 10), 1 << 20).is_ok());
        let bad = reader.datagrams(PageRange::new(15, 25), 1 << 20);
        assert!(matches!(bad, Err(ReadError::Io(Errno::IO))));
        let all = (0..50).map(PageIndex).filter(|page| reader.is_unreadable(*page));
        assert_eq!(all.collect::<Vec<_>>(), [PageIndex(20)]);
    }

    proptest! {
        #[test]
        fn every_run_becomes_the_datagrams_of_its_pages(
            size in 1usize..20_000, page_size in 1u64..3000, run in 1u32..60,
            window in 0usize..10_000, reference: bool, key: Option<[u8; 32]>,
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
                let (pages, datagrams) = reader.datagrams(run, window).unwrap();
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
