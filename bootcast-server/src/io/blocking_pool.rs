//! Threads for work that may block on a disk, shared between the subtrees of the served directory.
//!
//! A file system below the served directory may hang: an NFS server that went away, a FUSE daemon
//! that stopped, a disk that does not answer. Each request for a path on it then blocks a thread.
//! Therefore a subtree may use at most half of its parent's threads: however many requests wait for
//! `a/b`, half of the threads of `a` remain for the other paths in `a`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bootcast_proto::RemotePath;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Minimum number of threads that a subtree may use, however deep it lies.
const MIN_SUBTREE_THREADS: usize = 2;

/// Time that a request waits for a thread. Then it is refused, because its file system may hang.
/// Shorter than the 5 s that a client waits for attributes, so that it learns the reason.
const THREAD_TIMEOUT: Duration = Duration::from_secs(3);

/// Why work was not run or not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// All threads of the path, or of a subtree around it, are in use.
    #[error("too many requests wait for this directory's file system: try again later")]
    Exhausted,
    /// The work panicked.
    #[error("error in this program: see the log of the server")]
    Panicked,
    /// The runtime stops.
    #[error("the server is stopping")]
    Stopped,
}

/// Threads for work on paths. No subtree can use more than its share of them.
#[derive(Clone, Debug)]
pub struct BlockingPool {
    subtrees: Arc<Subtrees>,
    /// Maximum number of threads in use at a time.
    threads: usize,
    /// Time that a request waits for a thread.
    timeout: Duration,
}

/// Free threads of every subtree that some request uses or waits for, by its path.
#[derive(Debug, Default)]
struct Subtrees(Mutex<HashMap<Vec<u8>, Arc<Semaphore>>>);

/// Permission to use one thread, counted in the path's subtree and in all those around it.
#[derive(Debug)]
struct Slot {
    all: Arc<Subtrees>,
    /// Subtree of the path and those around it, innermost first.
    subtrees: Vec<(Vec<u8>, Arc<Semaphore>)>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl BlockingPool {
    /// Creates a pool of up to `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self { subtrees: Arc::default(), threads, timeout: THREAD_TIMEOUT }
    }

    /// Runs `work` on a thread that may block. The thread stays in use until the work is finished,
    /// even if the client disconnects meanwhile.
    pub async fn run<T: Send + 'static>(
        &self,
        path: &RemotePath,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let slot = tokio::time::timeout(self.timeout, self.slot(path)).await;
        let slot = slot.map_err(|_| PoolError::Exhausted)?;
        let work = move || {
            let _slot = slot;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| {
            if error.is_panic() { PoolError::Panicked } else { PoolError::Stopped }
        })
    }

    /// Waits for a slot. Takes the permit of the innermost subtree first, so that a request that
    /// waits for it occupies no permit of the subtrees around it.
    async fn slot(&self, path: &RemotePath) -> Slot {
        let subtrees = self.subtrees_of(path);
        let mut slot = Slot { all: Arc::clone(&self.subtrees), subtrees, permits: Vec::new() };
        for (_, free) in &slot.subtrees {
            let permit = Arc::clone(free).acquire_owned().await;
            slot.permits.push(permit.expect("semaphores are never closed"));
        }
        slot
    }

    /// Returns the subtree of the path and those around it, innermost first.
    fn subtrees_of(&self, path: &RemotePath) -> Vec<(Vec<u8>, Arc<Semaphore>)> {
        let path = path.as_bytes();
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let whole = (!path.is_empty()).then_some(path.len());
        let mut all = self.subtrees.lock();
        let mut subtrees = Vec::new();
        for (depth, end) in std::iter::once(0).chain(ends).chain(whole).enumerate() {
            let name = &path[..end];
            if !all.contains_key(name) {
                let depth = u32::try_from(depth).unwrap_or(u32::MAX);
                let threads = self.threads.checked_shr(depth).unwrap_or(0).max(MIN_SUBTREE_THREADS);
                all.insert(name.to_owned(), Arc::new(Semaphore::new(threads)));
            }
            subtrees.push((name.to_owned(), Arc::clone(&all[name])));
        }
        subtrees.reverse();
        subtrees
    }
}

impl Subtrees {
    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Arc<Semaphore>>> {
        // A panic cannot leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    /// Returns the permits, and forgets the subtrees that no other request uses or waits for.
    fn drop(&mut self) {
        self.permits.clear();
        let mut all = self.all.lock();
        for (name, free) in self.subtrees.drain(..) {
            drop(free);
            if all.get(&name).is_some_and(|free| Arc::strong_count(free) == 1) {
                all.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn path(text: &str) -> RemotePath {
        RemotePath::decode(text).unwrap()
    }

    /// Runs work that blocks until the returned sender is dropped.
    fn hang(pool: &BlockingPool, name: &str) -> mpsc::Sender<()> {
        let (sender, receiver) = mpsc::channel::<()>();
        let (pool, name) = (pool.clone(), path(name));
        tokio::spawn(async move { pool.run(&name, move || receiver.recv().is_err()).await });
        sender
    }

    #[tokio::test]
    async fn a_subtree_that_hangs_leaves_half_of_its_parents_threads_free() {
        let pool = BlockingPool { timeout: Duration::from_millis(50), ..BlockingPool::new(8) };
        // More requests than threads: the later ones wait and give up.
        let mut hung: Vec<_> = (0..20).map(|k| hang(&pool, &format!("a/bad/{k}"))).collect();
        tokio::task::yield_now().await;
        assert_eq!(pool.run(&path("a/bad/x"), || ()).await, Err(PoolError::Exhausted));
        for name in ["a/good", "a/good/x", "a", "", "other"] {
            assert_eq!(pool.run(&path(name), || 5).await, Ok(5), "{name}");
        }
        hung.clear();
        assert_eq!(pool.run(&path("a/bad/x"), || 5).await, Ok(5));
    }

    #[tokio::test]
    async fn unused_subtrees_are_forgotten() {
        let pool = BlockingPool::new(8);
        for k in 0..100 {
            pool.run(&path(&format!("a/{k}")), || ()).await.unwrap();
        }
        assert!(pool.subtrees.lock().is_empty());
        // A request that gave up waiting leaves nothing behind either.
        let hung = [hang(&pool, "a/b/1"), hang(&pool, "a/b/2")];
        tokio::task::yield_now().await;
        let third = path("a/b/3");
        let waiting = tokio::time::timeout(Duration::ZERO, pool.run(&third, || ()));
        assert!(waiting.await.is_err());
        assert!(!pool.subtrees.lock().contains_key(&b"a/b/3"[..]));
        drop(hung);
    }

    #[tokio::test]
    async fn work_that_panics_frees_its_thread() {
        let pool = BlockingPool::new(2);
        for _ in 0..8 {
            let panicked = pool.run(&path("a"), || panic!("intended by the test")).await;
            assert_eq!(panicked, Err::<(), _>(PoolError::Panicked));
        }
        assert!(pool.subtrees.lock().is_empty());
    }
}
