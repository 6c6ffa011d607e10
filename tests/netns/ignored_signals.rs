//! Signals that end programs, and those that are ignored when a program starts, as under `nohup`.

use std::fs;

use harness::binaries::binary;
use harness::mount::is_mounted;
use harness::{Host, Lab, Proc, SOON, digest_of, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::{TRANSFER, text};

/// Starts a program with `signals` ignored.
fn spawn_ignoring(host: &Host, signals: &str, program: &str, args: &[&str]) -> Proc {
    let script = format!("trap '' {signals}; exec \"$0\" \"$@\"");
    let program = binary(program);
    host.spawn("sh", [&["-c", &script, text(&program)], args].concat())
}

#[test]
fn a_get_continues_on_ignored_signals() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(4));
    let server = lab.server().option("--rate", "10mbit").start();
    let target = lab.client(1).fresh_path("image");
    let args = ["get", "--interface", "eth0", &lab.url("image"), "-O", text(&target)];
    let mut get = spawn_ignoring(lab.client(1), "HUP INT TERM", "bootcast", &args);
    server.wait_cast("image", "pages are being sent", |cast| cast.pages_sent > 10);
    for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
        get.signal(signal);
    }
    get.wait_success(TRANSFER);
    assert_eq!(digest_of(&target), image.digest);
}

#[test]
fn a_get_ends_on_a_signal_that_is_not_ignored() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(4));
    let server = lab.server().option("--rate", "1mbit").start();
    let target = lab.client(1).fresh_path("image");
    let args = ["get", "--interface", "eth0", &lab.url("image"), "-O", text(&target)];
    let mut get = spawn_ignoring(lab.client(1), "HUP", "bootcast", &args);
    server.wait_cast("image", "pages are being sent", |cast| cast.pages_sent > 10);
    get.signal(Signal::HUP);
    get.signal(Signal::TERM);
    assert_eq!(get.wait(SOON).code(), Some(143), "{}", get.log());
    assert!(!target.exists());
}

#[test]
fn a_server_continues_on_ignored_signals() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let (directory, state) = (lab.served(), lab.head().fresh_path("state"));
    let directories = ["--dir", text(&directory), "--state-dir", text(&state)];
    let args = [&directories[..], &["--interface", "eth0", "--rate", "100mbit"]].concat();
    let mut server = spawn_ignoring(lab.head(), "INT TERM", "bootcast-server", &args);
    wait_until(SOON, "the server listens", || server.log().contains("listening"));
    server.signal(Signal::INT);
    server.signal(Signal::TERM);
    let target = lab.client(1).fresh_path("image");
    let args = ["get", "--interface", "eth0", &lab.url("image"), "-O", text(&target)];
    lab.client(1).run_ok(binary("bootcast"), args);
    assert_eq!(digest_of(&target), image.digest);
    assert!(server.exited().is_none(), "{}", server.log());
    assert!(!server.log().contains("stopping"), "{}", server.log());
}

#[test]
fn a_mount_continues_on_an_ignored_sighup() {
    let lab = lab_or_skip!(Lab::builder());
    let _server = lab.server().start();
    let client = lab.client(1);
    let path = client.fresh_path("mnt");
    fs::create_dir(&path).unwrap();
    let source = format!("{}:/", lab.head().address());
    let args = [&source, text(&path), "-f", "-o", "interface=eth0,cache=memory"];
    let mut mount = spawn_ignoring(client, "HUP", "bootcastfs", &args);
    // Signals count from the beginning, also while the mount still starts.
    wait_until(SOON, "the directory is mounted", || is_mounted(&path));
    mount.signal(Signal::HUP);
    mount.signal(Signal::TERM);
    mount.wait_success(SOON);
    assert!(mount.log().contains("SIGTERM"), "the signal that ended it: {}", mount.log());
    assert!(!is_mounted(&path));
}

#[test]
fn a_mount_that_waits_for_its_server_ends_on_a_signal() {
    let lab = lab_or_skip!(Lab::builder());
    let server = lab.server().start();
    server.proc().signal(Signal::STOP);
    let client = lab.client(1);
    let path = client.fresh_path("mnt");
    fs::create_dir(&path).unwrap();
    let source = format!("{}:/", lab.head().address());
    let args = [&source, text(&path), "-f", "-o", "interface=eth0,cache=memory"];
    let mut mount = client.spawn(binary("bootcastfs"), args);
    // The kernel of the stopped server accepts the connection.
    let connections = format!("/proc/{}/net/tcp", mount.pid());
    wait_until(SOON, "a connection to the server", || {
        fs::read_to_string(&connections).unwrap().lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(2);
            fields.next().is_some_and(|remote| remote.ends_with(":22B8"))
                && fields.next() == Some("01")
        })
    });
    mount.signal(Signal::TERM);
    assert_eq!(mount.wait(SOON).code(), Some(32), "{}", mount.log());
    assert!(mount.log().contains("terminated before anything was mounted"), "{}", mount.log());
    assert!(!is_mounted(&path));
    server.proc().signal(Signal::CONT);
}
