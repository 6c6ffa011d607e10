//! A small file that came in one answer, with the hashes that prove it.

use std::io::{self, IoSlice};

use bootcast_proto::{ContentId, Geometry, Manifest, PageSet, PageSize};

use super::{Restored, Store};
use crate::receiver::Assembly;

/// Page size by which the pages of a small file are counted. No datagram carries them.
const PAGE_BYTES: u64 = 1024;

/// All bytes of a small file.
#[derive(Clone, Debug)]
pub struct SmallFile {
    bytes: Vec<u8>,
    /// Hashes of the bytes; `None` for an empty file.
    manifest: Option<Manifest>,
}

impl SmallFile {
    /// Checks bytes that arrived; `None` if they are not `size`, or do not have this hash.
    pub fn new(bytes: Vec<u8>, size: u64, id: Option<ContentId>) -> Option<Self> {
        if bytes.len() as u64 != size {
            return None;
        }
        if bytes.is_empty() {
            return Some(Self { bytes, manifest: None });
        }
        let manifest = Manifest::of_content(&bytes);
        (Some(manifest.id()) == id).then_some(Self { bytes, manifest: Some(manifest) })
    }
}

impl Store {
    /// Stores a whole file in a store that has no page. Returns whether it was of use: a store of
    /// which pages are known keeps them.
    pub fn adopt(&mut self, file: &SmallFile) -> io::Result<bool> {
        if self.has_restored() {
            return Ok(false);
        }
        let size = file.bytes.len() as u64;
        let page_size = PageSize::new(PAGE_BYTES).map_err(io::Error::other)?;
        let geometry = Geometry::new(size, page_size).map_err(io::Error::other)?;
        self.set_size(size)?;
        self.write_run(&mut [IoSlice::new(&file.bytes)], 0)?;
        if let (Some(values), Some(manifest)) = (self.leaf_values(), &file.manifest) {
            values.save_leaves(0, manifest.leaves())?;
            values.save_segments(manifest.tree(), manifest.segments())?;
        }
        let mut arrived = PageSet::new(geometry.pages());
        arrived.insert_range(geometry.all());
        let content = file.manifest.as_ref().map(Manifest::id);
        self.set_adopted(Restored { assembly: Assembly::resume(geometry, arrived), content });
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bytes_of_the_hash_are_taken() {
        let bytes = vec![7; 40_000];
        let id = ContentId::of_content(&bytes);
        assert!(SmallFile::new(bytes.clone(), 40_000, Some(id)).is_some());
        assert!(SmallFile::new(bytes.clone(), 40_000, None).is_none());
        assert!(SmallFile::new(bytes, 40_001, Some(id)).is_none());
        assert!(SmallFile::new(vec![8; 40_000], 40_000, Some(id)).is_none());
        assert!(SmallFile::new(Vec::new(), 0, None).is_some());
    }
}
