//! Announces versions: names the content of the served files, not their attributes.
//!
//! Everybody who opens or lists served files does so here. When a file gets other attributes, its
//! bytes are compared in the background with the manifest of the announced version. Meanwhile that
//! version stays announced. docs/SEMANTICS.md, "Versions".

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bootcast_proto::RemotePath;
use bootcast_proto::api::{Attributes, Meta};
use bootcast_proto::space::Space;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::blocking_pool::BlockingPool;
use super::bundles::BundleFiles;
use super::manifests::Manifests;
use super::state_dir::StateDir;
use crate::source::{
    Alias, Announcements, Comparison, OpenFile, Resolution, Source, SourceError, Version, compare,
};

/// Maximum number of files whose bytes are compared at a time. Each occupies a core, or the disk.
const THREADS: usize = 2;

/// Time that a request waits until the bytes of a file are compared. Then it is answered with the
/// version that was announced before.
const VERDICT_TIMEOUT: Duration = Duration::from_millis(500);

/// What is announced for the paths of the served directory.
#[derive(Clone, Debug)]
pub struct Identity {
    source: Arc<Source>,
    /// Bundles of files, which have paths as well.
    bundles: BundleFiles,
    manifests: Manifests,
    /// Threads that compare bytes.
    pool: BlockingPool,
    /// Permits of the comparisons that may hold a manifest in memory.
    turns: Arc<Semaphore>,
    /// Held while an alias is written, one after the other.
    keeping: Arc<tokio::sync::Mutex<()>>,
    /// Runs comparisons and keeps aliases; `None` where there is no runtime, which does neither.
    runtime: Option<Handle>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    announcements: Announcements,
    /// Paths whose bytes are being compared.
    running: HashMap<RemotePath, Running>,
}

/// A comparison that runs.
#[derive(Clone, Debug)]
struct Running {
    since: Instant,
    /// Its sender is dropped when the comparison is done.
    done: watch::Receiver<()>,
}

/// A comparison of a file with the announced version.
#[derive(Clone, Debug)]
struct Suspicion {
    path: RemotePath,
    announced: Version,
    present: Version,
    until: Instant,
}

/// A path that was looked up.
#[derive(Clone, Debug)]
pub struct Located {
    /// Attributes of the path alone.
    pub attributes: Attributes,
    /// Announced version of a regular file.
    pub version: Option<Version>,
    /// Capacity of the file system that a directory lies on, if that is known.
    pub space: Option<Space>,
}

