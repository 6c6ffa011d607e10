//! The file system without FUSE: names, versions, opens and reads that may wait.
//!
//! docs/SEMANTICS.md says what its users may rely on.

mod absence;
mod error;
mod inode;
mod names;
mod numbers;
mod objects;
mod plain;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bootcast_proto::RemotePath;
use bootcast_proto::api::{Attributes, Kind};
use dashmap::DashMap;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;

pub use error::FsError;
pub use inode::{FileVersion, ROOT};
pub use names::{Attr, DirEntry};

use crate::cache::Cache;
use crate::io::{Control, ControlError, Intake, now};
use crate::object::{Object, Opening, Unread, Waiter};
use crate::quiet;
use crate::receiver::{Fill, Timing, UnicastMode};
use absence::Absence;
use inode::Inodes;
use names::OpenDir;
use objects::Objects;
use plain::PlainNames;

/// First pause before a request is repeated. It doubles each time.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two repetitions.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How often waiting reads are checked for readers that died or timed out. Half of the time that a
/// killed reader may take to die.
const REAP_PERIOD: Duration = Duration::from_millis(250);

/// Time between checkpoints: data younger than this may be lost in a crash.
const CHECKPOINT_PERIOD: Duration = Duration::from_secs(10);

/// Configuration from the mount options.
#[derive(Clone, Debug)]
pub struct FsConfig {
    /// Owner of all files.
    pub uid: u32,
    /// Group of all files.
    pub gid: u32,
    /// Permission bits that no file has.
    pub umask: u32,
    /// How long attributes and names may be used without asking the server again.
    pub attr_ttl: Duration,
    /// How long a call waits for the server; `None` for ever.
    pub patience: Option<Duration>,
    /// Timing of memberships.
    pub timing: Timing,
    /// Whether files may be fetched over HTTP.
    pub unicast: UnicastMode,
    /// Which pages of an open file arrive.
    pub fill: Fill,
}

/// The kind of server: with our extensions or plain.
#[derive(Debug)]
enum Server {
    Full,
    Plain(Mutex<PlainNames>),
}

/// The file system, shared by all threads.
#[derive(Debug)]
pub struct Fs {
    config: FsConfig,
    control: Control,
    cache: Cache,
    intake: Intake,
    server: Server,
    absence: Absence,
    inodes: Mutex<Inodes>,
    objects: Mutex<Objects>,
    handles: DashMap<u64, Arc<Object>>,
    dirs: DashMap<u64, Arc<OpenDir>>,
    last_handle: AtomicU64,
    /// Becomes true when the mount ends.
    stopping: watch::Sender<bool>,
}

/// Result of an open.
#[derive(Debug)]
pub struct OpenFile {
    /// Identifies the open in later reads and the release.
    pub handle: u64,
    /// Object that holds the file's bytes.
    pub object: Arc<Object>,
    /// Whether every byte is here for good, so that the kernel may read the cache file itself.
    pub is_durable: bool,
}

impl Fs {
    /// Creates the file system for `path` on a server with our extensions. `attributes` are those
    /// of the directory.
    pub fn new(
        config: FsConfig,
        control: Control,
        cache: Cache,
        intake: Intake,
        path: RemotePath,
        attributes: Attributes,
    ) -> Self {
        Self::with_server(config, control, cache, intake, (path, attributes), Server::Full)
    }

    /// Creates the file system for paths below `path` on a plain server. Such a server says nothing
    /// about a file before it is joined.
    pub fn new_plain(
        config: FsConfig,
        control: Control,
        cache: Cache,
        intake: Intake,
        path: RemotePath,
    ) -> Self {
        let server = Server::Plain(Mutex::default());
        let root = (path, plain::directory_attributes());
        Self::with_server(config, control, cache, intake, root, server)
    }

    fn with_server(
        config: FsConfig,
        control: Control,
        cache: Cache,
        intake: Intake,
        (path, attributes): (RemotePath, Attributes),
        server: Server,
    ) -> Self {
        Self {
            config,
            control,
            cache,
            intake,
            server,
            absence: Absence::default(),
            inodes: Mutex::new(Inodes::new(path, attributes, now())),
            objects: Mutex::default(),
            handles: DashMap::new(),
            dirs: DashMap::new(),
            last_handle: AtomicU64::new(0),
            stopping: watch::Sender::new(false),
        }
    }

