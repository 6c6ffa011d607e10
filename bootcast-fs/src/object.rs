//! One version of one file on this machine: what is here, and who waits for the rest.

mod demanding;
#[cfg(test)]
mod durability_tests;
mod fetching;
mod rebuilding;

pub use fetching::Fetched;

use std::cell::RefCell;
use std::fmt;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bootcast_proto::{Etag, JoinAnswer, PageIndex, PageRange, PageSize, Token};
use tokio::sync::watch;
use tracing::warn;

pub use demanding::Wants;

use crate::cache::{CheckpointError, Kept, ObjectKey, Store};
use crate::quiet;
use crate::receiver::{
    Action, Arrival, Assembly, Checked, Counters, Failure, Fill, JoinError, Pin, Receiver,
    ReportError, Timing, WaitId,
};

/// Most slices that one write takes: `UIO_MAXIOV` of the kernel.
const MAX_SLICES: usize = 1024;

/// Somebody who waits for bytes. Dropping it unanswered is a bug that the kernel turns into EIO.
pub trait Waiter: Send {
    /// Ends the wait.
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>);
    /// Whether nobody is interested any more, for example because the caller was killed.
    fn is_abandoned(&self) -> bool;
}

/// Why a read ends without its bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// The bytes can never come.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The server cannot read them, or others of the same read.
    #[error("the server cannot read bytes {}-{} of the file", .0.start, .0.end.saturating_sub(1))]
    Unreadable(Range<u64>),
    /// They did not come within the time that the mount allows.
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
}

/// A read whose bytes are not all here.
struct Parked {
    bytes: Range<u64>,
    since: Instant,
    wait: WaitId,
    waiter: Box<dyn Waiter>,
}

/// A read that can be answered now.
pub struct Ready {
    /// What to read.
    pub bytes: Range<u64>,
    /// Who gets it.
    pub waiter: Box<dyn Waiter>,
    /// Set where the bytes will not come.
    pub error: Option<Unread>,
}

/// What became of an open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// No answer yet.
    Pending,
    /// Reads will be served, now or later.
    Open,
    /// It cannot be opened.
    Failed(Failure),
}

/// One version of one file: its [`Store`], its [`Receiver`] and its waiting reads.
pub struct Object {
    id: u64,
    key: ObjectKey,
    store: Store,
    inner: Mutex<Inner>,
    /// One checkpoint at a time.
    saving: Mutex<()>,
    /// Signalled whenever an opener or a progress display may see something new.
    changed: watch::Sender<()>,
}

struct Inner {
    receiver: Receiver,
    parked: Vec<Parked>,
    /// Whether the store has its final size.
    sized: bool,
    /// What was held at the last checkpoint.
    saved: Saved,
    /// Somebody is at it; see [`Object::begin_rebuilding`].
    is_rebuilding: bool,
    /// Bytes from the beginning whose room was given back.
    given_back: u64,
    /// What [`Object::due`] said last.
    told_due: Option<Instant>,
}

impl Object {
    /// The object of `key` in `store`, with `size` bytes where that is known. `seed` is to be unlike those of other members.
    pub fn new(
        key: ObjectKey,
        mut store: Store,
        size: Option<u64>,
        timing: Timing,
        fill: Fill,
        seed: u64,
    ) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let kept = store.take_kept();
        let saved = kept.as_ref().map(Saved::of).unwrap_or_default();
        let pin = Pin { etag: key.etag.clone(), size };
        let inner = Inner {
            receiver: Receiver::new(pin, kept, timing, seed).with_fill(fill),
            parked: Vec::new(),
            sized: false,
            saved,
            is_rebuilding: false,
            given_back: 0,
            told_due: None,
        };
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            key,
            store,
            inner: Mutex::new(inner),
            saving: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that holds the lock leaves the state half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unlike that of any other object of this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it is.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Its bytes.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// One reader more. The intake must attend to the object afterwards.
    pub fn open(&self) {
        self.lock().receiver.handle_open();
    }

    /// One reader less. The intake must attend to the object afterwards.
    pub fn close(&self, now: Instant) {
        self.lock().receiver.handle_close(now);
    }

    /// Takes the server's word on a join.
    #[must_use]
    pub fn joined(&self, result: Result<JoinAnswer, JoinError>, now: Instant) -> Vec<Ready> {
        let mut inner = self.lock();
        match result {
            Ok(answer) => inner.receiver.handle_join(&answer, now),
            Err(error) => inner.receiver.handle_join_error(error, now),
        }
        self.settle(&mut inner)
    }

