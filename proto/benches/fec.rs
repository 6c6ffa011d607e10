//! What do repair symbols cost, and how does that compare with `reed-solomon-simd`?
//!
//! Blocks of 128 pages of 1456 bytes, in the CPU cache. Our code makes each symbol independently.
//! The other code makes all symbols of a block at once, and their content depends on their number.
//! `exact` tells it this number beforehand, its best case; `of 128` allows as many as ours.
//! Throughput is in bytes of the block.
#![expect(clippy::unwrap_used, reason = "a measurement that fails has no result")]

use std::hint::black_box;

use bootcast_proto::fec::{
    Engine, REPAIRS, RepairIndex, SOURCES, SourceIndex, decode, encode, encode_all,
};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

const PAGE: usize = 1456;

/// Numbers of symbols to make from a block.
const WANTED: [usize; 3] = [1, 8, 32];

/// Numbers of lost pages in a block.
const LOST: [usize; 3] = [1, 6, 32];

fn block() -> Vec<Vec<u8>> {
    let byte = |at: usize| u8::try_from(at * 31 % 251).unwrap();
    (0..SOURCES).map(|page| (0..PAGE).map(|at| byte(page * PAGE + at)).collect()).collect()
}

fn sources(block: &[Vec<u8>]) -> impl Iterator<Item = (SourceIndex, &[u8])> {
    (0..SOURCES).filter_map(SourceIndex::new).zip(block.iter().map(Vec::as_slice))
}

fn our_symbol(block: &[Vec<u8>], number: usize, symbol: &mut [u8]) {
    encode(Engine::best(), RepairIndex::new(number).unwrap(), sources(block), symbol);
}

fn begin<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes((SOURCES * PAGE) as u64));
    group
}

fn making(criterion: &mut Criterion) {
    let block = block();
    for wanted in WANTED {
        let mut group = begin(criterion, &format!("make {wanted}"));
        let mut symbols = vec![vec![0; PAGE]; wanted];
        group.bench_function("ours", |bencher| {
            bencher.iter(|| {
                let sources: Vec<_> = sources(black_box(&block)).collect();
                let numbers = (0..).filter_map(RepairIndex::new);
                let mut repairs: Vec<_> =
                    numbers.zip(symbols.iter_mut().map(Vec::as_mut_slice)).collect();
                encode_all(Engine::best(), &mut repairs, &sources);
                black_box(&symbols);
            });
        });
        for (name, count) in [("exact", wanted), ("of 128", REPAIRS)] {
            let mut encoder = ReedSolomonEncoder::new(SOURCES, count, PAGE).unwrap();
            group.bench_function(format!("reed-solomon-simd, {name}"), |bencher| {
                bencher.iter(|| {
                    for page in black_box(&block) {
                        encoder.add_original_shard(page).unwrap();
                    }
                    black_box(encoder.encode().unwrap().recovery_iter().count());
                });
            });
        }
        group.finish();
    }
}

fn rebuilding(criterion: &mut Criterion) {
    let block = block();
    for lost in LOST {
        let mut group = begin(criterion, &format!("rebuild {lost}"));
        let mut symbols = vec![vec![0; PAGE]; lost];
        for (number, symbol) in symbols.iter_mut().enumerate() {
            our_symbol(&block, number, symbol);
        }
        let (missing, present): (Vec<_>, Vec<_>) =
            sources(&block).partition(|(source, _)| source.get() < lost);
        let missing: Vec<_> = missing.into_iter().map(|(source, _)| source).collect();
        let numbers = (0..).filter_map(RepairIndex::new);
        let repairs: Vec<_> = numbers.zip(symbols.iter().map(Vec::as_slice)).collect();
        let rebuild = || decode(Engine::best(), PAGE, &missing, &present, &repairs).unwrap();
        assert!(rebuild() == block[..lost]);
        group.bench_function("ours", |bencher| bencher.iter(|| black_box(rebuild())));
        for (name, count) in [("exact", lost), ("of 128", REPAIRS)] {
            let originals = block.iter();
            let symbols = reed_solomon_simd::encode(SOURCES, count, originals).unwrap();
            let mut decoder = ReedSolomonDecoder::new(SOURCES, count, PAGE).unwrap();
            let mut rebuild = || {
                for (at, page) in black_box(&block).iter().enumerate().skip(lost) {
                    decoder.add_original_shard(at, page).unwrap();
                }
                for (number, symbol) in symbols.iter().enumerate().take(lost) {
                    decoder.add_recovery_shard(number, symbol).unwrap();
                }
                let result = decoder.decode().unwrap();
                result.restored_original_iter().filter(|(at, page)| *page == block[*at]).count()
            };
            assert_eq!(rebuild(), lost);
            group.bench_function(format!("reed-solomon-simd, {name}"), |bencher| {
                bencher.iter(|| black_box(rebuild()));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, making, rebuilding);
criterion_main!(benches);
