//! What vouches for a datagram: a keyed hash of all of it, under a key that the members of its cast know.
//! docs/PROTOCOL.md, "Tags".

use alloc::string::String;
use core::fmt::{self, Write};
use core::ops::Range;
use core::str::FromStr;

use blake3::Hasher;

/// Bytes of a key.
pub const KEY_LEN: usize = 32;

/// Where the tag lies, in a datagram of either port.
pub const TAG: Range<usize> = 8..16;

/// Bytes of a tag.
const TAG_LEN: usize = TAG.end - TAG.start;

/// The key of one cast's datagrams. `Debug` does not tell it: a log is read by others than members.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DatagramKey([u8; KEY_LEN]);

/// The text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key is {KEY_LEN} bytes in hex")]
pub struct DatagramKeyError;

impl DatagramKey {
    /// A key of bytes that nobody can guess.
    pub fn from_random(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// As it stands in the join answer.
    pub fn to_hex(self) -> String {
        let mut text = String::with_capacity(2 * KEY_LEN);
        for byte in self.0 {
            write!(text, "{byte:02x}").expect("a String takes all that memory can hold");
        }
        text
    }

    /// The tag of a datagram with these first bytes and this payload.
    pub fn tag(&self, first: &[u8; TAG.start], payload: &[u8]) -> [u8; TAG_LEN] {
        let mut hasher = Hasher::new_keyed(&self.0);
        hasher.update(payload).update(first);
        *hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes")
    }

    /// Writes its tag into a datagram. Panics where that is shorter than its header.
    pub fn seal(&self, datagram: &mut [u8]) {
        let (first, payload) = covered(datagram).expect("what is sent has a header");
        let tag = self.tag(first, payload);
        datagram[TAG].copy_from_slice(&tag);
    }

    /// Whether a datagram carries its tag.
    pub fn is_genuine(&self, datagram: &[u8]) -> bool {
        covered(datagram).is_some_and(|(first, payload)| datagram[TAG] == self.tag(first, payload))
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

fn digit(ascii: u8) -> Result<u8, DatagramKeyError> {
    let value = char::from(ascii).to_digit(16).ok_or(DatagramKeyError)?;
    u8::try_from(value).map_err(|_| DatagramKeyError)
}

/// What the tag covers: what is in front of it and what is behind. `None` where there is no room for one.
fn covered(datagram: &[u8]) -> Option<(&[u8; TAG.start], &[u8])> {
    Some((datagram.first_chunk()?, datagram.get(TAG.end..)?))
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::ToString;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::ids::PageIndex;
    use crate::wire::{Layout, end_datagram};

    /// docs/PROTOCOL.md, "Tags", the worked examples' key: 00 01 02 .. 1f.
    fn example_key() -> DatagramKey {
        DatagramKey::from_random(core::array::from_fn(|at| u8::try_from(at).unwrap()))
    }

    /// A line of a hex dump that docs/PROTOCOL.md must hold.
    fn quoted(bytes: &[u8]) -> std::string::String {
        let groups: Vec<_> = bytes
            .chunks(4)
            .map(|group| {
                group.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
            })
            .collect();
        groups.join("  ")
    }

    #[test]
    fn the_worked_examples_of_the_page_are_right() {
        let page = include_str!("../../docs/PROTOCOL.md");
        let section = page.split("\n## ").find(|section| section.starts_with("6 Tags")).unwrap();
        let mut last = Layout::Base.header(PageIndex(2), 3, &[b'z'; 1088]).to_vec();
        last.resize(1104, b'z');
        let mut end = end_datagram().to_vec();
        for datagram in [&mut last, &mut end] {
            example_key().seal(datagram);
            let line = quoted(&datagram[..16]);
            assert!(section.contains(&line), "not in section 6: {line}");
        }
        assert!(section.contains(&example_key().to_hex()));
    }

    #[test]
    fn a_key_is_not_told_by_debug() {
        assert_eq!(format!("{:?}", Some(example_key())), "Some(DatagramKey(..))");
    }

    #[test]
    fn what_is_no_key_is_refused() {
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
        fn the_tag_is_the_hash_of_what_is_around_it(
            key: [u8; KEY_LEN], bytes in proptest::collection::vec(any::<u8>(), 16..4000),
        ) {
            let mut sealed = bytes.clone();
            let key = DatagramKey::from_random(key);
            key.seal(&mut sealed);
            let covered = [&bytes[16..], &bytes[..8]].concat();
            let hash = blake3::keyed_hash(&key.0, &covered);
            prop_assert_eq!(&sealed[TAG], &hash.as_bytes()[..8]);
            prop_assert_eq!([&sealed[16..], &sealed[..8]].concat(), covered);
            prop_assert!(key.is_genuine(&sealed));
        }

        #[test]
        fn another_bit_or_another_key_is_found_out(
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
        fn what_was_cut_short_is_not_genuine(
            bytes in proptest::collection::vec(any::<u8>(), 16..100), len: proptest::sample::Index,
        ) {
            let mut sealed = bytes;
            example_key().seal(&mut sealed);
            prop_assert!(!example_key().is_genuine(&sealed[..len.index(sealed.len())]));
        }
    }
}