impl Identity {
    /// Announces the files of `source`. Loads the aliases of the state directory, so it may block.
    pub fn new(source: Arc<Source>, manifests: Manifests) -> Self {
        let aliases = manifests.state().map(StateDir::aliases).transpose();
        let aliases = aliases.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot load the aliases of versions");
            None
        });
        let announcements = Announcements::new(aliases.unwrap_or_default());
        Self {
            source,
            bundles: BundleFiles::default(),
            manifests,
            pool: BlockingPool::new(THREADS),
            turns: Arc::new(Semaphore::new(THREADS)),
            keeping: Arc::default(),
            runtime: Handle::try_current().ok(),
            state: Arc::new(Mutex::new(State { announcements, running: HashMap::new() })),
        }
    }

    /// Returns the manifests of the versions.
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Returns the bundles in memory.
    pub fn bundle_files(&self) -> &BundleFiles {
        &self.bundles
    }

    /// Opens a regular file or a bundle. The announced version of a file is not known before
    /// [`Self::announce`]. May block.
    pub fn open(&self, path: &RemotePath) -> Result<OpenFile, SourceError> {
        self.bundles.open(path).unwrap_or_else(|| self.source.open(path))
    }

    /// Sets the announced version of an open file. May block on the state directory.
    pub fn announce(&self, path: &RemotePath, open: OpenFile) -> OpenFile {
        if open.is_sealed {
            return open;
        }
        let Resolution { version, is_suspect, .. } = self.resolve(path, open.present);
        OpenFile { version, is_suspect, ..open }
    }

    /// Waits for a moment until it is known whether the content of a suspect path has changed.
    /// Returns `false` at once if the path is not suspect.
    pub async fn wait_verdict(&self, path: &RemotePath) -> bool {
        let running = self.lock().running.get(path).cloned();
        let Some(Running { since, mut done }) = running else { return false };
        let deadline = tokio::time::Instant::from_std(since + VERDICT_TIMEOUT);
        // Fails when the comparison is done: it never sends anything.
        let _ = tokio::time::timeout_at(deadline, done.changed()).await;
        true
    }

    /// Returns the version that is announced for a path at present. May block.
    pub fn version(&self, path: &RemotePath) -> Result<Version, SourceError> {
        if let Some(version) = self.bundles.version(path) {
            return Ok(version);
        }
        Ok(self.resolve(path, self.source.version(path)?).version)
    }

    /// Reads the attributes of the path alone. May block.
    pub fn attributes(&self, path: &RemotePath) -> Result<Located, SourceError> {
        let announced = Cell::new(None);
        let (attributes, space) = self.source.attributes(path, &|present| {
            let version = self.resolve(path, present).version;
            announced.set(Some(version));
            version
        })?;
        Ok(Located { attributes, version: announced.get(), space })
    }

    /// Reads the attributes of a directory and of all its entries. May block.
    pub fn list(&self, path: &RemotePath) -> Result<Meta, SourceError> {
        self.source.list(path, &|name, present| match path.join(name) {
            Ok(path) => self.resolve_listed(&path, present),
            // Such a name cannot be served.
            Err(_) => present,
        })
    }

    /// Returns the version of an entry of a listing. A large directory does not make the paths be
    /// forgotten that are in use.
    fn resolve_listed(&self, path: &RemotePath, present: Version) -> Version {
        let state = self.lock();
        if state.announcements.is_full_for(path) {
            return state.announcements.version_of(present);
        }
        drop(state);
        self.resolve(path, present).version
    }

    /// Handles that the file of a path has other bytes than its announced version: another version
    /// is announced from now on. `present` is the attributes of the file. May block.
    pub fn handle_other_bytes(
        &self,
        path: &RemotePath,
        announced: Version,
        present: Version,
        bytes: Range<u64>,
    ) {
        let mut state = self.lock();
        let alias = state.announcements.on_other_bytes(path, announced, present, serial());
        drop(state);
        if let Some(alias) = alias {
            let etag = alias.1.etag();
            let (first, last) = (bytes.start, bytes.end.saturating_sub(1));
            tracing::warn!(
                %path, new = %etag,
                "the file was rewritten: bytes {first}-{last} are not those of {}",
                announced.etag()
            );
            self.keep(path, alias);
        }
    }

    fn resolve(&self, path: &RemotePath, present: Version) -> Resolution {
        // Found without the lock, because the state directory may hang.
        let suspect = self.lock().announcements.announced_otherwise(path, present);
        let provable = suspect.filter(|announced| self.can_prove(announced));
        let can_prove = |announced: &Version| provable == Some(*announced);
        let mut state = self.lock();
        let now = Instant::now();
        let (resolution, alias) =
            state.announcements.resolve(path, present, can_prove, serial(), now);
        if let (Some(until), Some(runtime)) = (resolution.compare_until, &self.runtime) {
            let (done, receiver) = watch::channel(());
            state.running.insert(path.clone(), Running { since: now, done: receiver });
            let announced = resolution.version;
            let suspicion = Suspicion { path: path.clone(), announced, present, until };
            runtime.spawn(self.clone().investigate(suspicion, done));
        }
        drop(state);
        if let Some(alias) = alias {
            self.keep(path, alias);
        }
        resolution
    }

    /// Whether bytes can be compared with a version. Looks at the disk only where the content id is
    /// not in memory.
    fn can_prove(&self, announced: &Version) -> bool {
        let is_known = || {
            self.manifests.content_id_in_memory(announced).is_some()
                || self.manifests.is_kept(announced)
        };
        self.runtime.is_some() && is_known()
    }

    /// Compares a file with the announced version, and records the outcome.
    async fn investigate(self, suspicion: Suspicion, done: watch::Sender<()>) {
        let Suspicion { path, announced, present, until } = suspicion.clone();
        let left = until.saturating_duration_since(Instant::now());
        let compared = tokio::time::timeout(left, self.compare(suspicion)).await;
        let outcome = compared.unwrap_or(Ok(Comparison::Ended));
        tracing::debug!(%path, etag = %announced.etag(), ?outcome, "other attributes");
        let is_equal = match outcome {
            Ok(Comparison::Equal) => Some(true),
            Ok(Comparison::Other(_) | Comparison::Ended) | Err(_) => Some(false),
            Ok(Comparison::Changed) => None,
        };
        let alias = {
            let mut state = self.lock();
            state.remove_running(&path, &done);
            let announcements = &mut state.announcements;
            if let Some(is_equal) = is_equal {
                announcements.on_compared(&path, announced, present, is_equal, serial())
            } else {
                announcements.on_compare_aborted(&path, present);
                None
            }
        };
        drop(done);
        if let Some(alias) = alias {
            self.keep(&path, alias);
        }
    }

    async fn compare(&self, suspicion: Suspicion) -> Result<Comparison, SourceError> {
        let Suspicion { path, announced, present, until } = suspicion;
        // A write that leaves the attributes as they are would not be noticed later.
        if let Some(wait) = present.unstable_for(SystemTime::now()) {
            tokio::time::sleep(wait).await;
        }
        let _turn = self.turns.acquire().await.expect("it is never closed");
        let Some(manifest) = self.manifests.find(announced).await else {
            return Ok(Comparison::Ended);
        };
        loop {
            let (source, name, manifest) = (self.source.clone(), path.clone(), manifest.clone());
            let work = move || {
                let open = source.open(&name)?;
                if open.present != present {
                    return Ok(Comparison::Changed);
                }
                Ok(compare(&open, &manifest, || Instant::now() < until)?)
            };
            // No thread was free: tries until the time is over.
            if let Ok(compared) = self.pool.run(&path, work).await {
                return compared;
            }
        }
    }

    /// Keeps an alias in the state directory, in the background: nobody waits for the disk.
    fn keep(&self, path: &RemotePath, (present, version): Alias) {
        let is_rewritten = version.generation() != 0 && version.has_equal_attributes(&present);
        if is_rewritten {
            self.manifests.forget(&present);
        }
        let is_lasting = !present.is_in_image() || version.generation() != 0;
        let Some(runtime) = self.runtime.as_ref().filter(|_| is_lasting && present != version)
        else {
            return;
        };
        let (this, path) = (self.clone(), path.clone());
        runtime.spawn(async move {
            let _turn = this.keeping.lock().await;
            let keep = {
                let this = this.clone();
                move || this.keep_now(present, is_rewritten)
            };
            let kept = tokio::task::spawn_blocking(keep).await;
            if let Err(error) = kept.map_err(io::Error::other).and_then(|kept| kept) {
                tracing::warn!(%path, %error, "cannot keep the version of a file across restarts");
            }
        });
    }

    /// Writes the alias of these attributes. `is_rewritten`: the content changed under them, so
    /// that the manifest that is kept for them is not theirs any more.
    fn keep_now(&self, present: Version, is_rewritten: bool) -> io::Result<()> {
        let Some(state) = self.manifests.state() else { return Ok(()) };
        if is_rewritten {
            state.remove(&present)?;
        }
        // The present alias: the one that was to be kept may be outdated.
        let version = self.lock().announcements.version_of(present);
        if version == present { Ok(()) } else { state.store_alias(present.key(), &version) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave the maps half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Removes a comparison that is done, unless a later one of the path runs.
    fn remove_running(&mut self, path: &RemotePath, done: &watch::Sender<()>) {
        let receiver = done.subscribe();
        if self.running.get(path).is_some_and(|running| running.done.same_channel(&receiver)) {
            self.running.remove(path);
        }
    }
}

/// Returns the generation of a content that begins now: seconds since 1970, so that it differs from
/// those of earlier runs.
fn serial() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(1, |now| now.as_secs().max(1))
}
