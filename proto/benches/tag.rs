//! What does the tag of a datagram cost?

mod stopwatch;

use std::hint::black_box;

use bootcast_proto::DatagramKey;

/// Bytes of a full datagram at an MTU of 1500, and of 9000.
const DATAGRAMS: [usize; 2] = [1472, 8972];

fn main() {
    let key = DatagramKey::from_random([7; 32]);
    for len in DATAGRAMS {
        let measure = |what: &str, bytes, work: &mut dyn FnMut()| {
            stopwatch::measure(&format!("{what}/{len}"), bytes, work);
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
