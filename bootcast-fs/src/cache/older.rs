//! Bytes in the cache whose leaves may be those of a version: an older version of the file, or what
//! an earlier use of the same version left without a checkpoint.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bootcast_proto::ContentTree;
use bootcast_proto::manifest::{LEAF_BYTES, SEGMENT_LEAVES, UNKNOWN, Value};
use rustix::fs::{FlockOperation, SeekFrom};

use super::{LeafValues, ObjectKey, open_data, paths, state};

/// Bytes and hashes of an older version, or of an earlier use. Neither is proven.
///
/// Its descriptors keep the bytes for as long as they are needed, whoever removes the object. If
/// the object is complete, a shared lock also tells others that it is in use.
#[derive(Debug)]
pub struct Older {
    data: File,
    leaf_values: LeafValues,
    tree: ContentTree,
    /// Whether nobody changes the bytes, because the object is complete and locked.
    is_settled: bool,
    /// Whether these are the bytes of the version itself, as far as the file has data.
    is_own: bool,
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
            is_own: false,
        })
    }

    /// Returns what an earlier use left in an object beside the pages that its state records.
    pub(super) fn of_earlier_use(object: &Path) -> Option<Self> {
        let data = open_data(object, false).ok()?;
        let leaf_values = LeafValues::open_existing(object).ok()?;
        let tree = ContentTree::new(data.metadata().ok()?.len());
        let older = Self { data, leaf_values, tree, is_settled: false, is_own: true };
        (tree.leaves() > 0).then_some(older)
    }

    /// Returns the values that the leaves of a segment may have here. `own` are those of the
    /// version that may be the same one. [`UNKNOWN`] stands for leaves that are not here.
    pub fn values_to_compare(&self, segment: u64, own: &[Value]) -> Vec<Value> {
        if !self.is_own {
            return self.leaf_values(segment);
        }
        let mut candidates = vec![UNKNOWN; own.len()];
        for leaf in self.leaves_with_data(segment) {
            let at = usize::try_from(leaf - segment * SEGMENT_LEAVES).expect("256 leaves");
            if let (Some(candidate), Some(value)) = (candidates.get_mut(at), own.get(at)) {
                *candidate = *value;
            }
        }
        candidates
    }

    /// Returns the leaves of a segment that do not lie in holes of the file.
    fn leaves_with_data(&self, segment: u64) -> Vec<u64> {
        if segment >= self.tree.segments() {
            return Vec::new();
        }
        let Range { start, end } = self.tree.segment(segment);
        let (mut at, mut leaves) = (start, Vec::new());
        while at < end
            && let Ok(data) = rustix::fs::seek(&self.data, SeekFrom::Data(at))
            && data < end
        {
            let hole = rustix::fs::seek(&self.data, SeekFrom::Hole(data)).unwrap_or(end);
            let first = data / LEAF_BYTES;
            let next = leaves.last().map_or(first, |last| first.max(last + 1));
            leaves.extend(next..hole.min(end).div_ceil(LEAF_BYTES));
            at = hole.max(data + 1);
        }
        leaves
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
