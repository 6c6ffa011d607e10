//! Facts about the kernel and FUSE file systems whose readers wait, and tests that this one handles
//! them.
//!
//! Each test quotes its fact. Fact 6 ("`store` blocks while a READ of that page is parked") has no
//! test, because bootcastfs stores nothing into the kernel's cache.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use harness::{Lab, Proc, SOON, digest_of, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::readers::READ_LEN;
use crate::{CRAWL, TRANSFER, readers};

/// Starts readers of one file, each waiting for a different part of it.
fn park(lab: &Lab, mount: &harness::MountProc<'_>, count: u64) -> Vec<Proc> {
    let parked = (0..count)
        .map(|k| readers::read_at(lab.client(1), &mount.join("image"), mib(1) + k * READ_LEN))
        .collect();
    mount.wait_parked(count);
    parked
}

/// "With `max_background` 16, sixteen parked 128 KiB reads froze the reads of another, complete
/// file."
#[test]
fn fact_1_twenty_parked_reads_do_not_freeze_another_file() {
    let lab = lab_or_skip!(Lab::builder());
    let small = lab.put("small", 100_000);
    lab.put("image", mib(16));
    let _server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).start();
    assert_eq!(digest_of(mount.join("small")), small.digest);
    let _parked = park(&lab, &mount, 20);
    // A direct read bypasses the kernel's cache, so the daemon must answer it.
    let mut reader = readers::read_direct_at(lab.client(1), &mount.join("small"), 0);
    reader.wait_success(SOON);
}

/// "Above the congestion threshold readers become unkillable."
#[test]
fn fact_2_sixty_readers_that_wait_can_all_be_killed() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let _server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).start();
    for mut reader in park(&lab, &mount, 60) {
        reader.kill_within(SOON);
    }
}

/// "Without `FOPEN_KEEP_CACHE`, a second `open()` of a file that has a parked read hangs in D
/// state."
#[test]
fn fact_3_a_file_with_a_parked_read_can_be_opened_again() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let _server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).start();
    let _parked = park(&lab, &mount, 1);
    let mut second = readers::read_at(lab.client(1), &mount.join("image"), 0);
    second.wait_success(TRANSFER);
}

/// "Answer EINTR when [..] a pending fatal signal; ignore the others (SIGURG broke git and Go
/// programs)."
#[test]
fn fact_4_a_signal_that_is_not_fatal_does_not_interrupt_a_direct_read() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(1));
    let _server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).start();
    let mut reader =
        readers::read_direct_at(lab.client(1), &mount.join("image"), mib(1) - READ_LEN);
    mount.wait_parked(1);
    reader.signal(Signal::URG);
    reader.wait_success(TRANSFER);
}

/// "A reply shorter than asked truncates `i_size`."
#[test]
fn fact_5_a_read_that_fails_does_not_change_the_size() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let mut server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).option("soft").option("timeo=1s").start();
    let file = File::open(mount.join("image")).unwrap();
    server.wait_cast("image", "the open joined", |cast| cast.members == 1);
    server.kill();
    assert!(file.read_at(&mut [0; 4096], mib(12)).is_err());
    assert_eq!(file.metadata().unwrap().len(), mib(16));
}

/// "RELEASE of a dead reader is withheld while its READ is parked."
#[test]
fn fact_7_the_client_leaves_after_its_waiting_readers_were_killed() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).option("linger=1s").start();
    for mut reader in park(&lab, &mount, 2) {
        reader.kill_within(SOON);
    }
    server.wait_no_members();
}

/// "A cached and a passthrough open of one inode at once: EIO both ways."
#[test]
fn fact_8_opens_before_and_after_completion_read_side_by_side() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(2));
    let server = lab.server().option("--rate", "20mbit").start();
    let mount = lab.mount(1).start();
    let path = mount.join("image");
    let mut before = File::open(&path).unwrap();
    before.read_exact(&mut [0; 4096]).unwrap();
    wait_until(SOON, "the file is complete", || server.status().totals.leaves == 1);

    let beside = File::open(&path).unwrap();
    assert_eq!(digest_of(&path), image.digest);
    let mut last = [0];
    beside.read_exact_at(&mut last, mib(2) - 1).unwrap();
    std::io::copy(&mut before, &mut std::io::sink()).unwrap();
    drop((before, beside));
    // No open file uses the inode now, so the next open may be passthrough.
    let (one, other) = (File::open(&path).unwrap(), File::open(&path).unwrap());
    assert_eq!(digest_of(&path), image.digest);
    drop((one, other));
    assert_eq!(digest_of(&path), image.digest);
}

/// "ESTALE answered to `open()` makes the kernel look the name up again and reopen."
#[test]
fn fact_9_an_open_of_a_changed_file_succeeds_although_its_attributes_are_cached() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let _server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=1s").start();
    let path = mount.join("image");
    assert_eq!(digest_of(&path), image.digest);
    let new = lab.put("new", mib(1));
    std::fs::rename(&new.path, &image.path).unwrap();
    wait_until(SOON, "the new version", || digest_of(&path) == new.digest);
}

/// "A reader waits for the whole READ, so keep 128 KiB while a file fills."
#[test]
fn fact_10_the_first_bytes_are_read_long_before_the_file_is_complete() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let server = lab.server().option("--rate", "4mbit").start();
    let mount = lab.mount(1).start();
    let mut file = File::open(mount.join("image")).unwrap();
    file.read_exact(&mut [0; 4096]).unwrap();
    let cast = server.cast_of("image").unwrap();
    assert!(cast.pages_sent * 4 < u64::from(cast.pages), "{cast:?}");
}
