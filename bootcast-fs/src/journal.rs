//! Journal of what the kernel knows of a mount: inodes, open files and open directories.
//!
//! A process that takes over the FUSE connection reads it, so that numbers in the kernel's requests
//! keep their meaning. The journal lies in an anonymous memory file (`memfd_create(2)`).
//! Whoever holds its descriptor keeps it, also when the process that wrote it was killed.
//!
//! Every record is written before the reply that makes it true. So the journal may state more than
//! the kernel knows, never less. An excess inode or open directory keeps a table entry until the
//! unmount, and does no other harm. An excess open ends when the kernel sends its request again.
//!
//! ```text
//! 0      magic number of the format
//! 8      offset of the first record; 0 if a record could not be written
//! 16 ..  records: a line of JSON each
//! ```
//!
//! A journal that has grown is rewritten behind its end: the present state first, then one write
//! moves the offset of the first record. The space before it is given back.

mod record;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use rustix::fs::{FallocateFlags, MemfdFlags};
use tracing::warn;

use crate::panics::lock;
pub use record::{Dir, Inode, Listed, Mode, MountRecord, Open, Record, State};

/// First bytes of a journal. The digit changes when older programs cannot read newer records.
const MAGIC: &[u8; 8] = b"bcfsjnl1";

/// Offset of the first record of a new journal, after the header.
const HEADER_LEN: u64 = 16;

/// Length in bytes below which a journal is not rewritten.
const MIN_REWRITE: u64 = 4 << 20;

/// Reason why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be read.
    #[error("cannot read the journal: {0}")]
    Io(#[from] io::Error),
    /// Another version of the program wrote it.
    #[error("the journal has another format: this version cannot take over from that one")]
    Format,
    /// It has no record.
    #[error("the journal is empty")]
    Empty,
    /// A record could not be written.
    #[error("the journal is incomplete: there was no memory for it")]
    Incomplete,
}

/// Journal of one mount, or of none.
#[derive(Debug)]
pub struct Journal(Option<Mutex<Log>>);

/// Memory file and position of a journal.
#[derive(Debug)]
struct Log {
    file: File,
    /// Offset of the first record.
    start: u64,
    /// Offset after the last record.
    end: u64,
    /// Length at which the journal is rewritten.
    rewrite_len: u64,
}

impl Journal {
    /// Creates a journal that records nothing, for mounts that cannot be handed over.
    pub fn disabled() -> Self {
        Self(None)
    }

    /// Creates an empty journal in memory.
    pub fn create() -> io::Result<Self> {
        let file = File::from(rustix::fs::memfd_create("bootcastfs", MemfdFlags::CLOEXEC)?);
        file.write_all_at(&header(HEADER_LEN), 0)?;
        Ok(Self::at(file, HEADER_LEN, HEADER_LEN))
    }

    /// Opens the journal of another process, which must have ended. Returns its last state.
    pub fn resume(file: File) -> Result<(Self, State), JournalError> {
        let (state, start, end) = read(&file)?;
        // A record that was cut off belongs to a request without a reply.
        file.set_len(end)?;
        Ok((Self::at(file, start, end), state))
    }

    /// Returns the first record of a journal that another process may be writing.
    pub fn mount_record(file: &File) -> Result<MountRecord, JournalError> {
        loop {
            let start = start_of(file)?;
            let line = line_at(file, start)?;
            // A rewrite gives the space of the records before it back.
            if start_of(file)? != start {
                continue;
            }
            return match serde_json::from_slice(&line.ok_or(JournalError::Empty)?) {
                Ok(Record::Mount(record)) => Ok(record),
                _ => Err(JournalError::Format),
            };
        }
    }

    /// Reads the present state.
    #[cfg(test)]
    pub(crate) fn peek(file: &File) -> Result<State, JournalError> {
        read(file).map(|(state, ..)| state)
    }

    /// Returns the header of a journal, for fuzzing.
    pub(crate) fn fuzz_header() -> [u8; 16] {
        header(HEADER_LEN)
    }

    /// Writes a journal of this state and reads it, for fuzzing.
    pub(crate) fn fuzz_rewritten(state: &State) -> Option<State> {
        let text = text_of(&state.clone().into_records()).ok()?;
        let file = crate::fuzz::memory_file(&[&Self::fuzz_header()[..], &text].concat()).ok()?;
        read(&file).ok().map(|(state, ..)| state)
    }

