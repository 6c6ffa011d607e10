//! Times a short piece of code.
//!
//! A benchmark framework would take longer to compile than everything that is measured here.

use std::time::{Duration, Instant};

/// Number of samples in each measurement; their median and range are printed.
const SAMPLES: usize = 25;

/// Shortest duration of a sample: so long that reading the clock does not distort it.
const MIN_SAMPLE_TIME: Duration = Duration::from_millis(20);

/// Calls `work` repeatedly and prints its time and throughput. Each call handles `bytes` bytes.
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

/// Doubles the number of calls until they take [`MIN_SAMPLE_TIME`]. This also warms up the caches.
fn calls_per_sample(work: &mut impl FnMut()) -> u32 {
    let mut calls = 1;
    while time(calls, work) < MIN_SAMPLE_TIME {
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
