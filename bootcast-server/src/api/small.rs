//! Small files, which clients ask for instead of joining a cast. docs/PROTOCOL.md, "Small files".

use axum::http::HeaderMap;
use bootcast_proto::limits::SMALL_FILE;
use bootcast_proto::manifest::{ContentTree, LEAF_BYTES, Manifest};
use bootcast_proto::{ContentId, HEADER_SMALL};

/// Whether the client would join the cast of the file otherwise.
pub(super) fn asks_for_small_file(headers: &HeaderMap) -> bool {
    headers.get(HEADER_SMALL).is_some_and(|value| value == "1")
}

/// Returns the content id of a small file from its bytes; `None` for an empty one, which has none.
pub(super) fn content_id(bytes: &[u8]) -> Option<ContentId> {
    debug_assert!(bytes.len() as u64 <= SMALL_FILE, "the file is not small");
    let tree = ContentTree::new(bytes.len() as u64);
    let leaf_bytes = usize::try_from(LEAF_BYTES).ok().filter(|_| !bytes.is_empty())?;
    let leaves = (0u64..).zip(bytes.chunks(leaf_bytes));
    let values = leaves.map(|(leaf, bytes)| tree.leaf_value(leaf, bytes)).collect();
    Some(Manifest::new(tree, values).id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_id_of_a_few_leaves_is_their_blake3_hash() {
        for len in [1, 16_384, 16_385, 65_536] {
            let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
            let id = content_id(&bytes).unwrap();
            assert_eq!(id.as_bytes(), blake3::hash(&bytes).as_bytes(), "{len}");
        }
        assert_eq!(content_id(b""), None);
    }
}
