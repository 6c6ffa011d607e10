//! What does the cache write, and how much memory does a mount take, while a very large file is
//! read here and there?

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use harness::Lab;

const SIZE: u64 = 200 << 30;
const BLOCK: u64 = 4096;
const LASTING: Duration = Duration::from_secs(60);

/// Measures a minute of random reads. The file consists of a hole.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn measure() -> String {
    let lab = Lab::builder().rate("1gbit").build();
    File::create(lab.served().join("image")).unwrap().set_len(SIZE).unwrap();
    let server = lab.server().option("--rate", "1gbit").start();
    let mut mount = lab.mount(1).option("fill=demand").start();
    let file = File::open(mount.join("image")).unwrap();
    let mut random = harness::Random::new();
    let (start, mut reads, mut buffer) = (Instant::now(), 0_u64, [0; 4096]);
    while start.elapsed() < LASTING {
        file.read_exact_at(&mut buffer, random.below(SIZE / BLOCK) * BLOCK).unwrap();
        reads += 1;
    }
    let came = server.status().totals.pages_sent * 1456;
    let io = fs::read_to_string(format!("/proc/{}/io", mount.proc().pid())).unwrap();
    let written: u64 = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
        .expect("bytes written");
    let memory = mount.proc().peak_rss_bytes();
    format!(
        "\n## A very large file, read here and there\n\n\
         4 KiB at random places of a file of 200 GiB for a minute, 1 Gbit/s, `fill=demand`, the \
         cache on a disk.\n\n\
         | reads | MiB came | MiB written to disk | ratio | peak RSS, MiB |\n\
         |---|---|---|---|---|\n\
         | {reads} | {} | {} | {:.2} | {} |\n\nGoal: a ratio of 2, 64 MiB.\n",
        came >> 20,
        written >> 20,
        written as f64 / came as f64,
        memory >> 20
    )
}
