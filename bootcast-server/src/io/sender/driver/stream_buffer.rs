//! Pages of a stream that were read ahead: while one buffer is sent, the next one is read.

use bootcast_proto::PageRange;

use crate::io::reader::pages::PageBuffer;

/// Bytes that all streams together read ahead.
const TOTAL_BYTES: usize = 64 << 20;

/// Range of the bytes in one buffer of a stream. A stream has two.
const BUFFER_BYTES: std::ops::RangeInclusive<usize> = 64 << 10..=1 << 20;

/// Number of pages that the stage reads after the page cache lacked one: most of the next ones are
/// missing, too.
const STAGE_PAGES: u32 = 64 * 1024;

/// Limits of what each stream reads ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Maximum number of bytes in a buffer.
    buffer_bytes: usize,
    /// Whether the next buffer is read while one is sent.
    reads_ahead: bool,
}

impl Limits {
    /// Divides the memory among this number of streams.
    pub(super) fn share(streams: usize) -> Self {
        let share = TOTAL_BYTES / 2 / streams.max(1);
        Self {
            buffer_bytes: share.clamp(*BUFFER_BYTES.start(), *BUFFER_BYTES.end()),
            reads_ahead: share >= *BUFFER_BYTES.start(),
        }
    }
}

/// Pages to read next, and the memory for them.
#[derive(Debug)]
pub(super) struct NextRead {
    /// Pages that must be read.
    pub(super) run: PageRange,
    /// Bytes to read from the start of the run on, if the file has them.
    pub(super) bytes: usize,
    pub(super) memory: PageBuffer,
}

/// Two buffers of a stream. Their size doubles as long as reading keeps up with sending. It halves
/// when the sender has to wait, so that a slow file gives few pages often instead of many seldom.
#[derive(Debug)]
pub(super) struct StreamBuffer {
    /// Buffer that is being sent.
    front: PageBuffer,
    /// Buffer that was read ahead.
    next: Option<PageBuffer>,
    /// Memory for the next read.
    spare: PageBuffer,
    /// Whether the stage reads pages of the stream.
    is_reading: bool,
    /// Whether the pages behind the front were requested.
    has_read_ahead: bool,
    /// Size of the next read in bytes.
    bytes: usize,
    /// Number of pages to read by the stage before the page cache is tried.
    stage_pages: u32,
}

impl StreamBuffer {
    pub(super) fn new() -> Self {
        Self {
            front: PageBuffer::default(),
            next: None,
            spare: PageBuffer::default(),
            is_reading: false,
            has_read_ahead: false,
            bytes: *BUFFER_BYTES.start(),
            stage_pages: 0,
        }
    }

    /// Returns the datagrams of the first pages of `run`; `None` if they are not read yet.
    pub(super) fn datagrams(&mut self, run: PageRange) -> Option<&[u8]> {
        if self.front.datagrams(run).is_none()
            && let Some(next) = self.next.take_if(|next| next.datagrams(run).is_some())
        {
            self.spare = std::mem::replace(&mut self.front, next);
            self.has_read_ahead = false;
        }
        self.front.datagrams(run)
    }

    /// Reads pages that the sender waits for with `read`, which does not block. Returns whether
    /// they were in memory. `read` gets memory for the pages, and returns it if it fails.
    pub(super) fn read_cached(
        &mut self,
        read: impl FnOnce(PageBuffer) -> Result<PageBuffer, PageBuffer>,
    ) -> bool {
        if self.is_reading || self.stage_pages > 0 {
            return false;
        }
        match read(std::mem::take(&mut self.spare)) {
            Ok(buffer) => {
                self.spare = std::mem::replace(&mut self.front, buffer);
                self.next = None;
                self.has_read_ahead = false;
                true
            }
            Err(spare) => {
                self.spare = spare;
                false
            }
        }
    }

    /// Returns the pages behind the front if the stage is to read them now. Runs of the stream are
    /// as long as `run`, and the file has `pages` pages.
    pub(super) fn poll_read_ahead(
        &mut self,
        run: PageRange,
        pages: u32,
        limits: Limits,
    ) -> Option<NextRead> {
        let start = self.front.pages().end.0;
        let is_wanted = limits.reads_ahead
            && self.stage_pages > 0
            && !self.has_read_ahead
            && self.next.is_none();
        if self.is_reading || !is_wanted || start >= pages {
            return None;
        }
        self.has_read_ahead = true;
        self.bytes = (self.bytes * 2).min(limits.buffer_bytes);
        let end = start.saturating_add(run.len().max(1)).min(pages);
        Some(self.read(PageRange::new(start, end)))
    }

    /// Returns the read of pages that the sender waits for; `None` while another read runs.
    pub(super) fn poll_read(&mut self, run: PageRange) -> Option<NextRead> {
        self.stage_pages = STAGE_PAGES;
        self.bytes = (self.bytes / 2).max(*BUFFER_BYTES.start());
        if self.is_reading {
            return None;
        }
        // The stream continues elsewhere than expected.
        if let Some(next) = self.next.take() {
            self.spare = next;
        }
        Some(self.read(run))
    }

