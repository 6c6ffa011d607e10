//! Writes docs/BENCHMARKS.md: the figures, the machine and the command.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::RUNS;

/// Start of the section on the simulation, which is kept because other programs measure it.
const SIMULATION: &str = "\n## Simulation\n";

/// Writes the document with the measured parts.
pub(crate) fn write(parts: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/BENCHMARKS.md");
    let before = fs::read_to_string(&path).unwrap_or_default();
    let simulation = before.find(SIMULATION).map_or("", |at| &before[at..]);
    let text = format!(
        "# Benchmarks\n\n\
         Written by `make bench` (as root, about an hour and a half). {}.\n\
         {}.\n\n\
         Every host is a network namespace of this one machine: server, switch and all clients \
         share its cores, and the kernel charges part of the receivers' work to the sender. \
         Files and caches lie in memory (`tmpfs`, with large pages for files that are read \
         whole). Each figure is the median of {RUNS} runs; each run casts a file that no client \
         has seen. \"Limit\" is what one copy takes at the full rate with its headers: 1538 \
         bytes of wire, Ethernet framing included, for 1456 of the file.\n{parts}{simulation}",
        date(),
        machine(),
    );
    fs::write(&path, text).unwrap();
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
