//! Manifests of served files. Each is computed once for all requests that wait for it, and kept in
//! the state directory.

mod on_request;

use std::collections::HashSet;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bootcast_proto::manifest::ContentId;
use bootcast_proto::{Manifest, RemotePath};
use lru::LruCache;
use tokio::sync::watch;
use tokio::time::Instant;

use super::blocking_pool::{BlockingPool, PoolError};
use super::state_dir::StateDir;
use crate::source::{self, HashError, HashProgress, OpenFile, Version, VersionKey};

/// Maximum number of files hashed at a time. Each occupies a core, or the disk.
const THREADS: usize = 4;

/// Maximum number of threads that use the state directory.
const STATE_THREADS: usize = 2;

/// Time that a join waits for the state directory. Then it is answered without the content id.
const JOIN_STATE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after which the state directory counts as hanging, and a manifest is computed instead.
const STATE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that a request waits for a manifest. Shorter than the 10 s that a client waits for an
/// answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Upper bound of the leaf values that are kept: 64 MiB, for 32 GiB of files. The manifest that was
/// used last is kept whatever its size.
const LEAVES_MAX: u64 = 1 << 21;

/// Upper bound of the leaf values that are computed ahead and kept in memory. The rest of
/// [`LEAVES_MAX`] is left to what requests asked for.
const LEAVES_AHEAD_MAX: u64 = LEAVES_MAX / 2;

/// Minimum number of leaf values that a file counts for [`LEAVES_AHEAD_MAX`], so that the number of
/// files is bounded too.
const LEAVES_AHEAD_MIN: u64 = 64;

/// Maximum number of content ids that are remembered. They outlive the leaf values in memory, so
/// that joins do not load these again and again.
const IDS_MAX: NonZeroUsize = NonZeroUsize::new(1 << 14).expect("not 0");

/// Time after which a file with leaves that cannot be read is tried again, if somebody asks.
const RETRY: Duration = Duration::from_secs(60);

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

impl ManifestError {
    /// Whether parts of the file cannot be read. The values of the others may be known.
    fn is_unreadable(&self) -> bool {
        matches!(self, Self::Hash(error) if matches!(**error, HashError::Io(_)))
    }
}

type ManifestResult = Result<Arc<Manifest>, ManifestError>;

/// A manifest, or the work on it.
#[derive(Clone, Debug)]
struct Entry {
    /// `None` while the file is being hashed.
    result: watch::Receiver<Option<ManifestResult>>,
    /// Values that are known meanwhile.
    progress: Arc<HashProgress>,
    /// When to try the leaves again that cannot be read; `None` while there are none.
    retry_at: Option<Instant>,
}

impl Entry {
    /// Creates the entry of a manifest that is known.
    fn known(manifest: Arc<Manifest>) -> Self {
        let progress = Arc::new(HashProgress::new(manifest.tree().size()));
        Self { result: watch::channel(Some(Ok(manifest))).1, progress, retry_at: None }
    }
}

/// What is known of a manifest.
#[derive(Debug)]
pub enum Known {
    /// All of it.
    Whole(Arc<Manifest>),
    /// The part that is hashed, or can be read.
    Part(Arc<HashProgress>),
}

/// Manifests that are being computed, those that were used recently, and the state directory.
#[derive(Clone, Debug)]
pub struct Manifests {
    /// Threads that hash files.
    hashers: BlockingPool,
    /// Threads that hash single segments on request.
    segment_hashers: BlockingPool,
    /// Threads that use the state directory.
    state_threads: BlockingPool,
    state: Option<Arc<StateDir>>,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Debug)]
struct Memory {
    manifests: LruCache<VersionKey, Entry>,
    ids: LruCache<VersionKey, ContentId>,
    /// Number of leaf values that were added ahead, up to [`LEAVES_AHEAD_MAX`].
    leaves_ahead: u64,
    /// Versions whose manifests [`Manifests::when_known`] waits for.
    awaited: HashSet<(RemotePath, VersionKey)>,
}

impl Manifests {
    /// Keeps manifests in `state`; `None` keeps them in memory only.
    pub fn new(state: Option<StateDir>) -> Self {
        let (manifests, ids) = (LruCache::unbounded(), LruCache::new(IDS_MAX));
        let memory = Memory { manifests, ids, leaves_ahead: 0, awaited: HashSet::new() };
        Self {
            hashers: BlockingPool::new(THREADS),
            segment_hashers: BlockingPool::new(on_request::THREADS),
            state_threads: BlockingPool::new(STATE_THREADS),
            state: state.map(Arc::new),
            memory: Arc::new(Mutex::new(memory)),
        }
    }

