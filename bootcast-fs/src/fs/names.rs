//! Names, attributes and directories.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bootcast_proto::RemotePath;
use bootcast_proto::api::{Attributes, Kind, Meta};
use bootcast_proto::path::{decode_segment, encode_name};
use bootcast_proto::space::Space;
use tokio::sync::OnceCell;

use super::inode::Node;
use super::listings::{Listing, Lookup};
use super::numbers::Identity;
use super::{FileVersion, Fs, FsError, ROOT, Server, is_fresh, lock, plain};
use crate::io::now;
use crate::journal::{self, Record};

/// Longest name in a listing, in bytes. It is `NAME_MAX` of limits.h, for which `struct dirent` of
/// programs has room.
const NAME_MAX: usize = 255;

/// Mode bits that are shown: permissions and the sticky bit. The set-user-id and set-group-id bits
/// are hidden: the owner shown here did not set them on the server, so no program may run with this
/// owner's rights.
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
    /// Number of blocks of 512 bytes that the file takes on the server.
    pub blocks: u64,
    /// Mode bits within `MODE_BITS`, without those of the mount's umask.
    pub mode: u16,
    /// Time of the last modification.
    pub mtime: SystemTime,
    /// Time for which the kernel may cache the attributes and the name.
    pub ttl: Duration,
}

/// Entry of an open directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Name: any bytes except `/` and NUL.
    pub name: Vec<u8>,
    /// Path, version and attributes; `None` for `.` and `..`.
    found: Option<(RemotePath, Option<FileVersion>, Attributes)>,
    /// Inode number, the same as a lookup returns.
    pub ino: u64,
    /// Type.
    pub kind: Kind,
}

/// Open directory.
#[derive(Debug)]
pub(super) struct OpenDir {
    ino: u64,
    /// Entries, set by the first read.
    entries: OnceCell<Arc<Entries>>,
    /// Whether the journal has the entries.
    is_recorded: AtomicBool,
}

impl OpenDir {
    /// Creates an open directory that is not listed yet.
    fn new(ino: u64) -> Self {
        Self { ino, entries: OnceCell::new(), is_recorded: AtomicBool::new(false) }
    }

    /// Restores a directory that the previous process opened. `path` is that of the directory.
    /// Its entries count as fetched at `fetched`.
    pub(super) fn restore(path: &RemotePath, dir: &journal::Dir, fetched: Instant) -> Self {
        let listing = dir.listing.as_ref().map(|listing| {
            let entries = listing.iter().filter_map(|listed| DirEntry::restore(path, listed));
            Arc::new(Entries { entries: entries.collect(), fetched })
        });
        let is_recorded = AtomicBool::new(listing.is_some());
        Self { ino: dir.ino, entries: OnceCell::new_with(listing), is_recorded }
    }
}

/// Entries of an open directory.
#[derive(Debug)]
pub struct Entries {
    /// Entries in the order of their offsets.
    pub entries: Vec<DirEntry>,
    /// Time at which the server was asked for them.
    fetched: Instant,
}

impl DirEntry {
    /// Creates the entry `.` or `..`.
    fn dot(name: &[u8], ino: u64) -> Self {
        Self { name: name.to_vec(), found: None, ino, kind: Kind::Directory }
    }

    /// Restores an entry from the journal; `None` if its name is invalid.
    fn restore(directory: &RemotePath, listed: &journal::Listed) -> Option<Self> {
        let name = decode_segment(&listed.name).ok()?;
        let Some(attributes) = listed.attributes.clone() else {
            return Some(Self::dot(&name, listed.ino));
        };
        let (path, kind) = (directory.join(&name).ok()?, attributes.kind);
        let found = Some((path, FileVersion::of(&attributes), attributes));
        Some(Self { name, found, ino: listed.ino, kind })
    }

    /// Returns the entry as the journal has it.
    fn listed(&self) -> journal::Listed {
        let attributes = self.found.as_ref().map(|(_, _, attributes)| attributes.clone());
        journal::Listed { name: encode_name(&self.name), ino: self.ino, attributes }
    }
}

