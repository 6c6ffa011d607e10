//! Manifests of served files. Each is computed once for all requests that wait for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bootcast_proto::{Etag, Manifest, RemotePath};
use lru::LruCache;
use tokio::sync::watch;

use super::blocking_pool::{BlockingPool, PoolError};
use crate::source::{self, HashError, OpenFile};

/// Maximum number of files hashed at a time. Each occupies a core, or the disk.
const THREADS: usize = 4;

/// Time that a request waits for a manifest. Shorter than the 10 s that a client waits for an
/// answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Upper bound of the leaf values that are kept: 64 MiB, for 32 GiB of files. The manifest that was
/// used last is kept whatever its size.
const LEAVES_MAX: u64 = 1 << 21;

/// Why there is no manifest.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file cannot be hashed.
    #[error(transparent)]
    Hash(#[from] Arc<HashError>),
    /// The file is still being hashed.
    #[error("hashing the file, {hashed} of {size} bytes are done: try again later")]
    Unfinished {
        /// Number of bytes that are hashed.
        hashed: u64,
        /// Size of the file in bytes.
        size: u64,
    },
    /// No thread was available, or the server is stopping.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

type ManifestResult = Result<Arc<Manifest>, ManifestError>;

/// A manifest, or the work on it.
#[derive(Clone, Debug)]
struct Entry {
    /// `None` while the file is being hashed.
    result: watch::Receiver<Option<ManifestResult>>,
    /// Number of bytes that are hashed.
    hashed: Arc<AtomicU64>,
}

/// Manifests that are being computed, and those that were used recently.
#[derive(Clone, Debug)]
pub struct Manifests {
    pool: BlockingPool,
    recent: Arc<Mutex<LruCache<Etag, Entry>>>,
}

impl Default for Manifests {
    fn default() -> Self {
        let recent = Arc::new(Mutex::new(LruCache::unbounded()));
        Self { pool: BlockingPool::new(THREADS), recent }
    }
}

impl Manifests {
    /// Returns the manifest of an open file. A request that waits for too long is refused; the file
    /// is hashed to the end nevertheless.
    pub async fn get(&self, path: &RemotePath, open: OpenFile) -> ManifestResult {
        let size = open.version.size();
        let Entry { mut result, hashed } = self.recent_or_new(path, open);
        let finished = tokio::time::timeout(TIMEOUT, result.wait_for(Option::is_some)).await;
        let finished = finished.map_err(|_| {
            let hashed = hashed.load(Ordering::Relaxed);
            ManifestError::Unfinished { hashed, size }
        })?;
        match finished.as_deref() {
            Ok(Some(result)) => result.clone(),
            Ok(None) | Err(_) => Err(PoolError::Stopped.into()),
        }
    }

    /// Returns the manifest of a version, if it was computed already.
    pub fn known(&self, etag: &Etag) -> Option<Arc<Manifest>> {
        let entry = self.lock().get(etag)?.clone();
        let result = entry.result.borrow().clone();
        result?.ok()
    }

    fn recent_or_new(&self, path: &RemotePath, open: OpenFile) -> Entry {
        let etag = open.etag();
        let mut recent = self.lock();
        if let Some(entry) = recent.get(&etag) {
            return entry.clone();
        }
        let (sender, result) = watch::channel(None);
        let entry = Entry { result, hashed: Arc::default() };
        recent.put(etag, entry.clone());
        tokio::spawn(self.clone().compute(path.clone(), open, entry.hashed.clone(), sender));
        entry
    }

    /// Computes a manifest, and sends it to the requests that wait. Keeps it unless that fails.
    async fn compute(
        self,
        path: RemotePath,
        open: OpenFile,
        hashed: Arc<AtomicU64>,
        sender: watch::Sender<Option<ManifestResult>>,
    ) {
        let etag = open.etag();
        let result = match self.pool.run(&path, move || source::hash(&open, &hashed)).await {
            Ok(result) => result.map(Arc::new).map_err(|error| Arc::new(error).into()),
            Err(error) => Err(error.into()),
        };
        if result.is_err() {
            // Removed first: a request that arrives from now on tries again.
            self.lock().pop(&etag);
        }
        sender.send_replace(Some(result));
        self.evict();
    }

    /// Forgets the manifests that were not used for longest, until the others fit. Keeps those that
    /// are being computed.
    fn evict(&self) {
        let mut recent = self.lock();
        let computed = recent.iter().filter(|(_, entry)| leaves_of(entry) > 0);
        let computed: Vec<_> =
            computed.map(|(etag, entry)| (etag.clone(), leaves_of(entry))).collect();
        let mut leaves: u64 = computed.iter().map(|(_, leaves)| leaves).sum();
        // The iterator begins with the most recent one.
        for (etag, own) in computed.iter().skip(1).rev() {
            if leaves <= LEAVES_MAX {
                break;
            }
            recent.pop(etag);
            leaves -= own;
        }
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Etag, Entry>> {
        // A panic cannot leave the map half changed.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the number of leaf values that an entry keeps in memory.
fn leaves_of(entry: &Entry) -> u64 {
    match &*entry.result.borrow() {
        Some(Ok(manifest)) => manifest.tree().leaves(),
        Some(Err(_)) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::source::Version;

    fn path(name: &str) -> RemotePath {
        RemotePath::decode(name).unwrap()
    }

    fn open(bytes: &[u8]) -> OpenFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        OpenFile { version: Version::of_file(&file).unwrap(), file }
    }

    #[tokio::test]
    async fn concurrent_requests_for_a_manifest_hash_the_file_once() {
        let manifests = Manifests::default();
        let file = open(b"abc");
        let etag = file.etag();
        assert!(manifests.known(&etag).is_none());
        let again = || OpenFile { file: file.file.try_clone().unwrap(), version: file.version };
        let name = path("a");
        let (first, second) =
            tokio::join!(manifests.get(&name, again()), manifests.get(&name, again()));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(first.id().as_bytes(), blake3::hash(b"abc").as_bytes());
        assert!(Arc::ptr_eq(&first, &manifests.known(&etag).unwrap()));
    }

    #[tokio::test]
    async fn a_failure_is_not_kept() {
        let manifests = Manifests::default();
        let file = open(b"abc");
        let etag = file.etag();
        file.file.set_len(1).unwrap();
        let failed = manifests.get(&path("a"), file).await;
        assert!(matches!(failed, Err(ManifestError::Hash(_))), "{failed:?}");
        assert!(manifests.lock().get(&etag).is_none());
    }
}
