//! A file on its way into datagrams: read in large pieces, each page to its place behind its header.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;

use bootcast_proto::wire::HEADER_LEN;
use bootcast_proto::{Geometry, Layout, PageRange};
use rustix::fs::Advice;
use rustix::io::Errno;

use crate::source::{OpenFile, Version};

/// `IOV_MAX`: pages of one `preadv` at most.
const MAX_WINDOW_PAGES: u32 = 1024;

/// Why a file cannot be sent on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is another version than the one announced.
    #[error("the file changed")]
    Changed,
    /// The file system failed.
    #[error("cannot read the file: {0}")]
    Io(Errno),
}

/// Reads one version of one file, window by window, and keeps the last window.
#[derive(Debug)]
pub struct PageReader {
    file: File,
    version: Version,
    geometry: Geometry,
    layout: Layout,
    /// Pages that `window` holds.
    held: PageRange,
    /// Datagrams of `held`, one behind the other; all full but the file's last.
    window: Vec<u8>,
    bytes_read: u64,
}

impl PageReader {
    /// Nothing is read yet.
    pub fn new(open: OpenFile, geometry: Geometry, layout: Layout) -> Self {
        // A hint: without it reading is slower, not wrong.
        let _ = rustix::fs::fadvise(&open.file, 0, None, Advice::Sequential);
        Self {
            file: open.file,
            version: open.version,
            geometry,
            layout,
            held: PageRange::default(),
            window: Vec::new(),
            bytes_read: 0,
        }
    }

    /// Bytes read from the file so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The version that is being sent.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Datagrams of the first pages of `run`, at least one page of it; reads about `window_bytes` ahead.
    pub fn datagrams(
        &mut self,
        run: PageRange,
        window_bytes: usize,
    ) -> Result<(PageRange, &[u8]), ReadError> {
        if !self.held.contains(run.start) {
            self.load(run, window_bytes)?;
        }
        let pages = PageRange::new(run.start.0, run.end.0.min(self.held.end.0));
        let datagram = self.datagram_len();
        let start = (pages.start.0 - self.held.start.0) as usize * datagram;
        let end = (start + pages.len() as usize * datagram).min(self.window.len());
        Ok((pages, &self.window[start..end]))
    }

    /// Bytes of a full datagram.
    fn datagram_len(&self) -> usize {
        HEADER_LEN + self.geometry.page_size().get() as usize
    }

    fn load(&mut self, run: PageRange, window_bytes: usize) -> Result<(), ReadError> {
        let datagram = self.datagram_len();
        let wanted = u32::try_from(window_bytes / datagram).unwrap_or(MAX_WINDOW_PAGES);
        // Whole runs, so that no later run is split by the window's end.
        let runs = wanted.min(MAX_WINDOW_PAGES) / run.len().max(1);
        let pages = (runs.max(1) * run.len()).min(MAX_WINDOW_PAGES);
        let end = run.start.0.saturating_add(pages).min(self.geometry.pages());
        let window = PageRange::new(run.start.0, end);
        let bytes = self.geometry.byte_range(window);
        let len = usize::try_from(bytes.end - bytes.start).expect("a window fits memory");
        self.held = PageRange::default();
        self.window.resize(len + window.len() as usize * HEADER_LEN, 0);
        self.fill(bytes.start)?;
        // After the read: what was read before this is of the version that it finds.
        if Version::of_file(&self.file).map_err(ReadError::Io)? != self.version {
            return Err(ReadError::Changed);
        }
        let announced = self.layout.announced_pages(&self.geometry);
        for (page, datagram) in window.iter().zip(self.window.chunks_mut(datagram)) {
            let (header, payload) = datagram.split_at_mut(HEADER_LEN);
            header.copy_from_slice(&self.layout.header(page, announced, payload));
        }
        self.bytes_read += len as u64;
        self.held = window;
        // A hint again: the disk fetches the next window while this one is sent.
        let _ = rustix::fs::fadvise(
            &self.file,
            bytes.end,
            NonZeroU64::new(len as u64),
            Advice::WillNeed,
        );
        Ok(())
    }

    /// Reads the payloads of `window`, which lie in the file from `offset` on.
    fn fill(&mut self, mut offset: u64) -> Result<(), ReadError> {
        let datagram = self.datagram_len();
        let mut payloads: Vec<_> = self
            .window
            .chunks_mut(datagram)
            .map(|datagram| IoSliceMut::new(&mut datagram[HEADER_LEN..]))
            .collect();
        let mut left = payloads.as_mut_slice();
        while !left.is_empty() {
            match rustix::io::preadv(&self.file, left, offset) {
                Ok(0) => return Err(ReadError::Changed),
                Ok(read) => {
                    offset += read as u64;
                    IoSliceMut::advance_slices(&mut left, read);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(ReadError::Io(errno)),
            }
        }
        Ok(())
    }
}
