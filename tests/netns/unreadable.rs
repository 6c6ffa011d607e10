//! The server cannot read a part of a file. All other pages arrive, and reads of that part fail.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use bootcast_proto::manifest::{ContentTree, LEAF_BYTES, UNKNOWN};
use harness::binaries::binary;
use harness::content::Image;
use harness::requirements::{has_tool, report_skipped};
use harness::{Lab, Proc, lab_or_skip, mib, wait_until};
use rustix::fs::Advice;

use crate::proving::{b3, wait_hashed};
use crate::{TRANSFER, text};

const EIO: i32 = 5;

/// Block size of the file system, in bytes.
const BLOCK: u64 = 4096;

/// Number of blocks at the end of the file that cannot be read.
const BAD_BLOCKS: u64 = 8;

/// Creates `disk/image` on a loop device and truncates the device before the end of the file.
///
/// Returns the content of the file and the offset of the first byte that cannot be read. If this
/// machine cannot do that, reports the test as skipped and returns `None`.
fn damage(lab: &Lab, size: u64) -> Option<(Vec<u8>, u64)> {
    damage_after(lab, size, |_| {})
}

/// Like [`damage`], but calls `before` while all of the file can still be read.
fn damage_after(lab: &Lab, size: u64, before: impl FnOnce(&Image)) -> Option<(Vec<u8>, u64)> {
    let (backing, mounted) = (lab.directory().join("disk.img"), lab.served().join("disk"));
    fs::create_dir(&mounted).unwrap();
    let disk = File::options().create_new(true).write(true).open(&backing).unwrap();
    disk.set_len(size + mib(8)).unwrap();
    let makes = ["-q", "-b", "4096", "-O", "^has_journal", text(&backing)];
    let is_made = Command::new("mkfs.ext4").args(makes).status().is_ok_and(|it| it.success());
    let mount = ["-o", "loop", text(&backing), text(&mounted)];
    let is_mounted =
        is_made && Command::new("mount").args(mount).status().is_ok_and(|it| it.success());
    if !is_mounted {
        report_skipped("no mkfs.ext4, or no loop device");
        return None;
    }
    if !has_tool("filefrag") {
        report_skipped("filefrag not found, install e2fsprogs");
        return None;
    }
    let image = lab.put("disk/image", size);
    let content = fs::read(&image.path).unwrap();
    let file = File::open(&image.path).unwrap();
    file.sync_all().unwrap();
    // The last extent: `4:  57344..  61439:  75777..  79872: ..`
    let extents = Command::new("filefrag").arg("-v").arg(&image.path).output().unwrap();
    let extents = String::from_utf8_lossy(&extents.stdout).into_owned();
    let last = extents.lines().rev().find(|line| line.contains(".."));
    let last =
        last.and_then(|line| line.split(':').nth(2)?.split("..").nth(1)?.trim().parse().ok());
    let last: u64 = last.unwrap_or_else(|| panic!("filefrag says {extents}"));
    before(&image);
    disk.set_len((last + 1 - BAD_BLOCKS) * BLOCK).unwrap();
    // The page cache still has the bytes that were written.
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    let first_bad = size - BAD_BLOCKS * BLOCK;
    let read = file.read_at(&mut [0; 16], first_bad);
    assert!(read.is_err(), "a read beyond the end of the device gives {read:?}");
    Some((content, first_bad))
}

/// Starts `dd` with these arguments to read a file.
fn read(host: &harness::Host, path: &std::path::Path, args: &[String]) -> Proc {
    let mut all = vec![format!("if={}", text(path)), "of=/dev/null".to_owned()];
    all.extend_from_slice(args);
    host.spawn("dd", all)
}

#[test]
fn reads_of_an_unreadable_part_fail_and_no_other_reads() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let Some((content, first_bad)) = damage(&lab, mib(8)) else { return };
    let server = lab.server().option("--rate", "200mbit").start();
    let (one, other) = (lab.mount(1).start(), lab.mount(2).option("fill=demand").start());
    // A read of the unreadable part, in a mount of each kind.
    let skip = format!("skip={}", first_bad + 5000);
    let bad = [&skip, "iflag=skip_bytes", "count=1", "bs=1"].map(str::to_owned);
    for mount in [&one, &other] {
        let mut reader = read(mount.host(), &mount.join("disk/image"), &bad);
        let status = reader.wait(TRANSFER);
        assert!(
            !status.success() && reader.log().contains("Input/output error"),
            "{}",
            reader.log()
        );
    }
    // A copy of the bytes before that part.
    for mount in [&one, &other] {
        let copy = mount.host().fresh_path("copy");
        let from = format!("if={}", text(&mount.join("disk/image")));
        let blocks = format!("count={}", first_bad / BLOCK - 64);
        let to = format!("of={}", text(&copy));
        let args = [&from, &to, "bs=4096", &blocks].map(str::to_owned);
        mount.host().spawn("dd", args).wait_success(TRANSFER);
        let copied = fs::read(copy).unwrap();
        assert!(copied == content[..copied.len()], "the bytes before the bad part");
    }
    // No cast ended because of the unreadable part: each reader starts one at most.
    assert!(server.status().totals.casts <= 4, "{:?}", server.status());
    assert!(server.log().contains("cannot read bytes"), "{}", server.log());
    drop((one, other));
    wait_until(TRANSFER, "every member has left", || {
        server.status().casts.iter().all(|cast| cast.members == 0)
    });
}

