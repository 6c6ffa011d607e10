//! Names that the cache remembers: they are recorded when they are opened, and shown while the
//! server does not answer. docs/SEMANTICS.md, "While the server is away".

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bootcast_proto::api::Attributes;
use bootcast_proto::{ContentId, RemotePath};
use futures_util::future::OptionFuture;
use tokio::task::JoinHandle;
use tracing::warn;

use super::inode::Node;
use super::{FileVersion, Fs, FsError, ROOT, lock};
use crate::cache::Remembered;
use crate::log_limit;

/// Path and attributes of a directory.
type Directory = (RemotePath, Attributes);

impl Fs {
    /// Records a name and the directories above it, so that a later mount finds them without the
    /// server. Waits for the disk.
    fn record_name(&self, node: &Node) {
        let Some(names) = &self.names else { return };
        let Some((root, directories)) = self.directories_of(&node.path) else { return };
        let record = || -> io::Result<()> {
            names.record_root(&root.0, &root.1)?;
            for (directory, attributes) in &directories {
                names.record(directory, attributes, None)?;
            }
            names.record(&node.path, &node.attributes, self.content_of(node))
        };
        if let Err(error) = record()
            && let Some(more) = log_limit::allow("cannot record names", &error)
        {
            warn!(
                %error,
                "cannot record names in the cache: a mount without the server lacks them{more}"
            );
        }
    }

    /// Returns the mounted directory, and the known directories between it and a path, with their
    /// latest attributes.
    fn directories_of(&self, path: &RemotePath) -> Option<(Directory, Vec<Directory>)> {
        let inodes = lock(&self.inodes);
        let root = inodes.find(ROOT).map(|root| (root.path.clone(), root.attributes.clone()))?;
        let above = |path: &RemotePath| path.parent().filter(|path| *path != root.0);
        let directories = std::iter::successors(above(path), above).filter_map(|directory| {
            let attributes = inodes.newest(&directory)?.attributes.clone();
            Some((directory, attributes))
        });
        let directories = directories.collect();
        Some((root, directories))
    }

    fn content_of(&self, node: &Node) -> Option<ContentId> {
        match &node.version {
            Some(FileVersion::Etag(etag)) => self.control.stated_id(&node.path, etag),
            Some(FileVersion::Plain(_)) | None => None,
        }
    }

    /// Like [`Self::record_name`], without waiting. Must be called within the runtime. The result
    /// ends when the name is on disk, as far as it can be.
    pub(super) fn record_name_later(self: &Arc<Self>, node: &Node) -> OptionFuture<JoinHandle<()>> {
        let task = (!self.is_recorded(node)).then(|| {
            let (fs, node) = (self.clone(), node.clone());
            tokio::task::spawn_blocking(move || fs.record_name(&node))
        });
        task.into()
    }

    /// Whether a name and the directories above it need not be recorded.
    fn is_recorded(&self, node: &Node) -> bool {
        let Some(names) = &self.names else { return true };
        let Some((root, directories)) = self.directories_of(&node.path) else { return true };
        names.is_root_recorded(&root.0, &root.1)
            && directories.iter().all(|(path, known)| names.is_recorded(path, known, None))
            && names.is_recorded(&node.path, &node.attributes, self.content_of(node))
    }

    /// Returns the attributes of a path that the cache remembers: of a file only if all of its
    /// content is in the cache.
    pub(super) async fn recall(&self, path: &RemotePath) -> Option<Attributes> {
        let (names, name) = (self.names.clone()?, path.clone());
        let found = tokio::task::spawn_blocking(move || names.find(&name)).await.ok()??;
        Some(self.believe(path, found))
    }

    /// Returns the names in a directory that the cache remembers, if the mount began without the
    /// server, and the server has not answered yet.
    pub(super) async fn recall_entries(
        &self,
        dir: &RemotePath,
    ) -> Option<Vec<(RemotePath, Attributes)>> {
        if !self.outage.has_begun_without.load(Ordering::Relaxed) {
            return None;
        }
        let (names, dir) = (self.names.clone()?, dir.clone());
        let found = tokio::task::spawn_blocking(move || names.list(&dir)).await.ok()?;
        let entries = found.into_iter().map(|(path, found)| {
            let attributes = self.believe(&path, found);
            (path, attributes)
        });
        Some(entries.collect())
    }

    /// Takes the content id that was known when a name was recorded for stated by the server, as it
    /// was then.
    fn believe(&self, path: &RemotePath, found: Remembered) -> Attributes {
        let Remembered { attributes, content } = found;
        if let (Some(etag), Some(content)) = (&attributes.etag, content) {
            self.control.remember_id(path, etag, content);
        }
        attributes
    }

    /// Asks for the attributes of a path that the kernel does not know. While the server is away,
    /// returns those that the cache remembers, or waits if there are none.
    pub(super) async fn attributes_or_recalled(
        self: &Arc<Self>,
        path: &RemotePath,
    ) -> Result<Attributes, FsError> {
        if self.names.is_some() {
            if !self.outage.is_silent.load(Ordering::Relaxed) {
                match self.ask_once(path).await {
                    Ok(attributes) => return Ok(attributes),
                    Err(error) if error.is_temporary() => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if let Some(attributes) = self.recall(path).await {
                return Ok(attributes);
            }
        }
        Ok(self.retry(|| self.control.attributes(path)).await?)
    }
}
