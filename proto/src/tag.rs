//! Tags: keyed hashes in datagrams. A tag proves that the sender knows the key of the cast, as the
//! server and all members do. docs/PROTOCOL.md, "Tags".

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::ops::Range;
use core::str::FromStr;

use blake3::Hasher;

use lanes::LANES;

mod lanes;

/// Length of a key in bytes.
pub const KEY_LEN: usize = 32;

/// Byte range of the tag in a datagram, the same on both ports.
pub const TAG: Range<usize> = 8..16;

/// A tag: the first bytes of the keyed hash.
type Tag = [u8; TAG.end - TAG.start];

/// Key for the tags of one cast. `Debug` hides it, because people who are not members read logs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DatagramKey([u8; KEY_LEN]);

/// Error: the text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key is {KEY_LEN} bytes in hex")]
pub struct DatagramKeyError;

impl DatagramKey {
    /// Creates a key from random bytes.
    pub fn from_random(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Hex form of the key, as in the join answer.
    pub fn to_hex(self) -> String {
        let mut text = String::with_capacity(2 * KEY_LEN);
        for byte in self.0 {
            write!(text, "{byte:02x}").expect("a String takes all that memory can hold");
        }
        text
    }

    /// Writes the tag into a datagram. Panics if the datagram is shorter than its header.
    pub fn seal(&self, datagram: &mut [u8]) {
        let tag = self.tag(datagram).expect("every datagram that is sent has a header");
        datagram[TAG].copy_from_slice(&tag);
    }

    /// Writes the tags into consecutive datagrams of `len` bytes each; the last one may be shorter.
    /// Panics if one is shorter than its header.
    pub fn seal_all(&self, datagrams: &mut [u8], len: usize) {
        for batch in datagrams.chunks_mut(len * LANES) {
            let tags = self.tags(&batch.chunks(len).collect::<Vec<_>>());
            for (datagram, tag) in batch.chunks_mut(len).zip(tags) {
                let tag = tag.expect("every datagram that is sent has a header");
                datagram[TAG].copy_from_slice(&tag);
            }
        }
    }

    /// Whether a datagram carries the right tag.
    pub fn is_genuine(&self, datagram: &[u8]) -> bool {
        self.tag(datagram).is_some_and(|tag| datagram[TAG] == tag)
    }

    /// Checks the tags of several datagrams and returns the results in the same order. Faster than
    /// [`Self::is_genuine`] for each, if consecutive datagrams have equal lengths.
    pub fn are_genuine(&self, datagrams: &[&[u8]]) -> Vec<bool> {
        let mut genuine = Vec::with_capacity(datagrams.len());
        for batch in datagrams.chunks(LANES) {
            let tags = self.tags(batch).into_iter().zip(batch);
            genuine.extend(tags.map(|(tag, datagram)| tag.is_some_and(|tag| datagram[TAG] == tag)));
        }
        genuine
    }

    /// Computes the tags of at most [`LANES`] datagrams, in the same order; `None` for a datagram
    /// shorter than its header.
    fn tags(&self, datagrams: &[&[u8]]) -> [Option<Tag>; LANES] {
        // The library is faster for a single datagram.
        let parallel = (datagrams.len() > 1).then(|| lanes::tags(&self.0, datagrams)).flatten();
        parallel.map_or_else(
            || core::array::from_fn(|at| datagrams.get(at).and_then(|datagram| self.tag(datagram))),
            |tags| tags.map(Some),
        )
    }

    /// Computes the tag of a datagram; `None` if it is shorter than its header.
    fn tag(&self, datagram: &[u8]) -> Option<Tag> {
        let (before, after) = (datagram.get(..TAG.start)?, datagram.get(TAG.end..)?);
        let mut hasher = Hasher::new_keyed(&self.0);
        hasher.update(before).update(after);
        hasher.finalize().as_bytes().first_chunk().copied()
    }
}

impl FromStr for DatagramKey {
    type Err = DatagramKeyError;

    fn from_str(text: &str) -> Result<Self, DatagramKeyError> {
        let digits = text.as_bytes();
        if digits.len() != 2 * KEY_LEN {
            return Err(DatagramKeyError);
        }
        let mut key = [0; KEY_LEN];
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(key))
    }
}

impl fmt::Debug for DatagramKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatagramKey(..)")
    }
}

