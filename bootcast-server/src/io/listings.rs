//! Directory listings. Each is made once for all requests that wait for it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bootcast_proto::{Etag, RemotePath};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::blocking_pool::{BlockingPool, PoolError};
use crate::source::SourceError;

/// Maximum number of directories listed at a time: each listing needs memory for all its entries.
const THREADS: usize = 16;

/// Number of entries from which on a listing is cached for [`CACHE_TIME`].
const MANY_ENTRIES: usize = 1000;

/// Time for which a listing of many entries is cached.
const CACHE_TIME: Duration = Duration::from_secs(1);

/// Upper bound of the cache time of a listing that took longer than [`CACHE_TIME`]. Such a listing
/// is cached for as long as it took, so that a client that timed out gets it at its next request.
const CACHE_TIME_MAX: Duration = Duration::from_secs(10);

/// The answer to a request for a directory's entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Version of the listing.
    pub etag: Option<Etag>,
    /// Body of the answer.
    pub json: Bytes,
    /// Number of entries.
    pub entries: usize,
}

/// Why there is no listing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ListingError {
    /// The directory cannot be listed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No thread was available, or the server is stopping.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

type ListingResult = Result<Listing, ListingError>;
type ListFn = dyn Fn(&RemotePath) -> Result<Listing, SourceError> + Send + Sync;

/// Listings that are being made, and those that are cached.
#[derive(Clone)]
pub struct Listings {
    list: Arc<ListFn>,
    pool: BlockingPool,
    /// The value is `None` while the listing is being made.
    cache: Arc<Mutex<HashMap<RemotePath, watch::Receiver<Option<ListingResult>>>>>,
}

impl fmt::Debug for Listings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listings").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl Listings {
    /// Creates an empty cache. `list` makes the listings, and may block.
    pub fn new(
        list: impl Fn(&RemotePath) -> Result<Listing, SourceError> + Send + Sync + 'static,
    ) -> Self {
        Self { list: Arc::new(list), pool: BlockingPool::new(THREADS), cache: Arc::default() }
    }

    /// Returns the listing of a directory: a cached one, the one that is being made, or a new one.
    ///
    /// A listing is finished even if no request waits for it any more.
    pub async fn get(&self, path: &RemotePath) -> ListingResult {
        let mut result = self.cached_or_new(path);
        match result.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(result)) => result.clone(),
            Ok(None) | Err(_) => Err(PoolError::Stopped.into()),
        }
    }

    fn cached_or_new(&self, path: &RemotePath) -> watch::Receiver<Option<ListingResult>> {
        let mut cache = self.lock();
        if let Some(result) = cache.get(path) {
            return result.clone();
        }
        let (sender, receiver) = watch::channel(None);
        cache.insert(path.clone(), receiver.clone());
        tokio::spawn(self.clone().make(path.clone(), sender));
        receiver
    }

    /// Makes a listing, sends it to the requests that wait, and removes it when its cache time is
    /// over.
    async fn make(self, path: RemotePath, sender: watch::Sender<Option<ListingResult>>) {
        let began = Instant::now();
        let (list, name) = (Arc::clone(&self.list), path.clone());
        let result = match self.pool.run(&path, move || list(&name)).await {
            Ok(result) => result.map_err(ListingError::from),
            Err(error) => Err(error.into()),
        };
        let cache_time = cache_time(&result, began.elapsed());
        if cache_time.is_zero() {
            // Removed first: a request that arrives from now on gets a new listing.
            self.lock().remove(&path);
            sender.send_replace(Some(result));
        } else {
            sender.send_replace(Some(result));
            tokio::time::sleep(cache_time).await;
            self.lock().remove(&path);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RemotePath, watch::Receiver<Option<ListingResult>>>> {
        // A panic cannot leave the map half changed.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the cache time of a listing that took `took` to make. A small one that was made quickly,
/// or an error, is not cached.
fn cache_time(result: &ListingResult, took: Duration) -> Duration {
    match result {
        Ok(_) if took > CACHE_TIME => took.min(CACHE_TIME_MAX),
        Ok(listing) if listing.entries >= MANY_ENTRIES => CACHE_TIME,
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

    /// Creates a gate: work waits at it until it is closed.
    fn gate() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(0))
    }

    /// Creates listings whose number is counted. Those of `bad/..` wait at the gate.
    fn counted(gate: &Arc<Semaphore>, entries: usize) -> (Listings, Arc<AtomicUsize>) {
        let made = Arc::new(AtomicUsize::new(0));
        let (count, gate) = (Arc::clone(&made), Arc::clone(gate));
        let listings = Listings::new(move |path| {
            count.fetch_add(1, Ordering::Relaxed);
            if path.names().next() == Some(b"bad") {
                assert!(Handle::current().block_on(gate.acquire()).is_err());
            }
            Ok(listing(entries))
        });
        (listings, made)
    }

    async fn wait_until(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn concurrent_requests_for_a_directory_share_one_listing() {
        let gate = gate();
        let (listings, made) = counted(&gate, 5);
        let requests: Vec<_> = (0..50)
            .map(|_| {
                let listings = listings.clone();
                tokio::spawn(async move { listings.get(&path("bad")).await })
            })
            .collect();
        wait_until(|| made.load(Ordering::Relaxed) > 0).await;
        gate.close();
        for request in requests {
            assert_eq!(request.await.unwrap().unwrap(), listing(5));
        }
        assert_eq!(made.load(Ordering::Relaxed), 1);
        // A small directory is listed again for a later request.
        listings.get(&path("bad")).await.unwrap();
        assert_eq!(made.load(Ordering::Relaxed), 2);
        assert!(listings.lock().is_empty());
    }

    #[tokio::test]
    async fn directories_that_hang_do_not_delay_others() {
        let gate = gate();
        let (listings, made) = counted(&gate, 5);
        let requests: Vec<_> = (0..40)
            .map(|k| {
                let listings = listings.clone();
                tokio::spawn(async move { listings.get(&path(&format!("bad/{k}"))).await })
            })
            .collect();
        wait_until(|| made.load(Ordering::Relaxed) >= THREADS / 2).await;
        for name in ["fine", ""] {
            assert_eq!(listings.get(&path(name)).await.unwrap(), listing(5), "{name}");
        }
        gate.close();
        for request in requests {
            // Some requests may have given up waiting for a thread.
            let _ = request.await.unwrap();
        }
    }

    #[test]
    fn slow_and_large_listings_are_cached_and_errors_are_not() {
        let (small, error) = (Ok(listing(1)), Err(PoolError::Exhausted.into()));
        let large = Ok(listing(MANY_ENTRIES));
        for (result, took_s, cached_s) in
            [(&small, 0, 0), (&small, 5, 5), (&small, 100, 10), (&large, 0, 1), (&error, 100, 0)]
        {
            let took = Duration::from_secs(took_s);
            let cached = Duration::from_secs(cached_s);
            assert_eq!(cache_time(result, took), cached, "{result:?} {took_s}");
        }
    }

    #[tokio::test]
    async fn an_error_is_returned_to_every_request() {
        let listings = Listings::new(|_| Err(SourceError::NotFound));
        for _ in 0..2 {
            let result = listings.get(&path("a")).await;
            assert!(matches!(result, Err(ListingError::Source(SourceError::NotFound))));
        }
    }
}
