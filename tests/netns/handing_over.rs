//! Another process takes a mount over, while programs use it. docs/SEMANTICS.md, "Updates".

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use harness::binaries::{binary, peer};
use harness::content::Image;
use harness::mount::{MountBuilder, is_mounted};
use harness::{Lab, MountProc, Proc, SOON, digest_of, lab_or_skip, mib, wait_for, wait_until};
use rustix::fs::{Dir, statvfs};
use rustix::process::{Pid, Signal, kill_process};

use crate::mounting::{assert_one_line, place};
use crate::plain_peers::plain_server;
use crate::readers::READ_LEN;
use crate::{TRANSFER, readers, text};

/// Number of times that the process of a mount changes under load. A longer run by hand sets
/// `BOOTCAST_ROUNDS`.
const ROUNDS: usize = 10;

/// Replaces the process of a mount by `change` while a reader waits, and a file and a directory are
/// open. Nothing of it may show.
fn assert_unnoticed(
    mut mount: MountProc<'_>,
    lab: &Lab,
    image: &Image,
    change: impl Fn(&mut MountProc<'_>),
) {
    let valve = lab.hold_multicast_after(0);
    let (mount_path, path) = (mount.path().to_owned(), mount.join("image"));
    let file = File::open(&path).unwrap();
    let number = file.metadata().unwrap().ino();
    let directory = File::open(mount.path()).unwrap();
    let mut reader = readers::read_at(lab.client(1), &path, mib(16) - READ_LEN);
    mount.wait_parked(1);
    let capacity = || statvfs(mount_path.as_path()).unwrap().f_blocks;
    wait_until(SOON, "the capacity is that of the server", || capacity() > 0);
    let before = capacity();

    change(&mut mount);
    assert!(reader.exited().is_none(), "{}", reader.log());
    wait_until(SOON, "the capacity is that of the server", || capacity() == before);
    valve.open();
    reader.wait_success(TRANSFER);
    let mut bytes = vec![0; usize::try_from(image.size).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == fs::read(&image.path).unwrap(), "other bytes");
    assert_eq!(fs::metadata(&path).unwrap().ino(), number);
    let mut names = Dir::read_from(&directory).unwrap();
    assert!(names.any(|entry| entry.unwrap().file_name() == c"image"));
    assert_eq!(digest_of(&path), image.digest);
    drop((file, directory, names));
    mount.umount();
}

#[test]
fn a_new_process_answers_who_waits_and_knows_what_is_open() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let image = lab.put("image", mib(16));
    let _server = lab.server().option("--rate", "50mbit").start();
    let mount = lab.mount(1).option("unicast=never").start();
    assert_unnoticed(mount, &lab, &image, |mount| mount.replace());
}

#[test]
fn a_keeper_starts_a_new_process_when_the_mount_is_killed() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let image = lab.put("image", mib(16));
    let _server = lab.server().option("--rate", "50mbit").start();
    let mount = lab.mount(1).option("unicast=never").option("keeper").start();
    assert_unnoticed(mount, &lab, &image, kill);
}

#[test]
fn a_service_that_is_killed_goes_on_with_the_descriptors_in_its_store() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let image = lab.put("image", mib(16));
    let _server = lab.server().option("--rate", "50mbit").start();
    let mount = lab.mount(1).option("unicast=never").service().start();
    assert_unnoticed(mount, &lab, &image, kill);
}

#[test]
fn a_listing_that_was_read_in_part_goes_on_although_the_directory_has_changed() {
    let lab = lab_or_skip!(Lab::builder());
    let served = lab.served();
    let mut names: Vec<_> = (0..2000).map(|number| format!("name-{number:0>100}")).collect();
    for name in &names {
        fs::write(served.join(name), b"x").unwrap();
    }
    let _server = lab.server().start();
    let mut mount = lab.mount(1).option("attr_ttl=0s").start();
    let directory = File::open(mount.path()).unwrap();
    let mut entries = Dir::read_from(&directory).unwrap();
    let mut listed: Vec<String> = Vec::new();
    let mut next = || {
        let name = entries.next()?.unwrap().file_name().to_string_lossy().into_owned();
        Some(name)
    };
    listed.extend(next());
    for name in names.iter().step_by(2) {
        fs::remove_file(served.join(name)).unwrap();
    }
    mount.replace();
    listed.extend(std::iter::from_fn(next));
    listed.retain(|name| name != "." && name != "..");
    listed.sort();
    names.sort();
    assert!(listed == names, "{} of {} names", listed.len(), names.len());
    drop((directory, entries));
    mount.umount();
}

/// Kills the process that serves a kept mount, and waits for the next one.
fn kill(mount: &mut MountProc<'_>) {
    let takes = |mount: &MountProc<'_>| mount.log().matches("took the mount over").count();
    let before = takes(mount);
    mount.kill_kept_child();
    wait_until(SOON, "a new process serves the mount", || takes(mount) > before);
}

