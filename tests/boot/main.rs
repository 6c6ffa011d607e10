//! Boots virtual machines off one image, all at the same time: over bootcast, and over other ways
//! to share an image if told so. Prints what the head sent for all of them, when each was up, and
//! how much of the image booting reads. With `fill=demand` other hosts boot once more: the server
//! has learned what a boot reads first.
#![expect(clippy::disallowed_methods, reason = "boot times are measured on the real clock")]

mod ways;

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use harness::{Host, Lab, Proc, wait_until};

use ways::{IMAGE, Sharing, Way};

/// Time in which all guests must be up. Four that share two cores took a minute and a half.
const BOOT_DEADLINE: Duration = Duration::from_secs(900);

/// Line on the console of a guest that is up.
const UP: &str = "multi-user after";

/// Boots virtual machines off one image, and prints what that cost
#[derive(Debug, Parser)]
struct Cli {
    /// Directory with root.img, vmlinuz and initrd, as tests/scripts/make-guest.sh writes them
    guest: PathBuf,
    /// Number of guests, each on a host of its own
    #[arg(long, default_value_t = 4)]
    guests: u8,
    /// Rate of the head's uplink
    #[arg(long, default_value = "1gbit")]
    rate: String,
    /// How the hosts get the image, one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["demand", "full"])]
    ways: Vec<Way>,
}

/// Cost of one boot of the fleet.
struct Cost {
    /// Bytes that the head sent.
    sent: u64,
    /// Time until each guest was up, in ascending order.
    boots: Vec<Duration>,
    /// Bytes of the image that the hosts got, on average.
    fetched: u64,
    /// Number of reads that the kernel passed to the mounts, and of those that had to wait; `None`
    /// for other ways than bootcast.
    reads: Option<(u64, u64)>,
}

fn main() {
    if let Some(reason) = harness::requirements::skip_reason() {
        return harness::requirements::report_skipped(&reason);
    }
    let cli = Cli::parse();
    let image = cli.guest.join(IMAGE);
    let data = image.metadata().map_or(0, |metadata| metadata.blocks() * 512);
    assert!(data > 0, "no image {}: run tests/scripts/make-guest.sh first", image.display());
    println!("{} guests boot a Debian image with {} of data", cli.guests, mebibytes(data));
    let mut table = String::from(
        "\n| way | head sent | of the image's data | fetched by a host | reads that waited \
         | up after, s |\n|---|---|---|---|---|---|\n",
    );
    for way in &cli.ways {
        let lab = Lab::builder().clients(cli.guests).rate(&cli.rate).build();
        copy_sparse(&cli.guest.join(IMAGE), &lab.served().join(IMAGE));
        let mut sharing = Sharing::start(&lab, *way, &cli.rate);
        println!("\n{way}");
        add_row(&mut table, &way.to_string(), &boot(&cli, &lab, &sharing), data);
        if *way == Way::Demand {
            println!("\n{way}, again on hosts with empty caches");
            sharing.renew();
            add_row(&mut table, &format!("{way}, again"), &boot(&cli, &lab, &sharing), data);
        }
        println!("{table}");
    }
}

/// Adds what a boot cost to the table. `data` is the number of bytes that the image takes up.
fn add_row(table: &mut String, name: &str, cost: &Cost, data: u64) {
    let boots: Vec<_> = cost.boots.iter().map(|it| format!("{:.1}", it.as_secs_f64())).collect();
    let waited = cost.reads.map_or_else(
        || "-".to_owned(),
        |(reads, waited)| {
            let tenths = waited * 1000 / reads.max(1);
            format!("{waited} of {reads}, {}.{} %", tenths / 10, tenths % 10)
        },
    );
    let _ = writeln!(
        table,
        "| {name} | {} | {} | {} | {waited} | {} |",
        mebibytes(cost.sent),
        percent(cost.sent, data),
        mebibytes(cost.fetched),
        boots.join(", "),
    );
}

/// Boots all guests at once.
fn boot(cli: &Cli, lab: &Lab, sharing: &Sharing<'_>) -> Cost {
    let before = lab.head().counters().tx_bytes;
    let begin = Instant::now();
    let guests: Vec<_> = (1..=usize::from(cli.guests))
        .map(|k| start_guest(lab.client(k), &cli.guest, &sharing.image(k)))
        .collect();
    let mut boots: Vec<Duration> = Vec::new();
    wait_until(BOOT_DEADLINE, "all guests are up", || {
        let up = guests.iter().filter(|guest| guest.log().contains(UP)).count();
        while boots.len() < up {
            boots.push(begin.elapsed());
            println!(
                "  guest {} of {} is up after {:.1} s",
                boots.len(),
                guests.len(),
                begin.elapsed().as_secs_f64()
            );
        }
        up == guests.len()
    });
    let sent = lab.head().counters().tx_bytes - before;
    let reads = sharing.reads();
    drop(guests);
    let fetched = sharing.fetched().unwrap_or(sent) / u64::from(cli.guests);
    Cost { sent, boots, fetched, reads }
}

/// Starts a guest on a host. It writes to an overlay of its own.
fn start_guest(host: &Host, guest: &Path, image: &str) -> Proc {
    let overlay = host.fresh_path("overlay.qcow2");
    let overlay = overlay.to_str().expect("a path of the lab");
    host.run_ok("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", image, overlay]);
    let file = |name: &str| guest.join(name).to_str().expect("a path in UTF-8").to_owned();
    let (kernel, initrd) = (file("vmlinuz"), file("initrd"));
    let drive = format!("file={overlay},if=virtio");
    host.spawn(
        "qemu-system-x86_64",
        [
            "-accel",
            "tcg",
            "-machine",
            "q35",
            "-cpu",
            "max",
            "-m",
            "512",
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
            "-kernel",
            &kernel,
            "-initrd",
            &initrd,
            "-append",
            "root=/dev/vda rw console=ttyS0 quiet",
            "-drive",
            &drive,
        ],
    )
}

/// Copies a file and its holes.
fn copy_sparse(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("--sparse=always").args([from, to]).status();
    assert!(copied.is_ok_and(|status| status.success()), "cannot copy {}", from.display());
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn percent(part: u64, whole: u64) -> String {
    format!("{} %", part * 100 / whole.max(1))
}
