//! The end of a file: its last page, leaf, segment and block, at all sizes near their borders.
//! Bytes come from memory, so that the manifest and the file can differ.

use std::io::IoSliceMut;
use std::iter::once;
use std::ops::Range;
use std::sync::Arc;

use bootcast_proto::fec::{Engine, RepairIndex, decode};
use bootcast_proto::manifest::{LEAF_BYTES, SEGMENT_BYTES};
use bootcast_proto::wire::{HEADER_LEN, Page, REPAIR_HEADER_LEN};
use bootcast_proto::{BlockIndex, BlockLayout, Geometry, Layout, PageIndex, PageRange, PageSize};
use proptest::prelude::*;

use super::memory::Memory;
use super::pages::{PageBuffer, PageReader};
use super::proof::{PartialLeaves, prove};
use super::source::{PageSource, ReadError};
use super::symbols::{Rows, SymbolReader};
use crate::cast::Symbol;

/// Sizes within one byte of a border.
fn sizes() -> impl Strategy<Value = u64> {
    let borders = [0, LEAF_BYTES, 2 * LEAF_BYTES, SEGMENT_BYTES, 2 * SEGMENT_BYTES];
    (prop::sample::select(borders.to_vec()), 0..3u64)
        .prop_map(|(at, by)| (at + by).saturating_sub(1))
}

fn place(bytes: Range<u64>) -> Range<usize> {
    usize::try_from(bytes.start).unwrap()..usize::try_from(bytes.end).unwrap()
}

fn geometry(size: u64, page_size: u64) -> Geometry {
    Geometry::new(size, PageSize::new(page_size).unwrap()).unwrap()
}

/// Returns the last `pages` pages of a file, or all.
fn last(geometry: &Geometry, pages: u32) -> PageRange {
    PageRange::new(geometry.pages().saturating_sub(pages), geometry.pages())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_last_pages_are_the_last_bytes_of_the_file_and_proven(
        size in sizes(), page_size in prop::sample::select(vec![100, 1456, 8192, 65_491]),
        pages in 1..40u32, read_bytes in 0..200_000usize, is_of_stream: bool,
    ) {
        let (source, geometry) = (Arc::new(Memory::new(size)), geometry(size, page_size));
        let run = last(&geometry, pages);
        prop_assert_eq!(geometry.byte_range(run).end, size);
        if run.is_empty() {
            prop_assert_eq!((size, geometry.pages()), (0, 0));
            return Ok(());
        }
        let reader = PageReader::new(source.clone(), geometry, Layout::Base);
        let reader = if is_of_stream { reader.of_stream() } else { reader };
        let buffer = reader.read(run, read_bytes, PageBuffer::default()).unwrap();
        prop_assert_eq!(buffer.pages(), run, "nothing is read behind the end");
        let bytes = geometry.byte_range(run);
        prop_assert_eq!(buffer.bytes(), bytes.end - bytes.start);
        let datagrams = buffer.datagrams(run).unwrap();
        let full = HEADER_LEN + usize::try_from(page_size).unwrap();
        for (page, datagram) in run.iter().zip(datagrams.chunks(full)) {
            let payload = &source.bytes[place(geometry.byte_range(PageRange::single(page)))];
            let decoded = Layout::Base.decode(datagram, geometry.pages());
            prop_assert_eq!(decoded, Ok(Page { index: PageIndex(page.0), payload }));
        }
    }

    #[test]
    fn another_byte_in_the_last_leaf_is_found_in_the_last_page(
        size in sizes(),
        page_size in prop::sample::select(vec![100, 1456, 65_491]),
        back in 1..99u64,
    ) {
        prop_assume!(size > 0);
        let mut source = Memory::new(size);
        let leaf = (size - 1) / LEAF_BYTES * LEAF_BYTES..size;
        source.bytes[place(leaf.end.saturating_sub(back).max(leaf.start)..size)][0] ^= 1;
        let (source, geometry) = (Arc::new(source), geometry(size, page_size));
        let reader = PageReader::new(source.clone(), geometry, Layout::Base);
        let failure = reader.read(last(&geometry, 1), 0, PageBuffer::default()).unwrap_err();
        prop_assert!(matches!(failure.error, ReadError::Changed));
        prop_assert_eq!(source.other(), Some(leaf));
    }

    #[test]
    fn the_last_byte_is_proven_alone_and_nothing_is_behind_it(size in sizes()) {
        let source = Memory::new(size);
        for start in [0, size / 2, size.saturating_sub(1), size] {
            let bytes = source.bytes[place(start..size)].chunks(1456);
            let proven = prove(&source, PartialLeaves::Complete, once((start..size, bytes)));
            prop_assert!(proven.is_ok());
        }
        let mut behind = [0; 1];
        let read = source.read(&mut [IoSliceMut::new(&mut behind)], size);
        prop_assert!(matches!(read, Err(ReadError::Changed)));
    }

    #[test]
    fn the_last_block_is_encoded_with_zeros_behind_the_end(size in sizes(), interleave in 1..9u32) {
        prop_assume!(size > 0);
        let (source, geometry) = (Arc::new(Memory::new(size)), geometry(size, 1456));
        let layout = BlockLayout::new(geometry.pages(), interleave).unwrap();
        let block = BlockIndex(layout.blocks() - 1);
        let number = RepairIndex::new(5).unwrap();
        let symbol = Symbol { block, number, promised: 6 };
        let reader = SymbolReader::new(source.clone(), geometry, layout);
        let read = reader.read(&[symbol], 0, &Rows::default());
        prop_assert!(read.failure.is_none());
        let mut encoded = read.encoded;
        let payload = encoded.datagrams(&[symbol], None).unwrap()[REPAIR_HEADER_LEN..].to_vec();
        let page = |page| &source.bytes[place(geometry.byte_range(PageRange::single(page)))];
        let pages: Vec<_> = layout.pages_in(block).collect();
        let (lost, rest) = pages.split_last().unwrap();
        let present: Vec<_> = rest.iter().map(|it| (it.0, page(it.1))).collect();
        let repairs = [(number, &payload[..])];
        let rebuilt = decode(Engine::best(), 1456, &[lost.0], &present, &repairs).unwrap();
        let (own, behind) = rebuilt[0].split_at(page(lost.1).len());
        prop_assert_eq!(own, page(lost.1));
        prop_assert!(behind.iter().all(|byte| *byte == 0));
    }
}
