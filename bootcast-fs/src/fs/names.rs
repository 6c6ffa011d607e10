//! Names, attributes and directories.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bootcast_proto::RemotePath;
use bootcast_proto::api::{Attributes, Kind};
use bootcast_proto::path::decode_segment;
use tokio::sync::OnceCell;

use super::inode::Node;
use super::numbers::Identity;
use super::{FileVersion, Fs, FsError, Server, is_fresh, lock, plain};
use crate::io::now;

/// Longest name that programs can ask for, in bytes (`NAME_MAX` in limits.h).
const NAME_MAX: usize = 255;

/// Mode bits that are shown. Without the set-user-id and set-group-id bits: the owner here is not
/// the one that set them on the server, and must not lend its rights to whoever runs the file.
const MODE_BITS: u32 = 0o1777;

/// Attributes in the form of `stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Type.
    pub kind: Kind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits of `MODE_BITS` after the mount's umask.
    pub mode: u16,
    /// Last modification.
    pub mtime: SystemTime,
    /// How long the kernel may use them without asking again.
    pub ttl: Duration,
}

/// One name in an open directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// The name: any bytes except `/` and NUL.
    pub name: Vec<u8>,
    /// Path, version and attributes; `None` for `.` and `..`.
    found: Option<(RemotePath, Option<FileVersion>, Attributes)>,
    /// Inode number, the same that a lookup gives.
    pub ino: u64,
    /// Type.
    pub kind: Kind,
}

/// A directory that somebody has open.
#[derive(Debug)]
pub(super) struct OpenDir {
    ino: u64,
    entries: OnceCell<Arc<Vec<DirEntry>>>,
}

impl DirEntry {
    /// Creates the entry `.` or `..`.
    fn dot(name: &[u8], ino: u64) -> Self {
        Self { name: name.to_vec(), found: None, ino, kind: Kind::Directory }
    }
}

impl Fs {
    /// Looks up `name` in a directory. The kernel gets one reference to the result.
    pub async fn lookup(self: &Arc<Self>, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        let dir = self.directory(parent)?;
        let path = dir.path.join(name).map_err(|_| FsError::NotFound)?;
        match &self.server {
            Server::Plain(names) => {
                let version = lock(names).version(&path);
                Ok(self.remember_plain(path, version))
            }
            Server::Full => {
                let known = lock(&self.inodes).newest(&path).map(|node| node.attributes.clone());
                let attributes = match known {
                    Some(known) => self.ask_again(&path, known).await?,
                    None => self.persist(|| self.control.attributes(&path)).await?,
                };
                self.remember(path, &attributes)
            }
        }
    }

    fn remember(&self, path: RemotePath, attributes: &Attributes) -> Result<Attr, FsError> {
        let version = match (attributes.kind, &attributes.etag) {
            (Kind::File, Some(etag)) => Some(FileVersion::Etag(etag.clone())),
            (Kind::File, None) => return Err(FsError::Io(format!("{path} has no version"))),
            (Kind::Directory | Kind::Symlink | Kind::Other, _) => None,
        };
        let ino = lock(&self.inodes).remember(path, version, attributes.clone(), now());
        Ok(self.attr(ino, attributes, self.config.attr_ttl))
    }

    fn remember_plain(&self, path: RemotePath, version: u64) -> Attr {
        let version = FileVersion::Plain(version);
        let size = self.object(&path, &version).and_then(|object| object.size());
        let attributes = plain::file_attributes(size.unwrap_or(0));
        let ino = lock(&self.inodes).remember(path, Some(version), attributes.clone(), now());
        self.attr(ino, &attributes, plain_ttl(size))
    }

