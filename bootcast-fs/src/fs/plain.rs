//! Names on a plain server, which says nothing about a file before it is joined.
//!
//! Every name counts as a file until an open proves otherwise. A directory lists the files that
//! were opened.
//!
//! A plain server names no versions. Received content is used as long as somebody has it open, and
//! fetched again after that. New content gets a new inode. An open of the old inode fails with
//! ESTALE; the kernel then looks the name up again.

use std::collections::BTreeMap;

use bootcast_proto::RemotePath;
use bootcast_proto::api::{Attributes, Kind};

use super::FsError;

/// Names that were asked for so far.
#[derive(Debug, Default)]
pub(super) struct PlainNames {
    names: BTreeMap<RemotePath, PlainName>,
}

#[derive(Clone, Copy, Debug, Default)]
struct PlainName {
    /// Number of the content that a lookup leads to.
    version: u64,
    /// Whether that content was opened.
    begun: bool,
    /// Whether the server ever had a file of this name.
    seen: bool,
}

impl PlainNames {
    /// Number of the content that the name stands for at present.
    pub(super) fn version(&self, path: &RemotePath) -> u64 {
        self.names.get(path).map_or(0, |name| name.version)
    }

    /// Starts the content `version`. Each content can be started once; later opens must look the
    /// name up again.
    pub(super) fn begin(&mut self, path: &RemotePath, version: u64) -> Result<(), FsError> {
        let name = self.names.entry(path.clone()).or_default();
        if name.version == version && !name.begun {
            name.begun = true;
            return Ok(());
        }
        if name.version == version {
            name.version += 1;
            name.begun = false;
        }
        Err(FsError::Stale)
    }

    /// Forgets a name whose open failed. Otherwise every invented name would be remembered.
    pub(super) fn forget_unseen(&mut self, path: &RemotePath) {
        if self.names.get(path).is_some_and(|name| !name.seen) {
            self.names.remove(path);
        }
    }

    /// Records that the server has this file.
    pub(super) fn see(&mut self, path: &RemotePath) {
        self.names.entry(path.clone()).or_default().seen = true;
    }

    /// Files that were opened, with their content numbers.
    pub(super) fn seen(&self) -> impl Iterator<Item = (&RemotePath, u64)> {
        self.names.iter().filter(|(_, name)| name.seen).map(|(path, name)| (path, name.version))
    }
}

/// Attributes of the one directory.
pub(super) fn directory_attributes() -> Attributes {
    Attributes { kind: Kind::Directory, mode: 0o755, ..file_attributes(0) }
}

/// Attributes of a file of which at least `size` bytes exist.
pub(super) fn file_attributes(size: u64) -> Attributes {
    Attributes {
        kind: Kind::File,
        size,
        mode: 0o644,
        mtime: 0,
        mtime_ns: 0,
        etag: None,
        target: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_begun_once_and_the_next_open_must_look_up_the_next() {
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
    fn a_name_that_the_server_does_not_have_is_forgotten_and_one_that_it_has_is_not() {
        let mut names = PlainNames::default();
        let path = RemotePath::decode("a").unwrap();
        names.begin(&path, 0).unwrap();
        names.forget_unseen(&path);
        assert_eq!(names.begin(&path, 0), Ok(()));
        names.see(&path);
        names.forget_unseen(&path);
        assert_eq!(names.begin(&path, 0), Err(FsError::Stale));
    }

    #[test]
    fn only_what_the_server_had_is_listed() {
        let mut names = PlainNames::default();
        let path = RemotePath::decode("a").unwrap();
        names.begin(&path, 0).unwrap();
        assert_eq!(names.seen().count(), 0);
        names.see(&path);
        assert_eq!(names.seen().next(), Some((&path, 0)));
    }
}
