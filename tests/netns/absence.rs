//! The server is away: what is here and known goes on, and the log stays short.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use harness::content::Image;
use harness::{Lab, MountProc, SOON, ServerProc, digest_of, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::text;

/// More rounds than a mount of the tests lives, if each of them waited for one time-out.
const ROUNDS: u32 = 30;

/// Puts files that lie in a directory and behind links, and reads them through the mount.
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

/// Number of log lines that hold `text`.
fn lines_with(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn complete_files_in_directories_and_behind_links_open_while_the_server_is_gone() {
    let lab = lab_or_skip!(Lab::builder());
    let mut server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=0s").start();
    let image = read_everything(&lab, &mount);
    server.kill();
    for _ in 0..ROUNDS {
        assert_everything_reads(&mount, &image);
    }
    // What `df`, `mountpoint`, `ls -d` and `umount` look at.
    assert!(fs::metadata(mount.path()).unwrap().is_dir());
    assert!(fs::metadata(mount.join("images/latest")).unwrap().is_dir());
    lab.client(1).run_ok("df", [text(mount.path())]);
    let log = mount.log();
    assert!((1..=3).contains(&lines_with(&log, "the server does not answer")), "{log}");
    mount.umount();
}

/// Makes `server` hang, reads on, and has it come back.
fn assert_reads_go_on_while(
    lab: &Lab,
    server: &ServerProc<'_>,
    hang: impl FnOnce(),
    come_back: impl FnOnce(),
) {
    let mount = lab.mount(1).option("attr_ttl=0s").start();
    let image = read_everything(lab, &mount);
    // A leave that is on its way would be lost, and the member stay until its lease is over.
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
fn a_server_that_hangs_costs_one_time_out_and_is_heard_again() {
    let lab = lab_or_skip!(Lab::builder());
    let server = lab.server().start();
    let stop = || server.proc().signal(Signal::STOP);
    let go_on = || server.proc().signal(Signal::CONT);
    assert_reads_go_on_while(&lab, &server, stop, go_on);
}

#[test]
fn a_link_that_is_down_costs_one_time_out_and_is_heard_again() {
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
fn callers_that_wait_for_a_server_that_is_gone_and_are_killed_leave_few_lines_in_the_log() {
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
        wait_until(SOON, "nobody waits", || mount.parked_requests() == 0);
    }
    let log = mount.log();
    assert!(lines_with(&log, "trying again") <= 3, "{log}");
    assert_eq!(lines_with(&log, "fuser::reply"), 0, "{log}");
    assert!(lines_with(&log, "WARN") + lines_with(&log, "ERROR") <= 4, "{log}");
}