    fn read(&mut self, run: PageRange) -> NextRead {
        debug_assert!(!self.is_reading, "a stream is read by one thread");
        self.is_reading = true;
        NextRead { run, bytes: self.bytes, memory: std::mem::take(&mut self.spare) }
    }

    /// Takes over the outcome of a read; `None` if it failed.
    pub(super) fn handle_read(&mut self, read: Option<PageBuffer>) {
        debug_assert!(self.is_reading && self.next.is_none(), "nothing was to be read");
        self.is_reading = false;
        if let Some(buffer) = read {
            self.stage_pages = self.stage_pages.saturating_sub(buffer.pages().len());
            self.next = Some(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use bootcast_proto::{Geometry, Layout, PageSize};

    use super::*;
    use crate::io::reader::pages::PageReader;
    use crate::io::reader::source::FileSource;
    use crate::source::OpenFile;

    const PAGES: u32 = 4000;

    fn reader() -> PageReader {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; PAGES as usize * 1000]).unwrap();
        let open = OpenFile::new(file).unwrap();
        let geometry = Geometry::new(open.version.size(), PageSize::new(1000).unwrap()).unwrap();
        let source = FileSource::from(open);
        PageReader::new(Arc::new(source), geometry, Layout::Base)
    }

    /// Executes a read.
    fn execute(reader: &PageReader, buffer: &mut StreamBuffer, read: NextRead) -> u32 {
        let read = reader.read(read.run, read.bytes, read.memory).unwrap();
        let pages = read.pages().len();
        buffer.handle_read(Some(read));
        pages
    }

    #[test]
    fn a_stream_waits_for_its_first_pages_only_and_reads_ever_larger_buffers() {
        let (reader, mut buffer) = (reader(), StreamBuffer::new());
        let (mut waits, mut sizes) = (0, Vec::new());
        let mut rest = PageRange::new(0, PAGES);
        while !rest.is_empty() {
            let run = PageRange::new(rest.start.0, (rest.start.0 + 40).min(PAGES));
            let Some(datagrams) = buffer.datagrams(run) else {
                waits += 1;
                let read = buffer.poll_read(run).unwrap();
                sizes.push(execute(&reader, &mut buffer, read));
                continue;
            };
            let sent = datagrams.len().div_ceil(reader.datagram_len());
            rest.start.0 += u32::try_from(sent).unwrap();
            if let Some(read) = buffer.poll_read_ahead(run, PAGES, Limits::share(1)) {
                sizes.push(execute(&reader, &mut buffer, read));
            }
        }
        assert_eq!(waits, 1);
        assert_eq!(sizes.iter().sum::<u32>(), PAGES, "each page is read once");
        assert!(sizes.windows(2).take(4).all(|pair| pair[0] < pair[1]), "{sizes:?}");
    }

    #[test]
    fn what_is_in_memory_is_not_read_ahead_until_a_page_is_missing() {
        let (reader, mut buffer) = (reader(), StreamBuffer::new());
        let (first, second) = (PageRange::new(0, 40), PageRange::new(40, 80));
        let read = |memory| Ok(reader.read(first, 0, memory).unwrap());
        assert!(buffer.read_cached(read));
        assert!(buffer.datagrams(first).is_some());
        assert!(buffer.poll_read_ahead(first, PAGES, Limits::share(1)).is_none());
        assert!(!buffer.read_cached(Err), "it is not in memory");
        let missing = buffer.poll_read(second).unwrap();
        assert!(!buffer.read_cached(|_| panic!("the stage reads")));
        execute(&reader, &mut buffer, missing);
        assert!(buffer.datagrams(second).is_some());
        assert!(!buffer.read_cached(|_| panic!("the stage reads the next ones, too")));
        assert!(buffer.poll_read_ahead(second, PAGES, Limits::share(1)).is_some());
    }

    #[test]
    fn a_slow_file_is_read_in_small_pieces() {
        let (reader, mut buffer) = (reader(), StreamBuffer::new());
        let mut start = 0;
        for _ in 0..20 {
            let run = PageRange::new(start, start + 40);
            let late = buffer.poll_read_ahead(run, PAGES, Limits::share(1));
            let read = late.or_else(|| buffer.poll_read(run)).unwrap();
            // The sender comes to the pages before they are read.
            assert!(buffer.datagrams(run).is_none());
            assert!(buffer.poll_read(run).is_none());
            let pages = execute(&reader, &mut buffer, read);
            assert!(pages <= 2 * 64, "{pages}");
            assert!(buffer.datagrams(run).is_some());
            start += pages;
        }
    }

    #[test]
    fn all_streams_together_keep_to_the_total() {
        for streams in [1, 32, 33, 500, 512, 513, 1024] {
            let Limits { buffer_bytes, reads_ahead } = Limits::share(streams);
            let buffers = streams * if reads_ahead { 2 } else { 1 };
            let most = if streams == 1024 || streams <= 512 { TOTAL_BYTES } else { usize::MAX };
            assert!(buffers * buffer_bytes <= most, "{streams}");
        }
    }
}
