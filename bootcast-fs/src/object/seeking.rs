//! Holes and data of a file, as `lseek` shows them. docs/SEMANTICS.md, "Holes".

use std::ops::Range;

use bootcast_proto::manifest::SEGMENT_BYTES;

use super::Object;

/// Object of a search by `lseek`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// Bytes that may be other than zeros.
    Data,
    /// Bytes that are zeros.
    Hole,
}

impl Object {
    /// Returns the first position from `offset` on that `seek` looks for; `None` if there is none.
    /// The end of the file is a hole.
    ///
    /// Only bytes that may be read count as a hole: a hole of the store can also be a place where
    /// nothing arrived yet.
    pub fn seek(&self, offset: u64, seek: Seek) -> Option<u64> {
        let size = self.lock().receiver.size().filter(|size| offset < *size)?;
        if seek == Seek::Hole {
            return Some(self.next_hole(offset..size).map_or(size, |hole| hole.start));
        }
        let mut position = offset;
        while position < size {
            let hole = self.next_hole(position..size.min(end_of_segment(position)));
            match hole.filter(|hole| hole.start == position) {
                Some(hole) => position = hole.end,
                None => return Some(position),
            }
        }
        None
    }

    /// Returns the first of these bytes that are zeros and may be read, without a gap. There may be
    /// more behind them.
    fn next_hole(&self, bytes: Range<u64>) -> Option<Range<u64>> {
        let mut rest = bytes;
        let store = self.store();
        while let Some(hole) = store.next_hole(&rest) {
            // In parts, so that the lock is held for a short time.
            let mut start = hole.start;
            while start < hole.end {
                let end = hole.end.min(end_of_segment(start));
                let inner = self.lock();
                if !std::ptr::eq(store, self.store()) {
                    // It was changed for another one, which has its own holes.
                    return None;
                }
                let readable = inner.receiver.first_readable(&(start..end));
                drop(inner);
                if readable.is_some() {
                    return readable;
                }
                start = end;
            }
            rest.start = hole.end;
        }
        None
    }
}

/// Returns the end of the segment that has this byte.
fn end_of_segment(position: u64) -> u64 {
    (position / SEGMENT_BYTES + 1) * SEGMENT_BYTES
}
