//! Directory listings. Each is made once for all requests that wait for it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bootcast_proto::{Etag, RemotePath};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use super::blocking_pool::{BlockingPool, PoolError};
use crate::source::SourceError;

/// Maximum number of directories listed at a time: each listing needs memory for all its entries.
const THREADS: usize = 16;

/// Number of entries from which on a listing is cached for [`CACHE_TIME`].
const MANY_ENTRIES: usize = 1000;

/// Time for which a listing of many entries is cached.
const CACHE_TIME: Duration = Duration::from_secs(1);

/// Factor by which a listing of fewer entries is cached for longer than it took to make, so that a
/// twentieth of a core is spent on one directory. [`CACHE_TIME`] is the upper bound.
const CACHE_FACTOR: u32 = 20;

/// Upper bound of the cache time of a listing that took longer than [`CACHE_TIME`]. Such a listing
/// is cached for as long as it took, so that a client that timed out gets it at its next request.
const CACHE_TIME_MAX: Duration = Duration::from_secs(10);

/// Maximum number of bytes of the listings that are being sent, or are cached. A client may read
/// slowly, and ask for another directory at the same time.
const MAX_BYTES: usize = 256 << 20;

/// Bytes that one permit stands for.
const PERMIT_BYTES: usize = 4 << 10;

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
    /// The listings that clients are still reading take all the memory that listings may take.
    #[error("clients read too many listings at the same time: try again later")]
    NoMemory,
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
    bodies: Arc<Bodies>,
}

/// Bodies of answers, whose memory is bounded.
struct Bodies {
    /// One permit for each [`PERMIT_BYTES`] that are free.
    free: Arc<Semaphore>,
    permits: u32,
    /// The latest body of each directory, as long as a client reads it or it is cached. Clients
    /// that read slowly then share one body of a directory that does not change.
    latest: Mutex<HashMap<RemotePath, Weak<Body>>>,
}

/// Body of an answer, and the permits for its memory.
struct Body {
    json: Bytes,
    _permits: OwnedSemaphorePermit,
}

/// A share in a body, which keeps its permits.
struct BodyShare(Arc<Body>);

impl AsRef<[u8]> for BodyShare {
    fn as_ref(&self) -> &[u8] {
        &self.0.json
    }
}

impl Bodies {
    fn new(bytes: usize) -> Self {
        let permits = u32::try_from(bytes / PERMIT_BYTES).unwrap_or(u32::MAX);
        let free = Arc::new(Semaphore::new(permits as usize));
        Self { free, permits, latest: Mutex::default() }
    }

    /// Counts the memory of a listing until nobody reads it any more. A listing that is larger than
    /// all the memory must be the only one.
    fn share(&self, path: &RemotePath, listing: Listing) -> ListingResult {
        // A panic cannot leave the map half changed.
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let known = latest.get(path).and_then(Weak::upgrade);
        let body = if let Some(known) = known.filter(|known| known.json == listing.json) {
            known
        } else {
            let permits = u32::try_from(listing.json.len().div_ceil(PERMIT_BYTES));
            let permits = permits.unwrap_or(u32::MAX).min(self.permits);
            let permits = Arc::clone(&self.free).try_acquire_many_owned(permits);
            let permits = permits.map_err(|_| ListingError::NoMemory)?;
            let body = Arc::new(Body { json: listing.json, _permits: permits });
            latest.retain(|_, body| body.strong_count() > 0);
            latest.insert(path.clone(), Arc::downgrade(&body));
            body
        };
        Ok(Listing { json: Bytes::from_owner(BodyShare(body)), ..listing })
    }
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
        Self {
            list: Arc::new(list),
            pool: BlockingPool::new(THREADS),
            cache: Arc::default(),
            bodies: Arc::new(Bodies::new(MAX_BYTES)),
        }
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
            Ok(Ok(listing)) => self.bodies.share(&path, listing),
            Ok(Err(error)) => Err(error.into()),
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

/// Returns the cache time of a listing that took `took` to make. An error is not cached.
fn cache_time(result: &ListingResult, took: Duration) -> Duration {
    match result {
        Ok(_) if took > CACHE_TIME => took.min(CACHE_TIME_MAX),
        Ok(listing) if listing.entries >= MANY_ENTRIES => CACHE_TIME,
        Ok(_) => (took * CACHE_FACTOR).min(CACHE_TIME),
        Err(_) => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::runtime::Handle;

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
        // When its cache time is over, a directory is listed again.
        wait_until(|| listings.lock().is_empty()).await;
        listings.get(&path("bad")).await.unwrap();
        assert_eq!(made.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn clients_that_read_slowly_share_memory_that_is_bounded() {
        let bodies = Bodies::new(3 * PERMIT_BYTES);
        let share = |name: &str, byte, len| {
            let listing = Listing { json: vec![byte; len].into(), ..listing(5) };
            bodies.share(&path(name), listing)
        };
        let first = share("a", 1, PERMIT_BYTES + 1).unwrap();
        // Two of three permits are taken, once for all who get the same.
        let same = share("a", 1, PERMIT_BYTES + 1).unwrap();
        assert_eq!(same.json.as_ptr(), first.json.as_ptr());
        assert!(matches!(share("a", 2, PERMIT_BYTES + 1), Err(ListingError::NoMemory)));
        let other = share("b", 1, 1).unwrap();
        assert!(matches!(share("c", 1, 1), Err(ListingError::NoMemory)));
        drop((first, other));
        assert!(share("c", 1, 1).is_ok());
        assert!(matches!(share("d", 1, usize::pow(PERMIT_BYTES, 2)), Err(ListingError::NoMemory)));
        drop(same);
        assert!(share("d", 1, usize::pow(PERMIT_BYTES, 2)).is_ok());
        assert!(share("c", 1, 1).is_ok());
        assert_eq!(bodies.latest.lock().unwrap().len(), 1);
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
    fn listings_are_cached_for_longer_the_longer_they_take_and_errors_are_not() {
        let (small, error) = (Ok(listing(1)), Err(PoolError::Exhausted.into()));
        let large = Ok(listing(MANY_ENTRIES));
        for (result, took_ms, cached_ms) in [
            (&small, 0, 0),
            (&small, 1, 20),
            (&small, 200, 1000),
            (&small, 5000, 5000),
            (&small, 100_000, 10_000),
            (&large, 0, 1000),
            (&error, 100_000, 0),
        ] {
            let took = Duration::from_millis(took_ms);
            let cached = Duration::from_millis(cached_ms);
            assert_eq!(cache_time(result, took), cached, "{result:?} {took_ms}");
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