impl Fs {
    /// Looks up `name` in the directory `parent`. Adds one kernel reference to the result.
    ///
    /// For a file handle, the kernel looks up `.`, which is the inode `parent` itself, a directory
    /// or not, and `..`. It may have forgotten these inodes.
    pub async fn lookup(self: &Arc<Self>, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        if name == b"." {
            return self.lookup_number(parent).await;
        }
        let dir = self.directory(parent)?;
        let path = match name {
            b".." if parent == ROOT => return Err(FsError::NotFound),
            b".." => dir.path.parent().ok_or(FsError::NotFound)?,
            name => dir.path.join(name).map_err(|_| FsError::NotFound)?,
        };
        self.lookup_path(path).await
    }

    /// Looks up a path. Adds one kernel reference to the result.
    pub(super) async fn lookup_path(self: &Arc<Self>, path: RemotePath) -> Result<Attr, FsError> {
        match &self.server {
            Server::Plain(names) => {
                let version = lock(names).version(&path);
                Ok(self.remember_plain(path, version))
            }
            Server::Extended => {
                if let Some((attributes, fetched)) = self.listed_attributes(&path) {
                    return self.remember(&path, &attributes, fetched);
                }
                let attributes = self.present_attributes(&path).await?;
                self.remember(&path, &attributes, now())
            }
        }
    }

    /// Returns the attributes of a path from a new listing of its directory, and when the server
    /// was asked for that. If many of the directory's names are looked up, it is listed in the
    /// background.
    fn listed_attributes(self: &Arc<Self>, path: &RemotePath) -> Option<(Attributes, Instant)> {
        let ttl = self.config.attr_ttl;
        let is_away = self.outage.is_silent.load(Ordering::Relaxed);
        if ttl.is_zero() || is_away || self.config.only.is_some() {
            return None;
        }
        match self.listings.handle_lookup(path, ttl, now()) {
            Lookup::Listed(attributes, fetched) => return Some((attributes, fetched)),
            Lookup::Alone => {}
            Lookup::AloneAndList(latest) => {
                let (fs, directory) = (self.clone(), path.parent()?);
                tokio::spawn(async move {
                    fs.list_again(&directory, latest).await;
                    fs.listings.handle_listing_end(&directory);
                });
            }
        }
        None
    }

    /// Keeps the present listing of a directory, of which `latest` is here.
    async fn list_again(&self, directory: &RemotePath, latest: Listing) {
        let start = now();
        // Later lookups may use it, and none waits for it.
        let Ok(meta) = self.control.meta(directory, latest.etag.as_ref()).await else { return };
        let listing = match meta {
            None => Listing { fetched: start, ..latest },
            meta => match Self::parse_listing(directory, meta, start) {
                Ok(listing) => listing,
                Err(_) => return,
            },
        };
        self.listings.keep(directory, &listing);
    }

    /// Returns the present attributes of a path, or the known ones while the server is away.
    async fn present_attributes(
        self: &Arc<Self>,
        path: &RemotePath,
    ) -> Result<Attributes, FsError> {
        let only = self.config.only.as_ref();
        if only.is_some_and(|only| only != path) {
            return Err(FsError::NotFound);
        }
        let known = lock(&self.inodes).newest(path).map(|node| node.attributes.clone());
        let attributes = match known {
            Some(known) => self.revalidate(path, known).await?,
            None => self.attributes_or_recalled(path).await?,
        };
        // A link could lead readers to bytes outside of the mount.
        let is_shown = only.is_none() || attributes.kind == Kind::File;
        is_shown.then_some(attributes).ok_or(FsError::NotFound)
    }

