//! A panic in any thread of a client leaves no reader waiting and no dead mount.
//!
//! Builds with debug assertions panic where `BOOTCAST_TEST_PANIC=place:/path` says.

use std::fs::File;

use harness::binaries::binary;
use harness::mount::is_mounted;
use harness::{Lab, MountProc, Proc, SOON, digest_of, lab_or_skip, mib};

use crate::{TRANSFER, readers};

/// Mounts on client 1. The daemon panics in `place` for the file `trigger`.
fn mount<'lab>(lab: &'lab Lab, place: &str, option: &str) -> MountProc<'lab> {
    let provoked = format!("{place}:/trigger");
    lab.mount(1).option(option).variable("BOOTCAST_TEST_PANIC", &provoked).start()
}

/// Asserts that `reader` fails with EIO, that the daemon ends in order, and that the mount can be
/// made again.
fn assert_ends_in_order(lab: &Lab, mut mount: MountProc<'_>, mut reader: Proc, place: &str) {
    assert!(!reader.wait(TRANSFER).success());
    // After a failed readahead the kernel reads once more, perhaps when the mount is gone already.
    let is_expected = |error: &&str| reader.log().contains(*error);
    let errors = ["Input/output error", "Transport endpoint is not connected"];
    assert!(errors.iter().any(is_expected), "{}", reader.log());
    assert_eq!(mount.proc().wait(SOON).code(), Some(32), "{}", mount.log());
    assert!(mount.log().contains(&format!("provoked by a test in {place}")), "{}", mount.log());
    assert!(!is_mounted(mount.path()));
    let again = lab.mount(1).option("unicast=always").start();
    assert_eq!(digest_of(again.join("trigger")), digest_of(lab.served().join("trigger")));
}

#[test]
fn a_panic_of_the_receive_thread_fails_reads_of_other_files_and_unmounts() {
    let lab = lab_or_skip!(Lab::builder().valve());
    lab.put("image", mib(16));
    lab.put("trigger", mib(1));
    let _server = lab.server().option("--rate", "50mbit").start();
    let _valve = lab.hold_multicast_after(0);
    let mount = mount(&lab, "receive", "unicast=never");
    let reader = readers::read_at(lab.client(1), &mount.join("image"), 0);
    mount.wait_parked(1);
    let _trigger = readers::read_at(lab.client(1), &mount.join("trigger"), 0);
    assert_ends_in_order(&lab, mount, reader, "receive");
}

#[test]
fn a_panic_of_the_answer_thread_fails_its_reads_and_unmounts() {
    let lab = lab_or_skip!(Lab::builder().valve());
    lab.put("trigger", mib(1));
    let _server = lab.server().option("--rate", "50mbit").start();
    let valve = lab.hold_multicast_after(0);
    let mount = mount(&lab, "answer", "unicast=never");
    let reader = readers::read_at(lab.client(1), &mount.join("trigger"), 0);
    mount.wait_parked(1);
    valve.open();
    assert_ends_in_order(&lab, mount, reader, "answer");
}

#[test]
fn a_panic_of_a_fetch_fails_its_reads_and_unmounts() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("trigger", mib(1));
    let _server = lab.server().start();
    let mount = mount(&lab, "fetch", "unicast=always");
    let reader = readers::read_at(lab.client(1), &mount.join("trigger"), 0);
    assert_ends_in_order(&lab, mount, reader, "fetch");
}

#[test]
fn get_ends_with_one_line_and_an_exit_code_of_its_own() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(1));
    let _server = lab.server().start();
    let copy = lab.client(1).fresh_path("copy");
    let mut command = lab.client(1).command(binary("bootcast"));
    command.env("BOOTCAST_TEST_PANIC", "receive:/image");
    command.args(["get", "--interface", "eth0", &lab.url("image"), "-O"]).arg(&copy);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("provoked by a test in receive"), "{errors}");
    assert!(File::open(&copy).is_err(), "a partial file was left");
}
