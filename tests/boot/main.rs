//! Boots virtual machines off one image, all at the same time: over bootcast, and over other ways
//! to share an image if told so. Prints what the head sent for all of them, when each was up, and
//! how much of the image booting reads.
#![expect(clippy::disallowed_methods, reason = "boot times are measured on the real clock")]

mod ways;

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use harness::{Host, Lab, Proc, wait_until};

use ways::{Sharing, Way};

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

/// What one way to boot the fleet cost.
struct Cost {
    /// Bytes that the head sent.
    sent: u64,
    /// Time until each guest was up, in ascending order.
    boots: Vec<Duration>,
    /// Bytes of the image that the hosts got, on average.
    fetched: u64,
}

fn main() {
    if let Some(reason) = harness::requirements::skip_reason() {
        return harness::requirements::report_skipped(&reason);
    }
    let cli = Cli::parse();
    let image = cli.guest.join("root.img");
    let data = image.metadata().map_or(0, |metadata| metadata.blocks() * 512);
    assert!(data > 0, "no image {}: run tests/scripts/make-guest.sh first", image.display());
    println!("{} guests boot a Debian image with {} of data", cli.guests, mebibytes(data));
    let mut table = String::from(
        "\n| way | head sent | of the image's data | fetched by a host | up after, s |\n\
         |---|---|---|---|---|\n",
    );
    for way in &cli.ways {
        println!("\n{way}");
        let cost = boot(&cli, *way);
        let boots: Vec<_> =
            cost.boots.iter().map(|it| format!("{:.1}", it.as_secs_f64())).collect();
        let _ = writeln!(
            table,
            "| {way} | {} | {} | {} | {} |",
            mebibytes(cost.sent),
            percent(cost.sent, data),
            percent(cost.fetched, data),
            boots.join(", "),
        );
    }
    println!("{table}");
}

/// Boots all guests at once.
fn boot(cli: &Cli, way: Way) -> Cost {
    let lab = Lab::builder().clients(cli.guests).rate(&cli.rate).build();
    copy_sparse(&cli.guest.join("root.img"), &lab.served().join("root.img"));
    let sharing = Sharing::start(&lab, way, &cli.rate);
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
    drop(guests);
    let fetched = sharing.fetched().unwrap_or(sent) / u64::from(cli.guests);
    Cost { sent, boots, fetched }
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
