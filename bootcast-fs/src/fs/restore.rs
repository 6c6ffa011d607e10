//! Handing the file system over to the next process, and taking it over from the previous one.
//!
//! docs/SEMANTICS.md, "Updates".

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::{debug, warn};

use super::inode::Inodes;
use super::names::OpenDir;
use super::{FileVersion, Fs, FsConfig, FsError, Handle, ROOT, Server};
use crate::cache::Cache;
use crate::io::{Control, Intake, now};
use crate::journal::{self, Journal, Mode, Record, State};
use crate::object::Object;

/// Open file of the previous process.
#[derive(Debug)]
pub struct RestoredOpen {
    /// Handle of the open.
    pub handle: u64,
    /// Inode number.
    pub ino: u64,
    /// Mode in which the kernel reads it.
    pub mode: Mode,
    /// Number of the kernel's request to open it.
    pub request: u64,
    /// Object that has the file's bytes now; `None` if the file is lost. The kernel holds its mode
    /// all the same.
    pub object: Option<Arc<Object>>,
}

impl Fs {
    /// Creates the file system that the writer of `journal` served, in this state, from an extended
    /// server. Takes the inodes out of the state.
    pub fn resumed(
        config: FsConfig,
        control: Control,
        cache: Cache,
        intake: Intake,
        state: &mut State,
        journal: Arc<Journal>,
    ) -> Self {
        // So old that the next use asks the server again.
        let fetched = now().checked_sub(config.attr_ttl).unwrap_or_else(now);
        let known = std::mem::take(&mut state.inodes).into_values();
        let inodes = Inodes::restore(known, fetched, journal.clone());
        let fs =
            Self::with_server(config, control, cache, intake, (inodes, journal), Server::Extended);
        if let Ok(root) = fs.node(ROOT) {
            fs.control.watch_space_of(&root.path);
        }
        fs.last_handle.store(state.last_handle, Ordering::Relaxed);
        for (&handle, dir) in &state.dirs {
            if let Ok(node) = fs.node(dir.ino) {
                fs.dirs.insert(handle, Arc::new(OpenDir::restore(&node.path, dir, fetched)));
            }
        }
        fs
    }

    /// Opens the files of the previous process again, which must have ended: it has locked their
    /// objects in the cache. Does not wait for the server, except for the proofs of pinned files.
    pub async fn restore_opens(self: &Arc<Self>, state: &State) -> Vec<RestoredOpen> {
        let mut restored = Vec::new();
        for (&handle, &journal::Open { ino, mode, request }) in &state.opens {
            let object = self.restore_open(handle, ino).await;
            let object = object.inspect_err(|error| {
                warn!(handle, ino, %error, "an open file is lost");
            });
            restored.push(RestoredOpen { handle, ino, mode, request, object: object.ok() });
        }
        restored
    }

    async fn restore_open(self: &Arc<Self>, handle: u64, ino: u64) -> Result<Arc<Object>, FsError> {
        let node = self.node(ino)?;
        let version = node.version.clone().ok_or(FsError::Access)?;
        let size = node.attributes.size;
        let acquire = {
            let (fs, path, version) = (self.clone(), node.path.clone(), version.clone());
            move || fs.acquire(&path, &version, Some(size), None)
        };
        let pending = tokio::task::spawn_blocking(acquire).await;
        let pending = pending.map_err(|error| FsError::Io(error.to_string()))??;
        let pinned = match &version {
            FileVersion::Etag(etag) => self.pinned(&node.path, Some((etag, size))).await?,
            FileVersion::Plain(_) => None,
        };
        let object = pending.commit();
        self.handles.insert(handle, Handle { object: object.clone(), pinned });
        Ok(object)
    }

    /// Returns the journal of what the kernel knows.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Records that the kernel is about to learn the handle of an open file.
    pub fn record_open(&self, handle: u64, ino: u64, mode: Mode, request: u64) {
        self.journal.record(|| Record::Open { handle, ino, mode, request });
    }

    /// Whether the next process answers the requests that this one does not answer.
    pub fn is_handing_over(&self) -> bool {
        self.is_handing_over.load(Ordering::Acquire)
    }

    /// Ends the work of this process for the next one: saves what is held and leaves all casts.
    /// Waits at most `leave_timeout` for the leaves. Waiting calls stay unanswered, see
    /// [`Self::is_handing_over`].
    pub async fn hand_over(self: &Arc<Self>, leave_timeout: Duration) {
        // Most of the saving comes first, while readers are still served.
        self.save_in_background().await;
        debug!("saved: requests are left to the next process from here on");
        self.is_handing_over.store(true, Ordering::Release);
        self.stop(leave_timeout).await;
        debug!("left all casts");
        self.save_in_background().await;
        debug!("saved what came since");
    }

    async fn save_in_background(self: &Arc<Self>) {
        let fs = self.clone();
        // A panic ends the program.
        let _ = tokio::task::spawn_blocking(move || fs.save()).await;
    }
}
