//! Measures the programs in network namespaces, and writes docs/BENCHMARKS.md.
//!
//! Every figure is the median of [`RUNS`] runs. In parts that compare several programs or settings
//! by turns it is the median of [`ROUNDS`] rounds. `make bench PART=NAME` measures one part and
//! prints it; without a name all parts are measured and written.
#![expect(clippy::unwrap_used, reason = "a measurement that fails has no result")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

mod complete;
mod content;
mod defaults;
mod demand_sequential;
mod fleet;
mod gigabit;
mod large_file;
mod memory;
mod metadata;
mod one_client;
mod peers;
mod random;
mod replayed;
mod report;
mod wants;

use std::path::Path;
use std::time::{Duration, Instant};

use bootcast_proto::BitRate;
use harness::{Host, Proc};

/// Number of runs behind each figure.
const RUNS: usize = 5;

/// Number of rounds behind each figure of the parts that compare. The environment variable `ROUNDS`
/// overrides it.
const ROUNDS: usize = 3;

/// Deadline of one run.
const RUN_DEADLINE: Duration = Duration::from_secs(300);

/// A part of the report: its name, and the function that measures it and writes its text.
type Part = (&'static str, fn() -> String);

const PARTS: [Part; 20] = [
    ("fleet", fleet::measure),
    ("lossy", fleet::measure_lossy),
    ("peers", peers::measure),
    ("gigabit", gigabit::measure),
    ("defaults", defaults::measure),
    ("one_client", one_client::measure),
    ("complete", complete::measure),
    ("memory", memory::measure),
    ("large_file", large_file::measure),
    ("metadata", metadata::measure),
    ("random", random::measure),
    ("same_order", random::measure_same_order),
    ("demand_sequential", demand_sequential::measure),
    ("wants", wants::measure),
    ("verified", content::measure_verified),
    ("cached", content::measure_cached),
    ("sparse", content::measure_sparse),
    ("new_version", content::measure_new_version),
    ("slow_source", content::measure_slow_source),
    ("replayed", replayed::measure),
];

fn main() {
    if let Some(reason) = harness::requirements::skip_reason() {
        return harness::requirements::report_skipped(&reason);
    }
    let names: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let is_chosen = |name: &str| names.is_empty() || names.iter().any(|chosen| chosen == name);
    let mut text = String::new();
    for (name, measure) in PARTS.into_iter().filter(|(name, _)| is_chosen(name)) {
        println!("measuring: {name}");
        let part = measure();
        println!("{part}");
        text.push_str(&part);
    }
    if names.is_empty() {
        report::write(&text);
    }
}

/// Returns the number of rounds of the parts that compare.
fn rounds() -> usize {
    let value = std::env::var("ROUNDS").ok();
    value.map_or(ROUNDS, |text| text.parse().expect("ROUNDS is a number")).max(1)
}

/// Allocates this many GiB of memory and frees them, before a run that needs them for files, caches
/// and the page cache.
///
/// In a virtual machine, the first access to a page that the host has not backed yet, or has taken
/// back while it was free, can cost more than everything that a run does with the page.
fn warm_memory(gib: usize) {
    drop(std::hint::black_box(vec![1_u8; gib << 30]));
}

/// Returns the seconds that one copy of a file takes at the full rate. 1456 bytes of the file
/// occupy 1538 bytes on an Ethernet wire.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn limit_seconds(size: u64, rate: &str) -> f64 {
    let rate: BitRate = rate.parse().expect("a rate of this program");
    size as f64 / 1456.0 * 1538.0 * 8.0 / rate.bits_per_second() as f64
}

/// Returns the time that `job` takes.
fn timed(job: impl FnOnce()) -> Duration {
    let start = Instant::now();
    job();
    start.elapsed()
}

/// Returns the median; of an even number of figures, the larger of the two in the middle.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Starts to read a whole file on a host, as `cat` does, in blocks of 1 MiB.
fn read_all(host: &Host, path: &Path) -> Proc {
    host.spawn("dd", [&format!("if={}", path.display()), "of=/dev/null", "bs=1M"])
}

fn wait_all(mut readers: Vec<Proc>) {
    for reader in &mut readers {
        reader.wait_success(RUN_DEADLINE);
    }
}
