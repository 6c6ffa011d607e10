//! Stores in a cache that has little room: bytes that lie in memory instead, and the lock that
//! keeps others from removing an object.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use rustix::fs::FlockOperation;

use super::{Store, is_no_room};
use crate::cache::{kept, window};
use crate::panics::lock;

/// Bytes that move from memory to the cache together.
const PIECE: usize = 256 << 10;

/// Result of moving bytes from memory to the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Some were moved; there may be more.
    Some,
    /// None are left.
    All,
    /// The cache has no room for more.
    NoRoom,
}

impl Store {
    /// Whether bytes that count as held may be dropped, because the cache has no room for them.
    pub fn may_drop(&self) -> bool {
        self.window.was_used()
    }

    /// Returns which of these bytes are in memory, because the cache has no room for them.
    pub fn in_window(&self, bytes: &Range<u64>) -> Vec<Range<u64>> {
        self.window.within(bytes)
    }

    /// Whether some bytes are in memory, because the cache has no room for them.
    pub fn has_window(&self) -> bool {
        self.window.len() > 0
    }

    /// Returns how many bytes too many are in memory, if `more` come.
    pub fn window_excess(&self, more: u64) -> u64 {
        (self.window.len() + more).saturating_sub(window::share())
    }

    /// Returns ranges of bytes in memory that may be dropped, the least recently used first.
    pub fn oldest_in_window(&self) -> Vec<Range<u64>> {
        self.window.oldest()
    }

    /// Drops bytes in memory, which must not count as held any more.
    pub fn drop_from_window(&self, bytes: &Range<u64>) {
        self.window.remove(bytes);
    }

    /// Whether `bytes` more would find room in the cache.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.room.as_ref().is_none_or(|room| room.could_take(bytes))
    }

    /// Moves some bytes from memory to the cache. The caller writes nothing meanwhile.
    pub fn settle_window(&self) -> io::Result<Settled> {
        let Some(range) = self.window.within(&(0..u64::MAX)).into_iter().next() else {
            return Ok(Settled::All);
        };
        let piece = range.start..range.end.min(range.start + PIECE as u64);
        let len = piece.end - piece.start;
        let mut bytes = vec![0; usize::try_from(len).expect("at most a piece")];
        self.window.read_exact_at(&self.data, &mut bytes, piece.start)?;
        let taken = self.room.as_ref().map(|room| room.take(piece.start, len));
        if matches!(taken, Some(None)) {
            return Ok(Settled::NoRoom);
        }
        match self.write_data(&mut [IoSlice::new(&bytes)], piece.start) {
            Err(unwritten) if is_no_room(&unwritten.error) => return Ok(Settled::NoRoom),
            written => written.map_err(|unwritten| unwritten.error)?,
        }
        self.window.remove(&piece);
        Ok(Settled::Some)
    }

    /// Lets others remove the object, if it is on disk and `is_unused`.
    pub fn unpin(&self, is_unused: impl FnOnce() -> bool) {
        let mut is_pinned = lock(&self.is_pinned);
        if let (true, Some(object), Some(room)) = (*is_pinned, &self.object_dir, &self.room)
            && is_unused()
        {
            kept::record_use(&object.dir);
            let _ = rustix::fs::flock(&self.data, FlockOperation::Unlock);
            *is_pinned = false;
            room.handle_unused();
        }
    }

    /// Whether somebody removed the object, so that nobody will find its bytes any more.
    pub fn is_removed(&self) -> bool {
        let is_pinned = *lock(&self.is_pinned);
        !is_pinned && self.data.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }

    /// Keeps others from removing the object. Returns `false` if somebody did, or if it must not be
    /// used for another reason. Call it after the object counts as used.
    #[must_use]
    pub fn pin(&self) -> bool {
        let mut is_pinned = lock(&self.is_pinned);
        let Some(object) = self.object_dir.as_ref().filter(|_| !*is_pinned) else { return true };
        let _opening = self.room.as_ref().map(|room| room.opening());
        let locked = rustix::fs::flock(&self.data, FlockOperation::NonBlockingLockShared).is_ok();
        *is_pinned = locked && kept::is_present(&object.dir, &self.data).unwrap_or(false);
        if *is_pinned {
            kept::record_use(&object.dir);
        }
        *is_pinned
    }
}
