//! `bootcast get --continue` goes on from where an earlier one ended.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use harness::binaries::binary;
use harness::{Lab, Proc, SOON, ServerProc, digest_of, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::{TRANSFER, text};

/// Directory with what arrived of `target`.
fn parts_of(target: &Path) -> PathBuf {
    target.with_file_name(".image.part")
}

fn spawn_get(lab: &Lab, target: &Path, more: &[&str]) -> Proc {
    let url = lab.url("image");
    let args = ["get", "--continue", "--interface", "eth0", &url, "-O", text(target)];
    lab.client(1).spawn(binary("bootcast"), [&args[..], more].concat())
}

/// Starts a fetch, and ends it by a signal when most of the 8 MiB were sent.
fn end_early(lab: &Lab, server: &ServerProc<'_>, target: &Path, signal: Signal) {
    let mut get = spawn_get(lab, target, &[]);
    server.wait_cast("image", "most pages were sent", |cast| cast.pages_sent > 4000);
    get.signal(signal);
    let status = get.wait(SOON);
    assert!(!status.success(), "{}", get.log());
    assert!(parts_of(target).is_dir() && !target.exists());
}

fn new_target(lab: &Lab) -> PathBuf {
    let directory = lab.client(1).fresh_path("fetched");
    fs::create_dir(&directory).unwrap();
    directory.join("image")
}

#[test]
fn a_fetch_that_was_ended_goes_on_with_what_arrived() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(8));
    let server = lab.server().option("--rate", "20mbit").start();
    let target = new_target(&lab);
    end_early(&lab, &server, &target, Signal::TERM);
    wait_until(TRANSFER, "the cast has ended", || server.status().casts.is_empty());

    let before = server.status().totals;
    let id = image.digest.to_hex();
    let mut get = spawn_get(&lab, &target, &["--b3", &id]);
    get.wait_success(TRANSFER);
    let after = server.status().totals;
    let sent = after.pages_sent + after.symbols_sent - before.pages_sent - before.symbols_sent;
    assert!(sent < mib(8) / 1456 * 2 / 3, "{sent} datagrams were sent for the rest");
    assert_eq!(digest_of(&target), image.digest);
    let alone = fs::read_dir(target.parent().unwrap()).unwrap().count();
    assert_eq!(alone, 1, "something is left beside the file");
    fs::write(target.with_file_name("new"), "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&target), mode(&target.with_file_name("new")));
}

#[test]
fn a_fetch_goes_on_after_a_kill_and_in_a_new_version() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(8));
    let server = lab.server().option("--rate", "20mbit").start();
    let target = new_target(&lab);
    end_early(&lab, &server, &target, Signal::KILL);
    let replaced = lab.put("image", mib(3) + 5);
    spawn_get(&lab, &target, &[]).wait_success(TRANSFER);
    assert_eq!(digest_of(&target), replaced.digest);
    assert!(!parts_of(&target).exists());
}

#[test]
fn two_fetches_do_not_use_the_same_parts() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(8));
    let server = lab.server().option("--rate", "20mbit").start();
    let target = new_target(&lab);
    let mut first = spawn_get(&lab, &target, &[]);
    server.wait_cast("image", "pages are being sent", |cast| cast.pages_sent > 10);
    let mut second = spawn_get(&lab, &target, &[]);
    assert_eq!(second.wait(SOON).code(), Some(2), "{}", second.log());
    assert!(second.log().contains("another program fetches"), "{}", second.log());
    first.wait_success(TRANSFER);
    assert_eq!(digest_of(&target), image.digest);
}