/// Changes the process of a mount again and again while programs read from it. Prints the longest
/// time that one of their calls took.
fn assert_calm_under_load(
    start: impl for<'lab> Fn(MountBuilder<'lab>) -> MountBuilder<'lab>,
    change: impl Fn(&mut MountProc<'_>),
) {
    let lab = lab_or_skip!(Lab::builder());
    let names = ["image", "small", "middle"];
    let sizes = [mib(24), 100_000, mib(3)];
    let images: Vec<_> =
        names.into_iter().zip(sizes).map(|(name, size)| lab.put(name, size)).collect();
    let _server = lab.server().start();
    let mut mount = start(lab.mount(1)).start();
    for (name, image) in names.into_iter().zip(&images) {
        assert_eq!(digest_of(mount.join(name)), image.digest);
    }
    let (script, served) = (peer("reading_load.py"), lab.served());
    let args = [text(&script), text(mount.path()), text(&served)];
    let mut load = lab.client(1).spawn("python3", args.into_iter().chain(names));
    let rounds = std::env::var("BOOTCAST_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    for _ in 0..rounds {
        // Each part of the load has made calls since the last change.
        let before = calls(&load);
        wait_until(SOON, "the load goes on", || {
            calls(&load) > before + 2 || load.exited().is_some()
        });
        assert!(load.exited().is_none(), "{}\n{}", load.log(), mount.log());
        change(&mut mount);
    }
    load.signal(Signal::TERM);
    let status = load.wait(TRANSFER);
    println!("{rounds} times: {}", load.log().lines().last().unwrap_or_default());
    assert!(status.success(), "{}\n{}", load.log(), mount.log());
    mount.umount();
}

/// Number of calls that each part of the load has made at least.
fn calls(load: &Proc) -> u64 {
    let log = load.log();
    let mut counts = log.lines().filter_map(|line| line.strip_prefix("calls="));
    counts.next_back().map_or(0, |count| count.parse().unwrap())
}

#[test]
fn no_reader_notices_that_the_process_is_replaced_again_and_again() {
    assert_calm_under_load(|mount| mount.option("attr_ttl=0s"), |mount| mount.replace());
}

#[test]
fn no_reader_notices_that_a_process_without_passthrough_is_replaced() {
    assert_calm_under_load(|mount| mount.option("passthrough=no"), |mount| mount.replace());
}

#[test]
fn no_reader_notices_that_a_kept_process_is_killed_again_and_again() {
    assert_calm_under_load(|mount| mount.option("keeper,attr_ttl=0s"), kill);
}

#[test]
fn no_reader_notices_that_a_service_is_killed_again_and_again() {
    assert_calm_under_load(|mount| mount.option("passthrough=no").service(), kill);
}

#[test]
fn a_mount_of_a_plain_server_is_not_handed_over() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(1));
    let _server = plain_server(&lab, &[]);
    let mount = lab.mount(1).start();
    let output = lab.client(1).run(binary("bootcastfs"), ["--replace", text(mount.path())]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(32), "{message}");
    assert!(message.contains("unmount it, then mount it again"), "{message}");
    assert!(mount.join("image").exists());
    mount.umount();
}

#[test]
fn a_service_that_is_started_with_another_mount_point_leaves_the_old_one() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let _server = lab.server().start();
    let client = lab.client(1);
    let (old, options) = place(client);
    let (new, _) = place(client);
    let mountpoint = client.fresh_path("mountpoint");
    fs::write(&mountpoint, text(&old)).unwrap();
    let (manager, program) = (peer("service_manager.py"), binary("bootcastfs"));
    let socket = client.fresh_path("notify");
    let source = format!("{}:/", lab.head().address());
    let script = r#"exec "$0" "$1" "$(cat "$2")" -f -o "$3""#;
    let args = [text(&manager), text(&socket), "/bin/sh", "-c", script, text(&program), &source];
    let args = [&args[..], &[text(&mountpoint), &options]].concat();
    let mut service = client.spawn("python3", args);
    wait_until(SOON, "it is mounted", || service.log().contains("READY=1"));
    let open = File::open(old.join("image")).unwrap();

    fs::write(&mountpoint, text(&new)).unwrap();
    let children = format!("/proc/{0}/task/{0}/children", service.pid());
    let child = wait_for(SOON, "a process of the service", || {
        Pid::from_raw(fs::read_to_string(&children).unwrap().trim().parse().ok()?)
    });
    kill_process(child, Signal::KILL).unwrap();
    wait_until(SOON, "the other mount point is used", || {
        service.log().matches("READY=1").count() == 2
    });
    assert!(is_mounted(&new) && !is_mounted(&old), "{}", service.log());
    assert_eq!(digest_of(new.join("image")), image.digest);
    assert!(open.metadata().is_err(), "its connection is closed");
    drop(open);
    service.signal(Signal::TERM);
    service.wait_success(SOON);
    assert!(!is_mounted(&new));
}

#[test]
fn a_service_has_no_keeper_besides() {
    let lab = lab_or_skip!(Lab::builder());
    let (path, options) = place(lab.client(1));
    let options = format!("{options},keeper");
    let mut command = lab.client(1).command(binary("bootcastfs"));
    command.args(["head:/", text(&path), "-f", "-o", &options]);
    let output = command.env("NOTIFY_SOCKET", "/nonexistent/notify").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_one_line(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("FileDescriptorStoreMax"));
}
