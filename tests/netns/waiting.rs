//! Reads that wait do not block other reads, and they end with the mount.

use std::fs::File;
use std::process::Command;

use harness::mount::is_mounted;
use harness::{Lab, SOON, digest_of, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::readers::READ_LEN;
use crate::transfers::Copy;
use crate::{CRAWL, TRANSFER, readers, text};

#[test]
fn reads_that_wait_for_forty_files_do_not_delay_a_complete_file() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let complete = lab.put("complete", 100_000);
    let names: Vec<String> = (0..40).map(|k| format!("slow-{k}")).collect();
    for name in &names {
        lab.put(name, mib(1));
    }
    let _server = lab.server().start();
    // Otherwise clients to which nothing comes would fetch over HTTP.
    let mount = lab.mount(1).option("unicast=never").start();
    assert_eq!(digest_of(mount.join("complete")), complete.digest);

    let _valve = lab.hold_multicast_after(0);
    let waiting: Vec<_> = names
        .iter()
        .map(|name| readers::read_at(lab.client(1), &mount.join(name), mib(1) - READ_LEN))
        .collect();
    mount.wait_parked(40);
    let mut reader = lab.client(1).spawn("cat", [mount.join("complete")]);
    reader.wait_success(TRANSFER);
    assert!(mount.parked_requests() >= 40, "the forty still wait");
    drop(waiting);
}

#[test]
fn a_long_transfer_does_not_delay_a_later_file() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("slow", mib(64));
    let quick = lab.put("quick", 100_000);
    let _server = lab.server().option("--rate", "10mbit").start();
    let mount = lab.mount(1).start();
    let from = format!("if={}", text(&mount.join("slow")));
    let waiting = lab.client(1).spawn("dd", [&from, "of=/dev/null", "bs=1M"]);
    mount.wait_parked(1);
    assert_eq!(digest_of(mount.join("quick")), quick.digest);
    drop(waiting);
}

#[test]
fn an_open_that_the_server_refuses_for_now_says_why_and_succeeds_later() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("one", mib(1));
    let image = lab.put("image", 100_000);
    let _server = lab.server().option("--max-casts", "1").option("--rate", "10mbit").start();
    let host = lab.client(1);
    let join = [("X-BOOTCAST", "1"), ("X-BOOTCAST-FILL", "demand")];
    let answer = host.get_with(&lab.url("join/one"), &join).body;
    let token = answer.lines().find_map(|line| line.strip_prefix("TOKEN=")).unwrap();
    let mut copy = Copy::start(&lab, 1, &image);
    wait_until(SOON, "the log says why it waits", || {
        copy.mount.log().contains("too many casts run already")
    });
    assert!(copy.proc.exited().is_none());
    assert_eq!(host.get_with(&lab.url("leave/one"), &[("X-TOKEN", token)]).status, 204);
    copy.finish(&image);
    assert_eq!(copy.mount.log().matches("cannot join yet").count(), 1, "{}", copy.mount.log());
}

#[test]
fn umount_without_readers_ends_the_daemon_and_the_memberships() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).option("linger=60s").start();
    drop(File::open(mount.join("image")).unwrap());
    server.wait_cast("image", "the open joined", |cast| cast.members == 1);
    mount.umount();
    server.wait_no_members();
}

#[test]
fn umount_fails_while_a_file_is_open_and_changes_nothing() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 10_000);
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    let file = File::open(mount.join("image")).unwrap();
    let umount = Command::new("umount").arg(mount.path()).output().unwrap();
    assert!(!umount.status.success());
    assert_eq!(digest_of(mount.join("image")), image.digest);
    drop(file);
    mount.umount();
}

#[test]
fn sigterm_ends_waiting_reads_unmounts_and_exits_0() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let server = lab.server().option("--rate", CRAWL).start();
    let mut mount = lab.mount(1).start();
    let path = mount.path().to_owned();
    let mut reader = readers::read_at(lab.client(1), &mount.join("image"), mib(16) - READ_LEN);
    mount.wait_parked(1);
    // The end waits for a leave for 2 s at most, which may be too short for a join before it.
    wait_until(SOON, "the client has joined", || mount.log().contains("joined"));

    mount.proc().signal(Signal::TERM);
    mount.proc().wait_success(SOON);
    assert!(!reader.wait(SOON).success(), "an interrupted read must fail");
    wait_until(SOON, "the directory is unmounted", || !is_mounted(&path));
    server.wait_no_members();
}
