//! One version of one file on this machine: its pages and the reads that wait for them.

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

use crate::cache::{CheckpointError, HeldSnapshot, ObjectKey, Store};
use crate::log_limit;
use crate::receiver::{
    Action, Arrival, Assembly, Checked, Counters, Failure, Fill, JoinError, Pin, Receiver,
    ReportError, Timing, WaitId,
};

/// Most slices in one write: `UIO_MAXIOV` of the kernel.
const MAX_SLICES: usize = 1024;

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
struct Parked {
    bytes: Range<u64>,
    since: Instant,
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
}

/// Progress of an open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// The server has not answered yet.
    Pending,
    /// Reads will be served, now or later.
    Open,
    /// The file cannot be opened.
    Failed(Failure),
}

/// One version of one file: its [`Store`], its [`Receiver`] and its waiting reads.
pub struct Object {
    id: u64,
    key: ObjectKey,
    store: Store,
    inner: Mutex<Inner>,
    /// Serialises checkpoints.
    saving: Mutex<()>,
    /// Notified whenever an opener or a progress display may see something new.
    changed: watch::Sender<()>,
}

struct Inner {
    receiver: Receiver,
    parked: Vec<Parked>,
    /// Whether the store has its final size.
    sized: bool,
    /// What was held at the last checkpoint.
    saved: Saved,
    /// Whether a task is rebuilding; see [`Object::begin_rebuilding`].
    is_rebuilding: bool,
    /// Bytes at the start whose space was freed.
    given_back: u64,
    /// Last result of [`Object::due`].
    told_due: Option<Instant>,
}

impl Object {
    /// Creates the object of `key` in `store`, with its `size` if known. `seed` must differ between
    /// members.
    pub fn new(
        key: ObjectKey,
        mut store: Store,
        size: Option<u64>,
        timing: Timing,
        fill: Fill,
        seed: u64,
    ) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let kept = store.take_restored();
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
        // No code leaves the state half changed while it holds the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Identifier, unique in this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Server, path and version.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Bytes of the object.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Adds a reader. The intake must attend to the object afterwards.
    pub fn open(&self) {
        self.lock().receiver.handle_open();
    }

    /// Removes a reader. The intake must attend to the object afterwards.
    pub fn close(&self, now: Instant) {
        self.lock().receiver.handle_close(now);
    }

    /// Handles the answer to a join.
    #[must_use]
    pub fn joined(&self, result: Result<JoinAnswer, JoinError>, now: Instant) -> Vec<Ready> {
        let mut inner = self.lock();
        match result {
            Ok(answer) => inner.receiver.handle_join(&answer, now),
            Err(error) => inner.receiver.handle_join_error(error, now),
        }
        self.settle(&mut inner)
    }

    /// Takes the server's word on a report of the membership `token`.
    pub fn reported(&self, token: &Token, result: Result<(), ReportError>, now: Instant) {
        self.lock().receiver.handle_report_answer(token, result, now);
    }

    /// Token of the present membership.
    pub fn token(&self) -> Option<Token> {
        self.lock().receiver.token().cloned()
    }

    /// Runs what is due and returns what is to be done.
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

    /// Stores the new pages of a batch of datagrams. Returns the reads that they complete.
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

    /// Gives the store its final size as soon as it is known.
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

    /// Fails the object because its cache cannot be written or read.
    fn store_failed(&self, inner: &mut Inner, error: String) {
        if let Some(more) = log_limit::allow("cannot write or read stored pages", &error) {
            warn!(path = %self.key.path, error, "cannot write or read stored pages{more}");
        }
        inner.receiver.handle_store_error(error);
    }

