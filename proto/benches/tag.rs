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
    }
    group.finish();
}

criterion_group!(benches, tag);
criterion_main!(benches);
