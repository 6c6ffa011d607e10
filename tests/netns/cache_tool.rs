//! `bootcast cache`: what mounts keep is listed, checked and removed. docs/SEMANTICS.md, "Caching".

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use harness::binaries::binary;
use harness::{Host, Lab, MountProc, SOON, digest_of, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::{keeping, text};

fn mount<'lab>(lab: &'lab Lab, cache: &Path) -> MountProc<'lab> {
    lab.mount(1).option(&format!("cache_dir={}", text(cache))).start()
}

/// Runs `bootcast cache`. Returns the exit code and what it printed, errors last.
fn run(host: &Host, cache: &Path, args: &[&str]) -> (Option<i32>, String) {
    let place = ["cache", args[0], "--cache-dir", text(cache)];
    let output = host.run(text(&binary("bootcast")), [&place[..], &args[1..]].concat());
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(printed).unwrap())
}

#[test]
fn files_are_listed_and_checked_and_those_that_nobody_uses_are_removed() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, other) = (lab.put("image", mib(1) + 17), lab.put("other", mib(1) + 500));
    let _server = lab.server().start();
    let (host, cache) = (lab.client(1), lab.client(1).fresh_path("kept"));
    let first = mount(&lab, &cache);
    for file in [&other, &image] {
        assert_eq!(digest_of(first.join(file.path.file_name().unwrap())), file.digest);
    }
    first.umount();
    let (code, listed) = run(host, &cache, &["ls"]);
    assert_eq!((code, listed.lines().count()), (Some(0), 5), "{listed}");
    assert!(listed.lines().last().unwrap().starts_with("at most "), "{listed}");
    assert!(listed.contains("10.77.0.1:/image ") && listed.contains(" 100% "), "{listed}");
    let right = "10.77.0.1:/other: OK\n10.77.0.1:/image: OK\n";
    assert_eq!(run(host, &cache, &["verify"]), (Some(0), right.to_owned()));

    let second = mount(&lab, &cache);
    let open = File::open(second.join("image")).unwrap();
    let (code, pruned) = run(host, &cache, &["prune", "--all"]);
    assert!(code == Some(0) && pruned.starts_with("removed 1 file, "), "{pruned}");
    assert!(pruned.ends_with("; 1 file in use stayed\n"), "{pruned}");
    let names = || std::fs::read_dir(cache.join("names")).unwrap().count();
    assert_eq!(names(), 0);
    drop(open);
    for file in [&image, &other] {
        assert_eq!(digest_of(second.join(file.path.file_name().unwrap())), file.digest);
    }
    assert_eq!(names(), 1, "the mount records what is opened");
    second.umount();
    assert_eq!(run(host, &cache, &["prune", "--size", "1G"]).1, "removed 0 files, 0 B\n");

    assert!(run(host, &cache, &["prune", "--size", "1500k"]).1.starts_with("removed 1 file, "));
    let data = keeping::only_object(&cache).join("data");
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[77] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    let (code, verified) = run(host, &cache, &["verify"]);
    assert_eq!(code, Some(2), "{verified}");
    assert!(verified.contains(": damaged: removed\n"), "{verified}");
    assert!(verified.ends_with("bootcast: 1 of 1 file damaged\n"), "{verified}");
    assert!(run(host, &cache, &["ls"]).1.starts_with("0 files, 0 B on the disk\n"));
    let third = mount(&lab, &cache);
    assert_eq!(digest_of(third.join("other")), other.digest);
}

#[test]
fn what_was_fetched_ahead_is_opened_without_a_join() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, other) = (lab.put("image", mib(3) + 17), lab.put("other", mib(1)));
    let server = lab.server().start();
    let (host, cache) = (lab.client(1), lab.client(1).fresh_path("kept"));
    let small = &["warm", "10.77.0.1:/image", "-i", "eth0", "--cache-size", "1M"];
    let (code, printed) = run(host, &cache, small);
    assert_eq!((code, printed.lines().count()), (Some(2), 1), "{printed}");
    assert!(printed.contains("the cache has no room for it"), "{printed}");
    let (code, printed) = run(host, &cache, &["warm", "10.77.0.1:/none", "-i", "eth0"]);
    assert_eq!((code, printed.lines().count()), (Some(5), 1), "{printed}");

    let urls = ["10.77.0.1:/image", "10.77.0.1:/other"];
    let limits = ["--cache-size", "64M", "--cache-min-free", "0"];
    let all = [&["warm"][..], &urls, &["-i", "eth0"], &limits].concat();
    for _ in 0..2 {
        assert_eq!(run(host, &cache, &all), (Some(0), String::new()));
    }
    let joins = server.status().totals.joins;
    let mount = lab.mount(1).option(&format!("cache_dir={},cache_size=64M", text(&cache))).start();
    for file in [&image, &other] {
        assert_eq!(digest_of(mount.join(&file.name)), file.digest);
    }
    assert_eq!(server.status().totals.joins, joins, "{}", mount.log());
    let listed = run(host, &cache, &["ls"]).1;
    assert!(listed.contains("\nat most 64.00 MiB, "), "{listed}");
}

#[test]
fn a_signal_ends_a_fetch_that_records_the_directories_above_the_file() {
    let lab = lab_or_skip!(Lab::builder().delay(Duration::from_millis(300)));
    // Enough directories for the signal to come before the last one, also on a busy machine.
    let path = &format!("{}image", "d/".repeat(60));
    lab.put(path, 1000);
    let _server = lab.server().start();
    let (host, cache) = (lab.client(1), lab.client(1).fresh_path("kept"));
    let url = lab.url(path);
    let args = ["cache", "warm", "-i", "eth0", "--cache-dir", text(&cache), &url];
    let mut warm = host.spawn(binary("bootcast"), args);
    // The name of the file comes first. Then the server is asked for each of the directories.
    wait_until(4 * SOON, "the name is recorded", || {
        std::fs::read_dir(cache.join("names")).is_ok_and(|names| names.count() > 0)
    });
    warm.signal(Signal::INT);
    assert_eq!(warm.wait(SOON).code(), Some(130), "{}", warm.log());
    assert!(run(host, &cache, &["ls"]).1.contains(" 100% "), "the fetch is not undone");
}

#[test]
fn a_wrong_command_or_directory_is_one_line() {
    let lab = lab_or_skip!(Lab::builder());
    let (host, nowhere) = (lab.client(1), lab.client(1).fresh_path("nowhere"));
    for (args, code) in [
        (&["ls"][..], 2),
        (&["verify"], 2),
        (&["prune"], 1),
        (&["warm"], 1),
        (&["warm", "10.77.0.1:/x", "--cache-size", "101%"], 1),
        (&["prune", "--size", "much"], 1),
        (&["prune", "--all", "--size", "1G"], 1),
    ] {
        let (found, printed) = run(host, &nowhere, args);
        assert_eq!((found, printed.lines().count()), (Some(code), 1), "{printed}");
    }
}
