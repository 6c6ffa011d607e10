//! One copy for several processes of this machine: the *holder* receives a file and tells the
//! *followers* what has arrived. docs/SEMANTICS.md, "One copy for several mounts".

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::sync::watch;

use super::snapshot::ContiguousPages;
use super::storing::Saved;
use super::{Inner, Object, Ready, SharingInBackground};
use crate::cache::Lock;
use crate::panics;
use crate::receiver::{Description, Fill, News, Told};

/// Work that lets processes share a file.
#[derive(Debug)]
pub enum Sharing {
    /// Tell others what arrives here.
    Hold(Holding),
    /// Learn what arrives elsewhere.
    Follow(Following),
}

/// Telling of followers. Does not keep the object.
#[derive(Debug)]
pub struct Holding {
    object: Weak<Object>,
    dir: PathBuf,
    changes: watch::Receiver<()>,
}

impl Holding {
    /// Directory of the object.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the object, if it is still there.
    pub fn object(&self) -> Option<Arc<Object>> {
        self.object.upgrade()
    }

    /// Waits until followers are of no more use. Returns whether the object is settled, so that
    /// they can lock it; otherwise it is gone.
    pub async fn over(&self) -> bool {
        let mut changes = self.changes.clone();
        while changes.changed().await.is_ok() {
            if self.object.upgrade().is_some_and(|object| object.store().is_settled()) {
                return true;
            }
        }
        false
    }
}

/// Following of a holder. Each object has at most one at a time.
///
/// Dropping it, also by a panic, lets another one begin.
#[derive(Debug)]
pub struct Following {
    object: Arc<Object>,
    is_over: bool,
}

/// Byte ranges, and whether the whole file, that a follower requests from its holder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Bytes that readers wait for.
    pub bytes: Vec<Range<u64>>,
    /// Whether all pages should arrive.
    pub fill: bool,
}

/// Outcome of an attempt to go on without a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// This process fills the object from now on, or the object is complete.
    Locked,
    /// Another one fills it.
    Held,
    /// It cannot be used.
    Lost,
}

impl Following {
    /// The object.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// Returns what readers want; `None` if nobody has the file open, or the program ends. Then
    /// this is over. `by_pages`: the holder tells of pages.
    pub fn wishes(&mut self, by_pages: bool) -> Option<Wishes> {
        let object = self.object.clone();
        let mut inner = object.lock();
        let is_used = inner.receiver.readers() > 0 && inner.receiver.failure().is_none();
        if self.is_over || inner.is_shut_down || !is_used {
            self.end(&mut inner);
            return None;
        }
        let needed = |bytes: &Range<u64>| inner.receiver.needed_of_holder(bytes, by_pages);
        let bytes = inner.parked.iter().map(|parked| needed(&parked.bytes)).collect();
        Some(Wishes { bytes, fill: inner.receiver.fill() == Fill::Full })
    }

    fn end(&mut self, inner: &mut Inner) {
        if !std::mem::replace(&mut self.is_over, true) {
            inner.in_background.sharing = SharingInBackground::None;
        }
    }

    /// Begins with the file as a holder describes it. Returns `false` if it is another file.
    pub fn attach(&self, file: &Description) -> bool {
        let mut inner = self.object.lock();
        inner.contiguous = ContiguousPages::default();
        let fits = inner.receiver.handle_description(file);
        self.object.changed.send_replace(());
        fits
    }

    /// Handles leaves, or pages, that may be read. Returns the reads that this ends.
    #[must_use]
    pub fn handle_told(&self, runs: &[Range<u64>], are_leaves: bool) -> Vec<Ready> {
        let mut inner = self.object.lock();
        for run in runs {
            if are_leaves {
                inner.receiver.handle_told_leaves(run);
            } else {
                inner.receiver.handle_told_pages(run);
            }
        }
        self.object.take_answerable(&mut inner)
    }

    /// Handles bytes that cannot arrive for now. Returns the reads that this ends.
    #[must_use]
    pub fn handle_unreadable(&self, bytes: &Range<u64>, now: Instant) -> Vec<Ready> {
        let mut inner = self.object.lock();
        inner.receiver.handle_told_unreadable(bytes, now);
        self.object.take_answerable(&mut inner)
    }

    /// Handles that the server no longer has the version. Returns the reads that this ends.
    #[must_use]
    pub fn handle_gone(&self) -> Vec<Ready> {
        let mut inner = self.object.lock();
        inner.receiver.handle_holder_stale();
        self.object.take_answerable(&mut inner)
    }

