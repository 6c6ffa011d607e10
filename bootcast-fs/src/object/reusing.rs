//! Copying of leaves that an older version in the cache has.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Instant;

use bootcast_proto::manifest::LEAF_BYTES;
use tracing::info;

use super::{Object, Ready, with_buffer};
use crate::cache::{Older, is_no_room};
use crate::panics;
use crate::receiver::{Check, Piece};

/// Copying of leaves for one object. Each object has at most one at a time.
///
/// Dropping it, also by a panic, lets another one begin.
#[derive(Debug)]
pub struct Reusing {
    object: Arc<Object>,
    older: Arc<[Older]>,
    /// Whether [`Self::step`] found nothing more to copy, so that another one may have begun.
    is_over: bool,
}

impl Reusing {
    /// Compares a segment with the older version, or copies the leaves that are equal. Calls
    /// `answer` with the reads that this completes. Returns `false` if there is nothing to do.
    pub fn step(&mut self, answer: impl Fn(Vec<Ready>), now: impl Fn() -> Instant) -> bool {
        if self.is_over {
            return false;
        }
        match self.object.next_piece() {
            Some(piece) => self.object.reuse(&piece, &self.older, answer, now),
            None => self.is_over = true,
        }
        !self.is_over
    }
}

impl Drop for Reusing {
    fn drop(&mut self) {
        if !self.is_over {
            self.object.lock().in_background.is_reusing = false;
        }
    }
}

impl Object {
    /// Begins to copy if there is something to copy and nothing copies it already.
    #[must_use]
    pub fn begin_reusing(self: &Arc<Self>) -> Option<Reusing> {
        let mut older = panics::lock(&self.older);
        older.as_ref()?;
        let mut inner = self.lock();
        if !inner.receiver.is_reusing() {
            // Others may remove the older version.
            *older = None;
            let leaves = inner.receiver.counters().reused_leaves;
            if leaves > 0 {
                info!(path = %self.key.path, leaves, "took leaves from an older version");
            }
            return None;
        }
        let is_needed = inner.receiver.has_piece() && !inner.is_shut_down;
        if inner.in_background.is_reusing || !is_needed {
            return None;
        }
        inner.in_background.is_reusing = true;
        Some(Reusing { object: self.clone(), older: older.clone()?, is_over: false })
    }

    /// Returns the next segment. If there is none, or if the program ends, copying is over.
    fn next_piece(&self) -> Option<Piece> {
        let mut inner = self.lock();
        let piece = if inner.is_shut_down { None } else { inner.receiver.poll_piece() };
        inner.in_background.is_reusing = piece.is_some();
        piece
    }

    /// Handles a segment: compares it as a whole if its list is not known, else copies the leaves
    /// that are equal.
    fn reuse(
        &self,
        piece: &Piece,
        older: &[Older],
        answer: impl Fn(Vec<Ready>),
        now: impl Fn() -> Instant,
    ) {
        let Some(own) = piece.values() else {
            let values = older.iter().map(|older| older.leaf_values(piece.segment()));
            let equal = values.into_iter().find(|values| piece.is_equal(values));
            self.lock().receiver.handle_compared(piece, equal.as_deref(), now());
            return;
        };
        let mut left = piece.clone();
        for older in older {
            for check in left.equal_leaves(&older.values_to_compare(piece.segment(), own)) {
                if self.lock().is_shut_down {
                    break;
                }
                let (right, ready) = self.copy_leaves(&check, older);
                left.take_off(&right);
                answer(ready);
            }
        }
        self.lock().receiver.handle_piece_over(piece, now());
    }

    /// Copies the leaves that are right in the older version. Returns them, and the reads that can
    /// be answered.
    fn copy_leaves(&self, check: &Check, older: &Older) -> (Vec<u64>, Vec<Ready>) {
        let bytes = check.bytes();
        let len = usize::try_from(bytes.end - bytes.start).expect("a check is about a MiB");
        with_buffer(len, |buffer| {
            let read = older.read_exact_at(buffer, bytes.start);
            let wrong =
                read.map_or_else(|_| check.leaves().collect(), |()| check.wrong_leaves(buffer));
            let _alone = self.begin_writing();
            self.set_final_size(&mut self.lock());
            let stored = self.store_right(check, &wrong, older, buffer);
            let mut inner = self.lock();
            match stored {
                Ok(()) => inner.receiver.handle_reused(check, &wrong),
                Err(error) if is_no_room(&error) => self.stop_filling(&mut inner),
                Err(error) => self.store_failed(&mut inner, error.to_string()),
            }
            let right = check.leaves().filter(|leaf| !wrong.contains(leaf)).collect();
            (right, self.take_answerable(&mut inner))
        })
    }

    /// Stores the leaves among `bytes` that are not wrong, in runs.
    fn store_right(
        &self,
        check: &Check,
        wrong: &[u64],
        older: &Older,
        bytes: &[u8],
    ) -> io::Result<()> {
        let leaf_len = usize::try_from(LEAF_BYTES).expect("some KiB");
        let leaves: Vec<_> = check.leaves().zip(bytes.chunks(leaf_len)).collect();
        for run in leaves.split(|(leaf, _)| wrong.contains(leaf)) {
            let Some((first, _)) = run.first() else { continue };
            let mut slices: Vec<_> = run.iter().map(|(_, leaf)| IoSlice::new(leaf)).collect();
            self.store().write_from(older, &mut slices, first * LEAF_BYTES)?;
        }
        Ok(())
    }
}
