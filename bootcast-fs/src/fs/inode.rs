//! Inodes: one for each version of a file, one for each other name.

use std::collections::HashMap;
use std::time::Instant;

use bootcast_proto::api::{Attributes, Kind};
use bootcast_proto::{Etag, RemotePath};

/// The inode of the mounted directory.
pub const ROOT: u64 = 1;

/// Which content a file's name stood for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// As the server names it.
    Etag(Etag),
    /// A plain server names none: the how-manieth content that was begun under this name.
    Plain(u64),
}

/// What tells one inode from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    path: RemotePath,
    /// The kernel must never see an inode change its type.
    kind: u8,
    version: Option<Version>,
}

/// What an inode number stands for.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Where it was found.
    pub path: RemotePath,
    /// Of files only.
    pub version: Option<Version>,
    /// As the server told them last.
    pub attributes: Attributes,
    /// When it did.
    pub fetched: Instant,
    /// References that the kernel holds.
    lookups: u64,
}

/// All inodes that the kernel knows.
#[derive(Debug, Default)]
pub(super) struct Inodes {
    nodes: HashMap<u64, Node>,
    numbers: HashMap<Identity, u64>,
    /// The inode that each name led to last.
    newest: HashMap<RemotePath, u64>,
    last: u64,
}

impl Inodes {
    /// With the mounted directory, which is never forgotten.
    pub(super) fn new(path: RemotePath, attributes: Attributes, now: Instant) -> Self {
        let mut inodes = Self::default();
        let root = inodes.remember(path, None, attributes, now);
        debug_assert_eq!(root, ROOT);
        inodes
    }

    /// The inode of this name and version, one kernel reference more.
    pub(super) fn remember(
        &mut self,
        path: RemotePath,
        version: Option<Version>,
        attributes: Attributes,
        now: Instant,
    ) -> u64 {
        let identity = identity(&path, version.as_ref(), attributes.kind);
        let ino = *self.numbers.entry(identity).or_insert_with(|| {
            self.last += 1;
            self.last
        });
        self.newest.insert(path.clone(), ino);
        let node = Node { path, version, attributes, fetched: now, lookups: 1 };
        self.nodes
            .entry(ino)
            .and_modify(|known| {
                let lookups = known.lookups + 1;
                *known = Node { lookups, ..node.clone() };
            })
            .or_insert(node);
        ino
    }

    /// The number of this name and version, where the kernel knows it.
    pub(super) fn number(
        &self,
        path: &RemotePath,
        version: Option<&Version>,
        kind: Kind,
    ) -> Option<u64> {
        self.numbers.get(&identity(path, version, kind)).copied()
    }

    /// What the number stands for.
    pub(super) fn find(&self, ino: u64) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    /// What a name was found to be last, while the kernel remembers that.
    pub(super) fn newest(&self, path: &RemotePath) -> Option<&Node> {
        self.nodes.get(self.newest.get(path)?)
    }

    /// Notes fresh attributes.
    pub(super) fn refresh(&mut self, ino: u64, attributes: Attributes, now: Instant) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.attributes = attributes;
            node.fetched = now;
        }
    }

    /// The kernel gives `lookups` references back.
    pub(super) fn forget(&mut self, ino: u64, lookups: u64) {
        if ino == ROOT {
            return;
        }
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            let identity = identity(&node.path, node.version.as_ref(), node.attributes.kind);
            self.nodes.remove(&ino);
            self.numbers.remove(&identity);
            if self.newest.get(&identity.path) == Some(&ino) {
                self.newest.remove(&identity.path);
            }
        }
    }
}

fn identity(path: &RemotePath, version: Option<&Version>, kind: Kind) -> Identity {
    let kind = match kind {
        Kind::File => 0,
        Kind::Directory => 1,
        Kind::Symlink => 2,
        Kind::Other => 3,
    };
    Identity { path: path.clone(), kind, version: version.cloned() }
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
            let version = Version::Etag(Etag::new(etag).unwrap());
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
        let version = |etag: &str| Some(Version::Etag(Etag::new(etag).unwrap()));
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
        inodes.forget(ROOT, 100);
        assert!(inodes.find(ROOT).is_some());
    }
}
