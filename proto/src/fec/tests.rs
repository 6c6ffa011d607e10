use std::vec::Vec;

use proptest::prelude::*;

use super::*;

fn source(index: usize) -> SourceIndex {
    SourceIndex::new(index).unwrap()
}

fn repair(index: usize) -> RepairIndex {
    RepairIndex::new(index).unwrap()
}

/// Returns `count` pages of `len` bytes, the last one of `last` bytes.
fn pages(count: usize, len: usize, last: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut state = seed | 1;
    let mut byte = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[7]
    };
    (0..count)
        .map(|page| (0..if page + 1 == count { last } else { len }).map(|_| byte()).collect())
        .collect()
}

fn indexed(pages: &[Vec<u8>]) -> impl Iterator<Item = (SourceIndex, &[u8])> {
    pages.iter().enumerate().map(|(at, page)| (source(at), page.as_slice()))
}

fn symbol(pages: &[Vec<u8>], index: usize, len: usize) -> Vec<u8> {
    let mut symbol = std::vec![0xaa; len];
    encode(Engine::Scalar, repair(index), indexed(pages), &mut symbol);
    symbol
}

#[test]
fn the_worked_example_of_the_protocol_holds() {
    // docs/PROTOCOL.md, "The code": a block of two pages of four bytes.
    let pages = [b"abcd".to_vec(), b"efgh".to_vec()];
    assert_eq!(symbol(&pages, 0, 4), WORKED_REPAIR_0);
    assert_eq!(symbol(&pages, 1, 4), WORKED_REPAIR_1);
}

const WORKED_REPAIR_0: [u8; 4] = [0xb3, 0xaf, 0x52, 0x4a];
const WORKED_REPAIR_1: [u8; 4] = [0x6a, 0x76, 0x8b, 0x3a];

#[test]
fn each_reason_that_prevents_decoding_has_its_own_error() {
    let pages = pages(3, 8, 8, 1);
    let (first, second) = (symbol(&pages, 0, 8), symbol(&pages, 1, 8));
    let present: Vec<_> = indexed(&pages).skip(2).collect();
    let missing = [source(0), source(1)];
    let try_with = |missing: &[SourceIndex], repairs: &[(RepairIndex, &[u8])]| {
        decode(Engine::Scalar, 8, missing, &present, repairs).unwrap_err()
    };
    let one = (repair(0), first.as_slice());
    assert_eq!(try_with(&missing, &[one]), DecodeError::TooFew { missing: 2, repairs: 1 });
    assert_eq!(try_with(&missing, &[one, one]), DecodeError::Twice);
    assert_eq!(try_with(&[source(2)], &[one]), DecodeError::Twice);
    let short = (repair(1), &second[..7]);
    assert_eq!(try_with(&missing, &[one, short]), DecodeError::Length);
}

#[test]
fn a_block_is_rebuilt_from_repair_symbols_alone() {
    let pages = pages(SOURCES, 64, 64, 2);
    let symbols: Vec<_> = (0..REPAIRS).map(|index| symbol(&pages, index, 64)).collect();
    let repairs: Vec<_> =
        symbols.iter().enumerate().map(|(at, symbol)| (repair(at), symbol.as_slice())).collect();
    let missing: Vec<_> = (0..SOURCES).map(source).collect();
    for engine in Engine::all() {
        assert_eq!(decode(engine, 64, &missing, &[], &repairs).unwrap(), pages);
    }
}

proptest! {
    #[test]
    fn any_repair_symbols_rebuild_as_many_lost_pages(
        count in 1usize..=SOURCES, len in 1usize..300, seed: u64, cut in 1usize..300,
        order in Just((0..SOURCES).collect::<Vec<_>>()).prop_shuffle(),
        chosen in Just((0..REPAIRS).collect::<Vec<_>>()).prop_shuffle(),
        lost in 0usize..=SOURCES,
    ) {
        let pages = pages(count, len, cut.min(len), seed);
        let lost: Vec<_> = order.into_iter().filter(|at| *at < count).take(lost).collect();
        let missing: Vec<_> = lost.iter().map(|at| source(*at)).collect();
        let present: Vec<_> = indexed(&pages).filter(|(at, _)| !lost.contains(&at.get())).collect();
        let numbered = |at: &usize| (repair(*at), symbol(&pages, *at, len));
        let symbols: Vec<_> = chosen.iter().take(lost.len()).map(numbered).collect();
        let repairs: Vec<_> = symbols.iter().map(|(at, symbol)| (*at, symbol.as_slice())).collect();
        for engine in Engine::all() {
            let rebuilt = decode(engine, len, &missing, &present, &repairs).unwrap();
            for (at, page) in lost.iter().zip(rebuilt) {
                prop_assert_eq!(&page[..pages[*at].len()], &pages[*at][..]);
                prop_assert!(page[pages[*at].len()..].iter().all(|byte| *byte == 0));
            }
        }
    }
}