    /// Adds one kernel reference to the inode of these attributes, which arrived at `fetched`.
    /// Returns its attributes, which are later ones if there are any.
    pub(super) fn remember(
        &self,
        path: &RemotePath,
        attributes: &Attributes,
        fetched: Instant,
    ) -> Result<Attr, FsError> {
        let version = FileVersion::of(attributes);
        if attributes.kind == Kind::File && version.is_none() {
            return Err(FsError::Io(format!("{path} has no version")));
        }
        let mut inodes = lock(&self.inodes);
        let ino = inodes.remember(path.clone(), version, attributes.clone(), fetched);
        let node = inodes.find(ino).expect("it was just remembered");
        let (attributes, fetched) = (node.attributes.clone(), node.fetched);
        // The path has led elsewhere since, so the kernel is to look it up again.
        let is_replaced = inodes.latest_number(path).is_some_and(|newest| newest != ino);
        drop(inodes);
        let age = now().saturating_duration_since(fetched);
        let ttl = self.config.attr_ttl.saturating_sub(age);
        Ok(self.attr(ino, &attributes, if is_replaced { Duration::ZERO } else { ttl }))
    }

    /// Adds one kernel reference to the inode of content `version` on a plain server.
    pub(super) fn remember_plain(&self, path: RemotePath, version: u64) -> Attr {
        let size = self.plain_size(&path, version);
        let version = FileVersion::Plain(version);
        let attributes = plain::file_attributes(size.unwrap_or(0));
        let ino = lock(&self.inodes).remember(path, Some(version), attributes.clone(), now());
        self.attr(ino, &attributes, plain_ttl(size))
    }

    /// Returns the size of content `version` on a plain server, as far as it is known: while it is
    /// open, and from its first open on.
    pub(super) fn plain_size(&self, path: &RemotePath, version: u64) -> Option<u64> {
        let object = self.object(path, &FileVersion::Plain(version));
        object.and_then(|object| object.snapshot().size).or_else(|| match &self.server {
            Server::Plain(names) => lock(names).size(path, version),
            Server::Extended => None,
        })
    }