    /// Takes the server's word on a report.
    pub fn reported(&self, result: Result<(), ReportError>, now: Instant) {
        self.lock().receiver.handle_reported(result, now);
    }

    /// Names the present membership in reports.
    pub fn token(&self) -> Option<Token> {
        self.lock().receiver.token().cloned()
    }

    /// Runs what is due and hands out what is to be done.
    pub fn tend(&self, now: Instant) -> Vec<Action> {
        let mut inner = self.lock();
        inner.receiver.handle_timeout(now);
        std::iter::from_fn(|| inner.receiver.poll_action()).collect()
    }

    /// When [`Self::tend`] is due.
    pub fn due(&self) -> Option<Instant> {
        let mut inner = self.lock();
        inner.told_due = inner.receiver.poll_timeout();
        inner.told_due
    }

    /// Takes a batch of datagrams, stores what is new, and hands out the reads that this serves.
    #[must_use]
    pub fn receive(&self, datagrams: &[(SocketAddr, &[u8])], now: Instant) -> Vec<Ready> {
        let mut pages = Vec::with_capacity(datagrams.len());
        let checked = self.check(datagrams);
        let (epoch, page_size) = {
            let mut inner = self.lock();
            for datagram in &checked {
                if let Arrival::New(page) = inner.receiver.handle_checked(datagram, now) {
                    pages.push((page.index, IoSlice::new(page.payload)));
                }
            }
            self.give_size(&mut inner);
            (inner.receiver.epoch(), inner.receiver.assembly().map(Assembly::page_size))
        };
        let stored = page_size.map(|size| self.write(&mut pages, size)).unwrap_or_default();
        self.note(stored, epoch)
    }

    /// Gives the store its final size as soon as that is known.
    fn give_size(&self, inner: &mut Inner) {
        if !inner.sized
            && let Some(size) = inner.receiver.size()
        {
            match self.store.set_size(size) {
                Ok(()) => inner.sized = true,
                Err(error) => self.store_failed(inner, error.to_string()),
            }
        }
    }

    /// The cache cannot be written or read: the object has failed, and its readers are told.
    fn store_failed(&self, inner: &mut Inner, error: String) {
        if let Some(more) = quiet::allow("cannot keep what arrives", &error) {
            warn!(path = %self.key.path, error, "cannot keep what arrives{more}");
        }
        inner.receiver.handle_store_error(error);
    }