    /// Checks the tags of a batch, which takes up to a millisecond, without the lock that readers
    /// need.
    fn check<'a>(&self, datagrams: &[(SocketAddr, &'a [u8])]) -> Vec<Checked<'a>> {
        let gate = *self.lock().receiver.gate();
        gate.check_all(datagrams)
    }

    /// Counts datagrams that the socket had no room for.
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

    /// Takes out the reads that need not wait any more, and notifies watchers.
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

    /// Serves a read, or parks it until its bytes are here. Returns the pages to demand because of
    /// this read.
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
        // The kernel asks for at most about a MiB at a time.
        let len = usize::try_from(bytes.end - bytes.start).unwrap_or(usize::MAX);
        with_buffer(len, |buffer| match self.store.read_exact_at(buffer, bytes.start) {
            Ok(()) => waiter.answer(Ok(buffer)),
            Err(error) => waiter.answer(Err(Unread::Store(error.to_string()))),
        });
    }

    /// Ends the waits of dead readers, and waits that began before `deadline`.
    pub fn reap(&self, deadline: Option<Instant>) {
        // Checking callers reads files, so it happens without the lock.
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
            // These reads were out of sight of pages that arrived meanwhile.
            self.settle(&mut inner)
        };
        for read in ready {
            self.answer(read);
        }
        for (parked, error) in reaped {
            parked.waiter.answer(Err(error));
        }
    }

    /// Ends every wait and the membership, because the program ends.
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

    /// Saves to disk which pages are held. Waits for the disk; call it on a thread that may.
    pub fn checkpoint(&self) -> Result<(), CheckpointError> {
        let _alone = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = {
            let inner = self.lock();
            let assembly = inner.receiver.assembly();
            let news = assembly.filter(|assembly| Saved::of(assembly) != inner.saved);
            news.map(|assembly| (Saved::of(assembly), HeldSnapshot::of(assembly)))
        };
        let result = match &kept {
            Some((_, Some(kept))) => self.store.checkpoint(kept),
            // Of lost data an earlier state may still be there, if it could not be removed.
            Some((_, None)) | None => return self.store.fail_if_lost(),
        };
        if let Err(error) = &result
            && let Some(more) = log_limit::allow("cannot save which pages are held", error)
        {
            warn!(path = %self.key.path, %error, "cannot save which pages are held{more}");
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

    /// Progress of the open.
    pub fn opening(&self) -> Opening {
        let inner = self.lock();
        match inner.receiver.failure() {
            Some(failure) => Opening::Failed(failure.clone()),
            None if inner.receiver.is_confirmed() => Opening::Open,
            None => Opening::Pending,
        }
    }

    /// Returns a receiver that is notified whenever something may have changed.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whether every page is held.
    pub fn is_complete(&self) -> bool {
        self.lock().receiver.is_complete()
    }

    /// Whether every byte is here and will not get lost: it reached the disk, where there is one.
    pub fn is_durable(&self) -> bool {
        let inner = self.lock();
        let is_safe = |assembly| self.store.is_in_memory() || Saved::of(assembly) == inner.saved;
        inner.receiver.is_complete() && inner.receiver.assembly().is_some_and(is_safe)
    }

    /// Whether the object can never be completed.
    pub fn is_failed(&self) -> bool {
        self.lock().receiver.failure().is_some()
    }

    /// Whether it has no readers and takes part in no cast.
    pub fn is_idle(&self) -> bool {
        let inner = self.lock();
        inner.receiver.is_idle() && inner.receiver.readers() == 0
    }

    /// Whether it takes part in no cast and does not try to.
    pub fn is_resting(&self) -> bool {
        self.lock().receiver.is_idle()
    }

    /// Exact size in bytes, once known.
    pub fn size(&self) -> Option<u64> {
        self.lock().receiver.size()
    }

    /// Upper bound of the size, once joined: less than a page above the exact size until that is
    /// known.
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

    /// Length of the gapless part at the start, in bytes.
    pub fn contiguous(&self) -> u64 {
        self.lock().receiver.assembly().map_or(0, Assembly::contiguous)
    }

    /// Number of held bytes, up to a page too low.
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

    /// Datagrams by result.
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

/// Lends this thread's buffer. A new one for each read would be mapped, cleared and unmapped each
/// time.
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

/// Result of writing pages.
#[derive(Default)]
struct Stored {
    runs: Vec<PageRange>,
    error: Option<String>,
}
