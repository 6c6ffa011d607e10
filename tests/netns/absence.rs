//! The server is away. Complete files and known names stay available, and the log stays short.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use harness::content::Image;
use harness::{Lab, MountProc, SOON, ServerProc, digest_of, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::text;

/// Number of rounds of reads. If each round waited for a time-out, they would take longer than the
/// lifetime of a test's mount.
const ROUNDS: u32 = 30;

/// Serves a file in a directory and links to both, and reads the file in every way.
fn read_everything(lab: &Lab, mount: &MountProc<'_>) -> Image {
    let image = lab.put("images/latest/image", mib(1));
    symlink("images/latest/image", lab.served().join("to-file")).unwrap();
    symlink("images/latest", lab.served().join("to-directory")).unwrap();
    assert_everything_reads(mount, &image);
    image
}

fn assert_everything_reads(mount: &MountProc<'_>, image: &Image) {
    for name in ["images/latest/image", "to-file", "to-directory/image"] {
        assert_eq!(digest_of(mount.join(name)), image.digest, "{name}");
    }
}

/// Returns the number of log lines that contain `text`.
fn lines_with(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn complete_files_in_directories_and_behind_links_can_be_opened_while_the_server_is_away() {
    let lab = lab_or_skip!(Lab::builder());
    let mut server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=0s").start();
    let image = read_everything(&lab, &mount);
    server.kill();
    for _ in 0..ROUNDS {
        assert_everything_reads(&mount, &image);
    }
    // `df`, `mountpoint`, `ls -d` and `umount` read these attributes.
    assert!(fs::metadata(mount.path()).unwrap().is_dir());
    assert!(fs::metadata(mount.join("images/latest")).unwrap().is_dir());
    lab.client(1).run_ok("df", [text(mount.path())]);
    let log = mount.log();
    assert!((1..=3).contains(&lines_with(&log, "the server does not answer")), "{log}");
    mount.umount();
}

/// Makes `server` unreachable with `hang`, checks that reads still work, and makes it reachable
/// again with `come_back`.
fn assert_reads_go_on_while(
    lab: &Lab,
    server: &ServerProc<'_>,
    hang: impl FnOnce(),
    come_back: impl FnOnce(),
) {
    let mount = lab.mount(1).option("attr_ttl=0s").start();
    let image = read_everything(lab, &mount);
    // A leave in flight would be lost, and the member would stay until its lease is over.
    server.wait_no_members();
    hang();
    for _ in 0..ROUNDS {
        assert_everything_reads(&mount, &image);
    }
    assert!(fs::metadata(mount.path()).unwrap().is_dir());
    come_back();
    let newer = lab.put("images/latest/image", mib(1));
    wait_until(SOON, "the new content is seen", || {
        digest_of(mount.join("images/latest/image")) == newer.digest
    });
    server.wait_no_members();
    mount.umount();
}

#[test]
fn a_server_that_hangs_costs_one_time_out_and_is_noticed_when_it_is_back() {
    let lab = lab_or_skip!(Lab::builder());
    let server = lab.server().start();
    let stop = || server.proc().signal(Signal::STOP);
    let go_on = || server.proc().signal(Signal::CONT);
    assert_reads_go_on_while(&lab, &server, stop, go_on);
}

#[test]
fn a_link_that_is_down_costs_one_time_out_and_is_noticed_when_it_is_up() {
    let lab = lab_or_skip!(Lab::builder());
    let server = lab.server().start();
    let link = |state| {
        let namespace = lab.client(1).namespace();
        let set = ["-n", namespace, "link", "set", "eth0", state];
        assert!(Command::new("ip").args(set).status().unwrap().success());
    };
    assert_reads_go_on_while(&lab, &server, || link("down"), || link("up"));
}

#[test]
fn killed_callers_that_waited_for_an_absent_server_leave_few_log_lines() {
    let lab = lab_or_skip!(Lab::builder());
    let mut server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=0s").start();
    server.kill();
    for round in 0..8 {
        let look = |k: u32| lab.client(1).spawn("stat", [mount.join(format!("new-{round}-{k}"))]);
        let mut callers: Vec<_> = (0..10).map(look).collect();
        mount.wait_parked(10);
        for caller in &mut callers {
            caller.kill_within(SOON);
        }
        wait_until(SOON, "no request waits", || mount.parked_requests() == 0);
    }
    let log = mount.log();
    assert!(lines_with(&log, "trying again") <= 3, "{log}");
    assert_eq!(lines_with(&log, "fuser::reply"), 0, "{log}");
    assert!(lines_with(&log, "WARN") + lines_with(&log, "ERROR") <= 4, "{log}");
}