/// Value of a hex digit.
fn digit(ascii: u8) -> Result<u8, DatagramKeyError> {
    let value = char::from(ascii).to_digit(16).ok_or(DatagramKeyError)?;
    u8::try_from(value).map_err(|_| DatagramKeyError)
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::ids::PageIndex;
    use crate::wire::{Layout, end_datagram};

    /// Key of the worked examples in docs/PROTOCOL.md, "Tags": 00 01 02 .. 1f.
    fn example_key() -> DatagramKey {
        DatagramKey::from_random(core::array::from_fn(|at| u8::try_from(at).unwrap()))
    }

    /// Formats bytes as a hex dump of docs/PROTOCOL.md does: in groups of four.
    fn hex_dump(bytes: &[u8]) -> std::string::String {
        let groups: Vec<_> = bytes
            .chunks(4)
            .map(|group| {
                group.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
            })
            .collect();
        groups.join("  ")
    }

    #[test]
    fn the_worked_examples_of_the_protocol_hold() {
        let protocol = include_str!("../../docs/PROTOCOL.md");
        let section =
            protocol.split("\n## ").find(|section| section.starts_with("6 Tags")).unwrap();
        let mut last = Layout::Base.header(PageIndex(2), 3, &[b'z'; 1088]).to_vec();
        last.resize(1104, b'z');
        let mut end = end_datagram(None);
        for datagram in [&mut last, &mut end] {
            example_key().seal(datagram);
            let line = hex_dump(&datagram[..16]);
            assert!(section.contains(&line), "not in section 6: {line}");
        }
        assert!(section.contains(&example_key().to_hex()));
    }

    #[test]
    fn debug_does_not_show_the_key() {
        assert_eq!(format!("{:?}", Some(example_key())), "Some(DatagramKey(..))");
    }

    #[test]
    fn only_64_hex_digits_are_a_key() {
        let good = example_key().to_hex();
        assert_eq!(good.to_uppercase().parse(), Ok(example_key()));
        for bad in
            ["", &good[1..], &format!("{good}0"), &good.replace("1f", "1g"), &"+1".repeat(32)]
        {
            assert_eq!(bad.to_string().parse::<DatagramKey>(), Err(DatagramKeyError), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_key_reads_back(bytes: [u8; KEY_LEN]) {
            let key = DatagramKey::from_random(bytes);
            prop_assert_eq!(key.to_hex().parse(), Ok(key));
        }

        #[test]
        fn the_tag_is_the_hash_of_the_bytes_around_it(
            key: [u8; KEY_LEN], bytes in proptest::collection::vec(any::<u8>(), 16..4000),
        ) {
            let mut sealed = bytes.clone();
            let key = DatagramKey::from_random(key);
            key.seal(&mut sealed);
            let covered = [&bytes[..8], &bytes[16..]].concat();
            let hash = blake3::keyed_hash(&key.0, &covered);
            prop_assert_eq!(&sealed[TAG], &hash.as_bytes()[..8]);
            prop_assert_eq!([&sealed[..8], &sealed[16..]].concat(), covered);
            prop_assert!(key.is_genuine(&sealed));
        }

        #[test]
        fn tags_computed_together_equal_tags_computed_one_by_one(
            len in 16usize..2200, count in 1usize..20, cut in 0usize..200, seed: u8,
        ) {
            let key = example_key();
            let byte = |at: usize| (at * 31).to_le_bytes()[0] ^ seed;
            let mut bytes: Vec<u8> = (0..len * count).map(byte).collect();
            bytes.truncate((len * count - cut.min(len - 16)).max(16));
            let mut one_by_one = bytes.clone();
            one_by_one.chunks_mut(len).for_each(|datagram| key.seal(datagram));
            key.seal_all(&mut bytes, len);
            prop_assert_eq!(&bytes, &one_by_one);
            let datagrams: Vec<_> = bytes.chunks(len).collect();
            prop_assert_eq!(key.are_genuine(&datagrams), vec![true; count]);
            let wrong = usize::from(seed) % count;
            let mut other = datagrams[wrong].to_vec();
            other[0] ^= 1;
            let mut mixed = datagrams.clone();
            mixed[wrong] = &other;
            let expected: Vec<_> = (0..count).map(|at| at != wrong).collect();
            prop_assert_eq!(key.are_genuine(&mixed), expected);
            prop_assert_eq!(key.are_genuine(&[&other[..15], datagrams[0]]), [false, true]);
        }

        #[test]
        fn a_flipped_bit_or_another_key_is_detected(
            keys: [[u8; KEY_LEN]; 2], at: proptest::sample::Index, bit in 0u32..8,
            bytes in proptest::collection::vec(any::<u8>(), 16..4000),
        ) {
            let [key, other] = keys.map(DatagramKey::from_random);
            let mut sealed = bytes;
            key.seal(&mut sealed);
            prop_assert_eq!(other.is_genuine(&sealed), key == other);
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(!key.is_genuine(&sealed));
        }

        #[test]
        fn a_truncated_datagram_is_not_genuine(
            bytes in proptest::collection::vec(any::<u8>(), 16..100), len: proptest::sample::Index,
        ) {
            let mut sealed = bytes;
            example_key().seal(&mut sealed);
            prop_assert!(!example_key().is_genuine(&sealed[..len.index(sealed.len())]));
        }
    }
}
