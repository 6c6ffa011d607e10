//! An older version of a file in the cache, whose leaves may be those of a newer one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bootcast_proto::ContentTree;
use bootcast_proto::manifest::Value;
use rustix::fs::FlockOperation;

use super::{LeafValues, ObjectKey, open_data, paths, state};

/// Bytes and hashes of an older version. Neither is proven.
///
/// Its descriptors keep the bytes for as long as they are needed, whoever removes the object. If the
/// object is complete, a shared lock also tells others that it is in use.
#[derive(Debug)]
pub struct Older {
    data: File,
    leaf_values: LeafValues,
    tree: ContentTree,
    /// Whether nobody changes the bytes, because the object is complete and locked.
    is_settled: bool,
}

impl Older {
    /// Returns the newest complete object of the path of `key` other than `own`; if there is none,
    /// the newest one. `None` if there is no other object with hashes.
    pub(super) fn find(cache_dir: &Path, key: &ObjectKey, own: &str) -> Option<Self> {
        let objects = paths::others(cache_dir, key, own);
        let mut found: Vec<_> = objects.iter().filter_map(|object| Self::open(object)).collect();
        let complete = found.iter().position(|older| older.is_settled);
        (!found.is_empty()).then(|| found.swap_remove(complete.unwrap_or(0)))
    }

    fn open(object: &Path) -> Option<Self> {
        let data = open_data(object, false).ok()?;
        let leaf_values = LeafValues::open_existing(object).ok()?;
        let tree = ContentTree::new(data.metadata().ok()?.len());
        // Somebody else may fill the object at present. What is copied is verified in any case.
        let is_locked = rustix::fs::flock(&data, FlockOperation::NonBlockingLockShared).is_ok();
        let is_complete = state::load_complete(object, None, &data).is_some();
        (tree.leaves() > 0).then_some(Self {
            data,
            leaf_values,
            tree,
            is_settled: is_locked && is_complete,
        })
    }

    /// Returns the values of the leaves of a segment; none if they are not known.
    pub fn leaf_values(&self, segment: u64) -> Vec<Value> {
        if segment >= self.tree.segments() {
            return Vec::new();
        }
        let values = self.leaf_values.leaves(&self.tree, &(segment..segment + 1));
        values.unwrap_or_default()
    }

    /// Fills `buffer` with the bytes at `offset`. Fails if there are fewer.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.data.read_exact_at(buffer, offset)
    }

    /// Returns the file to copy from in the kernel, if nobody changes it meanwhile.
    pub(super) fn settled_data(&self) -> Option<BorrowedFd<'_>> {
        self.is_settled.then(|| self.data.as_fd())
    }
}
