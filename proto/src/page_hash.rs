//! Hashes of single pages, which tell the server's pages from forged ones. docs/PROTOCOL.md,
//! "Manifest" and "Senders that forge".

use alloc::vec::Vec;

use crate::units::PageSize;

/// Maximum number of pages whose hashes one answer of `GET /manifest/` holds: 32 KiB.
const PAGES_MAX: u32 = 2048;

/// Maximum number of bytes of the file that one answer has the hashes of.
const BYTES_MAX: u32 = 4 << 20;

/// Query of `GET /manifest/` that names pages, as `pages=FIRST-LAST`.
pub const QUERY_PAGES: &str = "pages";

/// Query that states the size of a full page in bytes, as `size=BYTES`.
pub const QUERY_SIZE: &str = "size";

/// Returns the maximum number of pages of this size whose hashes one answer has.
pub fn pages_per_answer(size: PageSize) -> u32 {
    (BYTES_MAX / size.get()).clamp(1, PAGES_MAX)
}

/// First 16 bytes of the BLAKE3 hash of a page's payload.
///
/// Whoever wants to pass another payload off for it needs a second preimage of 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHash([u8; Self::LEN]);

impl PageHash {
    /// Bytes of a hash.
    pub const LEN: usize = 16;

    /// Returns the hash of a page with this payload.
    pub fn of(payload: &[u8]) -> Self {
        let mut hash = [0; Self::LEN];
        hash.copy_from_slice(&blake3::hash(payload).as_bytes()[..Self::LEN]);
        Self(hash)
    }

    /// Returns the bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Divides the body of an answer; `None` if it ends within a hash.
    pub fn divide(body: &[u8]) -> Option<Vec<Self>> {
        let (hashes, []) = body.as_chunks() else { return None };
        Some(hashes.iter().map(|hash| Self(*hash)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_the_start_of_what_b3sum_prints() {
        // `printf abc | b3sum` prints 6437b3ac38465133ffb63b75273a8db5 and 16 bytes more.
        let hash = PageHash::of(b"abc");
        let expected = 0x6437_b3ac_3846_5133_ffb6_3b75_273a_8db5_u128;
        assert_eq!(hash.as_bytes(), &expected.to_be_bytes());
        assert_eq!(PageHash::divide(hash.as_bytes()), Some(alloc::vec![hash]));
        assert_eq!(PageHash::divide(&[0; 17]), None);
        assert_eq!(PageHash::divide(&[]), Some(Vec::new()));
    }
}
