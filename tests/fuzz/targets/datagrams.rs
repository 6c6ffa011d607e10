//! Decoders of datagrams. Anyone can send one.

use bootcast_proto::fec::{Engine, RepairIndex, SourceIndex, decode, encode};
use bootcast_proto::wire::{HEADER_LEN, LeafList, RepairDatagram};
use bootcast_proto::{BlockLayout, ContentTree, DatagramKey, Layout, PageHash};

use super::input::Input;

/// Decodes a page in each layout, and checks its tag.
pub(super) fn page(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let pages = input.mostly_small(300);
    let datagram = input.rest();
    let layout = Layout::detect(datagram, pages);
    for layout in [Layout::Base, Layout::Reference].into_iter().chain(layout) {
        if let Ok(page) = layout.decode(datagram, pages) {
            assert!(page.index.0 < pages && !page.payload.is_empty(), "{page:?} of {pages}");
            let header = layout.header(page.index, pages, page.payload);
            let again = [&header[..], page.payload].concat();
            let again = layout.decode(&again, pages).expect("it was decoded before");
            assert_eq!((page.index, page.payload), (again.index, again.payload));
        }
    }
    let key = DatagramKey::from_random([7; 32]);
    let is_genuine = key.is_genuine(datagram);
    assert_eq!(key.are_genuine(&[datagram, datagram]), [is_genuine; 2]);
    if datagram.len() >= HEADER_LEN {
        let mut sealed = datagram.to_vec();
        key.seal(&mut sealed);
        assert!(key.is_genuine(&sealed));
    }
    if let Some(hashes) = PageHash::divide(datagram) {
        assert_eq!(hashes.len() * PageHash::LEN, datagram.len());
    }
}

/// Decodes a datagram of the repair channel.
pub(super) fn repair(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (pages, interleave) = (input.mostly_small(5000), input.mostly_small(600));
    let Some(layout) = BlockLayout::new(pages, interleave) else { return };
    let page_size = input.u16().into();
    let datagram = input.rest();
    if let Ok(RepairDatagram::Beacon(beacon)) = RepairDatagram::decode(datagram, layout, page_size)
    {
        // What is reserved, or of no use, may differ.
        let again = beacon.encode();
        let again = RepairDatagram::decode(&again, layout, page_size);
        assert_eq!(again, Ok(RepairDatagram::Beacon(beacon)), "{pages} {interleave}");
    }
}

/// Decodes a leaf list, as one of any file.
pub(super) fn leaf_list(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let size = input.u64();
    let datagram = input.rest();
    let Ok(list) = LeafList::decode(datagram) else { return };
    for size in [size, size % (64 << 20)] {
        let tree = ContentTree::new(size);
        if let Ok((leaves, values)) = list.in_file(&tree) {
            assert_eq!(leaves.end - leaves.start, values.len() as u64);
            assert!(leaves.end <= tree.leaves(), "{leaves:?} of {size} bytes");
        }
    }
}

/// Rebuilds blocks from what is there. Without contradictions the pages are the right ones.
pub(super) fn fec(bytes: &[u8]) {
    const LEN: usize = 40;
    let engine = Engine::best();
    let mut input = Input::new(bytes);
    let count = usize::from(input.u8()) % 129;
    let content: Vec<[u8; LEN]> = (0..count).map(|_| std::array::from_fn(|_| input.u8())).collect();
    let sources = (0..count).filter_map(SourceIndex::new).zip(content.iter().map(|it| &it[..]));
    let sources: Vec<_> = sources.collect();
    let (mut missing, mut present) = (Vec::new(), Vec::new());
    for (index, page) in &sources {
        // A source may be neither, or both.
        let choice = input.u8();
        if choice & 1 == 1 {
            missing.push(*index);
        }
        if choice & 1 == 0 && choice != 2 || choice == 255 {
            present.push((*index, *page));
        }
    }
    let mut symbols = Vec::new();
    for _ in 0..missing.len() {
        let Some(index) = RepairIndex::new(input.u8().into()) else { continue };
        let mut symbol = [0; LEN];
        encode(engine, index, sources.iter().copied(), &mut symbol);
        symbols.push((index, symbol));
    }
    let symbols: Vec<_> = symbols.iter().map(|(index, symbol)| (*index, &symbol[..])).collect();
    let is_whole = missing.len() + present.len() == count;
    if let Ok(rebuilt) = decode(engine, LEN, &missing, &present, &symbols)
        && is_whole
    {
        for (index, page) in missing.iter().zip(rebuilt) {
            assert!(page == content[index.get()], "a page was rebuilt wrongly");
        }
    }
}
