//! Inodes: one for each version of a file, and one for each directory, link or special file.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use bootcast_proto::api::{Attributes, Kind};
use bootcast_proto::{Etag, RemotePath};
use lru::LruCache;

use super::numbers::{Identity, Numbers};
use crate::journal::{self, Journal, Record};

/// Inode number of the mounted directory.
pub const ROOT: u64 = 1;

/// Maximum number of inodes that are remembered after the kernel forgot them.
const FORGOTTEN: NonZeroUsize = NonZeroUsize::new(1 << 15).unwrap();

/// Version of a file that an inode stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FileVersion {
    /// `ETag` of the server.
    Etag(Etag),
    /// Number of the content. Plain servers send no `ETag`, so each new content of a name gets the
    /// next number.
    Plain(u64),
}

impl FileVersion {
    /// Returns the version that these attributes of an extended server state; `None` if they are
    /// not of a regular file.
    pub(super) fn of(attributes: &Attributes) -> Option<Self> {
        let etag = attributes.etag.clone().filter(|_| attributes.kind == Kind::File);
        etag.map(Self::Etag)
    }
}

/// Path, version and attributes behind an inode number.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Path that was looked up.
    pub path: RemotePath,
    /// Version; `None` if this is not a regular file.
    pub version: Option<FileVersion>,
    /// Latest attributes from the server.
    pub attributes: Attributes,
    /// Time at which the attributes arrived.
    pub fetched: Instant,
    /// Number of references that the kernel holds.
    lookups: u64,
}

/// Inode that the kernel forgot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forgotten {
    /// Path that was looked up.
    pub path: RemotePath,
    /// Version; `None` if it was not a regular file.
    pub version: Option<FileVersion>,
    /// Type.
    pub kind: Kind,
}

impl Forgotten {
    fn identity(&self) -> Identity {
        Identity::of(&self.path, self.version.as_ref(), self.kind)
    }
}

/// Table of the inodes that the kernel has references to.
#[derive(Debug)]
pub(super) struct Inodes {
    /// Inodes by number.
    nodes: HashMap<u64, Node>,
    /// Number of each inode in `nodes`, by identity.
    live: HashMap<Identity, u64>,
    /// Inodes without references, by number. They keep their numbers as long as they are here.
    forgotten: LruCache<u64, Forgotten>,
    numbers: Numbers,
    /// Number that the latest lookup of each path returned.
    newest: HashMap<RemotePath, u64>,
    /// Gets a record of each change, in the order of the changes.
    journal: Arc<Journal>,
}

impl Inodes {
    /// Creates the table with the mounted directory, which is never removed.
    pub(super) fn new(
        path: RemotePath,
        attributes: Attributes,
        now: Instant,
        journal: Arc<Journal>,
    ) -> Self {
        let mut inodes = Self::empty(journal);
        inodes.live.insert(Identity::of(&path, None, attributes.kind), ROOT);
        let root = inodes.remember(path, None, attributes, now);
        debug_assert_eq!(root, ROOT);
        inodes
    }

    fn empty(journal: Arc<Journal>) -> Self {
        Self {
            nodes: HashMap::new(),
            live: HashMap::new(),
            forgotten: LruCache::new(FORGOTTEN),
            numbers: Numbers::default(),
            newest: HashMap::new(),
            journal,
        }
    }

    /// Restores the table of the process that wrote `journal`. The attributes count as fetched at
    /// `fetched`. Leaves out inodes with an invalid path.
    pub(super) fn restore(
        inodes: impl IntoIterator<Item = (journal::Inode, u64)>,
        fetched: Instant,
        journal: Arc<Journal>,
    ) -> Self {
        let mut restored = Self::empty(journal);
        for (journal::Inode { ino, path, attributes }, lookups) in inodes {
            let Ok(path) = RemotePath::decode(&path) else { continue };
            let version = FileVersion::of(&attributes);
            let identity = Identity::of(&path, version.as_ref(), attributes.kind);
            if ino != ROOT {
                restored.numbers.restore(identity, ino);
            }
            restored.live.insert(identity, ino);
            restored.newest.insert(path.clone(), ino);
            restored.nodes.insert(ino, Node { path, version, attributes, fetched, lookups });
        }
        restored
    }

    /// Adds one kernel reference to the inode of this path and version, which is created if needed.
    /// Attributes that arrived later than these, at `fetched`, stay. Returns its number.
    pub(super) fn remember(
        &mut self,
        path: RemotePath,
        version: Option<FileVersion>,
        attributes: Attributes,
        fetched: Instant,
    ) -> u64 {
        let identity = Identity::of(&path, version.as_ref(), attributes.kind);
        let ino = *self.live.entry(identity).or_insert_with(|| self.numbers.acquire(identity));
        self.forgotten.pop(&ino);
        if self.newest(&path).is_none_or(|newest| newest.fetched <= fetched) {
            self.newest.insert(path.clone(), ino);
        }
        let known = self.nodes.remove(&ino);
        debug_assert!(
            known.as_ref().is_none_or(|known| (&known.path, &known.version) == (&path, &version))
        );
        let lookups = known.as_ref().map_or(0, |known| known.lookups) + 1;
        let node = match known.filter(|known| known.fetched > fetched) {
            Some(known) => Node { lookups, ..known },
            None => Node { path, version, attributes, fetched, lookups },
        };
        let inode = || {
            let (path, attributes) = (node.path.encode(), node.attributes.clone());
            journal::Inode { ino, path, attributes }
        };
        self.journal.record(|| Record::Inode(inode(), 1));
        self.nodes.insert(ino, node);
        ino
    }

