//! Datagrams of the repair channel that state leaf values. docs/PROTOCOL.md, "Leaf lists".

use alloc::vec::Vec;
use core::ops::Range;

use super::repair::{
    KIND_LEAF_LIST, REPAIR_HEADER_LEN, RepairError, be_u16, be_u32, field, header,
};
use crate::manifest::{ContentTree, Manifest, SEGMENT_LEAVES, Value};

/// Bytes of a value.
const VALUE_LEN: usize = size_of::<Value>();

/// Maximum number of values in one datagram, whatever the page size.
const MAX_VALUES: u32 = 128;

/// Consecutive leaves of one segment, whose values one datagram states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeafSpan {
    segment: u32,
    /// First leaf, counted from 0 within the segment.
    first: u16,
    /// Number of leaves, at least 1.
    count: u8,
}

impl LeafSpan {
    /// Divides the leaves of a segment into spans, in order. Each is as long as fits a datagram
    /// with pages of `page_size` bytes. There are none if the file has no such segment, or if a
    /// page has no room for a value.
    pub fn all_of(
        tree: &ContentTree,
        segment: u32,
        page_size: u32,
    ) -> impl ExactSizeIterator<Item = Self> + use<> {
        let leaves = tree.leaves_of(segment.into());
        let in_page = u16::try_from((page_size / 32).min(MAX_VALUES)).expect("128 at most");
        let leaves = if in_page == 0 { 0 } else { leaves.end - leaves.start };
        let leaves = u16::try_from(leaves).expect("256 at most");
        (0..leaves).step_by(in_page.max(1).into()).map(move |first| {
            let count = u8::try_from(in_page.min(leaves - first)).expect("128 at most");
            Self { segment, first, count }
        })
    }

    /// Returns the leaves, counted from 0 in the file.
    pub fn leaves(&self) -> Range<u64> {
        let first = u64::from(self.segment) * SEGMENT_LEAVES + u64::from(self.first);
        first..first + u64::from(self.count)
    }

    /// Returns the segment that the leaves belong to, counted from 0.
    pub fn segment(&self) -> u32 {
        self.segment
    }

    /// Returns the number of bytes behind the header of the datagram.
    pub fn payload_len(&self) -> usize {
        usize::from(self.count) * VALUE_LEN
    }

    /// Encodes the datagram with the values from `manifest`. `None` if its file does not have these
    /// leaves.
    pub fn encode(&self, manifest: &Manifest) -> Option<Vec<u8>> {
        let leaves = self.leaves();
        let (start, end) = (usize::try_from(leaves.start).ok()?, usize::try_from(leaves.end).ok()?);
        let values = manifest.leaves().get(start..end)?;
        let mut bytes = header(KIND_LEAF_LIST).to_vec();
        bytes[field::COUNT] = self.count;
        bytes[field::FIRST].copy_from_slice(&self.first.to_be_bytes());
        bytes[field::SEGMENT].copy_from_slice(&self.segment.to_be_bytes());
        bytes.extend(values.iter().flatten());
        Some(bytes)
    }
}

/// Leaf values that a datagram states. Nothing proves them before all values of their segment are
/// known: [`ContentTree::segment_value`] of these must be the proven value of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafList<'a> {
    span: LeafSpan,
    values: &'a [Value],
}