    /// Goes on without a holder if nobody else fills the object. Returns the reads that this ends.
    /// Waits for the disk.
    pub fn try_lock(&mut self) -> (Attached, Vec<Ready>) {
        let object = self.object.clone();
        let _alone = object.begin_writing();
        let (stored, is_complete) = match object.store().try_lock() {
            Ok(Lock::Own(stored)) => (stored, false),
            Ok(Lock::Shared(stored)) => (Some(stored), true),
            Ok(Lock::Held) => return (Attached::Held, Vec::new()),
            Ok(Lock::Removed) | Err(_) => return (Attached::Lost, Vec::new()),
        };
        let mut inner = object.lock();
        let stored = stored.map(|stored| (stored.assembly, stored.content));
        if let Some((assembly, _)) = stored.as_ref().filter(|_| is_complete) {
            inner.saved = Saved::of(assembly, None);
        }
        inner.receiver.take_over(stored);
        self.end(&mut inner);
        let ready = object.take_answerable(&mut inner);
        (Attached::Locked, ready)
    }

    /// Receives the file without a holder, in a store of its own. Returns the reads that this ends.
    /// Waits for the disk.
    pub fn start_alone(&mut self) -> Vec<Ready> {
        let object = self.object.clone();
        let own = object.store().open_own();
        let mut older = panics::lock(&object.older);
        let _alone = object.begin_writing();
        let mut inner = object.lock();
        match own {
            Ok(mut own) => {
                let leaves = own.take_older();
                let is_first = object.own_store.set(own).is_ok();
                assert!(is_first, "an object with a store of its own followed another store");
                inner.receiver.start_alone();
                if !leaves.is_empty() {
                    *older = Some(leaves.into());
                    inner.receiver.handle_older();
                }
            }
            Err(error) => object.store_failed(&mut inner, error.to_string()),
        }
        inner.saved = Saved::default();
        inner.contiguous = ContiguousPages::default();
        self.end(&mut inner);
        object.take_answerable(&mut inner)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if !self.is_over {
            self.object.lock().in_background.sharing = SharingInBackground::None;
        }
    }
}

impl Object {
    /// Begins to share the object with other processes if that is due. Returns `None` if it is
    /// shared already, or need not be.
    #[must_use]
    pub fn begin_sharing(self: &Arc<Self>) -> Option<Sharing> {
        let mut inner = self.lock();
        let is_over = inner.is_shut_down || inner.receiver.failure().is_some();
        if is_over || inner.in_background.sharing != SharingInBackground::None {
            return None;
        }
        if inner.receiver.follows() {
            if inner.receiver.readers() == 0 {
                return None;
            }
            inner.in_background.sharing = SharingInBackground::Following;
            return Some(Sharing::Follow(Following { object: self.clone(), is_over: false }));
        }
        if !self.store().is_followable() {
            return None;
        }
        let dir = self.store().shared_dir()?.to_owned();
        inner.in_background.sharing = SharingInBackground::Holding;
        let (object, changes) = (Arc::downgrade(self), self.watch());
        Some(Sharing::Hold(Holding { object, dir, changes }))
    }

    /// Whether another process receives the file.
    pub fn follows(&self) -> bool {
        self.lock().receiver.follows()
    }

    /// Wakes the follower task, which sends the readers' wishes to the holder.
    pub(super) fn tell_follower(&self, inner: &Inner) {
        if inner.receiver.follows() {
            self.changed.send_replace(());
        }
    }

    /// Describes the file to followers; `None` until it can be opened.
    pub fn describe(&self) -> Option<Description> {
        let inner = self.lock();
        let can_be_opened = inner.receiver.is_confirmed() && !inner.is_shut_down;
        inner.receiver.describe().filter(|_| can_be_opened)
    }

    /// Returns an empty set of what a follower was told. `verifies`: the follower verifies leaves.
    pub fn nothing_told(&self, verifies: bool) -> Told {
        let tells_leaves = verifies && self.lock().receiver.tells_leaves();
        if tells_leaves { Told::no_leaves() } else { Told::no_pages() }
    }

    /// Returns what a follower is to be told. Bytes that lie in memory are not told of.
    pub fn news(&self, told: &mut Told) -> News {
        let inner = self.lock();
        if inner.is_shut_down {
            return News::Ending;
        }
        if inner.is_past_cache || self.store().has_window() {
            return News::Failed;
        }
        inner.receiver.news(told)
    }

    /// Whether leaves are verified here before they are read.
    pub fn verifies_leaves(&self) -> bool {
        self.lock().receiver.verifies_leaves()
    }

    /// Fills the file, because a follower wants all of it. The receive thread must attend to the
    /// object afterwards.
    pub fn fill_for_followers(&self, now: Instant) {
        let mut inner = self.lock();
        inner.fill = Fill::Full;
        if !inner.is_past_cache && inner.receiver.failure().is_none() {
            inner.receiver.fill_for_followers(now);
        }
    }
}

#[cfg(test)]
mod tests;
