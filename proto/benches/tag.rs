//! How long does it take to compute and check the tags of datagrams?

mod stopwatch;

use std::hint::black_box;

use bootcast_proto::DatagramKey;

/// Bytes of a full UDP payload at an MTU of 1500 and at one of 9000.
const DATAGRAM_LENS: [usize; 2] = [1472, 8972];

fn main() {
    let key = DatagramKey::from_random([7; 32]);
    for len in DATAGRAM_LENS {
        let measure = |name: &str, bytes, work: &mut dyn FnMut()| {
            stopwatch::measure(&format!("{name}/{len}"), bytes, work);
        };
        let mut datagram = vec![1; len];
        measure("seal", len, &mut || key.seal(black_box(&mut datagram)));
        measure("check", len, &mut || {
            black_box(key.is_genuine(black_box(&datagram)));
        });
        let mut batch = vec![1; 44 * len];
        measure("seal 44 at once", 44 * len, &mut || key.seal_all(black_box(&mut batch), len));
        let datagrams: Vec<_> = batch.chunks(len).collect();
        measure("check 44 at once", 44 * len, &mut || {
            black_box(key.are_genuine(black_box(&datagrams)));
        });
    }
}
