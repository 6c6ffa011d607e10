//! What does the tag of a datagram cost?

use std::hint::black_box;

use bootcast_proto::DatagramKey;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Bytes of a full datagram at an MTU of 1500, and of 9000.
const DATAGRAMS: [usize; 2] = [1472, 8972];

fn tag(criterion: &mut Criterion) {
    let key = DatagramKey::from_random([7; 32]);
    let mut group = criterion.benchmark_group("tag");
    for len in DATAGRAMS {
        let mut datagram = vec![1; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("seal/{len}"), |bencher| {
            bencher.iter(|| key.seal(black_box(&mut datagram)));
        });
        group.bench_function(format!("check/{len}"), |bencher| {
            bencher.iter(|| key.is_genuine(black_box(&datagram)));
        });
        let mut batch = vec![1; 44 * len];
        group.throughput(Throughput::Bytes(batch.len() as u64));
        group.bench_function(format!("seal 44 at once/{len}"), |bencher| {
            bencher.iter(|| key.seal_all(black_box(&mut batch), len));
        });
        let datagrams: Vec<_> = batch.chunks(len).collect();
        group.bench_function(format!("check 44 at once/{len}"), |bencher| {
            bencher.iter(|| key.are_genuine(black_box(&datagrams)));
        });
    }
    group.finish();
}

criterion_group!(benches, tag);
criterion_main!(benches);
