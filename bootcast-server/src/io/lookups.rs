//! Work that may wait for a disk, shared out over the served tree.
//!
//! A file system below the served directory may hang: an NFS server that went away, a FUSE daemon
//! that stopped, a disk that does not answer. Whoever asks for names on it holds a thread each. So
//! every subtree gets at most half of the threads that its parent has: however many requests wait
//! for `a/b`, half of the threads of `a` are left to the other names in it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bootcast_proto::RemotePath;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Threads of a subtree at least, however deep it lies.
const LEAST_THREADS: usize = 2;

/// A request that got no thread for this long is told to come again: its file system may hang.
const THREAD_WAIT: Duration = Duration::from_secs(5);

/// Why work was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// All threads of a subtree wait for its file system.
    #[error("too many requests wait for this directory's file system: try again later")]
    Crowded,
    /// The runtime stops, or the work panicked and said so.
    #[error("the server stops")]
    Stopped,
}

/// Threads for work on paths, most of them for no single subtree.
#[derive(Clone, Debug)]
pub struct Lookups {
    places: Arc<Places>,
    /// Threads for the whole tree.
    most: usize,
    /// How long a request waits for a thread.
    wait: Duration,
}

/// The free threads of every subtree that somebody works in or waits for.
#[derive(Debug, Default)]
struct Places(Mutex<HashMap<Vec<u8>, Arc<Semaphore>>>);

/// A thread's place in its subtree and in all those around it.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    /// The path and the subtrees around it, innermost first.
    subtrees: Vec<(Vec<u8>, Arc<Semaphore>)>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Lookups {
    /// Shares out `most` threads.
    pub fn new(most: usize) -> Self {
        Self { places: Arc::default(), most, wait: THREAD_WAIT }
    }

    /// Runs `work` on a thread that may block. The thread is the work's, not the request's: a
    /// client that goes away does not free it.
    pub async fn run<T: Send + 'static>(
        &self,
        path: &RemotePath,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        let place = tokio::time::timeout(self.wait, self.place(path)).await;
        let place = place.map_err(|_| NotDone::Crowded)?;
        let work = move || {
            let _place = place;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| NotDone::Stopped)
    }

    /// Waits for a thread. The innermost subtree comes first, so that whoever waits for a place
    /// in it holds none of those around it.
    async fn place(&self, path: &RemotePath) -> Place {
        let subtrees = self.subtrees(path);
        let mut place = Place { places: Arc::clone(&self.places), subtrees, permits: Vec::new() };
        for (_, free) in &place.subtrees {
            let permit = Arc::clone(free).acquire_owned().await;
            place.permits.push(permit.expect("no semaphore is ever closed"));
        }
        place
    }

    fn subtrees(&self, path: &RemotePath) -> Vec<(Vec<u8>, Arc<Semaphore>)> {
        let path = path.as_bytes();
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let whole = (!path.is_empty()).then_some(path.len());
        let mut known = self.places.lock();
        let mut subtrees = Vec::new();
        for (depth, end) in std::iter::once(0).chain(ends).chain(whole).enumerate() {
            let name = &path[..end];
            if !known.contains_key(name) {
                let depth = u32::try_from(depth).unwrap_or(u32::MAX);
                let threads = self.most.checked_shr(depth).unwrap_or(0).max(LEAST_THREADS);
                known.insert(name.to_owned(), Arc::new(Semaphore::new(threads)));
            }
            subtrees.push((name.to_owned(), Arc::clone(&known[name])));
        }
        subtrees.reverse();
        subtrees
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Arc<Semaphore>>> {
        // No code that holds the lock leaves the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    /// Forgets the subtrees that nobody else works in or waits for.
    fn drop(&mut self) {
        self.permits.clear();
        let mut known = self.places.lock();
        for (name, free) in self.subtrees.drain(..) {
            drop(free);
            if known.get(&name).is_some_and(|free| Arc::strong_count(free) == 1) {
                known.remove(&name);
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

    /// Work that waits until the returned sender is gone.
    fn hang(lookups: &Lookups, name: &str) -> mpsc::Sender<()> {
        let (sender, receiver) = mpsc::channel::<()>();
        let (lookups, name) = (lookups.clone(), path(name));
        tokio::spawn(async move { lookups.run(&name, move || receiver.recv().is_err()).await });
        sender
    }

    #[tokio::test]
    async fn a_subtree_that_hangs_leaves_half_of_the_threads_around_it() {
        let lookups = Lookups { wait: Duration::from_millis(50), ..Lookups::new(8) };
        // More than there are threads; the later ones wait and give up.
        let mut hung: Vec<_> = (0..20).map(|k| hang(&lookups, &format!("a/bad/{k}"))).collect();
        tokio::task::yield_now().await;
        assert_eq!(lookups.run(&path("a/bad/x"), || ()).await, Err(NotDone::Crowded));
        for name in ["a/good", "a/good/x", "a", "", "other"] {
            assert_eq!(lookups.run(&path(name), || 5).await, Ok(5), "{name}");
        }
        hung.clear();
        assert_eq!(lookups.run(&path("a/bad/x"), || 5).await, Ok(5));
    }

    #[tokio::test]
    async fn nothing_is_kept_of_paths_that_nobody_asks_for() {
        let lookups = Lookups::new(8);
        for k in 0..100 {
            lookups.run(&path(&format!("a/{k}")), || ()).await.unwrap();
        }
        assert!(lookups.places.lock().is_empty());
        // Nor of one who waited and went away.
        let hung = [hang(&lookups, "a/b/1"), hang(&lookups, "a/b/2")];
        tokio::task::yield_now().await;
        let third = path("a/b/3");
        let waiting = tokio::time::timeout(Duration::ZERO, lookups.run(&third, || ()));
        assert!(waiting.await.is_err());
        assert!(!lookups.places.lock().contains_key(&b"a/b/3"[..]));
        drop(hung);
    }

    #[tokio::test]
    async fn work_that_panics_frees_its_thread() {
        let lookups = Lookups::new(2);
        for _ in 0..8 {
            let panicked = lookups.run(&path("a"), || panic!("as the test wants it")).await;
            assert_eq!(panicked, Err::<(), _>(NotDone::Stopped));
        }
        assert!(lookups.places.lock().is_empty());
    }
}
