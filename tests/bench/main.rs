//! How much one cast is worth: measures real binaries in network namespaces, writes
//! docs/BENCHMARKS.md.
//!
//! Every figure is the median of [`RUNS`] runs, or of [`ROUNDS`] where others are measured beside
//! it. `make bench PART=NAME` measures one part and prints it; without a name all parts are
//! measured and written.
#![expect(clippy::unwrap_used, reason = "a measurement that fails has no result")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

mod complete;
mod defaults;
mod demand_sequential;
mod fleet;
mod gigabit;
mod memory;
mod one_client;
mod peers;
mod random;
mod report;
mod wants;

use std::path::Path;
use std::time::{Duration, Instant};

use bootcast_proto::BitRate;
use harness::{Host, Proc};

/// Runs behind each figure.
const RUNS: usize = 5;

/// Rounds behind each figure of the parts that compare, unless `ROUNDS` says another number.
const ROUNDS: usize = 3;

/// Deadline of one run.
const RUN_DEADLINE: Duration = Duration::from_secs(300);

/// A part of the report: its name, and what measures and words it.
type Part = (&'static str, fn() -> String);

const PARTS: [Part; 12] = [
    ("fleet", fleet::measure),
    ("lossy", fleet::measure_lossy),
    ("peers", peers::measure),
    ("gigabit", gigabit::measure),
    ("defaults", defaults::measure),
    ("one_client", one_client::measure),
    ("complete", complete::measure),
    ("memory", memory::measure),
    ("random", random::measure),
    ("same_order", random::measure_same_order),
    ("demand_sequential", demand_sequential::measure),
    ("wants", wants::measure),
];

fn main() {
    if let Some(reason) = harness::requirements::skip_reason() {
        return harness::requirements::report_skipped(&reason);
    }
    let only: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let chosen = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    let mut text = String::new();
    for (name, measure) in PARTS.into_iter().filter(|(name, _)| chosen(name)) {
        println!("measuring: {name}");
        let part = measure();
        println!("{part}");
        text.push_str(&part);
    }
    if only.is_empty() {
        report::write(&text);
    }
}

/// Rounds of the parts that compare.
fn rounds() -> usize {
    let wanted = std::env::var("ROUNDS").ok();
    wanted.map_or(ROUNDS, |text| text.parse().expect("ROUNDS is a number")).max(1)
}

/// Takes this many GiB of memory and gives them back, before a run that will need them for what is
/// cast, for caches, and for the kernel's page cache over the mounts. In a virtual machine the
/// first touch of a page that the host has not backed yet, or has taken back while it was free, can
/// cost more than everything that a run does with it.
fn warm_memory(gib: usize) {
    drop(std::hint::black_box(vec![1_u8; gib << 30]));
}

/// Seconds that one copy of a file takes at the full rate: for 1456 bytes of it an Ethernet wire is
/// busy for 1538.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn limit_seconds(size: u64, rate: &str) -> f64 {
    let rate: BitRate = rate.parse().expect("a rate of this program");
    size as f64 / 1456.0 * 1538.0 * 8.0 / rate.bits_per_second() as f64
}

/// The time `job` takes.
fn timed(job: impl FnOnce()) -> Duration {
    let start = Instant::now();
    job();
    start.elapsed()
}

/// The middle one of an odd number of figures.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Reads a whole file on a host, as `cat` does, in blocks of a mebibyte.
fn read_all(host: &Host, path: &Path) -> Proc {
    host.spawn("dd", [&format!("if={}", path.display()), "of=/dev/null", "bs=1M"])
}

fn wait_all(mut readers: Vec<Proc>) {
    for reader in &mut readers {
        reader.wait_success(RUN_DEADLINE);
    }
}