    /// Converts the server's attributes to those of this mount.
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
            blocks: blocks(attributes),
            mode: u16::try_from(mode).expect("at most 0o1777"),
            mtime,
            ttl,
        }
    }

    /// Returns the attributes of an inode. Those of a version never change, so the server is asked
    /// again only for directories, links and special files.
    pub async fn getattr(self: &Arc<Self>, ino: u64) -> Result<Attr, FsError> {
        let node = self.node(ino)?;
        match (&node.version, &self.server) {
            (Some(FileVersion::Plain(version)), _) => {
                let size = self.plain_size(&node.path, *version);
                let attributes = plain::file_attributes(size.unwrap_or(node.attributes.size));
                Ok(self.attr(ino, &attributes, plain_ttl(size)))
            }
            (None, Server::Extended) if !is_fresh(node.fetched, self.config.attr_ttl) => {
                let attributes = self.revalidate(&node.path, node.attributes.clone()).await?;
                if attributes.kind != node.attributes.kind {
                    // Something else has this path now.
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

    /// Returns the capacity of the server's file system, as the newest answer about the mounted
    /// directory states it; `None` if none did. Asks nobody.
    pub fn space(&self) -> Option<Space> {
        self.control.space()
    }

    /// Fails with [`FsError::Stale`] if the path of this inode leads to another version now.
    /// Succeeds if the server is away, and without asking it within `attr_ttl`.
    pub(super) async fn confirm(self: &Arc<Self>, ino: u64) -> Result<(), FsError> {
        let node = self.node(ino)?;
        if is_fresh(node.fetched, self.config.attr_ttl) {
            return Ok(());
        }
        let attributes = self.revalidate(&node.path, node.attributes.clone()).await?;
        if attributes.etag != node.attributes.etag {
            return Err(FsError::Stale);
        }
        lock(&self.inodes).refresh(ino, attributes, now());
        Ok(())
    }

    /// Returns the target of a symbolic link. Must be called within the runtime.
    pub fn readlink(self: &Arc<Self>, ino: u64) -> Result<Vec<u8>, FsError> {
        let node = self.node(ino)?;
        // Goes on without anybody who waits for it.
        drop(self.record_name_later(&node));
        let target = node.attributes.target.ok_or(FsError::Access)?;
        // A target is encoded like a name, but may contain slashes.
        decode_segment(&target).map_err(|error| FsError::Io(error.to_string()))
    }

    /// Removes `lookups` kernel references from an inode.
    pub fn forget(&self, ino: u64, lookups: u64) {
        lock(&self.inodes).forget(ino, lookups);
    }

    /// Opens a directory without listing it. Programs such as `df` open directories that they do
    /// not read, and must not wait for a listing.
    pub fn opendir(&self, ino: u64) -> Result<u64, FsError> {
        self.directory(ino)?;
        let handle = self.next_handle();
        self.journal.record(|| Record::Opendir { handle, ino });
        self.dirs.insert(handle, Arc::new(OpenDir::new(ino)));
        Ok(handle)
    }

    /// Returns the entries of an open directory. Its first read fetches them, so later changes on
    /// the server do not show.
    pub async fn readdir(self: &Arc<Self>, handle: u64) -> Result<Arc<Entries>, FsError> {
        let dir = self.dirs.get(&handle).map(|dir| dir.clone()).ok_or(FsError::BadHandle)?;
        dir.entries.get_or_try_init(|| self.list(dir.ino)).await.cloned()
    }

    /// Records the entries of an open directory, before the kernel gets the first part of them. It
    /// asks for the rest by position, so the next process needs the same entries.
    pub fn record_listing(&self, handle: u64, entries: &[DirEntry]) {
        let dir = self.dirs.get(&handle).map(|dir| dir.clone());
        if dir.is_some_and(|dir| !dir.is_recorded.swap(true, Ordering::AcqRel)) {
            let listed = || entries.iter().map(DirEntry::listed).collect();
            self.journal.record(|| Record::Listing { handle, entries: listed() });
        }
    }

    /// Fetches the entries of a directory.
    async fn list(self: &Arc<Self>, ino: u64) -> Result<Arc<Entries>, FsError> {
        let dir = self.directory(ino)?;
        let parent = lock(&self.inodes).parent(&dir.path);
        let mut entries = vec![DirEntry::dot(b".", ino), DirEntry::dot(b"..", parent)];
        let mut listed = HashMap::new();
        let mut fetched = now();
        match &self.server {
            Server::Extended => {
                let listing = self.listing(&dir.path).await?;
                fetched = listing.fetched;
                for (path, attributes) in listing.entries.iter().cloned() {
                    let name = path.file_name().unwrap_or_default().to_vec();
                    let version = FileVersion::of(&attributes);
                    let found = (path, version, attributes);
                    entries.push(self.dir_entry(name, found, &mut listed));
                }
            }
            Server::Plain(names) => {
                // Copied, so that no other lock is taken while this one is held.
                let existing: Vec<_> =
                    lock(names).existing().map(|(path, version)| (path.clone(), version)).collect();
                for (path, version) in existing {
                    let size = self.plain_size(&path, version);
                    let version = FileVersion::Plain(version);
                    let attributes = plain::file_attributes(size.unwrap_or(0));
                    let name = path.file_name().unwrap_or_default().to_vec();
                    let found = (path, Some(version), attributes);
                    entries.push(self.dir_entry(name, found, &mut listed));
                }
            }
        }
        Ok(Arc::new(Entries { entries, fetched }))
    }

    /// Returns the paths in a directory of the server that the mount shows, with their attributes.
    async fn listing(self: &Arc<Self>, dir: &RemotePath) -> Result<Listing, FsError> {
        let start = now();
        if let Some(only) = &self.config.only {
            return match self.present_attributes(only).await {
                Ok(attributes) => Ok(Listing::new(vec![(only.clone(), attributes)], start)),
                Err(FsError::NotFound) => Ok(Listing::new(Vec::new(), start)),
                Err(error) => Err(error),
            };
        }
        if let Some(entries) = self.recall_entries(dir).await {
            return Ok(Listing::new(entries, start));
        }
        let latest = self.listings.latest(dir);
        if let Some(listing) = &latest
            && !listing.time_left(self.config.attr_ttl, start).is_zero()
        {
            return Ok(listing.clone());
        }
        let known = latest.as_ref().and_then(|listing| listing.etag.as_ref());
        let meta = self.retry(|| self.control.meta(dir, known)).await?;
        let listing = match (meta, latest) {
            (None, Some(latest)) => Listing { fetched: start, ..latest },
            (meta, _) => Self::parse_listing(dir, meta, start)?,
        };
        if !self.config.attr_ttl.is_zero() {
            self.listings.keep(dir, &listing);
        }
        Ok(listing)
    }

    /// Converts the server's answer to a request for a listing.
    fn parse_listing(
        dir: &RemotePath,
        meta: Option<Meta>,
        fetched: Instant,
    ) -> Result<Listing, FsError> {
        let Meta { attributes, entries } = meta.ok_or(FsError::NotDirectory)?;
        let entries = entries.ok_or(FsError::NotDirectory)?;
        let found = entries.into_iter().filter_map(|entry| {
            let name = decode_segment(&entry.name).ok()?;
            // Leaves out names that are invalid in a path, or too long for programs.
            let path = dir.join(&name).ok().filter(|_| name.len() <= NAME_MAX)?;
            Some((path, entry.attributes))
        });
        Ok(Listing { etag: attributes.etag, ..Listing::new(found.collect(), fetched) })
    }

    /// Creates the entry of a name, with the inode number that its lookup will return.
    fn dir_entry(
        &self,
        name: Vec<u8>,
        found: (RemotePath, Option<FileVersion>, Attributes),
        listed: &mut HashMap<u64, Identity>,
    ) -> DirEntry {
        let (path, version, Attributes { kind, .. }) = &found;
        let ino = lock(&self.inodes).predict(path, version.as_ref(), *kind, listed);
        DirEntry { name, ino, kind: *kind, found: Some(found) }
    }

    /// Returns the attributes of an entry as a lookup would, and adds one kernel reference. Returns
    /// `None` for `.` and `..`, which get no reference.
    pub fn remember_entry(&self, listed: &Entries, entry: &DirEntry) -> Option<Attr> {
        let (path, version, attributes) = entry.found.clone()?;
        match version {
            Some(FileVersion::Plain(version)) => Some(self.remember_plain(path, version)),
            Some(FileVersion::Etag(_)) | None => {
                self.remember(&path, &attributes, listed.fetched).ok()
            }
        }
    }

    /// Returns the reply for a name that does not exist. With inode number 0, the kernel caches the
    /// absence for `attr_ttl`. This saves requests, because programs that go through a search path
    /// look up the same missing names again and again.
    pub fn negative_attr(&self) -> Attr {
        let attributes = plain::file_attributes(0);
        self.attr(0, &attributes, self.config.attr_ttl)
    }

    /// Returns the attributes of `.` or `..`, which the kernel must not cache.
    pub fn dot_attr(&self, ino: u64) -> Option<Attr> {
        let node = self.node(ino).ok()?;
        Some(self.attr(ino, &node.attributes, Duration::ZERO))
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: u64) {
        self.journal.record(|| Record::Releasedir { handle });
        self.dirs.remove(&handle);
    }

    pub(super) fn node(&self, ino: u64) -> Result<Node, FsError> {
        lock(&self.inodes).find(ino).cloned().ok_or(FsError::Stale)
    }

    fn directory(&self, ino: u64) -> Result<Node, FsError> {
        let node = self.node(ino)?;
        if node.attributes.kind == Kind::Directory { Ok(node) } else { Err(FsError::NotDirectory) }
    }
}

/// Returns the number of blocks of 512 bytes that a file takes on the server. There is one at
/// least: programs read nothing of a file without blocks.
fn blocks(attributes: &Attributes) -> u64 {
    let Attributes { size, allocated, .. } = attributes;
    let bytes = allocated.map_or(*size, |bytes| bytes.clamp(1, (*size).max(1)));
    bytes.div_ceil(512)
}

/// Returns how long the attributes of a plain server's file are cached: not at all until its size
/// is known.
fn plain_ttl(size: Option<u64>) -> Duration {
    if size.is_some() { Duration::from_secs(1) } else { Duration::ZERO }
}

/// Converts the answer to a request for a listing, for fuzzing.
pub(crate) fn fuzz_listing(meta: Meta) {
    let _ = Fs::parse_listing(&RemotePath::root(), Some(meta), now());
}
