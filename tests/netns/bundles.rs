//! Trees of small files: many hosts that read one at the same moment get one copy of its bytes.
//! docs/PROTOCOL.md, "Bundles".

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use harness::{Lab, MountProc, SOON, ServerProc, lab_or_skip, wait_until};

/// Beginning of the name of a bundle, as the server logs it with each cast.
const BUNDLE: &str = ".bootcast-bundle-";

/// Creates a directory of small files, each with its own bytes.
fn put_tree(lab: &Lab, files: usize, size: usize) {
    let directory = lab.served().join("tree");
    fs::create_dir(&directory).unwrap();
    for k in 0..files {
        let bytes: Vec<u8> = (0..size)
            .map(|byte| u8::try_from((byte * 7 + k * 31 + byte / 256) % 251).unwrap())
            .collect();
        fs::write(directory.join(format!("file-{k:05}")), bytes).unwrap();
    }
}

/// Starts `tar` of the tree, with a checksum of all names and bytes as output.
fn start_tar(mount: &MountProc<'_>) -> Child {
    let script = "tar -C \"$1\" --sort=name --mtime=@0 --mode=0 -cf - tree | sha256sum";
    let mut command = mount.host().command("sh");
    command.args(["-c", script, "sh"]).arg(mount.path());
    command.stdout(Stdio::piped()).spawn().unwrap()
}

fn sum_of(tar: Child) -> String {
    let output = tar.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn name(k: usize) -> String {
    format!("tree/file-{k:05}")
}

/// Reads a file in the mount, which must be the one that is served.
fn read(lab: &Lab, mount: &MountProc<'_>, k: usize) {
    let (found, served) = (fs::read(mount.join(name(k))), fs::read(lab.served().join(name(k))));
    assert!(found.unwrap() == served.unwrap(), "{}", name(k));
}

fn has_bundle(server: &ServerProc<'_>) -> bool {
    server.log().contains(BUNDLE)
}

#[test]
fn hosts_that_read_a_tree_at_once_are_not_sent_it_each() {
    let mut sent = Vec::new();
    for clients in [1, 8] {
        let lab = lab_or_skip!(Lab::builder().clients(clients));
        put_tree(&lab, 500, 4096);
        // All hosts share the cores of this machine, which cannot take more in.
        let server = lab.server().option("--rate", "200mbit").start();
        let mounts: Vec<_> = (1..=clients.into()).map(|k| lab.mount(k).start()).collect();
        let before = lab.head().counters().tx_bytes;
        let tars: Vec<_> = mounts.iter().map(start_tar).collect();
        let sums: Vec<_> = tars.into_iter().map(sum_of).collect();
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
        assert!(has_bundle(&server), "{}", server.log());
        drop(mounts);
        sent.push(lab.head().counters().tx_bytes - before);
    }
    // Twice as much on a machine that runs all of them at once. A slow one lets some of them begin
    // when the others are done.
    assert!(sent[1] <= 4 * sent[0], "one host was sent {}, eight {}", sent[0], sent[1]);
}

#[test]
fn files_are_the_same_in_every_way_they_come() {
    let lab = lab_or_skip!(Lab::builder());
    put_tree(&lab, 300, 3000);
    for (k, size) in [(40, 0), (41, 65_536), (42, 65_537), (43, 1)] {
        fs::write(lab.served().join(name(k)), vec![7; size]).unwrap();
    }
    let server = lab.server().start();
    for options in ["fill=full", "unicast=always", "cache=memory", "verify=tag"] {
        let mount = lab.mount(1).option(options).start();
        (0..300).for_each(|k| read(&lab, &mount, k));
        mount.umount();
    }
    assert!(has_bundle(&server));
    for options in ["fill=demand", "unicast=never"] {
        let before = server.log().matches(BUNDLE).count();
        let mount = lab.mount(1).option(options).start();
        (0..20).for_each(|k| read(&lab, &mount, k));
        assert_eq!(server.log().matches(BUNDLE).count(), before, "{options}");
    }
}

#[test]
fn a_file_that_changes_after_its_bundle_was_made_is_read_as_it_is_now() {
    let lab = lab_or_skip!(Lab::builder());
    put_tree(&lab, 300, 3000);
    let server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=0").start();
    (0..8).for_each(|k| read(&lab, &mount, k));
    wait_until(SOON, "the bundle is cast", || has_bundle(&server));
    fs::write(lab.served().join(name(100)), "changed").unwrap();
    fs::remove_file(lab.served().join(name(101))).unwrap();
    read(&lab, &mount, 100);
    assert!(fs::read(mount.join(name(101))).is_err());
    (0..300).filter(|k| *k != 101).for_each(|k| read(&lab, &mount, k));
}

#[test]
fn who_reads_some_files_of_a_large_directory_is_sent_no_more() {
    let lab = lab_or_skip!(Lab::builder());
    put_tree(&lab, 300, 3000);
    let server = lab.server().start();
    let mount = lab.mount(1).start();
    for k in [0, 150, 299, 0, 150, 299, 7, 8, 9] {
        assert!(!has_bundle(&server));
        read(&lab, &mount, k);
    }
    mount.umount();
    assert!(!has_bundle(&server));
}

#[test]
fn pinned_files_do_not_come_with_bundles() {
    let lab = lab_or_skip!(Lab::builder());
    put_tree(&lab, 20, 3000);
    let hash = |k| blake3::hash(&fs::read(lab.served().join(name(k))).unwrap()).to_hex();
    let pins: Vec<_> = (0..20).map(|k| format!("{}  {}\n", hash(k), name(k))).collect();
    let file = lab.client(1).fresh_path("pins");
    fs::write(&file, pins.concat()).unwrap();
    let server = lab.server().start();
    let mount = lab.mount(1).option(&format!("pins={}", file.display())).start();
    (0..20).for_each(|k| read(&lab, &mount, k));
    assert!(!has_bundle(&server));
}

/// Prints how long `tar` of 2,000 files takes, and what the head sends.
#[test]
#[ignore = "measures"]
#[expect(clippy::disallowed_methods, reason = "it measures time")]
fn measure() {
    for clients in [1u8, 8] {
        let lab = lab_or_skip!(Lab::builder().clients(clients).memory_disk());
        put_tree(&lab, 2000, 4096);
        // All hosts share the cores of this machine, which cannot take more in.
        let server = lab.server().option("--rate", "200mbit").start();
        let mounts: Vec<_> = (1..=clients.into()).map(|k| lab.mount(k).start()).collect();
        let (before, began) = (lab.head().counters().tx_bytes, Instant::now());
        let tars: Vec<_> = mounts.iter().map(start_tar).collect();
        let sums: Vec<_> = tars.into_iter().map(sum_of).collect();
        let took = began.elapsed();
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
        server.wait_no_members();
        let sent = lab.head().counters().tx_bytes - before;
        let cpu: Duration = mounts.into_iter().map(|mut it| it.proc().cpu_time()).sum();
        println!(
            "{clients} clients: {took:?}, {sent} bytes sent, CPU server {:?} mounts {cpu:?}, {:?}",
            server.proc().cpu_time(),
            server.status().totals,
        );
    }
}
