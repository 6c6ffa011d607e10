//! Manifests of served files. Each is computed once for all requests that wait for it, and kept in
//! the state directory.

mod memory;
mod on_request;
mod with_stream;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bootcast_proto::manifest::ContentId;
use bootcast_proto::{Manifest, RemotePath};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::blocking_pool::{BlockingPool, PoolError};
use super::state_dir::StateDir;
use crate::source::{self, HashError, HashProgress, Lead, OpenFile, Version};
use memory::{Entry, Memory};

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
    /// Permit to load a content id that no request waits for.
    loading: Arc<Semaphore>,
    /// Permits to keep what is hashed ahead of a stream.
    leads: Arc<Semaphore>,
    /// Size in bytes of a file that is taken to stay in the page cache once it was read.
    page_cache: u64,
    memory: Arc<Mutex<Memory>>,
}

impl Manifests {
    /// Keeps manifests in `state`; `None` keeps them in memory only.
    pub fn new(state: Option<StateDir>) -> Self {
        Self {
            hashers: BlockingPool::new(THREADS),
            segment_hashers: BlockingPool::new(on_request::THREADS),
            state_threads: BlockingPool::new(STATE_THREADS),
            state: state.map(Arc::new),
            loading: Arc::new(Semaphore::new(1)),
            leads: Arc::new(Semaphore::new(with_stream::LEADS)),
            page_cache: with_stream::page_cache(),
            memory: Arc::default(),
        }
    }

    /// Returns the manifest of an open file. A request that waits for too long is refused; the file
    /// is hashed to the end nevertheless.
    pub async fn get(&self, path: &RemotePath, open: OpenFile) -> ManifestResult {
        let size = open.version.size();
        let Entry { result, progress, lead, .. } = self.recent_or_new(path, open, false);
        // Whoever waits for the whole manifest does not wait for the stream.
        lead.close();
        let finished = tokio::time::timeout(TIMEOUT, finished(result)).await;
        finished
            .unwrap_or_else(|_| Err(ManifestError::Unfinished { hashed: progress.hashed(), size }))
    }