#[test]
fn bootcast_get_fails_and_names_the_bytes_that_cannot_be_read() {
    let lab = lab_or_skip!(Lab::builder());
    let Some((_, first_bad)) = damage(&lab, mib(4)) else { return };
    let _server = lab.server().option("--rate", "200mbit").start();
    let url = lab.url("disk/image");
    for way in [&["get"][..], &["get", "--unicast"], &["get", "--range", "4190000-"]] {
        let to = lab.client(1).fresh_path("copy");
        let args = way.iter().copied().chain([url.as_str(), "-O", text(&to)]);
        let mut get = lab.client(1).spawn(binary("bootcast"), args);
        let status = get.wait(TRANSFER);
        assert_eq!(status.code(), Some(6), "{way:?}: {}", get.log());
        assert!(get.log().contains("cannot read bytes 41"), "{way:?} {first_bad}: {}", get.log());
    }
}

#[test]
fn the_rest_of_a_file_has_leaf_values_although_a_part_cannot_be_read() {
    let lab = lab_or_skip!(Lab::builder());
    let Some((content, _)) = damage(&lab, mib(8)) else { return };
    let server = lab.server().start();
    let to = lab.client(1).fresh_path("values");
    let fetch = |query: &str| {
        let url = format!("{}{query}", lab.url("manifest/disk/image"));
        let _ = fs::remove_file(&to);
        let arguments = ["-s", "-o", text(&to), "-w", "%{http_code}", &url];
        let status = lab.client(1).run_ok("curl", arguments);
        (status.trim().to_owned(), fs::read(&to).unwrap_or_default())
    };
    wait_until(TRANSFER, "the file is hashed", || fetch("").0 == "500");
    let (status, values) = fetch("?known=1&segments=0-1");
    assert_eq!(status, "200");
    let (tree, leaf_bytes) = (ContentTree::new(mib(8)), usize::try_from(LEAF_BYTES).unwrap());
    let leaves = content.chunks(leaf_bytes).zip(0..);
    let mut expected: Vec<_> = leaves.map(|(part, leaf)| tree.leaf_value(leaf, part)).collect();
    expected[510..].fill(UNKNOWN);
    assert!(values == expected.as_flattened(), "all but the last two leaves");
    let warnings = server.log().matches("content id of a file cannot be computed").count();
    assert_eq!(warnings, 1, "{}", server.log());
}

#[test]
fn of_a_pinned_file_all_leaves_that_the_server_can_read_are_proven_and_read() {
    let lab = lab_or_skip!(Lab::builder());
    let server = lab.server().start();
    let pins = lab.client(1).fresh_path("pins");
    let size = mib(5);
    let damaged = damage_after(&lab, size, |image| {
        wait_hashed(&lab, "disk/image");
        fs::write(&pins, format!("{}  disk/image\n", b3(image))).unwrap();
    });
    let Some((content, first_bad)) = damaged else { return };
    let mount = lab.mount(1).option(&format!("pins={}", text(&pins))).start();
    let file = File::open(mount.join("disk/image")).unwrap();
    let leaf = usize::try_from(LEAF_BYTES).unwrap();
    let mut buffer = vec![0; leaf];
    let mut failed = Vec::new();
    for (at, expected) in (0..).step_by(leaf).zip(content.chunks(leaf)) {
        match file.read_exact_at(&mut buffer, at) {
            Ok(()) => assert!(buffer == expected, "wrong bytes at {at}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(EIO), "at {at}: {error}");
                failed.push(at);
            }
        }
    }
    // Where the kernel reads ahead, the leaves before the bad ones fail with them.
    assert_eq!(failed.last(), Some(&(size - LEAF_BYTES)), "{failed:?}");
    assert!(failed.first() >= Some(&(first_bad - mib(1))), "{failed:?}");
    let get = |output: &str| {
        let (url, hash) = (lab.url("disk/image"), blake3::hash(&content).to_hex());
        let to = lab.client(1).fresh_path(output);
        lab.client(1).spawn(binary("bootcast"), ["get", "--b3", &hash, &url, "-O", text(&to)])
    };
    assert_eq!(get("got").wait(TRANSFER).code(), Some(6));
    let lines = server.log().lines().count();
    assert!(lines < 20, "{}", server.log());
}
