//! The server does not answer when a mount begins. The mount waits for it, or shows what the cache
//! holds.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::binaries::binary;
use harness::content::Image;
use harness::lab::HEAD_ADDRESS;
use harness::mount::is_mounted;
use harness::{Lab, MountProc, Proc, SOON, digest_of, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::mounting::{assert_one_line, place};
use crate::text;
use crate::verifying::wait_recorded;

/// Mounts with a cache that outlives the mount.
fn mount<'lab>(lab: &'lab Lab, cache: &Path, option: &str) -> MountProc<'lab> {
    let dir = format!("cache_dir={}", cache.display());
    lab.mount(1).option(&dir).option("attr_ttl=0s").option(option).start()
}

/// Starts a mount, and returns its process and its mount point. `command` is `bootcastfs` with
/// arguments before the others.
fn begin_mount(lab: &Lab, flags: &[&str], options: &str) -> (Proc, PathBuf) {
    let (path, place) = place(lab.client(1));
    let (source, options) = (format!("{HEAD_ADDRESS}:/"), format!("{place},{options}"));
    let args = [&[source.as_str(), text(&path), "-o", &options], flags].concat();
    (lab.client(1).spawn(binary("bootcastfs"), args), path)
}

/// Serves two files and links to one of them. A mount reads this one in every way, and is killed.
fn read_and_kill(lab: &Lab, cache: &Path) -> Image {
    let image = lab.put("images/latest/image", mib(1));
    lab.put("images/latest/other", mib(1));
    symlink("images/latest/image", lab.served().join("to-file")).unwrap();
    symlink("images/latest", lab.served().join("to-directory")).unwrap();
    let mut mount = mount(lab, cache, "hard");
    assert_everything_reads(&mount, &image);
    wait_recorded(cache, 1);
    mount.proc().kill_within(SOON);
    image
}

fn assert_everything_reads(mount: &MountProc<'_>, image: &Image) {
    for name in ["images/latest/image", "to-file", "to-directory/image"] {
        assert_eq!(digest_of(mount.join(name)), image.digest, "{name}");
    }
}

/// Returns the sorted names in a directory.
fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_killed_client_mounts_again_and_reads_complete_files_while_the_server_is_away() {
    let lab = lab_or_skip!(Lab::builder());
    let mut server = lab.server().start();
    let cache = lab.client(1).fresh_path("kept");
    let image = read_and_kill(&lab, &cache);
    server.kill();
    let mount = mount(&lab, &cache, "retry=0");
    assert_everything_reads(&mount, &image);
    assert_eq!(names_in(mount.path()), ["images", "to-directory", "to-file"]);
    assert_eq!(names_in(&mount.join("images/latest")), ["image"]);
    lab.client(1).run_ok("df", [text(mount.path())]);
    // A name that the cache does not have waits for the server.
    let mut other = lab.client(1).spawn("stat", [mount.join("images/latest/other")]);
    mount.wait_parked(1);
    server.start();
    other.wait_success(SOON);
    wait_until(SOON, "the listing is the server's", || {
        names_in(&mount.join("images/latest")) == ["image", "other"]
    });
    assert_everything_reads(&mount, &image);
    assert!(mount.log().contains("mounting what the cache holds"), "{}", mount.log());
    mount.umount();
}

#[test]
fn files_that_were_fetched_ahead_can_be_read_by_a_first_mount_without_the_server() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("images/latest/image", mib(1));
    let mut server = lab.server().start();
    let cache = lab.client(1).fresh_path("kept");
    let url = lab.url("images/latest/image");
    let args = ["cache", "warm", "--interface", "eth0", "--cache-dir", text(&cache), &url];
    lab.client(1).run_ok(binary("bootcast"), args);
    server.kill();
    let mount = mount(&lab, &cache, "retry=0");
    assert_eq!(names_in(mount.path()), ["images"]);
    assert_eq!(digest_of(mount.join("images/latest/image")), image.digest);
    mount.umount();
}