    fn attr(&self, ino: u64, attributes: &Attributes, ttl: Duration) -> Attr {
        let mtime = if attributes.mtime < 0 {
            SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(attributes.mtime.unsigned_abs()))
        } else {
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(attributes.mtime.unsigned_abs()))
        };
        let mtime = mtime.unwrap_or(SystemTime::UNIX_EPOCH)
            + Duration::from_nanos(attributes.mtime_ns.min(999_999_999).into());
        let mode = attributes.mode & MODE_BITS & !self.config.umask;
        Attr {
            ino,
            kind: attributes.kind,
            size: attributes.size,
            mode: u16::try_from(mode).expect("at most 0o1777"),
            mtime,
            ttl,
        }
    }

    /// Attributes of an inode. Those of a file's version never change.
    pub async fn getattr(self: &Arc<Self>, ino: u64) -> Result<Attr, FsError> {
        let node = self.node(ino)?;
        match (&node.version, &self.server) {
            (Some(version @ FileVersion::Plain(_)), _) => {
                let size = self.object(&node.path, version).and_then(|object| object.size());
                let attributes = plain::file_attributes(size.unwrap_or(node.attributes.size));
                Ok(self.attr(ino, &attributes, plain_ttl(size)))
            }
            (None, Server::Full) if !is_fresh(node.fetched, self.config.attr_ttl) => {
                let attributes = self.ask_again(&node.path, node.attributes.clone()).await?;
                if attributes.kind != node.attributes.kind {
                    // Another file has this name now, so the inode is stale.
                    return Err(FsError::Stale);
                }
                lock(&self.inodes).refresh(ino, attributes.clone(), now());
                Ok(self.attr(ino, &attributes, self.config.attr_ttl))
            }
            (Some(FileVersion::Etag(_)) | None, _) => {
                Ok(self.attr(ino, &node.attributes, self.config.attr_ttl))
            }
        }
    }

    /// Confirms that a path still leads to this version, if the server can be reached.
    pub(super) async fn confirm(self: &Arc<Self>, ino: u64) -> Result<(), FsError> {
        let node = self.node(ino)?;
        if is_fresh(node.fetched, self.config.attr_ttl) {
            return Ok(());
        }
        let attributes = self.ask_again(&node.path, node.attributes.clone()).await?;
        if attributes.etag != node.attributes.etag {
            return Err(FsError::Stale);
        }
        lock(&self.inodes).refresh(ino, attributes, now());
        Ok(())
    }

    /// Target of a symbolic link.
    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>, FsError> {
        let node = self.node(ino)?;
        let target = node.attributes.target.ok_or(FsError::Access)?;
        // Unlike a name, a target may contain slashes. The encoding is the same.
        decode_segment(&target).map_err(|error| FsError::Io(error.to_string()))
    }

    /// Takes references back from the kernel.
    pub fn forget(&self, ino: u64, lookups: u64) {
        lock(&self.inodes).forget(ino, lookups);
    }

    /// Opens a directory. It is listed when it is read: programs such as `df` open what they only
    /// look at, and must not wait for a listing.
    pub fn opendir(&self, ino: u64) -> Result<u64, FsError> {
        self.directory(ino)?;
        let handle = self.next_handle();
        self.dirs.insert(handle, Arc::new(OpenDir { ino, entries: OnceCell::new() }));
        Ok(handle)
    }

    /// Returns the entries of an open directory as they were when it was first read.
    pub async fn readdir(&self, handle: u64) -> Result<Arc<Vec<DirEntry>>, FsError> {
        let dir = self.dirs.get(&handle).map(|dir| dir.clone()).ok_or(FsError::BadHandle)?;
        dir.entries.get_or_try_init(|| self.list(dir.ino)).await.cloned()
    }

    async fn list(&self, ino: u64) -> Result<Arc<Vec<DirEntry>>, FsError> {
        let dir = self.directory(ino)?;
        let parent = lock(&self.inodes).parent(&dir.path);
        let mut entries = vec![DirEntry::dot(b".", ino), DirEntry::dot(b"..", parent)];
        let mut listed = HashMap::new();
        match &self.server {
            Server::Full => {
                let meta = self.persist(|| self.control.meta(&dir.path, None)).await?;
                let entries_there = meta.and_then(|meta| meta.entries);
                for entry in entries_there.ok_or(FsError::NotDirectory)? {
                    let name = decode_segment(&entry.name).unwrap_or_default();
                    // Hides names that no path can contain or that no program can ask for.
                    let Ok(path) = dir.path.join(&name) else { continue };
                    if name.len() > NAME_MAX {
                        continue;
                    }
                    let version = entry.attributes.etag.clone().map(FileVersion::Etag);
                    let version = version.filter(|_| entry.attributes.kind == Kind::File);
                    let found = (path, version, entry.attributes);
                    entries.push(self.dir_entry(name, found, &mut listed));
                }
            }
            Server::Plain(names) => {
                // Copied first, because no other lock may be taken while this one is held.
                let seen: Vec<_> =
                    lock(names).seen().map(|(path, version)| (path.clone(), version)).collect();
                for (path, version) in seen {
                    let version = FileVersion::Plain(version);
                    let size = self.object(&path, &version).and_then(|object| object.size());
                    let attributes = plain::file_attributes(size.unwrap_or(0));
                    let name = path.file_name().unwrap_or_default().to_vec();
                    let found = (path, Some(version), attributes);
                    entries.push(self.dir_entry(name, found, &mut listed));
                }
            }
        }
        Ok(Arc::new(entries))
    }

    fn dir_entry(
        &self,
        name: Vec<u8>,
        found: (RemotePath, Option<FileVersion>, Attributes),
        listed: &mut HashMap<u64, Identity>,
    ) -> DirEntry {
        let (path, version, Attributes { kind, .. }) = &found;
        let ino = lock(&self.inodes).foresee(path, version.as_ref(), *kind, listed);
        DirEntry { name, ino, kind: *kind, found: Some(found) }
    }

    /// Attributes of an entry, as a lookup would return them. The kernel gets one reference. `None`
    /// for `.` and `..`, which get no reference.
    pub fn remember_entry(&self, entry: &DirEntry) -> Option<Attr> {
        let (path, version, attributes) = entry.found.clone()?;
        match version {
            Some(FileVersion::Plain(version)) => Some(self.remember_plain(path, version)),
            Some(FileVersion::Etag(_)) | None => self.remember(path, &attributes).ok(),
        }
    }

    /// Stands for a name that does not exist: the kernel takes inode 0 for that, and believes it
    /// for as long as the attributes of one that exists. Search paths ask for the same missing
    /// names again and again.
    pub fn absent_attr(&self) -> Attr {
        let attributes = plain::file_attributes(0);
        self.attr(0, &attributes, self.config.attr_ttl)
    }

    /// Attributes of `.` and `..`.
    pub fn dot_attr(&self, ino: u64) -> Option<Attr> {
        let node = self.node(ino).ok()?;
        Some(self.attr(ino, &node.attributes, Duration::ZERO))
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: u64) {
        self.dirs.remove(&handle);
    }

    fn node(&self, ino: u64) -> Result<Node, FsError> {
        lock(&self.inodes).find(ino).cloned().ok_or(FsError::Stale)
    }

    fn directory(&self, ino: u64) -> Result<Node, FsError> {
        let node = self.node(ino)?;
        if node.attributes.kind == Kind::Directory { Ok(node) } else { Err(FsError::NotDirectory) }
    }
}

/// How long attributes are valid. A size that is not known yet must be asked for again.
fn plain_ttl(size: Option<u64>) -> Duration {
    if size.is_some() { Duration::from_secs(1) } else { Duration::ZERO }
}
