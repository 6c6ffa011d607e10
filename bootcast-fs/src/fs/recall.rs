//! Names that the cache remembers: they are recorded when they are opened, and shown while the
//! server does not answer. docs/SEMANTICS.md, "While the server is away".

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bootcast_proto::RemotePath;
use bootcast_proto::api::Attributes;
use tracing::warn;

use super::inode::Node;
use super::{FileVersion, Fs, FsError, ROOT, lock};
use crate::cache::Remembered;
use crate::log_limit;

impl Fs {
    /// Records a name and the directories above it, so that a later mount finds them without the
    /// server. Waits for the disk.
    pub(super) fn record_name(&self, node: &Node) {
        let Some(names) = &self.names else { return };
        let root = {
            let inodes = lock(&self.inodes);
            inodes.find(ROOT).map(|root| (root.path.clone(), root.attributes.clone()))
        };
        let Some((root, attributes)) = root else { return };
        let record = || -> io::Result<()> {
            names.record_root(&root, &attributes)?;
            let mut path = node.path.parent().filter(|path| *path != root);
            while let Some(directory) = path {
                let known =
                    lock(&self.inodes).newest(&directory).map(|node| node.attributes.clone());
                if let Some(attributes) = known {
                    names.record(&directory, &attributes, None)?;
                }
                path = directory.parent().filter(|path| *path != root);
            }
            let content = match &node.version {
                Some(FileVersion::Etag(etag)) => self.control.stated_id(&node.path, etag),
                Some(FileVersion::Plain(_)) | None => None,
            };
            names.record(&node.path, &node.attributes, content)
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

    /// Like [`Self::record_name`], without waiting. Must be called within the runtime.
    pub(super) fn record_name_later(self: &Arc<Self>, node: &Node) {
        let (fs, node) = (self.clone(), node.clone());
        drop(tokio::task::spawn_blocking(move || fs.record_name(&node)));
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