impl<'a> LeafList<'a> {
    /// Decodes a datagram. Checks everything that does not depend on the size of the file.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, RepairError> {
        let (header, payload) =
            datagram.split_first_chunk::<REPAIR_HEADER_LEN>().ok_or(RepairError::Length)?;
        if header[field::KIND] != KIND_LEAF_LIST {
            return Err(RepairError::Kind);
        }
        let (values, rest) = payload.as_chunks::<VALUE_LEN>();
        let (first, count) = (be_u16(&header[field::FIRST]), header[field::COUNT]);
        if !rest.is_empty() || values.len() != usize::from(count) || count == 0 {
            return Err(RepairError::Length);
        }
        if u64::from(first) + u64::from(count) > SEGMENT_LEAVES {
            return Err(RepairError::Index);
        }
        let segment = be_u32(&header[field::SEGMENT]);
        Ok(Self { span: LeafSpan { segment, first, count }, values })
    }

    /// Returns the leaves, counted from 0 in the file, and their values. Fails if the file does not
    /// have these leaves.
    pub fn in_file(&self, tree: &ContentTree) -> Result<(Range<u64>, &'a [Value]), RepairError> {
        let leaves = self.span.leaves();
        if leaves.end > tree.leaves() {
            return Err(RepairError::Index);
        }
        debug_assert_eq!(leaves.end - leaves.start, self.values.len() as u64);
        Ok((leaves, self.values))
    }

    /// Returns the segment that the leaves belong to, counted from 0. The file need not have it.
    pub fn segment(&self) -> u32 {
        self.span.segment
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::repair::tests::is_quoted;
    use super::*;
    use crate::BlockLayout;
    use crate::manifest::{LEAF_BYTES, SEGMENT_BYTES};
    use crate::wire::RepairDatagram;

    const PAGE: u32 = 1456;

    /// Manifest of a file with this many bytes and values that differ. They prove nothing.
    fn manifest(size: u64) -> Manifest {
        let tree = ContentTree::new(size);
        let value = |leaf: u64| *blake3::hash(&leaf.to_be_bytes()).as_bytes();
        Manifest::new(tree, (0..tree.leaves()).map(value).collect())
    }

    fn spans(manifest: &Manifest, segment: u32, page_size: u32) -> Vec<LeafSpan> {
        LeafSpan::all_of(manifest.tree(), segment, page_size).collect()
    }

    #[test]
    fn the_worked_lists_of_the_protocol_state_the_two_leaves_of_the_dialogues_file() {
        let file: Vec<u8> = (0..19_190_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let manifest = Manifest::of_content(&file);
        let protocol = include_str!("../../../docs/PROTOCOL.md");
        assert!(protocol.contains(&std::format!("    {}\n", manifest.id())), "{}", manifest.id());
        // Pages of 48 bytes have room for one value.
        for span in spans(&manifest, 0, 48) {
            let datagram = span.encode(&manifest).unwrap();
            assert!(is_quoted(&datagram), "{datagram:02x?}");
        }
    }

    #[test]
    fn a_full_segment_takes_six_datagrams_of_default_pages() {
        let manifest = manifest(2 * SEGMENT_BYTES + 1);
        let lens: Vec<_> = spans(&manifest, 1, PAGE).iter().map(LeafSpan::payload_len).collect();
        assert_eq!(lens, [1440, 1440, 1440, 1440, 1440, 992]);
        assert_eq!(spans(&manifest, 2, PAGE).len(), 1);
        assert_eq!(spans(&manifest, 3, PAGE), []);
        assert_eq!(spans(&manifest, u32::MAX, PAGE), []);
        assert_eq!(spans(&manifest, 0, 31), []);
        assert_eq!(spans(&manifest, 0, 9000).len(), 2);
    }

    #[test]
    fn each_defect_of_a_list_has_its_own_error() {
        let manifest = manifest(SEGMENT_BYTES + 40 * LEAF_BYTES);
        let good = spans(&manifest, 1, PAGE)[0].encode(&manifest).unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let ends_at = |len: usize| good[..len].to_vec();
        let defects = [
            ("no whole header", ends_at(15), RepairError::Length),
            ("no values", ends_at(16), RepairError::Length),
            ("half a value", ends_at(16 + 39 * 32 + 16), RepairError::Length),
            ("fewer values than stated", ends_at(16 + 39 * 32), RepairError::Length),
            ("more values than stated", with(1, 39), RepairError::Length),
            ("a count of 0", with(1, 0)[..16].to_vec(), RepairError::Length),
            ("another kind", with(0, 5), RepairError::Kind),
            ("leaves of the next segment", with(3, 217), RepairError::Index),
            ("a first leaf above 255", with(2, 1), RepairError::Index),
        ];
        for (defect, bytes, error) in defects {
            assert_eq!(LeafList::decode(&bytes), Err(error), "{defect}");
        }
        for (defect, bytes) in [
            ("leaves behind the end of the file", with(3, 1)),
            ("a segment behind the end of the file", with(7, 2)),
            ("the last segment of all", with(4, 255)),
        ] {
            let list = LeafList::decode(&bytes).unwrap();
            assert_eq!(list.in_file(manifest.tree()), Err(RepairError::Index), "{defect}");
        }
    }

    #[test]
    fn a_manifest_of_a_smaller_file_encodes_nothing() {
        let span = spans(&manifest(SEGMENT_BYTES + 1), 1, PAGE)[0];
        assert_eq!(span.encode(&manifest(SEGMENT_BYTES)), None);
    }

    proptest! {
        #[test]
        fn the_lists_of_all_segments_read_back_as_all_leaf_values(
            size in 0..3 * SEGMENT_BYTES, page_size in 38u32..9000,
        ) {
            let manifest = manifest(size);
            let (tree, layout) = (manifest.tree(), BlockLayout::new(1000, 4).unwrap());
            let mut read = Vec::new();
            for segment in 0..4 {
                for span in LeafSpan::all_of(tree, segment, page_size) {
                    let datagram = span.encode(&manifest).unwrap();
                    prop_assert!(datagram.len() <= REPAIR_HEADER_LEN + page_size as usize);
                    prop_assert_eq!(datagram.len(), REPAIR_HEADER_LEN + span.payload_len());
                    let list = LeafList::decode(&datagram).unwrap();
                    let decoded = RepairDatagram::decode(&datagram, layout, page_size);
                    prop_assert_eq!(decoded, Ok(RepairDatagram::LeafList(list)));
                    let (leaves, values) = list.in_file(tree).unwrap();
                    prop_assert_eq!(leaves.start, read.len() as u64);
                    prop_assert_eq!((list.segment(), span.segment()), (segment, segment));
                    read.extend_from_slice(values);
                }
            }
            prop_assert_eq!(&read[..], manifest.leaves());
        }

        #[test]
        fn no_bytes_panic_and_every_decoded_leaf_is_of_the_file(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), size: u64, values in 0u8..7,
        ) {
            let mut bytes = bytes;
            if let [kind, count, first, ..] = &mut bytes[..] {
                (*kind, *count, *first) = (KIND_LEAF_LIST, values, 0);
                bytes.resize(16 + usize::from(values) * 32, 7);
            }
            if let Ok(list) = LeafList::decode(&bytes) {
                let tree = ContentTree::new(size);
                if let Ok((leaves, values)) = list.in_file(&tree) {
                    prop_assert!(leaves.end <= tree.leaves());
                    prop_assert_eq!(leaves.end - leaves.start, values.len() as u64);
                    let segment = tree.leaves_of(list.segment().into());
                    prop_assert!(segment.start <= leaves.start && leaves.end <= segment.end);
                }
            }
        }
    }
}
