//! File handles, by which NFS servers find inodes. docs/SEMANTICS.md, "NFS and file handles".

use std::sync::Arc;

use super::{Attr, FileVersion, Fs, FsError, lock};

impl Fs {
    /// Looks up an inode by its number, also one that the kernel forgot. Adds one kernel reference
    /// to it. Fails with [`FsError::Stale`] if the path leads to something else by now.
    pub(super) async fn lookup_number(self: &Arc<Self>, ino: u64) -> Result<Attr, FsError> {
        if let Ok(node) = self.node(ino) {
            return match node.version {
                Some(FileVersion::Plain(version)) => Ok(self.remember_plain(node.path, version)),
                _ => self.remember(&node.path, &node.attributes, node.fetched),
            };
        }
        let forgotten = lock(&self.inodes).forgotten(ino).cloned().ok_or(FsError::Stale)?;
        let found = self.lookup_path(forgotten.path).await.map_err(|error| match error {
            FsError::NotFound => FsError::Stale,
            error => error,
        })?;
        if found.ino != ino {
            self.forget(found.ino, 1);
            return Err(FsError::Stale);
        }
        Ok(found)
    }
}