    /// Returns the manifest of an open file. A request that waits for too long is refused; the file
    /// is hashed to the end nevertheless.
    pub async fn get(&self, path: &RemotePath, open: OpenFile) -> ManifestResult {
        let size = open.version.size();
        let Entry { result, progress, .. } = self.recent_or_new(path, open);
        let finished = tokio::time::timeout(TIMEOUT, finished(result)).await;
        finished
            .unwrap_or_else(|_| Err(ManifestError::Unfinished { hashed: progress.hashed(), size }))
    }

    /// Returns what is known of the manifest of an open file, without waiting. Starts hashing the
    /// file if nothing is.
    pub fn known(&self, path: &RemotePath, open: OpenFile) -> Result<Known, ManifestError> {
        let Entry { result, progress, .. } = self.recent_or_new(path, open);
        let result = result.borrow().clone();
        match result {
            None => Ok(Known::Part(progress)),
            Some(Ok(manifest)) => Ok(Known::Whole(manifest)),
            Some(Err(error)) if error.is_unreadable() => Ok(Known::Part(progress)),
            Some(Err(error)) => Err(error),
        }
    }

    /// Calls `ready` with the manifest of an open file, as soon as it is known. Does nothing if an
    /// earlier call waits for the same version of the path, or if the file cannot be hashed.
    pub fn when_known(
        &self,
        path: &RemotePath,
        open: OpenFile,
        ready: impl FnOnce(Arc<Manifest>) + Send + 'static,
    ) {
        let awaited = (path.clone(), open.version.key());
        if !self.lock().awaited.insert(awaited.clone()) {
            return;
        }
        let entry = self.recent_or_new(path, open);
        let this = self.clone();
        tokio::spawn(async move {
            let manifest = finished(entry.result).await;
            // First: a call from now on finds nobody who waits, and waits itself.
            this.lock().awaited.remove(&awaited);
            match manifest {
                Ok(manifest) => ready(manifest),
                Err(error) => {
                    tracing::debug!(path = %awaited.0, %error, "no leaf values for the cast");
                }
            }
        });
    }

    /// Returns the content id of a version, if its manifest was computed already, by this process
    /// or by another one that used the state directory.
    pub async fn content_id(&self, version: Version) -> Option<ContentId> {
        {
            let mut memory = self.lock();
            if let Some(id) = memory.ids.get(&version.key()) {
                return Some(*id);
            }
            if let Some(entry) = memory.manifests.get(&version.key()) {
                // If it is still being computed, the state directory does not have it.
                return Some(entry.result.borrow().as_ref()?.as_ref().ok()?.id());
            }
        }
        self.state.as_ref()?;
        let this = self.clone();
        // Goes on after the timeout, so that a later join finds the manifest in memory.
        let loading = tokio::spawn(async move {
            let manifest = this.load(version).await?;
            let id = manifest.id();
            this.remember(version.key(), id, Some(Entry::known(manifest)));
            Some(id)
        });
        tokio::time::timeout(JOIN_STATE_TIMEOUT, loading).await.ok()?.ok()?
    }

    /// Returns whether the content id of a version is in memory, or is being computed for a request.
    pub fn is_known(&self, version: &Version) -> bool {
        let memory = self.lock();
        memory.ids.contains(&version.key()) || memory.manifests.contains(&version.key())
    }

    /// Returns the manifest of a version if it is in memory.
    pub fn in_memory(&self, version: &Version) -> Option<Arc<Manifest>> {
        self.manifest_of(version.key())
    }

    /// Returns the manifest of a version from memory or the state directory. Loads it into memory.
    pub async fn find(&self, version: Version) -> Option<Arc<Manifest>> {
        self.content_id(version).await?;
        match self.in_memory(&version) {
            Some(manifest) => Some(manifest),
            None => self.load(version).await,
        }
    }

    /// Forgets the manifest of attributes under which the content changed. May block on the disk.
    pub fn forget(&self, present: &Version) {
        let mut memory = self.lock();
        memory.ids.pop(&present.key());
        memory.manifests.pop(&present.key());
        drop(memory);
        let removed = self.state.as_ref().map(|state| state.remove(present));
        if let Some(Err(error)) = removed {
            tracing::warn!(%error, "cannot remove a manifest");
        }
    }

    /// Returns the state directory.
    pub fn state(&self) -> Option<&StateDir> {
        self.state.as_deref()
    }

    /// Returns whether the state directory has the manifest of a version. May block on the disk.
    pub fn is_kept(&self, version: &Version) -> bool {
        self.state.as_ref().is_some_and(|state| state.contains(version))
    }