    fn at(file: File, start: u64, end: u64) -> Self {
        let rewrite_len = MIN_REWRITE.max(2 * (end - start));
        Self(Some(Mutex::new(Log { file, start, end, rewrite_len })))
    }

    /// Returns another descriptor of the memory file; `None` if nothing is recorded.
    pub fn file(&self) -> Option<io::Result<File>> {
        self.0.as_ref().map(|log| lock(log).file.try_clone())
    }

    /// Appends the record that `record` returns. If that fails, the journal is marked as
    /// incomplete.
    ///
    /// Two records of one inode or handle must not be written at the same time.
    pub fn record(&self, record: impl FnOnce() -> Record) {
        let Some(log) = &self.0 else { return };
        // Before the lock, which the requests of all files share.
        let text = text_of(&[record()]);
        let mut log = lock(log);
        if log.start == 0 {
            return;
        }
        let appended = text.and_then(|text| log.append(&text));
        let appended = appended.and_then(|()| log.rewrite_if_long());
        if let Err(error) = appended {
            warn!(%error, "this mount cannot be handed over any more");
            log.start = 0;
            let _ = log.file.write_all_at(&header(0), 0);
        }
    }
}

impl Log {
    /// Appends lines in one write.
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        self.file.write_all_at(text, self.end)?;
        self.end += text.len() as u64;
        Ok(())
    }

    /// Replaces the records by the state that they lead to, if that is worth it. If that fails, the
    /// journal goes on growing, and only an error of the repair is one.
    fn rewrite_if_long(&mut self) -> io::Result<()> {
        let (len, end) = (self.end - self.start, self.end);
        if len < self.rewrite_len {
            return Ok(());
        }
        let Err(error) = self.rewrite() else { return Ok(()) };
        warn!(%error, "cannot rewrite the journal of this mount");
        self.end = end;
        self.rewrite_len = 2 * len;
        // The beginning of a new state would be read after the old one.
        self.file.set_len(end)
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let (state, ..) = read(&self.file).map_err(io::Error::other)?;
        let (old_start, start) = (self.start, self.end);
        self.append(&text_of(&state.into_records())?)?;
        self.file.write_all_at(&header(start), 0)?;
        self.start = start;
        self.rewrite_len = MIN_REWRITE.max(2 * (self.end - start));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // The first page has the header.
        let hole = old_start.max(4096);
        if hole < start {
            // Fails only without memory; then the space comes back with a later rewrite.
            let _ = rustix::fs::fallocate(&self.file, punch, hole, start - hole);
        }
        Ok(())
    }
}

/// Returns the lines of these records.
fn text_of(records: &[Record]) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    for record in records {
        serde_json::to_writer(&mut text, record)?;
        text.push(b'\n');
    }
    Ok(text)
}

/// Returns the header of a journal whose first record is at `start`.
fn header(start: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..8].copy_from_slice(MAGIC);
    header[8..].copy_from_slice(&start.to_le_bytes());
    header
}

/// Returns the offset of the first record.
fn start_of(file: &File) -> Result<u64, JournalError> {
    let mut head = [0; 16];
    file.read_exact_at(&mut head, 0)?;
    let (magic, start) = head.split_at(8);
    if magic != MAGIC {
        return Err(JournalError::Format);
    }
    let start = u64::from_le_bytes(start.try_into().map_err(|_| JournalError::Format)?);
    if start == 0 {
        return Err(JournalError::Incomplete);
    }
    Ok(start)
}

/// Returns the line at this offset, without its end; `None` if there is no whole line.
fn line_at(file: &File, start: u64) -> io::Result<Option<Vec<u8>>> {
    let (mut line, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let len = file.read_at(&mut chunk, start + line.len() as u64)?;
        if len == 0 {
            return Ok(None);
        }
        let end = chunk[..len].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&chunk[..end.unwrap_or(len)]);
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

/// Returns the state that a journal leads to, and the offsets of its first record and its end.
fn read(file: &File) -> Result<(State, u64, u64), JournalError> {
    let start = start_of(file)?;
    let len = file.metadata()?.len().saturating_sub(start);
    let mut text = vec![0; usize::try_from(len).map_err(|_| JournalError::Format)?];
    file.read_exact_at(&mut text, start)?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let mut state = State::default();
    for line in text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        state.apply(serde_json::from_slice(line).map_err(|_| JournalError::Format)?);
    }
    Ok((state, start, start + whole as u64))
}