#[test]
fn a_mount_begins_from_the_cache_while_the_server_hangs() {
    let lab = lab_or_skip!(Lab::builder());
    let server = lab.server().start();
    let cache = lab.client(1).fresh_path("kept");
    let image = read_and_kill(&lab, &cache);
    server.proc().signal(Signal::STOP);
    let mount = mount(&lab, &cache, "retry=1");
    assert_everything_reads(&mount, &image);
    server.proc().signal(Signal::CONT);
    let newer = lab.put("images/latest/image", mib(1));
    wait_until(SOON, "the new content is seen", || {
        digest_of(mount.join("images/latest/image")) == newer.digest
    });
    mount.umount();
}

#[test]
fn a_slow_server_is_waited_for_where_the_cache_remembers_nothing() {
    let lab = lab_or_skip!(Lab::builder().delay(Duration::from_millis(1300)));
    let _server = lab.server().start();
    let dir = format!("cache_dir={},retry=1", text(&lab.client(1).fresh_path("empty")));
    let (mut mount, path) = begin_mount(&lab, &["-f"], &dir);
    // A connection and an answer take 2.6 s each: more than the 5 s after which a cache may serve.
    wait_until(4 * SOON, "the directory is mounted", || is_mounted(&path));
    mount.signal(Signal::TERM);
    mount.wait_success(4 * SOON);
}

#[test]
fn a_mount_waits_for_its_server_and_a_signal_ends_it() {
    let lab = lab_or_skip!(Lab::builder());
    let (mut ended, ended_path) = begin_mount(&lab, &["-f"], "retry=1");
    let (mut waiting, path) = begin_mount(&lab, &["-f"], "retry=1");
    for mount in [&ended, &waiting] {
        wait_until(SOON, "the server was asked", || mount.log().contains("trying again"));
    }
    ended.signal(Signal::TERM);
    assert_eq!(ended.wait(SOON).code(), Some(32), "{}", ended.log());
    assert!(!is_mounted(&ended_path) && !is_mounted(&path));
    let _server = lab.server().start();
    wait_until(SOON, "the directory is mounted", || is_mounted(&path));
    waiting.signal(Signal::TERM);
    waiting.wait_success(SOON);
}

/// Mounts with these options, while the server is away at first. The command must return.
fn assert_returns_before_the_server_is_there(options: &str) {
    let lab = lab_or_skip!(Lab::builder());
    let is_served = |path: &Path| {
        let pattern = format!("bootcastfs.*{}", path.display());
        !lab.client(1).run("pgrep", ["-f", &pattern]).stdout.is_empty()
    };
    let (mut command, path) = begin_mount(&lab, &[], options);
    command.wait_success(SOON);
    assert!(!is_mounted(&path));
    let image = lab.put("image", 100_000);
    let _server = lab.server().start();
    wait_until(SOON, "the directory is mounted", || is_mounted(&path));
    assert_eq!(digest_of(path.join("image")), image.digest);
    lab.client(1).run_ok("umount", [&path]);
    wait_until(SOON, "the daemon has ended", || !is_served(&path));
}

#[test]
fn a_mount_in_the_background_returns_before_its_server_is_there() {
    assert_returns_before_the_server_is_there("bg");
}

#[test]
fn a_kept_mount_in_the_background_returns_before_its_server_is_there() {
    assert_returns_before_the_server_is_there("bg,keeper");
}

#[test]
fn a_mount_without_a_server_and_without_a_cache_fails_in_one_line() {
    let lab = lab_or_skip!(Lab::builder());
    let cache = lab.client(1).fresh_path("kept");
    let mut server = lab.server().start();
    read_and_kill(&lab, &cache);
    server.kill();
    let attempt = |options: &str| {
        let (path, place) = place(lab.client(1));
        let options = format!("{place},{options}");
        let source = format!("{HEAD_ADDRESS}:/");
        lab.client(1).run(binary("bootcastfs"), [&source, text(&path), "-o", &options])
    };
    let dir = format!("cache_dir={}", text(&cache));
    for options in ["retry=0", &format!("{dir},retry=0,offline=no")] {
        let output = attempt(options);
        assert_eq!(output.status.code(), Some(32), "{output:?}");
        assert_one_line(&output);
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot reach"), "{output:?}");
    }
}