    /// Opens a file: joins its cast unless every byte is here. Returns when the server has
    /// confirmed the version.
    pub async fn open(self: &Arc<Self>, ino: u64) -> Result<OpenFile, FsError> {
        if *self.stopping.borrow() {
            return Err(shutting_down());
        }
        let node = lock(&self.inodes).find(ino).cloned().ok_or(FsError::Stale)?;
        let (Kind::File, Some(version)) = (node.attributes.kind, node.version.clone()) else {
            return Err(FsError::Access);
        };
        let size = match version {
            FileVersion::Etag(_) => Some(node.attributes.size),
            FileVersion::Plain(_) => None,
        };
        let pending = {
            let (fs, path, version) = (self.clone(), node.path.clone(), version.clone());
            let acquired = tokio::task::spawn_blocking(move || fs.acquire(&path, &version, size));
            acquired.await.map_err(|error| FsError::Io(error.to_string()))??
        };
        let confirmed = self.wait_for_version(pending.object(), ino, &version).await;
        if let Server::Plain(names) = &self.server {
            match confirmed {
                Ok(()) => lock(names).see(&node.path),
                Err(_) => lock(names).forget_unseen(&node.path),
            }
        }
        confirmed?;
        let object = pending.keep();
        let handle = self.next_handle();
        self.handles.insert(handle, object.clone());
        Ok(OpenFile { handle, is_durable: object.is_durable(), object })
    }

    /// Waits until the object has its expected version and size, so that it can be read now or
    /// later.
    async fn wait_for_version(
        self: &Arc<Self>,
        object: &Object,
        ino: u64,
        version: &FileVersion,
    ) -> Result<(), FsError> {
        if object.is_complete() {
            return match version {
                FileVersion::Etag(_) => self.confirm(ino).await,
                FileVersion::Plain(_) => Ok(()),
            };
        }
        let mut changes = object.watch();
        let opening = async {
            loop {
                match object.opening() {
                    Opening::Failed(failure) => return Err(failure.into()),
                    // The size of a plain server's file is unknown until its last page arrives.
                    Opening::Open if object.size().is_some() => return Ok(()),
                    Opening::Open | Opening::Pending => {}
                }
                if changes.changed().await.is_err() {
                    return Err(FsError::BadHandle);
                }
            }
        };
        let patience = async {
            match self.config.patience {
                Some(patience) => tokio::time::sleep(patience).await,
                None => std::future::pending().await,
            }
        };
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            opened = opening => opened,
            () = patience => Err(FsError::Io("the server does not answer".into())),
            _ = stopping.wait_for(|stopping| *stopping) => Err(shutting_down()),
        }
    }

    fn next_handle(&self) -> u64 {
        self.last_handle.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Reads now, or as soon as the bytes are here. The answer goes to `waiter`.
    pub fn read(&self, handle: u64, offset: u64, len: u32, waiter: Box<dyn Waiter>) {
        let object = self.handles.get(&handle).map(|object| object.clone());
        match object {
            Some(object) if !*self.stopping.borrow() => {
                let bytes = offset..offset.saturating_add(len.into());
                let wants = object.read(bytes, waiter, now());
                self.intake.demand(&object, wants);
            }
            Some(_) | None => waiter.answer(Err(Unread::ShutDown)),
        }
    }

    /// Handles the close of the last descriptor of an open.
    pub fn release(&self, handle: u64) {
        if let Some((_, object)) = self.handles.remove(&handle) {
            self.give_back(&object);
        }
    }

    /// Repeats a request until the server answers or the mount's patience ends.
    async fn persist<T, F>(&self, mut request: impl FnMut() -> F) -> Result<T, ControlError>
    where
        F: Future<Output = Result<T, ControlError>>,
    {
        let deadline = self.config.patience.map(|patience| now() + patience);
        let mut pause = RETRY_MIN;
        loop {
            match request().await {
                Err(error)
                    if error.is_temporary() && deadline.is_none_or(|end| now() + pause < end) =>
                {
                    if pause == RETRY_MIN
                        && let Some(more) = quiet::allow("trying on", &error)
                    {
                        warn!(%error, "trying on{more}");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                result => return result,
            }
        }
    }

    /// Checks waiting reads and idle objects regularly until the mount ends.
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
                let patience = fs.config.patience;
                fs.reap(patience.and_then(|patience| now().checked_sub(patience)));
            };
            let fs = self.clone();
            let tidy = move || {
                fs.retire_idle();
                if checkpoint {
                    fs.checkpoint_all();
                }
            };
            // Both jobs read files, so they run on other threads. Dead readers need not wait for
            // the disk.
            let reaping = tokio::task::spawn_blocking(reap);
            if tidying.as_ref().is_none_or(JoinHandle::is_finished) {
                tidying = Some(tokio::task::spawn_blocking(tidy));
            }
            let _ = reaping.await;
        }
    }

    /// Ends the mount: fails waiting calls, refuses new ones, and leaves all casts. Waits at most
    /// `patience` for the leaves.
    pub async fn stop(&self, patience: Duration) {
        self.stopping.send_replace(true);
        for object in self.all_objects() {
            object.shut_down();
            self.intake.attend(&object);
        }
        self.intake.drain(patience).await;
    }

    /// Saves to disk which pages are held. Waits for the disk.
    pub fn save(&self) {
        self.checkpoint_all();
    }
}

fn shutting_down() -> FsError {
    Unread::ShutDown.into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic leaves the tables consistent: no code panics in the middle of a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an answer that arrived at `fetched` is still valid.
fn is_fresh(fetched: Instant, ttl: Duration) -> bool {
    now().saturating_duration_since(fetched) < ttl
}