    /// Returns the inode number of this path and version; `None` if the kernel has no reference to
    /// it.
    pub(super) fn number(
        &self,
        path: &RemotePath,
        version: Option<&FileVersion>,
        kind: Kind,
    ) -> Option<u64> {
        self.live.get(&Identity::of(path, version, kind)).copied()
    }

    /// Returns the number that the next lookup of a listed name will get; see [`Numbers::predict`].
    pub(super) fn predict(
        &mut self,
        path: &RemotePath,
        version: Option<&FileVersion>,
        kind: Kind,
        listed: &mut HashMap<u64, Identity>,
    ) -> u64 {
        let identity = Identity::of(path, version, kind);
        match self.live.get(&identity) {
            Some(&number) => number,
            None => self.numbers.predict(identity, listed),
        }
    }

    /// Returns the inode number of the parent directory of `path`. The mounted directory is its own
    /// parent.
    pub(super) fn parent(&self, path: &RemotePath) -> u64 {
        let parent = path.parent().unwrap_or_default();
        // The kernel keeps references to all ancestors of an inode that it refers to.
        self.number(&parent, None, Kind::Directory).unwrap_or(ROOT)
    }

    /// Returns the inode with this number.
    pub(super) fn find(&self, ino: u64) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    /// Returns the inode of the latest lookup of `path`, if the kernel still refers to it.
    pub(super) fn newest(&self, path: &RemotePath) -> Option<&Node> {
        self.nodes.get(self.newest.get(path)?)
    }

    /// Returns the number that the latest lookup of `path` returned, if the kernel still refers to
    /// it.
    pub(super) fn latest_number(&self, path: &RemotePath) -> Option<u64> {
        self.newest.get(path).copied()
    }

