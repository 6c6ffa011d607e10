//! File system without FUSE: names, versions, opens, and reads that may wait.
//!
//! docs/SEMANTICS.md specifies its behaviour.

mod bundled;
mod bundles;
mod content_id;
mod error;
mod handles;
mod inode;
mod listings;
mod names;
mod numbers;
mod objects;
mod outage;
mod pins;
mod plain;
mod recall;
mod restore;
mod status;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bootcast_proto::RemotePath;
use bootcast_proto::api::{Attributes, Kind};
use dashmap::DashMap;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;

pub(crate) use bundles::fuzz_index as fuzz_bundle_index;
pub use content_id::CONTENT_ID_ATTRIBUTE;
pub use error::FsError;
pub use inode::{FileVersion, ROOT};
pub(crate) use names::fuzz_listing;
pub use names::{Attr, DirEntry, Entries};
pub use pins::{Pins, PinsError};
pub use restore::RestoredOpen;
pub use status::FileAttribute;

use crate::cache::{Cache, Names};
use crate::io::{Control, ControlError, Intake, SmallAnswer, now};
use crate::journal::{Journal, Record};
use crate::log_limit;
use crate::object::{Object, Opening, Seek, Unread, Waiter};
use crate::panics::lock;
use crate::proof::Proof;
use crate::receiver::{FillPolicy, REQUEST_BACKOFF, Timing, UnicastMode, Verify};
use bundles::Bundles;
use inode::Inodes;
use listings::Listings;
use names::OpenDir;
use objects::Objects;
use outage::Outage;
use pins::PinnedFile;
use plain::PlainNames;
use status::Rates;

/// Interval at which parked reads are checked for killed callers and for time-outs. It is well
/// below the second within which a killed process must end (docs/SEMANTICS.md, "Waiting").
const REAP_PERIOD: Duration = Duration::from_millis(250);

/// Interval of checkpoints. A crash loses the pages that arrived since the last one.
const CHECKPOINT_PERIOD: Duration = Duration::from_secs(10);

/// Configuration of a mount, from its options.
#[derive(Clone, Debug)]
pub struct FsConfig {
    /// Owner of all files.
    pub uid: u32,
    /// Group of all files.
    pub gid: u32,
    /// Permission bits to remove from all modes.
    pub umask: u32,
    /// Time for which names and attributes are cached.
    pub attr_ttl: Duration,
    /// Longest wait of a call for the server or for pages; `None` for no limit.
    pub wait_limit: Option<Duration>,
    /// Times of memberships.
    pub timing: Timing,
    /// Rule for fetching pages over HTTP instead of receiving them by multicast.
    pub unicast: UnicastMode,
    /// Pages of an open file that are received.
    pub fill: FillPolicy,
    /// Proof that bytes need before they are read.
    pub verify: Verify,
    /// The only files that may be opened, with their contents; `None` for all files.
    pub pins: Option<Pins>,
    /// The only path below the root that the mount shows; `None` if it shows all.
    pub only: Option<RemotePath>,
}

/// Kind of the server.
#[derive(Debug)]
enum Server {
    /// Server with the extensions of docs/PROTOCOL.md, section 4.
    Extended,
    /// Server with only the base protocol.
    Plain(Mutex<PlainNames>),
}

/// File system of a mount, shared by all threads.
#[derive(Debug)]
pub struct Fs {
    config: FsConfig,
    control: Control,
    cache: Cache,
    /// Names that the cache remembers; `None` if it is in memory, or the server is a plain one.
    names: Option<Names>,
    intake: Intake,
    server: Server,
    outage: Outage,
    journal: Arc<Journal>,
    inodes: Mutex<Inodes>,
    listings: Listings,
    objects: Mutex<Objects>,
    bundles: Mutex<Bundles>,
    /// Notified when a bundle came, or does not come.
    bundles_changed: watch::Sender<()>,
    /// Open files, by handle.
    handles: DashMap<u64, Handle>,
    /// Proofs of the pinned files that were opened.
    proofs: DashMap<RemotePath, Arc<Proof>>,
    /// Open directories, by handle.
    dirs: DashMap<u64, Arc<OpenDir>>,
    last_handle: AtomicU64,
    /// Set to true when the mount ends.
    stopping: watch::Sender<bool>,
    /// Whether another process takes the connection over, and answers what this one does not.
    is_handing_over: AtomicBool,
    started: Instant,
    rates: Mutex<Rates>,
}

