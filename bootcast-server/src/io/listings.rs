//! Listings of directories, each made once for all who ask for it at the same time.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bootcast_proto::{Etag, RemotePath};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::lookups::{Lookups, NotDone};
use crate::source::SourceError;

/// Threads that list directories. Each holds memory for all the entries of one.
const THREADS: usize = 16;

/// A directory of so many entries is listed no more often than once in [`KEPT`].
const MANY_ENTRIES: usize = 1000;

/// How long a listing of many entries is kept for those who ask next.
const KEPT: Duration = Duration::from_secs(1);

/// A listing that took longer than [`KEPT`] is kept for as long as it took, but no longer than
/// this. Whoever gave up waiting for it gets it when asking again.
const KEPT_AT_MOST: Duration = Duration::from_secs(10);

/// The answer to a request for a directory's entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Version of this listing.
    pub etag: Option<Etag>,
    /// The body, as it goes out.
    pub json: Bytes,
    /// Names in the directory.
    pub entries: usize,
}

/// Why there is no listing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ListingError {
    /// The directory cannot be listed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The work was not done.
    #[error(transparent)]
    NotDone(#[from] NotDone),
}

type Listed = Result<Listing, ListingError>;
type List = dyn Fn(&RemotePath) -> Result<Listing, SourceError> + Send + Sync;

/// The listings that are being made, and those that are kept.
#[derive(Clone)]
pub struct Listings {
    list: Arc<List>,
    lookups: Lookups,
    known: Arc<Mutex<HashMap<RemotePath, watch::Receiver<Option<Listed>>>>>,
}

impl fmt::Debug for Listings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listings").field("lookups", &self.lookups).finish_non_exhaustive()
    }
}

impl Listings {
    /// Makes listings with `list`, which may block.
    pub fn new(
        list: impl Fn(&RemotePath) -> Result<Listing, SourceError> + Send + Sync + 'static,
    ) -> Self {
        Self { list: Arc::new(list), lookups: Lookups::new(THREADS), known: Arc::default() }
    }

    /// Gives the listing of a directory: a kept one, the one that is under way, or a new one.
    ///
    /// A listing that was begun is finished, also where nobody waits for it any more.
    pub async fn get(&self, path: &RemotePath) -> Listed {
        let mut listed = self.known_or_new(path);
        match listed.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(listed)) => listed.clone(),
            Ok(None) | Err(_) => Err(NotDone::Stopped.into()),
        }
    }

    fn known_or_new(&self, path: &RemotePath) -> watch::Receiver<Option<Listed>> {
        let mut known = self.lock();
        if let Some(listed) = known.get(path) {
            return listed.clone();
        }
        let (sender, receiver) = watch::channel(None);
        known.insert(path.clone(), receiver.clone());
        tokio::spawn(self.clone().make(path.clone(), sender));
        receiver
    }

    async fn make(self, path: RemotePath, sender: watch::Sender<Option<Listed>>) {
        let began = Instant::now();
        let (list, name) = (Arc::clone(&self.list), path.clone());
        let listed = match self.lookups.run(&path, move || list(&name)).await {
            Ok(listed) => listed.map_err(ListingError::from),
            Err(error) => Err(error.into()),
        };
        let kept = kept(&listed, began.elapsed());
        if kept.is_zero() {
            // Who asks from now on gets a new one.
            self.lock().remove(&path);
            sender.send_replace(Some(listed));
        } else {
            sender.send_replace(Some(listed));
            tokio::time::sleep(kept).await;
            self.lock().remove(&path);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RemotePath, watch::Receiver<Option<Listed>>>> {
        // No code that holds the lock leaves the map half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a listing that took so long is kept. Small directories and errors are not.
fn kept(listed: &Listed, took: Duration) -> Duration {
    match listed {
        Ok(_) if took > KEPT => took.min(KEPT_AT_MOST),
        Ok(listing) if listing.entries >= MANY_ENTRIES => KEPT,
        Ok(_) | Err(_) => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::runtime::Handle;
    use tokio::sync::Semaphore;

    use super::*;

    fn path(text: &str) -> RemotePath {
        RemotePath::decode(text).unwrap()
    }

    fn listing(entries: usize) -> Listing {
        Listing { etag: None, json: Bytes::from_static(b"{}"), entries }
    }

    /// Work waits here until it is closed.
    fn door() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(0))
    }

    /// Counts how often it lists; `bad/..` waits for the door.
    fn counted(door: &Arc<Semaphore>, entries: usize) -> (Listings, Arc<AtomicUsize>) {
        let made = Arc::new(AtomicUsize::new(0));
        let (count, door) = (Arc::clone(&made), Arc::clone(door));
        let listings = Listings::new(move |path| {
            count.fetch_add(1, Ordering::Relaxed);
            if path.names().next() == Some(b"bad") {
                assert!(Handle::current().block_on(door.acquire()).is_err());
            }
            Ok(listing(entries))
        });
        (listings, made)
    }

    async fn until(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn all_who_ask_for_a_directory_get_the_listing_that_is_under_way() {
        let door = door();
        let (listings, made) = counted(&door, 5);
        let asked: Vec<_> = (0..50)
            .map(|_| {
                let listings = listings.clone();
                tokio::spawn(async move { listings.get(&path("bad")).await })
            })
            .collect();
        until(|| made.load(Ordering::Relaxed) > 0).await;
        door.close();
        for asked in asked {
            assert_eq!(asked.await.unwrap().unwrap(), listing(5));
        }
        assert_eq!(made.load(Ordering::Relaxed), 1);
        // A small directory is listed anew for who comes later.
        listings.get(&path("bad")).await.unwrap();
        assert_eq!(made.load(Ordering::Relaxed), 2);
        assert!(listings.lock().is_empty());
    }

    #[tokio::test]
    async fn directories_that_hang_do_not_hold_up_another() {
        let door = door();
        let (listings, made) = counted(&door, 5);
        let asked: Vec<_> = (0..40)
            .map(|k| {
                let listings = listings.clone();
                tokio::spawn(async move { listings.get(&path(&format!("bad/{k}"))).await })
            })
            .collect();
        until(|| made.load(Ordering::Relaxed) >= THREADS / 2).await;
        for name in ["fine", ""] {
            assert_eq!(listings.get(&path(name)).await.unwrap(), listing(5), "{name}");
        }
        door.close();
        for asked in asked {
            // Some may have given up waiting for a thread.
            let _ = asked.await.unwrap();
        }
    }

    #[test]
    fn what_took_long_is_kept_for_who_gave_up_waiting_and_errors_are_not() {
        let (small, error) = (Ok(listing(1)), Err(NotDone::Crowded.into()));
        let large = Ok(listing(MANY_ENTRIES));
        for (listed, took_s, kept_s) in
            [(&small, 0, 0), (&small, 5, 5), (&small, 100, 10), (&large, 0, 1), (&error, 100, 0)]
        {
            let took = Duration::from_secs(took_s);
            assert_eq!(kept(listed, took), Duration::from_secs(kept_s), "{listed:?} {took_s}");
        }
    }

    #[tokio::test]
    async fn an_error_goes_to_all_who_asked() {
        let listings = Listings::new(|_| Err(SourceError::NotFound));
        for _ in 0..2 {
            let refused = listings.get(&path("a")).await;
            assert!(matches!(refused, Err(ListingError::Source(SourceError::NotFound))));
        }
    }
}