    /// Stores a manifest that nobody asked for in the state directory. Returns whether it is kept
    /// there. May block on the disk.
    pub fn keep_on_disk(&self, path: &RemotePath, version: &Version, computed: &Computed) -> bool {
        let Some(state) = self.state.as_ref().filter(|_| computed.is_lasting) else { return false };
        let stored = state.store(version, &computed.manifest);
        if let Err(error) = &stored {
            tracing::warn!(%path, %error, "cannot keep the manifest of a file");
        }
        stored.is_ok()
    }

    /// Remembers a manifest that nobody asked for. `is_kept`: the state directory has it, so only
    /// its content id is remembered. Removes no manifest that a request asked for.
    pub fn remember_ahead(&self, version: &Version, manifest: Manifest, is_kept: bool) {
        let mut memory = self.lock();
        memory.ids.put(version.key(), manifest.id());
        let leaves = manifest.tree().leaves().max(LEAVES_AHEAD_MIN);
        if is_kept || memory.leaves_ahead + leaves > LEAVES_AHEAD_MAX {
            return;
        }
        memory.leaves_ahead += leaves;
        memory.manifests.get_or_insert(version.key(), || Entry::known(Arc::new(manifest)));
    }

    fn recent_or_new(&self, path: &RemotePath, open: OpenFile) -> Entry {
        let key = open.version.key();
        let mut memory = self.lock();
        let found = memory.manifests.get(&key).cloned();
        let progress = match found {
            Some(entry) if entry.retry_at.is_none_or(|at| Instant::now() < at) => return entry,
            // Only what could not be read is hashed again.
            Some(entry) => entry.progress,
            None => Arc::new(HashProgress::new(open.version.size())),
        };
        let (sender, result) = watch::channel(None);
        let entry = Entry { result, progress, retry_at: None };
        memory.manifests.put(key, entry.clone());
        tokio::spawn(self.clone().provide(path.clone(), open, entry.progress.clone(), sender));
        entry
    }

    /// Loads or computes a manifest, and sends it to the requests that wait. Keeps it unless that
    /// fails.
    async fn provide(
        self,
        path: RemotePath,
        open: OpenFile,
        progress: Arc<HashProgress>,
        sender: watch::Sender<Option<ManifestResult>>,
    ) {
        let version = open.version;
        let loaded = tokio::time::timeout(STATE_TIMEOUT, self.load(version)).await;
        if let Ok(Some(manifest)) = loaded {
            self.publish(&path, version, Ok(manifest), &sender);
            return;
        }
        let hash = move || hash_readable(&open, &progress);
        let result = match self.hashers.run(&path, hash).await {
            Ok(result) => result.map_err(|error| ManifestError::from(Arc::new(error))),
            Err(error) => Err(error.into()),
        };
        let is_lasting = result.as_ref().is_ok_and(|it| it.is_lasting);
        let result = result.map(|it| Arc::new(it.manifest));
        self.publish(&path, version, result.clone(), &sender);
        if let Ok(manifest) = result
            && is_lasting
        {
            self.store(path, version, manifest).await;
        }
    }

    /// Sends the result to the requests that wait, and remembers it. An error is remembered if the
    /// file is partly readable, until [`RETRY`] is over.
    fn publish(
        &self,
        path: &RemotePath,
        version: Version,
        result: ManifestResult,
        sender: &watch::Sender<Option<ManifestResult>>,
    ) {
        // First: a request that arrives after an error tries again, or finds what is readable.
        match &result {
            Err(error) if error.is_unreadable() => {
                tracing::warn!(%path, %error, "the content id of a file cannot be computed");
                if let Some(entry) = self.lock().manifests.get_mut(&version.key()) {
                    entry.retry_at = Some(Instant::now() + RETRY);
                }
            }
            Err(_) => {
                self.lock().manifests.pop(&version.key());
            }
            Ok(_) => {}
        }
        let id = result.as_ref().ok().map(|manifest| manifest.id());
        sender.send_replace(Some(result));
        match id {
            Some(id) => self.remember(version.key(), id, None),
            None => evict(&mut self.lock().manifests),
        }
    }

    /// Loads a manifest from the state directory. Joins and requests that wait for the same one
    /// find it in memory when their turn comes.
    async fn load(&self, version: Version) -> Option<Arc<Manifest>> {
        let (state, this) = (Arc::clone(self.state.as_ref()?), self.clone());
        let load = move || {
            let found = this.manifest_of(version.key());
            found.or_else(|| state.load(&version).map(Arc::new))
        };
        self.state_threads.run(&RemotePath::root(), load).await.ok()?
    }