    /// Returns what is known of the manifest of an open file, without waiting. Starts hashing the
    /// file if nothing is.
    pub fn known(&self, path: &RemotePath, open: OpenFile) -> Result<Known, ManifestError> {
        let Entry { result, progress, .. } = self.recent_or_new(path, open, false);
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
    /// `has_stream`: a stream reads the file for whoever calls, so that hashing may keep to it.
    pub fn when_known(
        &self,
        path: &RemotePath,
        open: OpenFile,
        has_stream: bool,
        ready: impl FnOnce(Arc<Manifest>) + Send + 'static,
    ) {
        let awaited = (path.clone(), open.version.key());
        let is_first = self.lock().awaited.insert(awaited.clone());
        if !is_first {
            self.count_member(&awaited.1, has_stream);
            return;
        }
        let entry = self.recent_or_new(path, open, has_stream);
        self.count_member(&awaited.1, has_stream);
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
        if let Some(id) = self.content_id_in_memory(&version) {
            return Some(id);
        }
        if !self.may_be_kept(&version) {
            return None;
        }
        // Goes on after the timeout, so that a later join finds the manifest in memory.
        let loading = tokio::spawn(self.clone().load_id(version));
        tokio::time::timeout(JOIN_STATE_TIMEOUT, loading).await.ok()?.ok()?
    }

    /// Returns the content id of a version if it is in memory. Otherwise the state directory is
    /// asked in the background, so that a later call may return it.
    pub fn content_id_now(&self, version: Version) -> Option<ContentId> {
        let id = self.content_id_in_memory(&version);
        if id.is_none()
            && self.may_be_kept(&version)
            && let Ok(permit) = Arc::clone(&self.loading).try_acquire_owned()
        {
            let loading = self.clone().load_id(version);
            tokio::spawn(async move {
                loading.await;
                drop(permit);
            });
        }
        id
    }

    /// Returns the content id of a version if it is in memory.
    pub fn content_id_in_memory(&self, version: &Version) -> Option<ContentId> {
        self.lock().content_id(&version.key())
    }

    /// Whether the state directory may have a manifest that is not in memory. It does not have one
    /// that is still being computed.
    fn may_be_kept(&self, version: &Version) -> bool {
        self.state.is_some() && !self.lock().contains(&version.key())
    }

    async fn load_id(self, version: Version) -> Option<ContentId> {
        let manifest = self.load(version).await?;
        let (key, id) = (version.key(), manifest.id());
        let mut memory = self.lock();
        memory.remember_id(key, id);
        if !memory.contains(&key) {
            memory.insert(key, Entry::known(manifest));
        }
        Some(id)
    }

    /// Returns whether the content id of a version is in memory, or is being computed for a
    /// request.
    pub fn is_known(&self, version: &Version) -> bool {
        let (mut memory, key) = (self.lock(), version.key());
        memory.contains(&key) || memory.content_id(&key).is_some()
    }

    /// Returns the manifest of a version if it is in memory.
    pub fn in_memory(&self, version: &Version) -> Option<Arc<Manifest>> {
        self.lock().manifest(&version.key())
    }

    /// Returns the manifest of a version from memory or the state directory. Loads it into memory.
    pub async fn find(&self, version: Version) -> Option<Arc<Manifest>> {
        self.content_id(version).await?;
        match self.in_memory(&version) {
            Some(manifest) => Some(manifest),
            None => self.load(version).await,
        }
    }

    /// Forgets the manifest of attributes under which the content changed. The state directory
    /// keeps it.
    pub fn forget(&self, present: &Version) {
        self.lock().forget(&present.key());
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
        let (mut memory, key) = (self.lock(), version.key());
        memory.remember_id(key, manifest.id());
        if !is_kept {
            memory.add_ahead(key, manifest);
        }
    }

    /// Returns the entry of an open file. Starts hashing it if there is none: near the stream, if
    /// `has_stream`.
    fn recent_or_new(&self, path: &RemotePath, open: OpenFile, has_stream: bool) -> Entry {
        let key = open.version.key();
        let mut memory = self.lock();
        let size = open.version.size();
        let (progress, lead) = match memory.entry(&key) {
            Some(entry) if entry.retry_at.is_none_or(|at| Instant::now() < at) => return entry,
            // Only what could not be read is hashed again.
            Some(entry) => (entry.progress, Lead::closed(size)),
            None => (Arc::new(HashProgress::new(size)), self.new_lead(&open, has_stream)),
        };
        let (sender, result) = watch::channel(None);
        let entry = Entry { result, progress, lead: Arc::new(lead), retry_at: None };
        memory.insert(key, entry.clone());
        tokio::spawn(self.clone().provide(path.clone(), open, entry.clone(), sender));
        entry
    }

    /// Loads or computes a manifest, and sends it to the requests that wait. Keeps it unless that
    /// fails.
    async fn provide(
        self,
        path: RemotePath,
        open: OpenFile,
        entry: Entry,
        sender: watch::Sender<Option<ManifestResult>>,
    ) {
        let version = open.version;
        let loaded = tokio::time::timeout(STATE_TIMEOUT, self.load(version)).await;
        if let Ok(Some(manifest)) = loaded {
            entry.lead.close();
            self.publish(&path, version, Ok(manifest), &sender);
            return;
        }
        let result = self.compute(&path, open, &entry).await;
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
        let key = version.key();
        // First: a request that arrives after an error tries again, or finds what is readable.
        match &result {
            Err(error) if error.is_unreadable() => {
                tracing::warn!(%path, %error, "the content id of a file cannot be computed");
                self.lock().set_retry_at(&key, Instant::now() + RETRY);
            }
            Err(_) => self.lock().remove(&key),
            Ok(manifest) => self.lock().remember_id(key, manifest.id()),
        }
        sender.send_replace(Some(result));
        self.lock().recount(&key);
    }

    /// Loads a manifest from the state directory. Joins and requests that wait for the same one
    /// find it in memory when their turn comes.
    async fn load(&self, version: Version) -> Option<Arc<Manifest>> {
        let (state, this) = (Arc::clone(self.state.as_ref()?), self.clone());
        let load = move || {
            let found = this.in_memory(&version);
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

/// Computes the manifest of a file. May block for as long as the disk takes. `progress` must be
/// new, and gets the values one segment after the other.
pub fn hash(open: &OpenFile, progress: &HashProgress) -> Result<Computed, HashError> {
    let computed = hash_at(open, progress, |_| true, SystemTime::now())?;
    Ok(computed.expect("nothing ends it early"))
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

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
