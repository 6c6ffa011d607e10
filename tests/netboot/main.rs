//! Boots virtual machines whose root file system comes over the cast: one and several at once, with
//! both families of initramfs, with losses, with a head that goes away, with the wrong image.
//! Checks that all of them are up, that a wrong image is refused, and that they end by themselves.
//! Prints a table.
#![expect(clippy::disallowed_methods, reason = "boot times are measured on the real clock")]

mod guest;
mod scenarios;

use std::fs;
use std::path::PathBuf;

use clap::Parser;
use harness::Lab;

use scenarios::{Scenario, Site};

/// Name of the image in the directory of tests/scripts/make-netboot.sh, and on the head.
const IMAGE: &str = "root.squashfs";

/// The same for the system as an archive.
const ARCHIVE: &str = "root.cpio.gz";

/// Initial RAM disk of the first stage there.
const FIRST_STAGE: &str = "first-stage";

/// Kernel of the first stage. The directory has it if somebody built a small one, see
/// docs/NETBOOT.md; otherwise it is that of the system.
const SMALL_KERNEL: &str = "vmlinuz.small";

/// Boots virtual machines over the cast, and prints what that cost
#[derive(Debug, Parser)]
struct Cli {
    /// Directory that tests/scripts/make-netboot.sh wrote
    files: PathBuf,
    /// Number of guests that boot at once
    #[arg(long, default_value_t = 4)]
    guests: u8,
    /// Rate of the head's uplink. Emulated guests take hardly more
    #[arg(long, default_value = "25mbit")]
    rate: String,
    /// Scenarios, one after the other (default: all)
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
}

fn main() {
    let cli = Cli::parse();
    if let Some(reason) = skip_reason(&cli) {
        return harness::requirements::report_skipped(&reason);
    }
    let data = fs::metadata(cli.files.join(IMAGE)).map_or(0, |metadata| metadata.len());
    println!("guests boot an image of {} MiB", data >> 20);
    let scenarios = if cli.only.is_empty() { Scenario::all() } else { cli.only.clone() };
    let mut table =
        String::from("\n| guests | head sent | of the image | unicast, a guest | up after, s |\n");
    table.push_str("|---|---|---|---|---|\n");
    for scenario in scenarios {
        println!("\n{}", scenario.title(cli.guests));
        let lab = scenario.lab(cli.guests).rate(&cli.rate).build();
        lab.head().count_multicast();
        let site = Site { lab: &lab, files: &cli.files, rate: &cli.rate };
        let cost = scenario.run(&site);
        table.push_str(&cost.row(&scenario.title(cli.guests), data));
        println!("{table}");
    }
}

/// Returns the reason why this machine cannot run the guests; `None` if it can.
fn skip_reason(cli: &Cli) -> Option<String> {
    let image = cli.files.join(IMAGE);
    let missing = ["qemu-system-x86_64", "dnsmasq"]
        .into_iter()
        .find(|tool| !harness::requirements::has_tool(tool));
    Lab::builder()
        .rate(&cli.rate)
        .skip_reason()
        .or_else(|| missing.map(|tool| format!("no {tool}")))
        .or_else(|| {
            let hint = "run tests/scripts/make-netboot.sh first";
            (!image.exists()).then(|| format!("no {}: {hint}", image.display()))
        })
}
