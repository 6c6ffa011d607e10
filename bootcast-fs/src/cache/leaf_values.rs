//! File `leaves` of an object on disk: the hashes that its bytes are verified against, so that a
//! later use can verify them while the server is away.
//!
//! ```text
//! values of all leaves, 32 bytes each; zeros where a value is not known
//! values of all segments, 32 bytes each
//! ```
//!
//! The file has no checksum: its values prove themselves against the content id in `state`.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bootcast_proto::ContentTree;
use bootcast_proto::manifest::{SEGMENT_LEAVES, Value};

/// Bytes of a value.
const VALUE_LEN: u64 = size_of::<Value>() as u64;

/// Hashes of one version on disk.
#[derive(Debug)]
pub struct LeafValues(File);

impl LeafValues {
    /// Opens or creates the file in the directory of an object.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW).open(dir.join("leaves")).map(Self)
    }

    /// Opens the file in the directory of another object, to read it.
    pub(super) fn open_existing(dir: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW).open(dir.join("leaves")).map(Self)
    }

    /// Stores the values of the leaves of a segment.
    pub fn save_leaves(&self, segment: u64, values: &[Value]) -> io::Result<()> {
        self.0.write_all_at(values.as_flattened(), segment * SEGMENT_LEAVES * VALUE_LEN)
    }

    /// Stores the values of all segments.
    pub fn save_segments(&self, tree: &ContentTree, values: &[Value]) -> io::Result<()> {
        assert_eq!(tree.segments(), values.len() as u64, "one value for each segment");
        self.0.write_all_at(values.as_flattened(), tree.leaves() * VALUE_LEN)
    }

    /// Returns the values of the leaves of some segments. They are not proven yet.
    pub fn leaves(&self, tree: &ContentTree, segments: &Range<u64>) -> io::Result<Vec<Value>> {
        let first = tree.leaves_of(segments.start).start;
        let end = tree.leaves_of(segments.end.saturating_sub(1)).end;
        self.read(first..end)
    }

    /// Returns the values of all segments. They are not proven yet.
    pub fn segments(&self, tree: &ContentTree) -> io::Result<Vec<Value>> {
        self.read(tree.leaves()..tree.leaves() + tree.segments())
    }

    fn read(&self, values: Range<u64>) -> io::Result<Vec<Value>> {
        // A damaged `state` must not make this allocate more than the file has.
        if self.0.metadata()?.len() < values.end * VALUE_LEN {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = usize::try_from(values.end - values.start).map_err(io::Error::other)?;
        let mut read = vec![[0; blake3::OUT_LEN]; count];
        self.0.read_exact_at(read.as_flattened_mut(), values.start * VALUE_LEN)?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use bootcast_proto::manifest::SEGMENT_BYTES;

    use super::*;

    #[test]
    fn values_are_read_as_they_were_saved_and_missing_ones_are_an_error_or_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let tree = ContentTree::new(2 * SEGMENT_BYTES + 1);
        let values = LeafValues::open(dir.path()).unwrap();
        assert!(values.leaves(&tree, &(0..1)).is_err() && values.segments(&tree).is_err());
        values.save_leaves(1, &[[1; 32]; 256]).unwrap();
        values.save_leaves(2, &[[2; 32]]).unwrap();
        values.save_segments(&tree, &[[3; 32]; 3]).unwrap();
        let values = LeafValues::open(dir.path()).unwrap();
        assert_eq!(values.segments(&tree).unwrap(), [[3; 32]; 3]);
        let leaves = values.leaves(&tree, &(0..3)).unwrap();
        assert_eq!(leaves.len(), 513);
        assert_eq!([leaves[0], leaves[256], leaves[512]], [[0; 32], [1; 32], [2; 32]]);
        assert_eq!(values.leaves(&tree, &(2..3)).unwrap(), [[2; 32]]);
    }
}
