//! Times a short piece of code: what two benchmarks need, in place of a framework that takes longer
//! to compile than everything it measures.

use std::time::{Duration, Instant};

/// Samples of each figure; their median and range are printed.
const SAMPLES: usize = 25;

/// Least time of a sample, so that reading the clock does not count.
const SAMPLE: Duration = Duration::from_millis(20);

/// Runs `work` again and again and prints its time and throughput; each call handles `bytes`.
pub(crate) fn measure(name: &str, bytes: usize, mut work: impl FnMut()) {
    let calls = calls_per_sample(&mut work);
    let mut seconds: Vec<f64> =
        (0..SAMPLES).map(|_| time(calls, &mut work).as_secs_f64() / f64::from(calls)).collect();
    seconds.sort_by(f64::total_cmp);
    let [least, median, most] = [0, SAMPLES / 2, SAMPLES - 1].map(|at| seconds[at] * 1e6);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let megabytes_per_second = bytes as f64 / median;
    println!(
        "{name:<36} {median:>9.2} µs ({least:.2} to {most:.2}), {megabytes_per_second:.0} MB/s"
    );
}

/// Doubles the number of calls until they take long enough; this warms caches up as well.
fn calls_per_sample(work: &mut impl FnMut()) -> u32 {
    let mut calls = 1;
    while time(calls, work) < SAMPLE {
        calls *= 2;
    }
    calls
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn time(calls: u32, work: &mut impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..calls {
        work();
    }
    start.elapsed()
}