/// An open file.
#[derive(Clone, Debug)]
struct Handle {
    object: Arc<Object>,
    /// Checks the bytes of a pinned file.
    pinned: Option<PinnedFile>,
}

/// Result of an open.
#[derive(Debug)]
pub struct OpenFile {
    /// Handle of the open in reads and in the release.
    pub handle: u64,
    /// Object that has the file's bytes.
    pub object: Arc<Object>,
    /// Whether every byte is stored durably, so that the kernel may read the cache file itself.
    pub is_durable: bool,
}

impl Fs {
    /// Creates the file system for the directory `path` of an extended server. `attributes` are
    /// those of the directory. Records in `journal` what the kernel learns.
    pub fn new(
        config: FsConfig,
        control: Control,
        cache: Cache,
        intake: Intake,
        path: RemotePath,
        attributes: Attributes,
        journal: Arc<Journal>,
    ) -> Self {
        let inodes = Inodes::new(path, attributes, now(), journal.clone());
        Self::with_server(config, control, cache, intake, (inodes, journal), Server::Extended)
    }

    /// Creates the file system for paths below `path` of a plain server.
    pub fn new_plain(
        config: FsConfig,
        control: Control,
        cache: Cache,
        intake: Intake,
        path: RemotePath,
    ) -> Self {
        let server = Server::Plain(Mutex::default());
        let journal = Arc::new(Journal::disabled());
        let inodes = Inodes::new(path, plain::directory_attributes(), now(), journal.clone());
        Self::with_server(config, control, cache, intake, (inodes, journal), server)
    }

    /// Sets the names that the cache remembers.
    #[must_use]
    pub fn with_names(self, names: Option<Names>) -> Self {
        Self { names, ..self }
    }

    fn with_server(
        config: FsConfig,
        control: Control,
        cache: Cache,
        intake: Intake,
        (inodes, journal): (Inodes, Arc<Journal>),
        server: Server,
    ) -> Self {
        Self {
            config,
            control,
            cache,
            names: None,
            intake,
            server,
            outage: Outage::default(),
            journal,
            inodes: Mutex::new(inodes),
            listings: Listings::default(),
            objects: Mutex::default(),
            bundles: Mutex::default(),
            bundles_changed: watch::Sender::new(()),
            handles: DashMap::new(),
            proofs: DashMap::new(),
            dirs: DashMap::new(),
            last_handle: AtomicU64::new(0),
            stopping: watch::Sender::new(false),
            is_handing_over: AtomicBool::new(false),
            started: now(),
            rates: Mutex::default(),
        }
    }

