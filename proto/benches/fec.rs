//! What do repair symbols cost?
//!
//! Blocks of 128 pages of 1456 bytes, in the cache. Throughput is in bytes of the block.
#![expect(clippy::unwrap_used, reason = "a measurement that fails has no result")]

mod stopwatch;

use std::hint::black_box;

use bootcast_proto::fec::{Engine, RepairIndex, SOURCES, SourceIndex, decode, encode, encode_all};

const PAGE: usize = 1456;

/// Symbols that are made of a block.
const WANTED: [usize; 3] = [1, 8, 32];

/// Pages of a block that were lost.
const LOST: [usize; 3] = [1, 6, 32];

fn main() {
    let block = block();
    for wanted in WANTED {
        make(&block, wanted);
    }
    for lost in LOST {
        rebuild(&block, lost);
    }
}

fn block() -> Vec<Vec<u8>> {
    let byte = |at: usize| u8::try_from(at * 31 % 251).unwrap();
    (0..SOURCES).map(|page| (0..PAGE).map(|at| byte(page * PAGE + at)).collect()).collect()
}

fn sources(block: &[Vec<u8>]) -> impl Iterator<Item = (SourceIndex, &[u8])> {
    (0..SOURCES).filter_map(SourceIndex::new).zip(block.iter().map(Vec::as_slice))
}

/// Measures how long it takes to make symbols of a block.
fn make(block: &[Vec<u8>], wanted: usize) {
    let mut symbols = vec![vec![0; PAGE]; wanted];
    stopwatch::measure(&format!("make {wanted}"), SOURCES * PAGE, || {
        let sources: Vec<_> = sources(black_box(block)).collect();
        let numbers = (0..).filter_map(RepairIndex::new);
        let mut repairs: Vec<_> = numbers.zip(symbols.iter_mut().map(Vec::as_mut_slice)).collect();
        encode_all(Engine::best(), &mut repairs, &sources);
        black_box(&symbols);
    });
}

/// Measures how long it takes to rebuild the first `lost` pages of a block out of as many symbols.
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
