//! Names, attributes and directories.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bootcast_proto::RemotePath;
use bootcast_proto::api::{Attributes, Kind};
use bootcast_proto::path::decode_segment;
use tracing::warn;

use super::inode::Node;
use super::{Fs, FsError, ROOT, Server, Version, is_fresh, lock, plain};
use crate::io::{ControlError, now};

/// Longest name that programs can ask for, in bytes (`NAME_MAX` in limits.h).
const NAME_MAX: usize = 255;

/// Attributes in the form of `stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Type.
    pub kind: Kind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits after the mount's umask.
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
    found: Option<(RemotePath, Option<Version>, Attributes)>,
    /// Inode number if it is known, else a placeholder.
    pub ino: u64,
    /// Type.
    pub kind: Kind,
}

impl DirEntry {
    /// Creates the entry `.` or `..`.
    fn dot(name: &[u8], ino: u64) -> Self {
        Self { name: name.to_vec(), found: None, ino, kind: Kind::Directory }
    }
}

impl Fs {
    /// Looks up `name` in a directory. The kernel gets one reference to the result.
    pub async fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        let dir = self.directory(parent)?;
        let path = dir.path.join(name).map_err(|_| FsError::NotFound)?;
        match &self.server {
            Server::Plain(names) => {
                let version = lock(names).version(&path);
                Ok(self.remember_plain(path, version))
            }
            Server::Full => {
                let attributes = self.persist(|| self.ask_or_remember(&path)).await?;
                self.remember(path, &attributes)
            }
        }
    }

    /// Asks the server for attributes. Falls back to known ones if the server confirms them or, for
    /// a complete file, if the server is away.
    async fn ask_or_remember(&self, path: &RemotePath) -> Result<Attributes, ControlError> {
        let known = lock(&self.inodes).newest(path).map(|node| node.attributes.clone());
        // The answer for a directory is its whole listing, so it is only sent if it changed.
        let etag = known.as_ref().and_then(|known| known.etag.as_ref());
        match (self.control.meta(path, etag).await, known) {
            (Ok(Some(meta)), _) => Ok(meta.attributes),
            (Ok(None), Some(known)) => Ok(known),
            (Ok(None), None) => Err(ControlError::Garbled {
                base: self.control.server().to_owned(),
                reason: "304 to a request without a condition".into(),
            }),
            (Err(error), Some(known)) if error.is_temporary() && self.is_cached(path, &known) => {
                warn!(%path, %error, "served from the cache");
                Ok(known)
            }
            (Err(error), _) => Err(error),
        }
    }

    fn remember(&self, path: RemotePath, attributes: &Attributes) -> Result<Attr, FsError> {
        let version = match (attributes.kind, &attributes.etag) {
            (Kind::File, Some(etag)) => Some(Version::Etag(etag.clone())),
            (Kind::File, None) => return Err(FsError::Io(format!("{path} has no version"))),
            (Kind::Directory | Kind::Symlink | Kind::Other, _) => None,
        };
        let ino = lock(&self.inodes).remember(path, version, attributes.clone(), now());
        Ok(self.attr(ino, attributes, self.config.attr_ttl))
    }

    fn remember_plain(&self, path: RemotePath, version: u64) -> Attr {
        let version = Version::Plain(version);
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
        let mode = attributes.mode & 0o7777 & !self.config.umask;
        Attr {
            ino,
            kind: attributes.kind,
            size: attributes.size,
            mode: u16::try_from(mode).expect("at most 0o7777"),
            mtime,
            ttl,
        }
    }

    /// Attributes of an inode. Those of a file's version never change.
    pub async fn getattr(&self, ino: u64) -> Result<Attr, FsError> {
        let node = self.node(ino)?;
        match (&node.version, &self.server) {
            (Some(version @ Version::Plain(_)), _) => {
                let size = self.object(&node.path, version).and_then(|object| object.size());
                let attributes = plain::file_attributes(size.unwrap_or(node.attributes.size));
                Ok(self.attr(ino, &attributes, plain_ttl(size)))
            }
            (None, Server::Full) if !is_fresh(node.fetched, self.config.attr_ttl) => {
                let known = node.attributes.etag.as_ref();
                let answer = self.persist(|| self.control.meta(&node.path, known)).await?;
                let attributes =
                    answer.map_or_else(|| node.attributes.clone(), |meta| meta.attributes);
                if attributes.kind != node.attributes.kind {
                    // Another file has this name now, so the inode is stale.
                    return Err(FsError::Stale);
                }
                lock(&self.inodes).refresh(ino, attributes.clone(), now());
                Ok(self.attr(ino, &attributes, self.config.attr_ttl))
            }
            (Some(Version::Etag(_)) | None, _) => {
                Ok(self.attr(ino, &node.attributes, self.config.attr_ttl))
            }
        }
    }

    /// Confirms that a path still leads to this version, if the server can be reached.
    pub(super) async fn confirm(&self, ino: u64) -> Result<(), FsError> {
        let node = self.node(ino)?;
        if is_fresh(node.fetched, self.config.attr_ttl) {
            return Ok(());
        }
        match self.control.meta(&node.path, node.attributes.etag.as_ref()).await {
            Ok(None) => {
                lock(&self.inodes).refresh(ino, node.attributes, now());
                Ok(())
            }
            Ok(Some(meta)) if meta.attributes.etag != node.attributes.etag => Err(FsError::Stale),
            Ok(Some(_)) => Ok(()),
            Err(error) if error.is_temporary() => {
                warn!(path = %node.path, %error, "served from the cache");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
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

    /// Opens a directory and takes a snapshot of its entries.
    pub async fn opendir(&self, ino: u64) -> Result<u64, FsError> {
        let dir = self.directory(ino)?;
        let mut entries = vec![DirEntry::dot(b".", ino), DirEntry::dot(b"..", ROOT)];
        match &self.server {
            Server::Full => {
                let meta = self.persist(|| self.control.meta(&dir.path, None)).await?;
                let listed = meta.and_then(|meta| meta.entries).ok_or(FsError::NotDirectory)?;
                for entry in listed {
                    let name = decode_segment(&entry.name).unwrap_or_default();
                    // Hides names that no path can contain or that no program can ask for.
                    let Ok(path) = dir.path.join(&name) else { continue };
                    if name.len() > NAME_MAX {
                        continue;
                    }
                    let version = entry.attributes.etag.clone().map(Version::Etag);
                    let version = version.filter(|_| entry.attributes.kind == Kind::File);
                    entries.push(self.dir_entry(name, path, version, entry.attributes));
                }
            }
            Server::Plain(names) => {
                // Copied first, because no other lock may be taken while this one is held.
                let seen: Vec<_> =
                    lock(names).seen().map(|(path, version)| (path.clone(), version)).collect();
                for (path, version) in seen {
                    let version = Version::Plain(version);
                    let size = self.object(&path, &version).and_then(|object| object.size());
                    let attributes = plain::file_attributes(size.unwrap_or(0));
                    let name = path.file_name().unwrap_or_default().to_vec();
                    entries.push(self.dir_entry(name, path, Some(version), attributes));
                }
            }
        }
        let handle = self.next_handle();
        self.dirs.insert(handle, Arc::new(entries));
        Ok(handle)
    }

    fn dir_entry(
        &self,
        name: Vec<u8>,
        path: RemotePath,
        version: Option<Version>,
        attributes: Attributes,
    ) -> DirEntry {
        let kind = attributes.kind;
        // Only lookups assign inode numbers. Until then any `d_ino` except 0 is fine.
        let known = lock(&self.inodes).number(&path, version.as_ref(), kind);
        DirEntry {
            name,
            ino: known.unwrap_or(u64::MAX),
            kind,
            found: Some((path, version, attributes)),
        }
    }

    /// Entries of an open directory, as of its opening.
    pub fn readdir(&self, handle: u64) -> Result<Arc<Vec<DirEntry>>, FsError> {
        self.dirs.get(&handle).map(|entries| entries.clone()).ok_or(FsError::BadHandle)
    }

    /// Attributes of an entry, as a lookup would return them. The kernel gets one reference. `None`
    /// for `.` and `..`, which get no reference.
    pub fn remember_entry(&self, entry: &DirEntry) -> Option<Attr> {
        let (path, version, attributes) = entry.found.clone()?;
        match version {
            Some(Version::Plain(version)) => Some(self.remember_plain(path, version)),
            Some(Version::Etag(_)) | None => self.remember(path, &attributes).ok(),
        }
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
