//! One version of one file on this machine: its pages, its membership, and the reads that wait.
//!
//! | module | holds |
//! |---|---|
//! | `reads` | reads, and the parked ones |
//! | `storing` | pages that arrive by multicast, and checkpoints |
//! | `fetching` | pages that arrive over HTTP |
//! | `rebuilding` | pages that are rebuilt from repair symbols |
//! | `reusing` | leaves that an older version has |
//! | `scarcity` | bytes that the cache has no room for |
//! | `sharing` | one copy for several processes: what others are told, and told by others |
//! | `seeking` | holes and data, as `lseek` shows them |
//! | `verifying` | checks of stored leaves, and their hashes |
//! | `zeros` | pages that consist of zeros by the zero map |
//! | `snapshot`, `status` | the state as others, and the user, see it |

#[cfg(test)]
mod durability_tests;
mod fetching;
#[cfg(test)]
mod fixture;
mod reads;
mod rebuilding;
mod reusing;
mod scarcity;
mod seeking;
mod sharing;
mod snapshot;
mod status;
mod storing;
mod verifying;
mod zeros;

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::{JoinAnswer, Token};
use tokio::sync::watch;

use crate::cache::{ObjectKey, Older, Store};
use crate::panics;
use crate::receiver::{
    Action, Fetch, Fill, JoinError, JoinOptions, Notice, Pin, Receiver, Reception, ReportError,
    Timing, UnicastMode, Verify,
};
use crate::totals::TOTALS;
use reads::Parked;
use scarcity::Answering;
use snapshot::ContiguousPages;
use storing::Saved;

pub use fetching::Fetched;
pub use reads::{FollowUp, Ready, Unread, Waiter};
pub use rebuilding::Rebuilding;
pub use reusing::Reusing;
pub use seeking::Seek;
pub use sharing::{Attached, Following, Holding, Sharing, Wishes};
pub use snapshot::{Opening, Snapshot};
pub use verifying::{ListsFailure, Verifying};

/// One version of one file: its [`Store`], its [`Receiver`] and its waiting reads.
pub struct Object {
    id: u64,
    key: ObjectKey,
    first_store: Store,
    /// Private store, used instead of `first_store` once this process stopped following a holder.
    own_store: OnceLock<Store>,
    /// Older version of the path in the cache, until it is of no more use. Locked before `inner`.
    older: Mutex<Option<Arc<[Older]>>>,
    inner: Mutex<Inner>,
    /// Wakes a [`Verifying`] that lets leaves accumulate. Belongs to `inner`.
    check_now: Condvar,
    /// Serialises writers, see [`Self::begin_writing`]. Locked before `inner`.
    writing: Mutex<()>,
    /// Serialises checkpoints.
    saving: Mutex<()>,
    /// Bytes that are about to be read, and must not be dropped. Locked after `inner`.
    answering: Answering,
    /// Notified whenever a [`Snapshot`] may differ from the one before, except for pages that
    /// arrived and may not be read yet.
    changed: watch::Sender<()>,
}

struct Inner {
    receiver: Receiver,
    parked: Vec<Parked>,
    /// Whether reads are parked no more, because the program ends.
    is_shut_down: bool,
    /// Whether the store has its final size.
    has_final_size: bool,
    /// Pages that were held at the last checkpoint.
    saved: Saved,
    in_background: InBackground,
    /// Bytes at the start whose space was freed.
    freed_until: u64,
    contiguous: ContiguousPages,
    /// Pages of an open file that should arrive if the cache has room.
    fill: Fill,
    /// Whether only what is read arrives, because the cache has no room.
    is_past_cache: bool,
    /// Last result of [`Object::poll_timeout`], which the receive thread waits for.
    announced_timeout: Option<Instant>,
}

/// Work of an object that runs on other threads.
#[derive(Clone, Copy, Debug, Default)]
struct InBackground {
    /// Whether a [`Rebuilding`] exists.
    is_rebuilding: bool,
    /// Whether a [`Verifying`] exists.
    is_verifying: bool,
    /// Whether a [`Reusing`] exists.
    is_reusing: bool,
    sharing: SharingInBackground,
}

