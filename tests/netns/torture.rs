//! Programs are killed at random moments while a file arrives. Every byte is right afterwards, and
//! hardly any is fetched again.
//!
//! `BOOTCAST_KILLS` is the number of kills, a few by default; `BOOTCAST_SEED` repeats a run.

use std::path::{Path, PathBuf};

use harness::content::Image;
use harness::{Lab, MountProc, Random, SOON, ServerProc, digest_of, lab_or_skip, mib, wait_until};
use serde_json::Value;

use crate::telling::attribute;
use crate::{TRANSFER, readers, text};

/// Kills where the environment names no other number.
const KILLS: u64 = 4;

/// Sizes of the files, in bytes, from and to.
const SIZES: [u64; 2] = [mib(32), mib(64)];

/// Rate of the server.
const RATE: &str = "100mbit";

/// Bytes that may come again: this share of all, in percent, and a window, which is 0.2 s of
/// sending. A window that was half sent when the server was killed is sent as a whole.
const AGAIN_PERCENT: u64 = 5;
const WINDOW: u64 = 2_500_000;

/// Bytes of the file in a page, for the count of pages that came again.
const PAGE: u64 = 1456;

/// Program that is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Server,
    Mount,
}

/// Bytes that were fetched although they were here, over all rounds.
#[derive(Debug, Default)]
struct Tally {
    kills: u64,
    bytes: u64,
    again: u64,
    worst_percent: u64,
}

/// Mounts with a cache that outlives the mount.
fn mount<'lab>(lab: &'lab Lab, cache: &Path) -> MountProc<'lab> {
    let dir = format!("cache_dir={}", cache.display());
    // The server is not asked anew within a round, so that a killed one fails no lookup.
    lab.mount(1).option(&dir).option("attr_ttl=1h").start()
}

/// Returns the bytes of a file that a mount holds.
fn held(mount: &MountProc<'_>, image: &Image) -> u64 {
    let progress = attribute(&mount.join(&image.name), "progress").unwrap_or_default();
    progress.split('/').next().and_then(|held| held.parse().ok()).unwrap_or(0)
}

/// Returns the bytes that a mount has received since it began, new ones and others.
fn received(mount: &MountProc<'_>) -> u64 {
    let status = attribute(mount.path(), "status").unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    let total = |name: &str| status["totals"][name].as_u64().unwrap();
    let new: u64 =
        ["multicast_bytes", "rebuilt_bytes", "unicast_bytes"].into_iter().map(total).sum();
    new + total("duplicate_pages") * PAGE
}

/// A lab in which one file after another is read while a program is killed.
struct Torture<'lab> {
    lab: &'lab Lab,
    server: ServerProc<'lab>,
    cache: PathBuf,
    tally: Tally,
}

impl Torture<'_> {
    /// Reads a new file, and kills `victim` when `percent` of it are held.
    fn round(&mut self, victim: Victim, size: u64, percent: u64) {
        let name = format!("image-{}", self.tally.kills);
        let image = self.lab.put(&name, size);
        let mut mounted = mount(self.lab, &self.cache);
        let host = self.lab.client(1);
        let target = host.fresh_path("copy");
        let mut copy = readers::copy(host, &mounted.join(&image.name), &target);
        wait_until(TRANSFER, "enough is held", || {
            held(&mounted, &image) * 100 >= size * percent || copy.exited().is_some()
        });
        let mut kept = 0;
        match victim {
            Victim::Server => {
                self.server.kill();
                self.server.start();
            }
            Victim::Mount => {
                kept = held(&mounted, &image);
                mounted.proc().kill_within(SOON);
                copy.wait(TRANSFER);
                drop(mounted);
                mounted = mount(self.lab, &self.cache);
                copy = readers::copy(host, &mounted.join(&image.name), &target);
            }
        }
        copy.wait_success(TRANSFER);
        assert_eq!(digest_of(&target), image.digest, "{victim:?} at {percent} % of {size}");
        let again = received(&mounted).saturating_sub(size - kept);
        let share = again * 100 / size;
        println!("{victim:?} at {percent:2} % of {size}: {again} bytes again, {share} %");
        self.tally.kills += 1;
        self.tally.bytes += size;
        self.tally.again += again;
        self.tally.worst_percent = self.tally.worst_percent.max(share);
        let log = mounted.log();
        assert!(!log.contains("wrong bytes") && !log.contains("panicked"), "{log}");
        mounted.umount();
        // The cache and the served directory stay small.
        std::fs::remove_file(&image.path).unwrap();
        std::fs::remove_file(&target).unwrap();
        let args = ["cache", "prune", "--all", "--cache-dir", text(&self.cache)];
        host.run_ok(harness::binaries::binary("bootcast"), args);
    }
}

#[test]
fn every_byte_is_right_and_hardly_any_comes_again_when_programs_are_killed_at_random() {
    let lab = lab_or_skip!(Lab::builder());
    let kills = std::env::var("BOOTCAST_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let mut random = Random::new();
    let server = lab.server().option("--rate", RATE).start();
    let cache = lab.client(1).fresh_path("kept");
    let mut torture = Torture { lab: &lab, server, cache, tally: Tally::default() };
    for _ in 0..kills {
        let victim = [Victim::Server, Victim::Mount][usize::from(random.below(2) == 1)];
        let size = SIZES[0] + random.below(SIZES[1] - SIZES[0]);
        torture.round(victim, size, random.below(100));
    }
    let Tally { bytes, again, worst_percent, .. } = torture.tally;
    println!("{kills} kills: {again} of {bytes} bytes came again, {worst_percent} % at worst");
    let may_come = bytes * AGAIN_PERCENT / 100 + WINDOW;
    assert!(again <= may_come, "{again} of {bytes} bytes came again");
}
