//! Reads, and those that are parked until their bytes arrive.

use std::ops::Range;
use std::sync::PoisonError;
use std::time::Instant;

use bootcast_proto::api::Want;
use bootcast_proto::{PageRange, Token};

use super::scarcity::Kept;
use super::{Inner, Object, with_buffer};
use crate::receiver::{Failure, WaitId};
use crate::totals::TOTALS;

/// A reader that waits for bytes. Dropping it unanswered is a bug, which the kernel turns into EIO.
pub trait Waiter: Send {
    /// Ends the wait.
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>);
    /// Whether nobody needs the answer any more, for example because the caller was killed.
    fn is_abandoned(&self) -> bool;
}

/// Why a read ends without its bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// The bytes can never arrive.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The server cannot read them, or others of the same read.
    #[error("the server cannot read bytes {}-{} of the file", .0.start, .0.end.saturating_sub(1))]
    Unreadable(Range<u64>),
    /// They did not arrive within the time that the mount allows.
    #[error("timed out")]
    TimedOut,
    /// The reader was killed.
    #[error("interrupted")]
    Interrupted,
    /// The mount ends.
    #[error("shutting down")]
    ShutDown,
    /// The store could not be read.
    #[error("cannot read the cache: {0}")]
    Store(String),
    /// The bytes are not those of the content that the mount expects.
    #[error("the bytes cannot be proven: {0}")]
    Unproven(String),
}

/// A read with missing bytes.
pub(super) struct Parked {
    pub(super) bytes: Range<u64>,
    pub(super) since: Instant,
    wait: WaitId,
    waiter: Box<dyn Waiter>,
}

/// A read that can be answered now.
pub struct Ready {
    /// Bytes to read.
    pub bytes: Range<u64>,
    /// Reader that gets them.
    pub waiter: Box<dyn Waiter>,
    /// Error to answer with, if the bytes will not arrive.
    pub error: Option<Unread>,
    /// Keeps the bytes from being dropped before they are read.
    kept: Option<Kept>,
    /// Whether to read from `own_store`: the store that had the bytes when they were found.
    is_own: bool,
}

/// Work that the caller of [`Object::read`] must do because of the read.
#[derive(Debug, Default)]
#[must_use]
pub struct FollowUp {
    /// Demand to send at once, with the member's token.
    pub want: Option<(Token, Want)>,
    /// Whether the receive thread must attend to the object: something is due earlier than it
    /// knows, or must be fetched.
    pub attend: bool,
}

impl FollowUp {
    /// Issues the demand that is due after a read. It does not wait for the receive thread.
    fn take(inner: &mut Inner, now: Instant) -> Self {
        inner.receiver.want_if_due(now);
        let token = inner.receiver.token().cloned();
        let want = token.and_then(|token| Some((token, inner.receiver.poll_want()?)));
        let receiver = &inner.receiver;
        let attend = inner.is_due_earlier()
            || receiver.may_fetch()
            || receiver.has_action()
            || receiver.is_verifying();
        Self { want, attend }
    }
}

impl Inner {
    /// Returns the bytes that must arrive for the longest waiting reader that lacks pages.
    pub(super) fn oldest_wait(&self) -> Option<Range<u64>> {
        let lacking = |parked: &Parked| Some((parked.since, self.receiver.lacking(&parked.bytes)?));
        self.parked.iter().filter_map(lacking).min_by_key(|(since, _)| *since).map(|(_, it)| it)
    }

    /// Returns why these missing bytes will not arrive, if so.
    fn error_of(&self, bytes: &Range<u64>) -> Option<Unread> {
        if let Some(failure) = self.receiver.failure() {
            return Some(failure.clone().into());
        }
        let refuted = || self.receiver.refuted(bytes).map(|it| Unread::Unproven(it.to_string()));
        let unreadable =
            || self.receiver.unreadable(bytes).map(Unread::Unreadable).or_else(refuted);
        if self.is_shut_down { Some(Unread::ShutDown) } else { unreadable() }
    }
}

impl Object {
    /// Serves a read, or parks it until its bytes are held.
    pub fn read(&self, bytes: Range<u64>, waiter: Box<dyn Waiter>, now: Instant) -> FollowUp {
        TOTALS.reads.add(1);
        let mut inner = self.lock();
        let size = inner.receiver.size().unwrap_or(u64::MAX);
        let bytes = bytes.start.min(size)..bytes.end.min(size);
        let may_wait = !bytes.is_empty() && inner.receiver.failure().is_none();
        let wait = may_wait.then(|| inner.receiver.handle_read(&bytes, now)).flatten();
        let is_held = bytes.is_empty() || wait.is_none() && inner.receiver.holds(&bytes);
        let error = if is_held { None } else { inner.error_of(&bytes) };
        let follow_up = match (wait, &error) {
            (Some(wait), None) => {
                TOTALS.reads_waited.add(1);
                inner.parked.push(Parked { bytes, since: now, wait, waiter });
                self.tell_follower(&inner);
                return FollowUp::take(&mut inner, now);
            }
            (Some(wait), Some(_)) => {
                inner.receiver.handle_wait_over(wait);
                FollowUp::default()
            }
            (None, _) => FollowUp::take(&mut inner, now),
        };
        let (kept, is_own) = (self.keep(&bytes), self.own_store.get().is_some());
        drop(inner);
        self.answer(Ready { bytes, waiter, error, kept, is_own });
        follow_up
    }

