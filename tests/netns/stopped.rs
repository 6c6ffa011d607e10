//! The server stops (SIGSTOP), or the mount does. What waits can be killed, and goes on afterwards.

use std::path::Path;

use harness::mount::is_mounted;
use harness::{Host, Lab, MountProc, Proc, SOON, ServerProc, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::readers::READ_LEN;
use crate::telling::attribute;
use crate::transfers::Copy;
use crate::{CRAWL, TRANSFER, readers, text};

/// Length of the file that readers wait for.
const SIZE: u64 = mib(16);

/// Python program that opens a file, for which `cat` would need no more calls.
const OPEN: &str = "import os, sys; os.open(sys.argv[1], os.O_RDONLY)";

/// A call that waits for a server that is stopped.
struct Call {
    name: &'static str,
    start: fn(&Host, &Path) -> Proc,
}

/// Calls that wait, on the mounted directory.
const CALLS: [Call; 6] = [
    Call {
        name: "read",
        start: |host, mount| readers::read_at(host, &mount.join("image"), SIZE - READ_LEN),
    },
    Call {
        name: "page fault",
        start: |host, mount| readers::fault_at_end(host, &mount.join("image")),
    },
    Call {
        name: "direct read",
        start: |host, mount| readers::read_direct_at(host, &mount.join("image"), SIZE / 2),
    },
    Call {
        name: "readdir",
        start: |host, mount| host.spawn("ls", ["-U", text(&mount.join("directory"))]),
    },
    Call { name: "stat", start: |host, mount| host.spawn("stat", [mount.join("other")]) },
    Call {
        name: "open",
        start: |host, mount| host.spawn("python3", ["-c", OPEN, text(&mount.join("closed"))]),
    },
];

/// Serves files, of which `image` is open on the mount, and stops the server. Names that [`CALLS`]
/// use are known to the kernel where the call is not to wait for the name.
fn stop_while_open(lab: &Lab) -> (ServerProc<'_>, MountProc<'_>, std::fs::File) {
    for (name, size) in [("image", SIZE), ("closed", SIZE), ("other", 1), ("directory/file", 1)] {
        lab.put(name, size);
    }
    let server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).option("attr_ttl=1h").start();
    let image = std::fs::File::open(mount.join("image")).unwrap();
    for known in ["closed", "directory"] {
        std::fs::metadata(mount.join(known)).unwrap();
    }
    server.wait_cast("image", "the open joined", |cast| cast.members == 1);
    server.proc().signal(Signal::STOP);
    (server, mount, image)
}

/// Starts all calls, each of which then waits.
fn start_calls(mount: &MountProc<'_>) -> Vec<(&'static str, Proc)> {
    let mut started = Vec::new();
    for Call { name, start } in CALLS {
        let mut proc = start(mount.host(), mount.path());
        let before = started.len() as u64;
        wait_until(SOON, &format!("a request waits for {name}"), || {
            assert!(proc.exited().is_none(), "{name} did not wait: {}", proc.log());
            mount.parked_requests() > before
        });
        started.push((name, proc));
    }
    started
}

#[test]
fn whatever_waits_for_a_stopped_server_can_be_killed_one_by_one() {
    let lab = lab_or_skip!(Lab::builder());
    let (server, mount, _image) = stop_while_open(&lab);
    let mut calls = start_calls(&mount);
    for (name, proc) in &mut calls {
        println!("killing: {name}");
        proc.kill_within(SOON);
    }
    wait_until(SOON, "no request waits", || mount.parked_requests() == 0);
    assert!(!mount.log().contains("is closed"), "{}", mount.log());
    server.proc().signal(Signal::CONT);
    std::fs::metadata(mount.join("other")).unwrap();
}

#[test]
fn sigterm_ends_a_mount_whose_readers_wait_for_a_stopped_server() {
    let lab = lab_or_skip!(Lab::builder());
    let (_server, mut mount, image) = stop_while_open(&lab);
    let calls = start_calls(&mount);
    drop(image);
    mount.proc().signal(Signal::TERM);
    mount.proc().wait_success(SOON);
    assert!(!is_mounted(mount.path()));
    for (name, mut proc) in calls {
        let status = proc.wait(SOON);
        assert!(!status.success(), "{name}: {}", proc.log());
    }
}

#[test]
fn a_mount_that_is_detached_lets_its_waiting_readers_be_killed_and_ends_with_them() {
    let lab = lab_or_skip!(Lab::builder());
    let (_server, mut mount, image) = stop_while_open(&lab);
    let calls = start_calls(&mount);
    lab.client(1).run_ok("umount", ["-l", text(mount.path())]);
    assert!(!is_mounted(mount.path()));
    for (_, mut proc) in calls {
        assert!(proc.exited().is_none(), "a detached mount still serves those who use it");
        proc.kill_within(SOON);
    }
    drop(image);
    mount.proc().wait_success(SOON);
}

#[test]
fn a_mount_that_is_stopped_and_continued_goes_on() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", SIZE);
    let server = lab.server().option("--rate", "50mbit").start();
    let mut copy = Copy::start(&lab, 1, &image);
    server
        .wait_cast("image", "a third is sent", |cast| cast.pages_sent > u64::from(cast.pages) / 3);
    copy.mount.proc().signal(Signal::STOP);
    // The stream passes while nobody listens.
    server.wait_cast("image", "all of it is sent", |cast| cast.pages_sent >= u64::from(cast.pages));
    copy.mount.proc().signal(Signal::CONT);
    copy.finish(&image);
}

#[test]
fn a_server_that_is_stopped_and_continued_goes_on_and_no_port_is_called_closed() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(64));
    // Fast enough that many pages come between two beacons.
    let server = lab.server().option("--rate", "400mbit").start();
    let mut copy = Copy::start(&lab, 1, &image);
    server
        .wait_cast("image", "a third is sent", |cast| cast.pages_sent > u64::from(cast.pages) / 3);
    server.proc().signal(Signal::STOP);
    wait_until(TRANSFER, "the mount has noticed", || {
        let state = attribute(&copy.mount.join("image"), "state").unwrap();
        ["away", "joining"].contains(&state.as_str())
    });
    server.proc().signal(Signal::CONT);
    copy.finish(&image);
    assert!(!copy.mount.log().contains("is closed"), "{}", copy.mount.log());
}