/// Work that shares an object with other processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SharingInBackground {
    /// There is none.
    #[default]
    None,
    /// A [`Following`] exists.
    Following,
    /// A [`Holding`] was handed out.
    Holding,
}

/// Work of the receive thread for an object.
#[derive(Debug)]
#[must_use]
pub struct Work {
    /// Actions in their order.
    pub actions: Vec<Action>,
    /// Membership that reports and demands among the actions belong to. `None` if it has ended.
    pub token: Option<Token>,
    /// Bytes to fetch over HTTP.
    pub fetch: Option<Fetch>,
    /// Messages for the user about the reception.
    pub notices: Vec<Notice>,
    /// Way in which the file arrives at present.
    pub reception: Reception,
    /// Whether the object takes part in no cast and does not try to.
    pub is_resting: bool,
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
        let (restored, older) = (store.take_restored(), store.take_older());
        let content = key.content.or(restored.as_ref().and_then(|restored| restored.content));
        let kept = restored.map(|restored| restored.assembly);
        let saved = kept.as_ref().filter(|_| !store.is_adopted());
        let saved = saved.map(|kept| Saved::of(kept, None)).unwrap_or_default();
        let pin = Pin { etag: key.etag.clone(), size, content };
        let mut receiver = Receiver::new(pin, kept, timing, seed).with_fill(fill);
        if store.follows() {
            receiver.follow();
        }
        let inner = Inner {
            receiver,
            parked: Vec::new(),
            is_shut_down: false,
            has_final_size: false,
            saved,
            in_background: InBackground::default(),
            freed_until: 0,
            contiguous: ContiguousPages::default(),
            fill,
            is_past_cache: false,
            announced_timeout: None,
        };
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            key,
            first_store: store,
            own_store: OnceLock::new(),
            older: Mutex::new((!older.is_empty()).then(|| older.into())),
            inner: Mutex::new(inner),
            check_now: Condvar::new(),
            writing: Mutex::default(),
            saving: Mutex::default(),
            answering: Answering::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Fills the file only after its readers have shown that they want it.
    #[must_use]
    pub fn with_intent_awaited(self) -> Self {
        self.lock().receiver.await_intent();
        self
    }

    /// Asks for the profile of the content when it joins and holds nothing.
    #[must_use]
    pub fn with_profile(self) -> Self {
        self.lock().receiver.request_profile();
        self
    }

    /// Sets whether the file may be fetched over HTTP.
    #[must_use]
    pub fn with_unicast(self, mode: UnicastMode) -> Self {
        self.lock().receiver.set_unicast(mode);
        self
    }

    /// Sets the proof that bytes need before they may be read; the tag, by default.
    #[must_use]
    pub fn with_verify(self, verify: Verify) -> Self {
        let has_older = panics::lock(&self.older).is_some();
        {
            let mut inner = self.lock();
            inner.receiver.set_verify(verify);
            if has_older {
                inner.receiver.handle_older();
            }
        }
        self
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        panics::lock(&self.inner)
    }