    /// Replaces the attributes of an inode by those that arrived at `now`.
    pub(super) fn refresh(&mut self, ino: u64, attributes: Attributes, now: Instant) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.attributes = attributes;
            node.fetched = now;
        }
    }

    /// Removes `lookups` kernel references, and the inode itself with the last one. The mounted
    /// directory stays.
    pub(super) fn forget(&mut self, ino: u64, lookups: u64) {
        if ino == ROOT {
            return;
        }
        self.journal.record(|| Record::Forget { ino, lookups });
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            if self.newest.get(&node.path) == Some(&ino) {
                self.newest.remove(&node.path);
            }
            let Node { path, version, attributes, .. } =
                self.nodes.remove(&ino).expect("it was just found");
            let forgotten = Forgotten { path, version, kind: attributes.kind };
            self.live.remove(&forgotten.identity());
            if let Some((ino, oldest)) = self.forgotten.push(ino, forgotten) {
                self.numbers.release(ino, &oldest.identity());
            }
        }
    }

    /// Returns what a number stood for, if the kernel forgot it not long ago.
    pub(super) fn forgotten(&self, ino: u64) -> Option<&Forgotten> {
        self.forgotten.peek(&ino)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use std::time::Duration;

    use super::*;

    fn attributes(kind: Kind) -> Attributes {
        Attributes { kind, mode: 0o644, ..crate::fs::plain::file_attributes(0) }
    }

    fn path(text: &str) -> RemotePath {
        RemotePath::decode(text).unwrap()
    }

    fn inodes() -> Inodes {
        let journal = Arc::new(Journal::disabled());
        Inodes::new(RemotePath::root(), attributes(Kind::Directory), Instant::now(), journal)
    }

    #[test]
    fn a_restored_table_has_the_numbers_and_references_of_the_journal() {
        let journal = Arc::new(Journal::create().unwrap());
        let directory = attributes(Kind::Directory);
        let mut inodes =
            Inodes::new(RemotePath::root(), directory.clone(), Instant::now(), journal.clone());
        let etag = Etag::new("v1").unwrap();
        let file = Attributes { etag: Some(etag), ..attributes(Kind::File) };
        let version = FileVersion::of(&file);
        let kept = inodes.remember(path("a"), version.clone(), file.clone(), Instant::now());
        let dir = inodes.remember(path("d"), None, directory, Instant::now());
        inodes.remember(path("a"), version.clone(), file, Instant::now());
        inodes.forget(dir, 1);

        let file = journal.file().unwrap().unwrap();
        let (journal, state) = Journal::resume(file).unwrap();
        let known = state.inodes.into_values();
        let mut restored = Inodes::restore(known, Instant::now(), Arc::new(journal));
        assert!(restored.find(ROOT).is_some() && restored.find(dir).is_none());
        assert_eq!(restored.number(&path("a"), version.as_ref(), Kind::File), Some(kept));
        assert_eq!(restored.newest(&path("a")).unwrap().version, version);
        restored.forget(kept, 1);
        assert!(restored.find(kept).is_some());
        restored.forget(kept, 1);
        assert!(restored.find(kept).is_none());
    }

    #[test]
    fn each_version_of_a_file_has_its_own_inode() {
        let mut inodes = inodes();
        let mut remember = |etag: &str| {
            let version = FileVersion::Etag(Etag::new(etag).unwrap());
            inodes.remember(path("a"), Some(version), attributes(Kind::File), Instant::now())
        };
        let (first, second) = (remember("v1"), remember("v2"));
        assert_ne!(first, second);
        assert_eq!(remember("v1"), first);
    }

    #[test]
    fn a_path_that_changes_its_type_gets_another_inode() {
        let mut inodes = inodes();
        let link = inodes.remember(path("a"), None, attributes(Kind::Symlink), Instant::now());
        let dir = inodes.remember(path("a"), None, attributes(Kind::Directory), Instant::now());
        assert_ne!(link, dir);
    }

    #[test]
    fn newest_returns_the_inode_of_the_latest_lookup() {
        let mut inodes = inodes();
        let version = |etag: &str| Some(FileVersion::Etag(Etag::new(etag).unwrap()));
        let file = attributes(Kind::File);
        inodes.remember(path("a"), version("v1"), file.clone(), Instant::now());
        let second = inodes.remember(path("a"), version("v2"), file.clone(), Instant::now());
        assert_eq!(inodes.newest(&path("a")).unwrap().version, version("v2"));
        inodes.forget(second, 1);
        assert!(inodes.newest(&path("a")).is_none());
    }

    #[test]
    fn attributes_of_an_older_listing_replace_no_later_ones() {
        let journal = Arc::new(Journal::create().unwrap());
        let (start, directory) = (Instant::now(), attributes(Kind::Directory));
        let later = start + Duration::from_secs(40);
        let mut inodes = Inodes::new(RemotePath::root(), directory.clone(), start, journal.clone());
        let version = |etag: &str| Some(FileVersion::Etag(Etag::new(etag).unwrap()));
        let file = attributes(Kind::File);
        let first = inodes.remember(path("a"), version("v1"), file.clone(), start);
        let second = inodes.remember(path("a"), version("v2"), file.clone(), later);
        assert_eq!(inodes.remember(path("a"), version("v1"), file, start), first);
        assert_eq!(inodes.newest(&path("a")).unwrap().version, version("v2"));
        inodes.forget(second, 1);
        assert!(inodes.newest(&path("a")).is_none());

        let changed = Attributes { mtime: 7, ..directory.clone() };
        inodes.remember(path("d"), None, changed.clone(), later);
        let dir = inodes.remember(path("d"), None, directory, start);
        let node = inodes.find(dir).unwrap();
        assert_eq!((&node.attributes, node.fetched, node.lookups), (&changed, later, 2));
        let state = Journal::peek(&journal.file().unwrap().unwrap()).unwrap();
        assert_eq!(state.inodes[&dir].0.attributes, changed);
    }

    #[test]
    fn an_inode_is_removed_with_its_last_kernel_reference() {
        let mut inodes = inodes();
        let ino = inodes.remember(path("a"), None, attributes(Kind::Directory), Instant::now());
        inodes.remember(path("a"), None, attributes(Kind::Directory), Instant::now());
        inodes.forget(ino, 1);
        assert!(inodes.find(ino).is_some());
        inodes.forget(ino, 1);
        assert!(inodes.find(ino).is_none());
        assert_eq!(inodes.number(&path("a"), None, Kind::Directory), None);
        let forgotten = Forgotten { path: path("a"), version: None, kind: Kind::Directory };
        assert_eq!(inodes.forgotten(ino), Some(&forgotten));
        let again = inodes.remember(path("a"), None, attributes(Kind::Directory), Instant::now());
        assert_eq!(again, ino, "the number outlives the inode");
        assert_eq!(inodes.forgotten(ino), None);
        inodes.forget(ROOT, 100);
        assert!(inodes.find(ROOT).is_some());
    }

    #[test]
    fn the_inodes_that_were_forgotten_first_are_no_longer_known() {
        let mut inodes = inodes();
        let mut forget = |name: usize| {
            let (path, directory) = (path(&name.to_string()), attributes(Kind::Directory));
            let ino = inodes.remember(path, None, directory, Instant::now());
            inodes.forget(ino, 1);
            ino
        };
        let first = forget(0);
        let others: Vec<_> = (1..=FORGOTTEN.get()).map(&mut forget).collect();
        assert_eq!(inodes.forgotten(first), None);
        assert!(others.iter().all(|ino| inodes.forgotten(*ino).is_some()));
    }
}
