//! A panic in any thread of a client leaves no reader waiting and no dead mount.
//!
//! Builds with debug assertions panic where `BOOTCAST_TEST_PANIC=place:path` says.

use std::fs::File;

use harness::binaries::binary;
use harness::mount::is_mounted;
use harness::{Lab, SOON, digest_of, lab_or_skip, mib};

use crate::{CRAWL, readers};

/// Asserts that all waiting reads fail with EIO when `place` panics for the file `trigger`, and
/// that the mount can be made again.
fn assert_ends(place: &str, option: &str) {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let trigger = lab.put("trigger", 100_000);
    let mut server = lab.server().option("--rate", CRAWL).start();
    let provoked = format!("{place}:trigger");
    let mount = lab.mount(1).option(option).variable("BOOTCAST_TEST_PANIC", &provoked);
    let mut mount = mount.start();
    let mut waiting =
        readers::read_at(lab.client(1), &mount.join("image"), mib(16) - readers::READ_LEN);
    mount.wait_parked(1);
    let _trigger =
        readers::copy(lab.client(1), &mount.join("trigger"), &lab.client(1).fresh_path("copy"));

    assert!(!waiting.wait(SOON).success());
    assert!(waiting.log().contains("Input/output error"), "{}", waiting.log());
    assert_eq!(mount.proc().wait(SOON).code(), Some(32));
    assert!(mount.log().contains(&format!("provoked by a test in {place}")), "{}", mount.log());
    assert!(!is_mounted(mount.path()));

    server.kill();
    let _server = lab.server().start();
    let again = lab.mount(1).start();
    assert_eq!(digest_of(again.join("trigger")), trigger.digest);
}

#[test]
fn a_panic_of_the_receive_thread_fails_waiting_reads_and_unmounts() {
    assert_ends("receive", "unicast=never");
}

#[test]
fn a_panic_of_the_answer_thread_fails_waiting_reads_and_unmounts() {
    assert_ends("answer", "unicast=never");
}

#[test]
fn a_panic_of_a_fetch_fails_waiting_reads_and_unmounts() {
    assert_ends("fetch", "unicast=always");
}

#[test]
fn get_ends_with_one_line_and_an_exit_code_of_its_own() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(1));
    let _server = lab.server().start();
    let copy = lab.client(1).fresh_path("copy");
    let mut command = lab.client(1).command(binary("bootcast"));
    command.env("BOOTCAST_TEST_PANIC", "receive:image");
    command.args(["get", "--interface", "eth0", "head:/image", "-O"]).arg(&copy);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("provoked by a test in receive"), "{errors}");
    assert!(File::open(&copy).is_err(), "a partial file was left");
}
