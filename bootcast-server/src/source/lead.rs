//! Pieces of a file that were hashed ahead of its stream. They are kept until the stream takes
//! them, so that the file is read once for both.
//!
//! ```text
//! file --read--> piece --hashed--> leaf values
//!                  '-----taken---> pages of the stream
//! ```
//!
//! The hasher stays within [`LEAD_SEGMENTS`] from the position of the stream on: what it reads
//! farther ahead would have to be read again. That ends for good when the lead is closed.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bootcast_proto::manifest::{ContentTree, SEGMENT_BYTES};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{OpenFile, Version};

/// Bytes that are read and kept at a time: 16 leaves.
pub(super) const PIECE_BYTES: u64 = 256 << 10;

/// Number of segments in the lead, the one of the stream's position included: 16 MiB. At 1 Gbit/s
/// the stream needs 100 ms for the last three, which covers pauses of the hasher.
const LEAD_SEGMENTS: u64 = 4;

/// Maximum number of pieces that are kept.
const MAX_PIECES: u64 = LEAD_SEGMENTS * (SEGMENT_BYTES / PIECE_BYTES);

/// The lead of the hasher of one file over its stream.
#[derive(Debug)]
pub struct Lead {
    tree: ContentTree,
    /// Number of members from which on the lead is closed.
    too_many_members: u32,
    /// Attributes of the file that is hashed; `None` of a lead that was never open.
    file: Option<Version>,
    state: Mutex<State>,
    /// Signals that a piece was read, or that the hasher pauses.
    piece_read: Condvar,
    /// Signals that the stream moved, or that the lead was closed.
    moved: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    /// Pieces from the position of the stream on, by their number.
    pieces: BTreeMap<u64, Arc<Vec<u8>>>,
    /// Pieces that the hasher is about to read: those of a segment, or the one behind it until the
    /// next segment is chosen. `None` while the hasher pauses.
    reading: Option<Range<u64>>,
    /// First byte that the stream has not read.
    position: u64,
    /// Whether the hasher has ended, so that no more pieces are added.
    has_ended: bool,
    /// Number of streams that take pieces.
    streams: u32,
    /// Number of members that asked for leaf lists.
    members: u32,
    /// Permit to keep pieces; `None` once the lead is closed.
    room: Option<OwnedSemaphorePermit>,
}

/// What the hasher does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Hashes this segment, which the stream reads soon.
    Segment(u64),
    /// Hashes any segment: no stream is about to read one.
    Any,
    /// Waits until the stream moves.
    Hold,
}

impl Lead {
    /// Creates a lead of the hasher of an open file over a stream that is about to begin. The lead
    /// closes when more than `max_members` ask for leaf lists.
    pub fn new(open: &OpenFile, room: OwnedSemaphorePermit, max_members: u32) -> Self {
        Self {
            too_many_members: max_members.saturating_add(1),
            file: Some(open.present),
            ..Self::with(open.version.size(), Some(room))
        }
    }

    /// Creates a lead that is closed: the hasher waits for no stream.
    pub fn closed(size: u64) -> Self {
        Self::with(size, None)
    }

    fn with(size: u64, room: Option<OwnedSemaphorePermit>) -> Self {
        let state = State {
            pieces: BTreeMap::new(),
            reading: None,
            position: 0,
            has_ended: false,
            streams: 0,
            members: 0,
            room,
        };
        Self {
            tree: ContentTree::new(size),
            too_many_members: 1,
            file: None,
            state: Mutex::new(state),
            piece_read: Condvar::new(),
            moved: watch::channel(()).0,
        }
    }

    /// Whether the hasher stays near the stream.
    pub fn is_open(&self) -> bool {
        self.lock().room.is_some()
    }

    /// Whether a stream of a file with these attributes takes pieces. Files of one version may
    /// differ: then the version check of the stream would say nothing of what the hasher has read.
    pub fn is_for(&self, present: &Version) -> bool {
        self.file.as_ref() == Some(present) && self.is_open()
    }

    /// Lets the hasher go on without the stream from now on, and drops all pieces.
    pub fn close(&self) {
        let mut state = self.lock();
        state.room = None;
        // Freed without the lock.
        let pieces = std::mem::take(&mut state.pieces);
        drop(state);
        self.piece_read.notify_all();
        self.moved.send_replace(());
        drop(pieces);
    }

    /// Records that the hasher has ended. The lead closes when the stream has passed its pieces.
    pub fn end(&self) {
        let mut state = self.lock();
        state.has_ended = true;
        state.close_if_passed();
    }

    /// Counts a member that asked for leaf lists. Closes the lead if there are too many of them.
    pub fn add_member(&self) {
        let mut state = self.lock();
        state.members += 1;
        let are_too_many = state.members >= self.too_many_members;
        drop(state);
        if are_too_many {
            self.close();
        }
    }

    /// Returns a receiver of the signal that the stream moved, or that the lead was closed.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    /// Returns what the hasher does next. `is_done` tells the segments that it need not hash.
    pub(super) fn turn(&self, is_done: impl Fn(u64) -> bool) -> Turn {
        let state = self.lock();
        if state.room.is_none() || state.position >= self.tree.size() {
            return Turn::Any;
        }
        let first = state.position / SEGMENT_BYTES;
        drop(state);
        let mut near = first..(first + LEAD_SEGMENTS).min(self.tree.segments());
        near.find(|segment| !is_done(*segment)).map_or(Turn::Hold, Turn::Segment)
    }