    /// Opens a file and joins its cast, unless the file is complete. Returns when the server has
    /// confirmed the version, and the size is known.
    pub async fn open(self: &Arc<Self>, ino: u64) -> Result<OpenFile, FsError> {
        if *self.stopping.borrow() {
            return Err(shutting_down());
        }
        let node = lock(&self.inodes).find(ino).cloned().ok_or(FsError::Stale)?;
        let (Kind::File, Some(version)) = (node.attributes.kind, node.version.clone()) else {
            return Err(FsError::Access);
        };
        if self.config.pins.as_ref().is_some_and(|pins| pins.get(&node.path).is_none()) {
            return Err(FsError::Access);
        }
        let size = match version {
            FileVersion::Etag(_) => Some(node.attributes.size),
            FileVersion::Plain(_) => None,
        };
        let small = self.fetch_small(&node.path, &version, node.attributes.size).await;
        if matches!(small, Some(SmallAnswer::File(_))) {
            // The server has just shown that this is its version.
            lock(&self.inodes).refresh(ino, node.attributes.clone(), now());
        }
        let pending = {
            let (fs, path, version) = (self.clone(), node.path.clone(), version.clone());
            let acquire = move || fs.acquire(&path, &version, size, small.as_ref());
            let acquired = tokio::task::spawn_blocking(acquire);
            acquired.await.map_err(|error| FsError::Io(error.to_string()))??
        };
        let recorded = self.record_name_later(&node);
        let confirmed = self.wait_for_version(pending.object(), ino, &version).await;
        if let (Server::Plain(names), FileVersion::Plain(content)) = (&self.server, &version) {
            let size = pending.object().snapshot().size;
            match confirmed {
                Ok(()) => lock(names).record_existing(&node.path, *content, size),
                Err(_) => lock(names).remove_missing(&node.path),
            }
        }
        confirmed?;
        let pinned = match &version {
            FileVersion::Etag(etag) => {
                self.pinned(&node.path, Some((etag, node.attributes.size))).await?
            }
            FileVersion::Plain(_) => self.pinned(&node.path, None).await?,
        };
        // A mount that is killed after the reply loses no name.
        let _ = recorded.await;
        let object = pending.commit();
        let handle = self.next_handle();
        // The kernel would read the cache file of a pinned file unchecked.
        let is_durable = object.snapshot().is_durable && pinned.is_none();
        self.handles.insert(handle, Handle { object: object.clone(), pinned });
        Ok(OpenFile { handle, object, is_durable })
    }

    /// Waits until the server has confirmed the object's version, and its size is known.
    async fn wait_for_version(
        self: &Arc<Self>,
        object: &Object,
        ino: u64,
        version: &FileVersion,
    ) -> Result<(), FsError> {
        if object.has_all_pages() {
            return match version {
                FileVersion::Etag(_) => self.confirm(ino).await,
                FileVersion::Plain(_) => Ok(()),
            };
        }
        let opening = object.wait_for(|snapshot| match snapshot.opening {
            Opening::Failed(failure) => Some(Err(failure.into())),
            // The size of a plain server's file is unknown until its last page arrives.
            Opening::Open if snapshot.size.is_some() => Some(Ok(())),
            Opening::Open | Opening::Pending => None,
        });
        let time_out = async {
            match self.config.wait_limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            opened = opening => opened,
            () = time_out => Err(FsError::Io("the server does not answer".into())),
            _ = stopping.wait_for(|stopping| *stopping) => Err(shutting_down()),
        }
    }

