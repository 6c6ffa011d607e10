//! Inodes: one for each version of a file, one for each other path.

use std::collections::HashMap;
use std::time::Instant;

use bootcast_proto::api::{Attributes, Kind};
use bootcast_proto::{Etag, RemotePath};

use super::numbers::{Identity, Numbers};

/// Inode number of the mounted directory.
pub const ROOT: u64 = 1;

/// Identifies the content that a file's path led to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FileVersion {
    /// `ETag` that the server gave.
    Etag(Etag),
    /// Plain servers name no versions, so each new content of a name gets the next number.
    Plain(u64),
}

/// Path, version and attributes behind an inode number.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Path at which it was found.
    pub path: RemotePath,
    /// Version of a file; `None` for other types.
    pub version: Option<FileVersion>,
    /// Attributes that the server sent last.
    pub attributes: Attributes,
    /// When the server sent the attributes.
    pub fetched: Instant,
    /// Number of references that the kernel holds.
    lookups: u64,
}

/// All inodes that the kernel has references to.
#[derive(Debug, Default)]
pub(super) struct Inodes {
    nodes: HashMap<u64, Node>,
    /// Number of each live inode.
    live: HashMap<Identity, u64>,
    numbers: Numbers,
    /// Inode that each path led to last.
    newest: HashMap<RemotePath, u64>,
}

impl Inodes {
    /// Creates the table with the mounted directory, which is never forgotten.
    pub(super) fn new(path: RemotePath, attributes: Attributes, now: Instant) -> Self {
        let mut inodes = Self::default();
        inodes.live.insert(Identity::of(&path, None, attributes.kind), ROOT);
        let root = inodes.remember(path, None, attributes, now);
        debug_assert_eq!(root, ROOT);
        inodes
    }

    /// Returns the inode of this path and version with one more kernel reference.
    pub(super) fn remember(
        &mut self,
        path: RemotePath,
        version: Option<FileVersion>,
        attributes: Attributes,
        now: Instant,
    ) -> u64 {
        let identity = Identity::of(&path, version.as_ref(), attributes.kind);
        let ino = *self.live.entry(identity).or_insert_with(|| self.numbers.take(identity));
        self.newest.insert(path.clone(), ino);
        let node = Node { path, version, attributes, fetched: now, lookups: 1 };
        self.nodes
            .entry(ino)
            .and_modify(|known| {
                debug_assert_eq!((&known.path, &known.version), (&node.path, &node.version));
                let lookups = known.lookups + 1;
                *known = Node { lookups, ..node.clone() };
            })
            .or_insert(node);
        ino
    }

    /// Inode number of this path and version; `None` if the kernel has no reference to it.
    pub(super) fn number(
        &self,
        path: &RemotePath,
        version: Option<&FileVersion>,
        kind: Kind,
    ) -> Option<u64> {
        self.live.get(&Identity::of(path, version, kind)).copied()
    }

    /// Returns the number that the next lookup of a listed name gives; see [`Numbers::foresee`].
    pub(super) fn foresee(
        &mut self,
        path: &RemotePath,
        version: Option<&FileVersion>,
        kind: Kind,
        listed: &mut HashMap<u64, Identity>,
    ) -> u64 {
        let identity = Identity::of(path, version, kind);
        match self.live.get(&identity) {
            Some(&number) => number,
            None => self.numbers.foresee(identity, listed),
        }
    }

    /// Returns the number of the directory above `path`; of the mounted one its own.
    pub(super) fn parent(&self, path: &RemotePath) -> u64 {
        let parent = path.parent().unwrap_or_default();
        // The kernel keeps what is above an inode for as long as the inode.
        self.number(&parent, None, Kind::Directory).unwrap_or(ROOT)
    }

    /// Looks up an inode number.
    pub(super) fn find(&self, ino: u64) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    /// Inode that a path led to last, if the kernel still refers to it.
    pub(super) fn newest(&self, path: &RemotePath) -> Option<&Node> {
        self.nodes.get(self.newest.get(path)?)
    }

    /// Replaces the attributes by fresh ones.
    pub(super) fn refresh(&mut self, ino: u64, attributes: Attributes, now: Instant) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.attributes = attributes;
            node.fetched = now;
        }
    }

    /// Takes `lookups` references back from the kernel.
    pub(super) fn forget(&mut self, ino: u64, lookups: u64) {
        if ino == ROOT {
            return;
        }
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            let identity = Identity::of(&node.path, node.version.as_ref(), node.attributes.kind);
            if self.newest.get(&node.path) == Some(&ino) {
                self.newest.remove(&node.path);
            }
            self.nodes.remove(&ino);
            self.live.remove(&identity);
            self.numbers.give_back(ino, &identity);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    fn attributes(kind: Kind) -> Attributes {
        Attributes { kind, size: 0, mode: 0o644, mtime: 0, mtime_ns: 0, etag: None, target: None }
    }

    fn path(text: &str) -> RemotePath {
        RemotePath::decode(text).unwrap()
    }

    fn inodes() -> Inodes {
        Inodes::new(RemotePath::root(), attributes(Kind::Directory), Instant::now())
    }

    #[test]
    fn each_version_of_a_file_has_an_inode_of_its_own() {
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
    fn a_name_that_changes_its_type_changes_its_inode() {
        let mut inodes = inodes();
        let link = inodes.remember(path("a"), None, attributes(Kind::Symlink), Instant::now());
        let dir = inodes.remember(path("a"), None, attributes(Kind::Directory), Instant::now());
        assert_ne!(link, dir);
    }

    #[test]
    fn a_name_leads_to_what_was_found_last() {
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
    fn an_inode_lives_until_the_kernel_gave_every_reference_back() {
        let mut inodes = inodes();
        let ino = inodes.remember(path("a"), None, attributes(Kind::Directory), Instant::now());
        inodes.remember(path("a"), None, attributes(Kind::Directory), Instant::now());
        inodes.forget(ino, 1);
        assert!(inodes.find(ino).is_some());
        inodes.forget(ino, 1);
        assert!(inodes.find(ino).is_none());
        assert_eq!(inodes.number(&path("a"), None, Kind::Directory), None);
        let again = inodes.remember(path("a"), None, attributes(Kind::Directory), Instant::now());
        assert_eq!(again, ino, "the number outlives the inode");
        inodes.forget(ROOT, 100);
        assert!(inodes.find(ROOT).is_some());
    }
}
