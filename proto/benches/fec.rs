//! How long does it take to make repair symbols and to rebuild pages from them?
//!
//! Each block has 128 pages of 1456 bytes and lies in the CPU cache. Throughput counts the bytes of
//! the block.
#![expect(clippy::unwrap_used, reason = "a measurement that fails has no result")]

mod stopwatch;

use std::hint::black_box;

use bootcast_proto::fec::{Engine, RepairIndex, SOURCES, SourceIndex, decode, encode, encode_all};

const PAGE: usize = 1456;

/// Numbers of symbols to make from one block.
const SYMBOL_COUNTS: [usize; 3] = [1, 8, 32];

/// Numbers of pages to rebuild in one block.
const LOST_COUNTS: [usize; 3] = [1, 6, 32];

fn main() {
    let block = example_block();
    for count in SYMBOL_COUNTS {
        make(&block, count);
    }
    for lost in LOST_COUNTS {
        rebuild(&block, lost);
    }
}

fn example_block() -> Vec<Vec<u8>> {
    let byte = |at: usize| u8::try_from(at * 31 % 251).unwrap();
    (0..SOURCES).map(|page| (0..PAGE).map(|at| byte(page * PAGE + at)).collect()).collect()
}

fn sources(block: &[Vec<u8>]) -> impl Iterator<Item = (SourceIndex, &[u8])> {
    (0..SOURCES).filter_map(SourceIndex::new).zip(block.iter().map(Vec::as_slice))
}

/// Measures how long it takes to make `count` symbols of a block.
fn make(block: &[Vec<u8>], count: usize) {
    let mut symbols = vec![vec![0; PAGE]; count];
    stopwatch::measure(&format!("make {count}"), SOURCES * PAGE, || {
        let sources: Vec<_> = sources(black_box(block)).collect();
        let numbers = (0..).filter_map(RepairIndex::new);
        let mut repairs: Vec<_> = numbers.zip(symbols.iter_mut().map(Vec::as_mut_slice)).collect();
        encode_all(Engine::best(), &mut repairs, &sources);
        black_box(&symbols);
    });
}

/// Measures how long it takes to rebuild the first `lost` pages of a block from as many symbols.
fn rebuild(block: &[Vec<u8>], lost: usize) {
    let mut symbols = vec![vec![0; PAGE]; lost];
    for (number, symbol) in symbols.iter_mut().enumerate() {
        encode(Engine::best(), RepairIndex::new(number).unwrap(), sources(block), symbol);
    }
    let (missing, present): (Vec<_>, Vec<_>) =
        sources(block).partition(|(source, _)| source.get() < lost);
    let missing: Vec<_> = missing.into_iter().map(|(source, _)| source).collect();
    let numbers = (0..).filter_map(RepairIndex::new);
    let repairs: Vec<_> = numbers.zip(symbols.iter().map(Vec::as_slice)).collect();
    let rebuild = || decode(Engine::best(), PAGE, &missing, &present, &repairs).unwrap();
    assert!(rebuild() == block[..lost]);
    stopwatch::measure(&format!("rebuild {lost}"), SOURCES * PAGE, || {
        black_box(rebuild());
    });
}
