//! How long does a random read with `fill=demand` take, and do several such readers share the pages
//! that are sent?

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use harness::{Lab, MountProc, ServerProc, mib};

use crate::{RUNS, median, timed, warm_memory};

const SIZE: u64 = mib(1024);
const BLOCK: u64 = 4096;
const READS: usize = 500;

const SHARED_SIZE: u64 = mib(64);
const SHARED_BLOCK: u64 = 16 << 10;
const READERS: usize = 8;
const SHARED_RATE: &str = "200mbit";

/// A prime that divides none of the numbers of blocks here. Its multiples modulo such a number
/// visit every block, each far from the one before.
const STRIDE: u64 = 1_000_003;

/// Measures the latency of single reads of a cold file.
pub(crate) fn measure() -> String {
    let mut text = format!(
        "\n## Random reads\n\n\
         {READS} `pread`s of 4 KiB of a file of 1 GiB of which no page is held, one after the \
         other, `fill=demand`; the server has not hashed the file. The first one includes `open`. \
         \"Sent\" are the server's pages for each byte that was read. Medians of {RUNS} runs.\n\n\
         | rate | loss | median, ms | 99 %, ms | longest, ms | first, ms | sent |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for rate in ["200mbit", "1gbit"] {
        for loss in [0.0, 1.0] {
            let runs: Vec<_> = (0..RUNS).map(|_| run(rate, loss)).collect();
            let middle = |figure: &dyn Fn(&Reads) -> f64| median(runs.iter().map(figure).collect());
            let [half, most, all] =
                [READS / 2, READS * 99 / 100, READS - 1].map(|at| middle(&|run| run.sorted_ms[at]));
            let (first, sent) = (middle(&|run| run.first_ms), middle(&|run| run.sent));
            let row = format!(
                "| {rate} | {loss} % | {half:.2} | {most:.2} | {all:.2} | {first:.1} | {sent:.1} |"
            );
            println!("{row}");
            text.push_str(&row);
            text.push('\n');
        }
    }
    text.push_str(
        "\nGoal: median 1 ms, 99 % 5 ms, also with loss, and at most 6 bytes for each that is \
         read.\n",
    );
    text
}

/// Figures of one run.
struct Reads {
    /// Latencies of all reads in milliseconds, ascending.
    sorted_ms: Vec<f64>,
    /// Latency of the first one, with `open`.
    first_ms: f64,
    /// Bytes in pages that the server sent for each byte that was read.
    sent: f64,
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn run(rate: &str, loss_percent: f64) -> Reads {
    let lab = Lab::builder().rate(rate).loss(loss_percent).build();
    lab.put("image", SIZE);
    let server = lab.server().option("--rate", rate).start();
    let mount = lab.mount(1).option("fill=demand").start();
    let offset = |k: u64| k * STRIDE % (SIZE / BLOCK) * BLOCK;
    let mut file = None;
    let first = timed(|| {
        let opened = File::open(mount.join("image")).unwrap();
        read(&opened, offset(1), BLOCK);
        file = Some(opened);
    });
    let file = file.expect("opened above");
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let first_ms = ms(first);
    let others = (2..=READS as u64).map(|k| ms(read(&file, offset(k), BLOCK)));
    let mut sorted_ms: Vec<f64> = others.chain([first_ms]).collect();
    sorted_ms.sort_by(f64::total_cmp);
    let sent = server.status().totals.pages_sent as f64 * 1456.0 / (READS as u64 * BLOCK) as f64;
    Reads { sorted_ms, first_ms, sent }
}

fn read(file: &File, offset: u64, len: u64) -> Duration {
    let mut buffer = vec![0; usize::try_from(len).unwrap()];
    timed(|| file.read_exact_at(&mut buffer, offset).unwrap())
}

/// Compares the bytes that the server sends for eight readers with the same order, and for one.
pub(crate) fn measure_same_order() -> String {
    let (alone, _) = share(1);
    let (together, seconds) = share(READERS);
    format!(
        "\n## Eight clients with the same random reads\n\n\
         64 MiB in pieces of 16 KiB in the same random order, {SHARED_RATE}, `fill=demand`, each \
         on a mount of its own.\n\n\
         | sent for one, files | sent for eight, files | ratio | the slowest of the eight, s |\n\
         |---|---|---|---|\n\
         | {alone:.3} | {together:.3} | {:.3} | {seconds:.1} |\n\nGoal: 1.3.\n",
        together / alone
    )
}

/// Returns the medians of three runs: bytes sent, in files, and seconds of the slowest reader.
fn share(readers: usize) -> (f64, f64) {
    let runs: Vec<_> = (0..3).map(|_| share_once(readers)).collect();
    let middle = |figure: fn(&(f64, f64)) -> f64| median(runs.iter().map(figure).collect());
    (middle(|run| run.0), middle(|run| run.1))
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn share_once(readers: usize) -> (f64, f64) {
    let clients = u8::try_from(readers).unwrap();
    let lab = Lab::builder().clients(clients).rate(SHARED_RATE).build();
    lab.put("image", SHARED_SIZE);
    let server: ServerProc<'_> = lab.server().option("--rate", SHARED_RATE).start();
    let mounts: Vec<MountProc<'_>> =
        (1..=readers).map(|k| lab.mount(k).option("fill=demand").start()).collect();
    let paths: Vec<_> = mounts.iter().map(|mount| mount.join("image")).collect();
    warm_memory(2);
    let time = timed(|| {
        std::thread::scope(|scope| {
            for path in &paths {
                scope.spawn(|| read_all_at_random(path));
            }
        });
    });
    (server.status().totals.bytes_sent as f64 / SHARED_SIZE as f64, time.as_secs_f64())
}

fn read_all_at_random(path: &Path) {
    let file = File::open(path).unwrap();
    let blocks = SHARED_SIZE / SHARED_BLOCK;
    for k in 1..=blocks {
        read(&file, k * STRIDE % blocks * SHARED_BLOCK, SHARED_BLOCK);
    }
}
