//! Writes the generated part of docs/BENCHMARKS.md: the figures, the machine and the command.

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::generated;

use crate::RUNS;

/// Writes the measured parts to the document. What people wrote above and below them stays.
pub(crate) fn write(parts: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/BENCHMARKS.md");
    let before = fs::read_to_string(&path).unwrap_or_default();
    let text = format!(
        "Measured by `make bench` (as root, about an hour and a half), {}. {}. Each figure is the \
         median of {RUNS} runs unless its table says otherwise.\n{parts}",
        date(),
        machine(),
    );
    fs::write(&path, generated::replace(&before, &text)).unwrap();
    println!("written: {}", path.display());
}

fn date() -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%d"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn machine() -> String {
    let cpu = first_value("/proc/cpuinfo", "model name").unwrap_or("unknown processor".into());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = first_value("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = kernel.trim().split('-').next().unwrap_or_default().to_owned();
    format!("{cores} cores of {cpu}, {} GiB of memory, Linux {release}", kib.div_ceil(1 << 20))
}

/// Returns the value of the first line `key : value` of a file.
fn first_value(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