    /// Stores a manifest in the state directory.
    async fn store(&self, path: RemotePath, version: Version, manifest: Arc<Manifest>) {
        let Some(state) = self.state.clone() else { return };
        let store = move || state.store(&version, &manifest);
        let stored = self.state_threads.run(&RemotePath::root(), store).await;
        if let Err(error) = stored.map_err(io::Error::other).and_then(|stored| stored) {
            tracing::warn!(%path, %error, "cannot keep the manifest of a file");
        }
    }

    fn manifest_of(&self, key: VersionKey) -> Option<Arc<Manifest>> {
        let result = self.lock().manifests.peek(&key)?.result.borrow().clone();
        result?.ok()
    }

    /// Remembers a content id, and a manifest that is not in memory.
    fn remember(&self, key: VersionKey, id: ContentId, entry: Option<Entry>) {
        let mut memory = self.lock();
        memory.ids.put(key, id);
        if let Some(entry) = entry {
            memory.manifests.get_or_insert(key, || entry);
        }
        evict(&mut memory.manifests);
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // A panic cannot leave the maps half changed.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A manifest that was computed just now.
#[derive(Debug)]
pub struct Computed {
    /// The manifest.
    pub manifest: Manifest,
    /// Whether every later change of the file gives another version, so that the manifest can be
    /// kept for this one.
    pub is_lasting: bool,
}

/// Waits until a manifest is known, or cannot be.
async fn finished(mut result: watch::Receiver<Option<ManifestResult>>) -> ManifestResult {
    match result.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(result)) => result.clone(),
        Ok(None) | Err(_) => Err(PoolError::Stopped.into()),
    }
}

/// Computes the manifest of a file. May block for as long as the disk takes. `progress` must be new,
/// and gets the values one segment after the other.
pub fn hash(open: &OpenFile, progress: &HashProgress) -> Result<Computed, HashError> {
    let computed = hash_at(open, progress, |_| true, SystemTime::now())?;
    Ok(computed.expect("nothing ends it early"))
}

/// Like [`hash`], but goes on behind leaves that cannot be read before it fails. `progress` may
/// have values already.
fn hash_readable(open: &OpenFile, progress: &HashProgress) -> Result<Computed, HashError> {
    let is_stable = open.present.unstable_for(SystemTime::now()).is_none();
    let manifest = source::hash_readable(open, progress)?;
    Ok(Computed::new(open, manifest, is_stable))
}

/// Like [`hash`], but returns `None` once `go_on` is false. It is called after each segment, with
/// the number of bytes that are done.
pub fn hash_while(
    open: &OpenFile,
    go_on: impl FnMut(u64) -> bool,
) -> Result<Option<Computed>, HashError> {
    hash_at(open, &HashProgress::new(open.version.size()), go_on, SystemTime::now())
}

fn hash_at(
    open: &OpenFile,
    progress: &HashProgress,
    go_on: impl FnMut(u64) -> bool,
    now: SystemTime,
) -> Result<Option<Computed>, HashError> {
    let is_stable = open.present.unstable_for(now).is_none();
    let Some(manifest) = source::hash_while(open, progress, go_on)? else { return Ok(None) };
    Ok(Some(Computed::new(open, manifest, is_stable)))
}

impl Computed {
    /// `is_stable`: the version was stable when hashing began.
    fn new(open: &OpenFile, manifest: Manifest, is_stable: bool) -> Self {
        let is_lasting = is_stable && !open.present.is_in_image();
        Self { manifest, is_lasting }
    }
}

/// Forgets the manifests that were not used for longest, until the others fit. Keeps those that are
/// being computed.
fn evict(manifests: &mut LruCache<VersionKey, Entry>) {
    let computed = manifests.iter().filter(|(_, entry)| leaves_of(entry) > 0);
    let computed: Vec<_> = computed.map(|(key, entry)| (*key, leaves_of(entry))).collect();
    let mut leaves: u64 = computed.iter().map(|(_, leaves)| leaves).sum();
    // The iterator begins with the most recent one.
    for (key, own) in computed.iter().skip(1).rev() {
        if leaves <= LEAVES_MAX {
            break;
        }
        manifests.pop(key);
        leaves -= own;
    }
}

/// Returns the number of leaf values that an entry keeps in memory.
fn leaves_of(entry: &Entry) -> u64 {
    match &*entry.result.borrow() {
        Some(Ok(manifest)) => manifest.tree().leaves(),
        // Parts of the file cannot be read.
        Some(Err(_)) => entry.progress.tree().leaves(),
        None => 0,
    }
}

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