    /// Answers a read from the store.
    pub fn answer(&self, ready: Ready) {
        let Ready { bytes, waiter, error, kept: _kept, is_own } = ready;
        if let Some(error) = error {
            return waiter.answer(Err(error));
        }
        // The kernel asks for at most about a MiB at a time.
        let len = usize::try_from(bytes.end - bytes.start).unwrap_or(usize::MAX);
        let store = if is_own { self.store() } else { &self.first_store };
        with_buffer(len, |buffer| match store.read_exact_at(buffer, bytes.start) {
            Ok(()) => waiter.answer(Ok(buffer)),
            Err(error) => waiter.answer(Err(Unread::Store(error.to_string()))),
        });
    }

    /// Takes out the parked reads that can be answered, and wakes those who wait for a change.
    /// Called after every change.
    pub(super) fn take_answerable(&self, inner: &mut Inner) -> Vec<Ready> {
        self.changed.send_replace(());
        if inner.receiver.is_complete() {
            self.store().symbols().clear();
        }
        let mut parked = std::mem::take(&mut inner.parked);
        let is_over = |parked: &mut Parked| {
            inner.receiver.holds(&parked.bytes) || inner.error_of(&parked.bytes).is_some()
        };
        let over: Vec<_> = parked.extract_if(.., is_over).collect();
        inner.parked = parked;
        let answerable = over.into_iter().map(|Parked { bytes, wait, waiter, .. }| {
            inner.receiver.handle_wait_over(wait);
            let is_held = inner.receiver.holds(&bytes);
            let error = if is_held { None } else { inner.error_of(&bytes) };
            let (kept, is_own) = (self.keep(&bytes), self.own_store.get().is_some());
            Ready { bytes, waiter, error, kept, is_own }
        });
        answerable.collect()
    }

    /// Ends the waits of dead readers, and waits that began before `deadline`.
    pub fn reap(&self, deadline: Option<Instant>) {
        // Checking callers reads files, so it happens without the lock. Until the others are parked
        // again, no change finds them.
        let parked = std::mem::take(&mut self.lock().parked);
        let (mut reaped, mut waiting) = (Vec::new(), Vec::new());
        for parked in parked {
            if parked.waiter.is_abandoned() {
                reaped.push((parked, Unread::Interrupted));
            } else if deadline.is_some_and(|deadline| parked.since < deadline) {
                reaped.push((parked, Unread::TimedOut));
            } else {
                waiting.push(parked);
            }
        }
        let ready = {
            let mut inner = self.lock();
            for (parked, _) in &reaped {
                inner.receiver.handle_wait_over(parked.wait);
            }
            inner.parked.append(&mut waiting);
            // Their pages may have arrived meanwhile, or the object was shut down.
            self.take_answerable(&mut inner)
        };
        self.answer_all(ready);
        for (parked, error) in reaped {
            parked.waiter.answer(Err(error));
        }
    }

    /// Ends the membership and every wait, because the program ends. Reads of held bytes are still
    /// served.
    pub fn shut_down(&self) {
        let ready = {
            let mut inner = self.lock();
            inner.receiver.shut_down();
            inner.is_shut_down = true;
            self.take_answerable(&mut inner)
        };
        self.answer_all(ready);
    }

    /// Ends every wait after a panic. Uses nothing else of the state, which may be half changed.
    pub fn abandon(&self) {
        let parked = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.is_shut_down = true;
            std::mem::take(&mut inner.parked)
        };
        for parked in parked {
            parked.waiter.answer(Err(Unread::ShutDown));
        }
    }

    /// Records pages that the server cannot read. Returns the reads that this ends.
    #[must_use]
    pub fn handle_unreadable(&self, runs: &[PageRange], now: Instant) -> Vec<Ready> {
        let mut inner = self.lock();
        inner.receiver.handle_unreadable(runs, now);
        self.take_answerable(&mut inner)
    }

    pub(super) fn answer_all(&self, reads: Vec<Ready>) {
        for read in reads {
            self.answer(read);
        }
    }
}

#[cfg(test)]
mod tests;