#[cfg(test)]
mod tests {
    use super::record::tests::{file_record, mount_record};
    use super::*;

    fn file_of(journal: &Journal) -> File {
        journal.file().unwrap().unwrap()
    }

    #[test]
    fn the_next_process_finds_what_was_recorded() {
        let journal = Journal::create().unwrap();
        let records =
            [mount_record(), file_record(7, "a b"), Record::Opendir { handle: 3, ino: 1 }];
        let mut expected = State::default();
        for record in records {
            journal.record(|| record.clone());
            expected.apply(record);
        }
        assert_eq!(Journal::mount_record(&file_of(&journal)).ok(), expected.mount);
        let (resumed, state) = Journal::resume(file_of(&journal)).unwrap();
        assert_eq!(state, expected);
        resumed.record(|| Record::Releasedir { handle: 3 });
        assert!(Journal::peek(&file_of(&resumed)).unwrap().dirs.is_empty());
    }

    #[test]
    fn a_record_that_was_cut_off_counts_as_not_written() {
        let journal = Journal::create().unwrap();
        journal.record(mount_record);
        let file = file_of(&journal);
        let end = file.metadata().unwrap().len();
        file.write_all_at(b"{\"Opendir\":{\"hand", end).unwrap();
        let (resumed, state) = Journal::resume(file).unwrap();
        assert!(state.dirs.is_empty());
        resumed.record(|| Record::Opendir { handle: 1, ino: 1 });
        assert_eq!(Journal::peek(&file_of(&resumed)).unwrap().dirs.len(), 1);
    }

    #[test]
    fn a_long_journal_is_rewritten_without_a_change_of_its_state() {
        let journal = Journal::create().unwrap();
        let mut expected = State::default();
        let mut record = |record: Record| {
            journal.record(|| record.clone());
            expected.apply(record);
        };
        record(mount_record());
        record(file_record(2, "kept"));
        let name = "x".repeat(4000);
        for handle in 0..4000 {
            record(file_record(7, &name));
            record(Record::Open { handle, ino: 7, mode: Mode::Cached, request: 5 });
            record(Record::Release { handle });
            record(Record::Forget { ino: 7, lookups: 1 });
        }
        let file = file_of(&journal);
        assert!(file.metadata().unwrap().len() > 3 * MIN_REWRITE);
        let allocated = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512;
        assert!(allocated <= 2 * MIN_REWRITE, "{allocated}");
        assert_eq!(Journal::peek(&file).unwrap(), expected);
        assert_eq!(Journal::mount_record(&file).ok(), expected.mount);
    }

    #[test]
    fn a_rewrite_that_fails_is_tried_again_at_twice_the_length() {
        let journal = Journal::create().unwrap();
        let file = file_of(&journal);
        let mut expected = State::default();
        let mut record = |record: Record| {
            journal.record(|| record.clone());
            expected.apply(record);
        };
        record(mount_record());
        // Makes the first rewrite fail.
        file.write_all_at(b"?", HEADER_LEN).unwrap();
        let name = "x".repeat(4000);
        let mut references = 0;
        while file.metadata().unwrap().len() < MIN_REWRITE + MIN_REWRITE / 2 {
            record(file_record(7, &name));
            references += 1;
        }
        assert_eq!(start_of(&file).unwrap(), HEADER_LEN);
        file.write_all_at(b"{", HEADER_LEN).unwrap();
        for _ in 0..references {
            record(file_record(7, &name));
        }
        assert!(start_of(&file).unwrap() > HEADER_LEN, "rewritten");
        assert_eq!(Journal::peek(&file).unwrap(), expected);
    }

    #[test]
    fn a_journal_without_a_whole_record_is_empty() {
        let journal = Journal::create().unwrap();
        let file = file_of(&journal);
        file.write_all_at(b"{\"Mount\"", HEADER_LEN).unwrap();
        assert!(matches!(Journal::mount_record(&file), Err(JournalError::Empty)));
    }

    #[test]
    fn a_journal_of_another_format_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"bcfsjnl0\x10\0\0\0\0\0\0\0", 0).unwrap();
        assert!(matches!(Journal::peek(&file), Err(JournalError::Format)));
        file.write_all_at(&header(0), 0).unwrap();
        assert!(matches!(Journal::peek(&file), Err(JournalError::Incomplete)));
    }
}