    /// Locks the bytes of the store. Whoever writes some holds the guard from the moment at which
    /// it finds them missing or wrong until it has told the receiver that they are stored. So
    /// nobody writes over a page that another one stored, whose leaf may be verified by then.
    fn begin_writing(&self) -> MutexGuard<'_, ()> {
        panics::lock(&self.writing)
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
        self.own_store.get().unwrap_or(&self.first_store)
    }

    /// Adds an open. The receive thread must attend to the object afterwards.
    pub fn open(&self) {
        self.lock().receiver.handle_open();
    }

    /// Ends an open. The receive thread must attend to the object afterwards.
    pub fn close(&self, now: Instant) {
        let mut inner = self.lock();
        inner.receiver.handle_close(now);
        self.tell_follower(&inner);
    }

    /// Keeps others from removing the object from the cache. Returns `false` if somebody did, or if
    /// it must not be used for another reason. Call it after [`Self::open`].
    #[must_use]
    pub fn pin(&self) -> bool {
        let inner = self.lock();
        if inner.receiver.follows() {
            return inner.in_background.sharing == SharingInBackground::Following;
        }
        drop(inner);
        self.store().pin()
    }

    /// Lets others remove the object from the cache, if nobody has it open and all of it is there.
    pub fn unpin_if_idle(&self) {
        self.store().unpin(|| {
            let snapshot = self.snapshot();
            snapshot.is_idle && snapshot.is_durable
        });
    }

    /// Runs what is due, and returns the work for the receive thread. Call it again after a
    /// subscription, whose result can cause more work.
    pub fn poll(&self, now: Instant) -> Work {
        let mut inner = self.lock();
        panics::provoke("receive", &self.key.path);
        inner.receiver.handle_timeout(now);
        let actions = std::iter::from_fn(|| inner.receiver.poll_action()).collect();
        Work {
            actions,
            token: inner.receiver.token().cloned(),
            fetch: inner.poll_fetch(now),
            notices: inner.receiver.take_notices(),
            reception: inner.receiver.reception(),
            is_resting: inner.receiver.is_idle(),
        }
    }

    /// Time at which [`Self::poll`] is due. The receive thread, which calls this, must attend to
    /// the object at this time, or earlier if it is told to.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let mut inner = self.lock();
        inner.announced_timeout = inner.receiver.poll_timeout();
        inner.announced_timeout
    }

    /// Whether the object takes part in no cast and does not try to.
    pub fn is_resting(&self) -> bool {
        self.lock().receiver.is_idle()
    }

    /// Whether a reader waits for single pages, so that their datagrams must not accumulate.
    pub fn is_hurried(&self, now: Instant) -> bool {
        self.lock().receiver.is_hurried(now)
    }

    /// Prepares a join. Returns what it asks for.
    pub fn begin_join(&self) -> JoinOptions {
        self.lock().receiver.begin_join()
    }

    /// Handles the result of a join. Returns the reads that it ends.
    #[must_use]
    pub fn handle_join(&self, result: Result<JoinAnswer, JoinError>, now: Instant) -> Vec<Ready> {
        let mut inner = self.lock();
        match result {
            Ok(answer) => inner.receiver.handle_join(&answer, now),
            Err(error) => inner.receiver.handle_join_error(error, now),
        }
        self.take_answerable(&mut inner)
    }

    /// Handles the result of a report of the membership `token`.
    pub fn handle_report_answer(
        &self,
        token: &Token,
        result: Result<(), ReportError>,
        now: Instant,
    ) {
        self.lock().receiver.handle_report_answer(token, result, now);
    }

    /// Handles the result of a demand of the membership `token`. Returns whether the receive thread
    /// must attend to the object, because something is due earlier than it knows.
    #[must_use]
    pub fn handle_want_answer(
        &self,
        token: &Token,
        want: &Want,
        result: Result<Duration, ReportError>,
        now: Instant,
    ) -> bool {
        let mut inner = self.lock();
        inner.receiver.handle_wanted(token, want, result, now);
        inner.is_due_earlier()
    }

    /// Presumes that multicast does not arrive, as for other files of this server lately. `tells`:
    /// the first report says so at once.
    pub fn presume_no_multicast(&self, tells: bool, now: Instant) {
        self.lock().receiver.presume_no_multicast(tells, now);
    }

    /// Records that the socket for pages, or for repair, could not be opened.
    pub fn handle_no_socket(&self, is_repair: bool, error: &str, now: Instant) {
        self.lock().receiver.handle_no_socket(is_repair, error, now);
    }

    /// Records the MTU of the interface on which datagrams arrive, in bytes.
    pub fn handle_mtu(&self, mtu: u32, now: Instant) {
        self.lock().receiver.handle_mtu(mtu, now);
    }

    /// Counts datagrams that the socket had no room for.
    pub fn count_drops(&self, datagrams: u64) {
        TOTALS.dropped_datagrams.add(datagrams);
        self.lock().receiver.handle_drops(datagrams);
    }
}

impl Inner {
    /// Whether something is due before the time that the receive thread knows.
    fn is_due_earlier(&self) -> bool {
        let due = self.receiver.poll_timeout();
        due.is_some_and(|due| self.announced_timeout.is_none_or(|announced| due < announced))
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
