//! Names on a plain server, which says nothing about a file before it is joined.
//!
//! Every name counts as a file until an open fails. The directory lists the files that were opened.
//!
//! A plain server sends no `ETag`. All opens share the received content until the last close. The
//! next open receives it again, as new content with a new inode. An open of the old inode fails
//! with ESTALE; the kernel then looks the name up again.

use std::collections::BTreeMap;

use bootcast_proto::RemotePath;
use bootcast_proto::api::{Attributes, Kind};

use super::FsError;

/// Names that were opened since the mount.
#[derive(Debug, Default)]
pub(super) struct PlainNames {
    names: BTreeMap<RemotePath, PlainName>,
}

/// State of one name.
#[derive(Clone, Copy, Debug, Default)]
struct PlainName {
    /// Number of the content that a lookup returns.
    version: u64,
    /// Whether an open has begun this content.
    is_begun: bool,
    /// Whether an open of this name succeeded.
    exists: bool,
    /// Content whose size is known, and its size in bytes.
    size: Option<(u64, u64)>,
}

impl PlainNames {
    /// Returns the number of the content that a lookup of `path` returns at present.
    pub(super) fn version(&self, path: &RemotePath) -> u64 {
        self.names.get(path).map_or(0, |name| name.version)
    }

    /// Records that content `version` is received from now on. Fails with [`FsError::Stale`] if the
    /// content is old or was begun before; the kernel then looks the name up again.
    pub(super) fn begin(&mut self, path: &RemotePath, version: u64) -> Result<(), FsError> {
        let name = self.names.entry(path.clone()).or_default();
        if name.version == version && !name.is_begun {
            name.is_begun = true;
            return Ok(());
        }
        if name.version == version {
            name.version += 1;
            name.is_begun = false;
        }
        Err(FsError::Stale)
    }

    /// Removes a name after a failed open, unless an earlier open succeeded. Otherwise every name
    /// that programs try would stay in the table.
    pub(super) fn remove_missing(&mut self, path: &RemotePath) {
        if self.names.get(path).is_some_and(|name| !name.exists) {
            self.names.remove(path);
        }
    }

    /// Records that an open of content `version` succeeded, and its size.
    pub(super) fn record_existing(&mut self, path: &RemotePath, version: u64, size: Option<u64>) {
        let name = self.names.entry(path.clone()).or_default();
        name.exists = true;
        name.size = size.map(|size| (version, size)).or(name.size);
    }

    /// Returns the size of content `version`, which is known after its first open, also when it is
    /// closed.
    pub(super) fn size(&self, path: &RemotePath, version: u64) -> Option<u64> {
        let (known, size) = self.names.get(path)?.size?;
        (known == version).then_some(size)
    }

    /// Returns the files that were opened, with their content numbers.
    pub(super) fn existing(&self) -> impl Iterator<Item = (&RemotePath, u64)> {
        self.names.iter().filter(|(_, name)| name.exists).map(|(path, name)| (path, name.version))
    }
}

/// Returns the attributes of the mounted directory, the only one of a plain server.
pub(super) fn directory_attributes() -> Attributes {
    Attributes { kind: Kind::Directory, mode: 0o755, ..file_attributes(0) }
}

/// Returns the attributes of a file of `size` bytes; 0 stands for an unknown size.
pub(super) fn file_attributes(size: u64) -> Attributes {
    Attributes {
        kind: Kind::File,
        size,
        mode: 0o644,
        mtime: 0,
        mtime_ns: 0,
        etag: None,
        target: None,
        allocated: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_begun_once_and_the_next_lookup_returns_the_next_content() {
        let mut names = PlainNames::default();
        let path = RemotePath::decode("a").unwrap();
        assert_eq!(names.version(&path), 0);
        assert_eq!(names.begin(&path, 0), Ok(()));
        assert_eq!(names.begin(&path, 0), Err(FsError::Stale));
        assert_eq!(names.version(&path), 1);
        assert_eq!(names.begin(&path, 0), Err(FsError::Stale));
        assert_eq!(names.begin(&path, 1), Ok(()));
    }

    #[test]
    fn remove_missing_removes_only_names_without_a_successful_open() {
        let mut names = PlainNames::default();
        let path = RemotePath::decode("a").unwrap();
        names.begin(&path, 0).unwrap();
        names.remove_missing(&path);
        assert_eq!(names.begin(&path, 0), Ok(()));
        names.record_existing(&path, 0, Some(17));
        names.remove_missing(&path);
        assert_eq!(names.begin(&path, 0), Err(FsError::Stale));
    }

    #[test]
    fn only_names_with_a_successful_open_are_listed() {
        let mut names = PlainNames::default();
        let path = RemotePath::decode("a").unwrap();
        names.begin(&path, 0).unwrap();
        assert_eq!(names.existing().count(), 0);
        names.record_existing(&path, 0, Some(17));
        assert_eq!(names.existing().next(), Some((&path, 0)));
        assert_eq!((names.size(&path, 0), names.size(&path, 1)), (Some(17), None));
    }
}