    /// Checks the tags of a batch, up to a millisecond's work: not under the lock, for which readers would wait.
    fn check<'a>(&self, datagrams: &[(SocketAddr, &'a [u8])]) -> Vec<Checked<'a>> {
        let gate = *self.lock().receiver.gate();
        gate.check_all(datagrams)
    }

    /// Counts datagrams that this machine was too slow for.
    pub fn count_drops(&self, datagrams: u64) {
        self.lock().receiver.handle_drops(datagrams);
    }

    /// Writes pages in runs of consecutive ones.
    fn write(&self, mut pages: &mut [(PageIndex, IoSlice<'_>)], page_size: PageSize) -> Stored {
        let mut stored = Stored::default();
        while let Some(&(first, _)) = pages.first() {
            let consecutive = |(at, page): &(usize, &(PageIndex, IoSlice<'_>))| {
                *at < MAX_SLICES && page.0.0 as usize == first.0 as usize + at
            };
            let len = pages.iter().enumerate().take_while(consecutive).count();
            let (run, rest) = pages.split_at_mut(len);
            let mut slices: Vec<_> = run.iter().map(|(_, slice)| *slice).collect();
            let offset = u64::from(first.0) * u64::from(page_size.get());
            match self.store.write_run(&mut slices, offset) {
                Ok(()) => {
                    let end = u32::try_from(len).map_or(u32::MAX, |len| first.0 + len);
                    stored.runs.push(PageRange::new(first.0, end));
                }
                Err(error) => {
                    stored.error = Some(error.to_string());
                    return stored;
                }
            }
            pages = rest;
        }
        stored
    }

    /// Takes out the reads that need not wait any more, and wakes who watches.
    fn settle(&self, inner: &mut Inner) -> Vec<Ready> {
        self.changed.send_replace(());
        if inner.receiver.is_complete() {
            self.store.symbols().clear();
        }
        let failure = inner.receiver.failure().cloned();
        let Inner { receiver, parked, .. } = inner;
        let is_over = |parked: &Parked| {
            failure.is_some()
                || receiver.holds(&parked.bytes)
                || receiver.unreadable(&parked.bytes).is_some()
        };
        let over: Vec<_> = parked.extract_if(.., |parked| is_over(parked)).collect();
        over.into_iter()
            .map(|parked| {
                receiver.handle_wait_over(parked.wait);
                let failure = failure.clone().map(Unread::Failed);
                let missing = || receiver.unreadable(&parked.bytes).map(Unread::Unreadable);
                let error = failure.or_else(missing).filter(|_| !receiver.holds(&parked.bytes));
                Ready { bytes: parked.bytes, waiter: parked.waiter, error }
            })
            .collect()
    }

    /// Serves a read, or parks it until its bytes are here. What it leads to be wanted is in the answer.
    pub fn read(&self, bytes: Range<u64>, waiter: Box<dyn Waiter>, now: Instant) -> Wants {
        let mut inner = self.lock();
        let size = inner.receiver.size().unwrap_or(u64::MAX);
        let bytes = bytes.start.min(size)..bytes.end.min(size);
        let ready = if bytes.is_empty() {
            Ready { bytes, waiter, error: None }
        } else if let Some(failure) = inner.receiver.failure() {
            let is_here = inner.receiver.holds(&bytes);
            let error = (!is_here).then(|| failure.clone().into());
            Ready { bytes, waiter, error }
        } else if let Some(wait) = inner.receiver.handle_read(&bytes, now) {
            if let Some(missing) = inner.receiver.unreadable(&bytes) {
                inner.receiver.handle_wait_over(wait);
                drop(inner);
                self.answer(Ready { bytes, waiter, error: Some(Unread::Unreadable(missing)) });
                return Wants::default();
            }
            inner.parked.push(Parked { bytes, since: now, wait, waiter });
            return Wants::after_read(&mut inner, now);
        } else {
            Ready { bytes, waiter, error: None }
        };
        let wants = Wants::after_read(&mut inner, now);
        drop(inner);
        self.answer(ready);
        wants
    }

    /// Answers a read from the store.
    pub fn answer(&self, ready: Ready) {
        let Ready { bytes, waiter, error } = ready;
        if let Some(error) = error {
            return waiter.answer(Err(error));
        }
        // The kernel asks for at most a MiB or so at a time.
        let len = usize::try_from(bytes.end - bytes.start).unwrap_or(usize::MAX);
        with_buffer(len, |buffer| match self.store.read_exact_at(buffer, bytes.start) {
            Ok(()) => waiter.answer(Ok(buffer)),
            Err(error) => waiter.answer(Err(Unread::Store(error.to_string()))),
        });
    }

    /// Ends the waits of readers that are gone, and of those that began before `deadline`.
    pub fn reap(&self, deadline: Option<Instant>) {
        // Looking after the callers reads files: not under the lock.
        let parked = std::mem::take(&mut self.lock().parked);
        let verdict = |parked: &Parked| {
            if parked.waiter.is_abandoned() {
                Some(Unread::Interrupted)
            } else if deadline.is_some_and(|deadline| parked.since < deadline) {
                Some(Unread::TimedOut)
            } else {
                None
            }
        };
        let (mut reaped, mut waiting) = (Vec::new(), Vec::new());
        for parked in parked {
            match verdict(&parked) {
                Some(error) => reaped.push((parked, error)),
                None => waiting.push(parked),
            }
        }
        let ready = {
            let mut inner = self.lock();
            for (parked, _) in &reaped {
                inner.receiver.handle_wait_over(parked.wait);
            }
            inner.parked.append(&mut waiting);
            // What arrived meanwhile did not find them.
            self.settle(&mut inner)
        };
        for read in ready {
            self.answer(read);
        }
        for (parked, error) in reaped {
            parked.waiter.answer(Err(error));
        }
    }

    /// Ends every wait and the membership: the program ends.
    pub fn shut_down(&self) {
        let parked = {
            let mut inner = self.lock();
            inner.receiver.shut_down();
            std::mem::take(&mut inner.parked)
        };
        for parked in parked {
            parked.waiter.answer(Err(Unread::ShutDown));
        }
    }

    /// Remembers on disk what is held. Waits for the disk; call it where that harms nobody.
    pub fn checkpoint(&self) -> Result<(), CheckpointError> {
        let _alone = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = {
            let inner = self.lock();
            let assembly = inner.receiver.assembly();
            let news = assembly.filter(|assembly| Saved::of(assembly) != inner.saved);
            news.map(|assembly| (Saved::of(assembly), Kept::of(assembly)))
        };
        let result = match &kept {
            Some((_, Some(kept))) => self.store.checkpoint(kept),
            Some((_, None)) => return Ok(()),
            // Of lost data an earlier state may still be there, if it could not be removed.
            None => return self.store.forget_if_lost(),
        };
        if let Err(error) = &result
            && let Some(more) = quiet::allow("cannot remember what arrived", error)
        {
            warn!(path = %self.key.path, %error, "cannot remember what arrived{more}");
        }
        let mut inner = self.lock();
        match &result {
            Ok(()) => inner.saved = kept.map(|(saved, _)| saved).unwrap_or_default(),
            // The kernel reports a failed write-back once, and then shows the page as clean.
            Err(CheckpointError::Data(error)) => {
                inner.receiver.handle_store_lost(error.clone());
                let failed = self.settle(&mut inner);
                drop(inner);
                for read in failed {
                    self.answer(read);
                }
            }
            Err(CheckpointError::State(_)) => {}
        }
        result
    }

    /// What became of the open.
    pub fn opening(&self) -> Opening {
        let inner = self.lock();
        match inner.receiver.failure() {
            Some(failure) => Opening::Failed(failure.clone()),
            None if inner.receiver.is_confirmed() => Opening::Open,
            None => Opening::Pending,
        }
    }

    /// A receiver that wakes whenever something may have changed.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whether every byte is here.
    pub fn is_complete(&self) -> bool {
        self.lock().receiver.is_complete()
    }

    /// Whether every byte is here and will not get lost: it reached the disk, where there is one.
    pub fn is_durable(&self) -> bool {
        let inner = self.lock();
        let is_safe = |assembly| self.store.is_in_memory() || Saved::of(assembly) == inner.saved;
        inner.receiver.is_complete() && inner.receiver.assembly().is_some_and(is_safe)
    }

    /// Whether it can never be completed.
    pub fn is_failed(&self) -> bool {
        self.lock().receiver.failure().is_some()
    }

    /// Nobody reads it, and it takes part in no cast.
    pub fn is_idle(&self) -> bool {
        let inner = self.lock();
        inner.receiver.is_idle() && inner.receiver.readers() == 0
    }

    /// Takes part in no cast, nor tries to.
    pub fn is_resting(&self) -> bool {
        self.lock().receiver.is_idle()
    }

    /// Exact size in bytes, once known.
    pub fn size(&self) -> Option<u64> {
        self.lock().receiver.size()
    }

    /// No more than these bytes, once joined: less than a page above the exact size until that is known.
    pub fn size_at_most(&self) -> Option<u64> {
        self.lock().receiver.assembly().map(|assembly| assembly.geometry().size())
    }

    /// Pages in all, once joined.
    pub fn pages(&self) -> Option<u32> {
        self.lock().receiver.assembly().map(|assembly| assembly.geometry().pages())
    }

    /// Version, once known.
    pub fn etag(&self) -> Option<Etag> {
        self.lock().receiver.etag().cloned()
    }

    /// Bytes from the beginning that are here without a gap.
    pub fn contiguous(&self) -> u64 {
        self.lock().receiver.assembly().map_or(0, Assembly::contiguous)
    }

    /// Bytes that are here; up to a page less than in truth.
    pub fn received(&self) -> u64 {
        let inner = self.lock();
        inner.receiver.assembly().map_or(0, |assembly| {
            let pages = u64::from(assembly.held().held());
            (pages * u64::from(assembly.page_size().get())).min(assembly.geometry().size())
        })
    }

    /// Joins in a row that failed.
    pub fn join_failures(&self) -> u32 {
        self.lock().receiver.join_failures()
    }

    /// Datagrams by what became of them.
    pub fn counters(&self) -> Counters {
        self.lock().receiver.counters()
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("id", &self.id)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// Lends this thread's buffer: a fresh one for each read would be mapped, cleared and unmapped each time.
fn with_buffer<T>(len: usize, fill: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local!(static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        fill(&mut buffer[..len])
    })
}

/// How many pages of which size a checkpoint has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Saved {
    page_size: u32,
    pages: u32,
}

impl Saved {
    fn of(assembly: &Assembly) -> Self {
        match assembly.held().held() {
            0 => Self::default(),
            pages => Self { page_size: assembly.page_size().get(), pages },
        }
    }
}

/// What a write of pages came to.
#[derive(Default)]
struct Stored {
    runs: Vec<PageRange>,
    error: Option<String>,
}