    fn next_handle(&self) -> u64 {
        self.last_handle.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Answers `waiter` with these bytes, now or as soon as their pages are held.
    pub fn read(&self, handle: u64, offset: u64, len: u32, waiter: Box<dyn Waiter>) {
        let handle = self.handles.get(&handle).map(|handle| handle.clone());
        match handle {
            Some(Handle { object, pinned }) if !*self.stopping.borrow() => {
                let bytes = offset..offset.saturating_add(len.into());
                let (bytes, waiter) = match pinned {
                    Some(pinned) => pinned.check(&bytes, object.clone(), waiter),
                    None => (bytes, waiter),
                };
                let follow_up = object.read(bytes, waiter, now());
                self.intake.follow_up(&object, follow_up);
            }
            Some(_) | None => waiter.answer(Err(Unread::ShutDown)),
        }
    }

    /// Returns the first position from `offset` on that `seek` looks for. A pinned file shows data
    /// everywhere: its holes are not proven.
    pub fn seek(&self, handle: u64, offset: u64, seek: Seek) -> Result<u64, FsError> {
        let handle = self.handles.get(&handle).map(|handle| handle.clone());
        let Handle { object, pinned } = handle.ok_or_else(shutting_down)?;
        let found = match (pinned, seek) {
            (None, seek) => object.seek(offset, seek),
            (Some(_), Seek::Data) => {
                object.snapshot().size.filter(|size| offset < *size).map(|_| offset)
            }
            (Some(_), Seek::Hole) => object.snapshot().size.filter(|size| offset < *size),
        };
        found.ok_or(FsError::NoData)
    }

    /// Ends an open, after its last descriptor was closed.
    pub fn release(&self, handle: u64) {
        self.journal.record(|| Record::Release { handle });
        if let Some((_, handle)) = self.handles.remove(&handle) {
            self.close_object(&handle.object);
        }
    }

    /// Repeats a request that fails temporarily, until the wait limit is reached.
    async fn retry<T, F>(&self, mut request: impl FnMut() -> F) -> Result<T, ControlError>
    where
        F: Future<Output = Result<T, ControlError>>,
    {
        let deadline = self.config.wait_limit.map(|limit| now() + limit);
        let mut failures = 0;
        loop {
            let pause =
                |error: &ControlError| REQUEST_BACKOFF.pause(failures).max(error.retry_after());
            match request().await {
                Err(error)
                    if error.is_temporary()
                        && deadline.is_none_or(|end| now() + pause(&error) < end) =>
                {
                    if failures == 0
                        && let Some(more) = log_limit::allow("trying again", &error)
                    {
                        warn!(%error, "a request to the server failed: trying again{more}");
                    }
                    tokio::time::sleep(pause(&error)).await;
                    failures += 1;
                }
                result => return result,
            }
        }
    }

    /// Runs for ever: ends parked reads that must not wait any longer, retires idle objects, and
    /// makes checkpoints.
    pub async fn housekeep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(REAP_PERIOD);
        let mut next_checkpoint = now() + CHECKPOINT_PERIOD;
        let mut tidying: Option<JoinHandle<()>> = None;
        loop {
            ticks.tick().await;
            let checkpoint = next_checkpoint <= now();
            if checkpoint {
                next_checkpoint = now() + CHECKPOINT_PERIOD;
            }
            let fs = self.clone();
            let reap = move || {
                let limit = fs.config.wait_limit;
                fs.reap(limit.and_then(|limit| now().checked_sub(limit)));
                fs.measure_rates();
            };
            let fs = self.clone();
            let tidy = move || {
                fs.retire_idle();
                fs.tidy_bundles();
                fs.tidy_windows();
                if checkpoint {
                    fs.checkpoint_all();
                }
            };
            // Both jobs do blocking I/O, so they run on other threads. Only `tidy` waits for the
            // disk, and must not delay `reap`.
            let reaping = tokio::task::spawn_blocking(reap);
            if tidying.as_ref().is_none_or(JoinHandle::is_finished) {
                tidying = Some(tokio::task::spawn_blocking(tidy));
            }
            let _ = reaping.await;
        }
    }

    /// Ends the mount: fails waiting calls, refuses new ones, and leaves all casts. Waits at most
    /// `leave_timeout` for the leaves.
    pub async fn stop(&self, leave_timeout: Duration) {
        self.stopping.send_replace(true);
        let bundles = lock(&self.bundles).objects();
        for object in self.all_objects().into_iter().chain(bundles) {
            object.shut_down();
            self.intake.attend(&object);
        }
        self.intake.drain(leave_timeout).await;
    }

    /// Fails waiting calls and refuses new ones after a panic. Saves nothing, and waits for
    /// nothing: the state may be half changed.
    pub fn abandon(&self) {
        self.stopping.send_replace(true);
        let slots: Vec<_> = {
            let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
            objects.values().cloned().collect()
        };
        let open = self.handles.iter().map(|handle| handle.object.clone());
        let bundles = self.bundles.lock().unwrap_or_else(PoisonError::into_inner).objects();
        let objects = slots.iter().filter_map(|slot| slot.object_after_panic());
        for object in objects.chain(open).chain(bundles) {
            object.abandon();
        }
    }

    /// Makes a last checkpoint of each object. Waits for the disk.
    pub fn save(&self) {
        self.checkpoint_all();
    }
}

fn shutting_down() -> FsError {
    Unread::ShutDown.into()
}

/// Whether an answer that arrived at `fetched` is younger than `ttl`.
fn is_fresh(fetched: Instant, ttl: Duration) -> bool {
    now().saturating_duration_since(fetched) < ttl
}