    /// Records that the hasher reads the pieces of a segment, one after the other.
    pub(super) fn begin(&self, segment: u64) {
        let Range { start, end } = self.tree.segment(segment);
        self.lock().reading = Some(start / PIECE_BYTES..end.div_ceil(PIECE_BYTES));
        self.piece_read.notify_all();
    }

    /// Takes over a piece that was read; `None` of a hole. Keeps it for the stream unless the
    /// stream is elsewhere.
    pub(super) fn end_piece(&self, piece: u64, bytes: Option<&Arc<Vec<u8>>>) {
        let mut state = self.lock();
        if let Some(reading) = &mut state.reading {
            // The stream waits for the piece behind the segment, too: it may be read next.
            *reading = piece + 1..reading.end.max(piece + 2);
        }
        if state.room.is_some() && self.near(state.position).contains(&piece) {
            state.pieces.extend(bytes.map(|bytes| (piece, Arc::clone(bytes))));
        }
        assert!(state.pieces.len() as u64 <= MAX_PIECES, "{} pieces", state.pieces.len());
        drop(state);
        self.piece_read.notify_all();
    }

    /// Records that the hasher pauses, has ended, or tries parts of a piece that cannot be read.
    /// The stream does not wait for it then.
    pub(super) fn pause(&self) {
        self.lock().reading = None;
        self.piece_read.notify_all();
    }

    /// Fills buffers of the stream with the bytes from `offset` on, as far as they were read by the
    /// hasher. Waits for those of the segment that it reads at this moment. Returns their number,
    /// and what is left of the buffers.
    pub fn take<'a, 'b>(
        &self,
        buffers: &'a mut [IoSliceMut<'b>],
        offset: u64,
    ) -> (u64, &'a mut [IoSliceMut<'b>]) {
        let (mut at, mut rest) = (offset, buffers);
        IoSliceMut::advance_slices(&mut rest, 0);
        while let Some(buffer) = rest.first_mut()
            && at < self.tree.size()
            && let Some(piece) = self.piece(at / PIECE_BYTES)
        {
            let start = at / PIECE_BYTES * PIECE_BYTES;
            let end = (start + PIECE_BYTES).min(self.tree.size());
            let index = |byte: u64| usize::try_from(byte - start).expect("256 KiB");
            let mut bytes = &piece[index(at)..index(end)];
            let mut next = Some(buffer);
            while let Some(buffer) = next.filter(|_| !bytes.is_empty()) {
                let (own, behind) = bytes.split_at(buffer.len().min(bytes.len()));
                buffer[..own.len()].copy_from_slice(own);
                IoSliceMut::advance_slices(&mut rest, own.len());
                at += own.len() as u64;
                bytes = behind;
                next = rest.first_mut();
            }
        }
        (at - offset, rest)
    }

    /// Returns a piece if it is kept. Waits for it if the hasher is about to read it.
    fn piece(&self, number: u64) -> Option<Arc<Vec<u8>>> {
        let is_awaited = |state: &mut State| {
            let is_coming = state.reading.as_ref().is_some_and(|reading| reading.contains(&number));
            state.room.is_some() && is_coming && !state.pieces.contains_key(&number)
        };
        let waited = self.piece_read.wait_while(self.lock(), is_awaited);
        waited.unwrap_or_else(PoisonError::into_inner).pieces.get(&number).cloned()
    }

    /// Records that the stream has read the bytes before `position`.
    pub fn advance(&self, position: u64) {
        let mut state = self.lock();
        state.position = position;
        let Range { start, end } = self.near(position);
        let mut near = state.pieces.split_off(&start);
        let far = near.split_off(&end);
        let passed = std::mem::replace(&mut state.pieces, near);
        state.close_if_passed();
        drop(state);
        self.moved.send_replace(());
        // Freed without the lock.
        drop((far, passed));
    }

    /// Returns the pieces that a stream at `position` reads soon.
    fn near(&self, position: u64) -> Range<u64> {
        if position >= self.tree.size() {
            return 0..0;
        }
        let end = (position / SEGMENT_BYTES + LEAD_SEGMENTS) * SEGMENT_BYTES;
        position / PIECE_BYTES..end / PIECE_BYTES
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Closes the lead if there will be nothing to take: another file may need its room.
    fn close_if_passed(&mut self) {
        if self.has_ended && self.pieces.is_empty() {
            self.room = None;
        }
    }
}

/// A stream that takes pieces of a lead, until it is dropped.
#[derive(Debug)]
pub struct LeadStream(Arc<Lead>);

impl LeadStream {
    /// Attaches a stream to a lead.
    pub fn new(lead: Arc<Lead>) -> Self {
        lead.lock().streams += 1;
        Self(lead)
    }
}

impl std::ops::Deref for LeadStream {
    type Target = Lead;

    fn deref(&self) -> &Lead {
        &self.0
    }
}

impl Drop for LeadStream {
    /// Closes the lead with its last stream.
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.streams -= 1;
        let is_last = state.streams == 0;
        drop(state);
        if is_last {
            self.0.close();
        }
    }
}

#[cfg(test)]
#[path = "lead_tests.rs"]
mod tests;
