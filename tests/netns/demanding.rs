//! Demand: pages that readers wait for arrive at once, and few others are sent.
#![expect(clippy::disallowed_methods, reason = "a test measures how long nothing happens")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use harness::binaries::binary;
use harness::{Host, Lab, MountProc, Proc, SOON, digest_of, lab_or_skip, mib, wait_until};

use crate::{TRANSFER, readers, text};

/// Returns multiples of 4096 that are spread over a file of `size` bytes, so far apart that the
/// kernel does not read ahead.
fn offsets(size: u64, count: u64) -> impl Iterator<Item = u64> {
    let blocks = size / 4096;
    // Multiples of the golden ratio are spread evenly.
    let stride = blocks * 618 / 1000;
    (1..=count).map(move |k| k * stride % blocks * 4096)
}

/// Reads 4096 bytes at each offset, and compares them with the served file.
fn assert_same_at(mount: &MountProc<'_>, content: &[u8], offsets: impl Iterator<Item = u64>) {
    let file = File::open(mount.join("image")).unwrap();
    for offset in offsets {
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, offset).unwrap();
        let start = usize::try_from(offset).unwrap();
        assert!(bytes == content[start..start + 4096], "at {offset}");
    }
}

/// Whether the cache of a mount, which has one file, contains the 4096 bytes at `offset`.
fn is_stored(mount: &MountProc<'_>, content: &[u8], offset: u64) -> bool {
    let objects = fs::read_dir(mount.cache().join("objects")).unwrap();
    let data = objects.into_iter().next().expect("an object").unwrap().path().join("data");
    let mut bytes = [0; 4096];
    let start = usize::try_from(offset).unwrap();
    File::open(data).unwrap().read_exact_at(&mut bytes, offset).is_ok()
        && bytes == content[start..start + 4096]
}

fn range(host: &Host, lab: &Lab, args: &[&str]) -> Output {
    let url = lab.url("image");
    host.run(binary("bootcast"), [&["get", "--interface", "eth0", &url], args].concat())
}

#[test]
fn random_reads_of_a_demand_mount_are_right_and_cause_few_other_pages() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(64));
    let server = lab.server().option("--rate", "200mbit").start();
    let mount = lab.mount(1).option("fill=demand").option("linger=0s").start();
    let content = fs::read(&image.path).unwrap();
    assert_same_at(&mount, &content, offsets(image.size, 100));
    server.wait_no_members();
    let totals = server.status().totals;
    assert_eq!(totals.pages_sent, totals.demanded, "a stream runs without members for it");
    // 4096 bytes lie in 4 pages at most, so 100 reads need 300 to 400 pages. A client that waits
    // long demands pages again. With the kernel's read-ahead it would be 9,300 pages.
    assert!((300..=4000).contains(&totals.demanded), "{totals:?}");
    assert_eq!((totals.casts, totals.joins), (1, 1));
}

#[test]
fn random_reads_through_loss_are_right() {
    let lab = lab_or_skip!(Lab::builder().loss(5.0));
    let image = lab.put("image", mib(16));
    let _server = lab.server().option("--rate", "200mbit").start();
    let mount = lab.mount(1).option("fill=demand").start();
    let content = fs::read(&image.path).unwrap();
    assert_same_at(&mount, &content, offsets(image.size, 200));
}

#[test]
fn a_demand_mount_without_multicast_fetches_little_beyond_the_bytes_read() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(64));
    let server = lab.server().option("--rate", "50mbit").start();
    lab.client(1).drop_multicast();
    let mount = lab.mount(1).option("fill=demand").option("linger=0s").start();
    let content = fs::read(&image.path).unwrap();
    assert_same_at(&mount, &content, offsets(image.size, 50));
    server.wait_no_members();
    let sent = lab.head().counters().tx_bytes;
    assert!(sent < image.size / 8, "{sent} bytes for 50 reads of 4096");
}

#[test]
fn a_demand_mount_that_reads_a_whole_file_is_complete_and_leaves() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(16) + 77);
    let server = lab.server().option("--rate", "200mbit").start();
    let mount = lab.mount(1).option("fill=demand").start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    server.wait_no_members();
    let totals = server.status().totals;
    assert_eq!(totals.leaves, 1, "a complete member must leave");
    let pages = image.size.div_ceil(1456);
    assert!(totals.pages_sent * 10 < pages * 12, "{totals:?} of {pages}");
}

#[test]
fn pages_that_one_member_demands_are_stored_by_the_others() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "200mbit").start();
    let mounts = [1, 2].map(|k| lab.mount(k).option("fill=demand").start());
    // The open makes the second mount a member.
    let _file = File::open(mounts[1].join("image")).unwrap();
    let group = server.cast_of("image").unwrap().group;
    let group = group.split(':').next().unwrap().parse().unwrap();
    wait_until(SOON, "the switch sends to client 2", || lab.switch_sends(group, 2));
    let content = fs::read(&image.path).unwrap();
    assert_same_at(&mounts[0], &content, offsets(image.size, 50));
    wait_until(SOON, "the second mount has stored them", || {
        offsets(image.size, 50).all(|offset| is_stored(&mounts[1], &content, offset))
    });
    let demanded = server.status().totals.demanded;
    assert_same_at(&mounts[1], &content, offsets(image.size, 50));
    assert_eq!(server.status().totals.demanded, demanded);
}

#[test]
fn a_read_far_ahead_of_a_slow_stream_does_not_wait_for_the_stream() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(64));
    // The stream takes more than two minutes.
    let server = lab.server().option("--rate", "4mbit").start();
    let mount = lab.mount(1).start();
    let content = fs::read(&image.path).unwrap();
    assert_same_at(&mount, &content, [mib(64) - 4096, mib(48)].into_iter());
    let cast = server.cast_of("image").unwrap();
    let streamed = cast.pages_sent - cast.demanded;
    assert!(streamed * 2 < u64::from(cast.pages), "{cast:?}");
    assert!(cast.demanded >= 3 && cast.demanded * 20 < u64::from(cast.pages), "{cast:?}");
}

#[test]
fn readers_that_follow_the_stream_demand_few_pages() {
    // If a disk makes a client wait for a second, its readers demand what they wait for.
    let lab = lab_or_skip!(Lab::builder().clients(8).loss(1.0).valve().memory_disk());
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "50mbit").start();
    let mounts: Vec<_> = (1..=8).map(|k| lab.mount(k).option("unicast=never").start()).collect();
    // All mounts are members from the first page on, so a reader that starts late finds the pages
    // in the cache.
    let _open = readers::open_together(&lab, &server, &mounts);
    let copies: Vec<_> = lab.clients().iter().map(|host| host.fresh_path("copy")).collect();
    let copying = mounts.iter().zip(&copies);
    let mut running: Vec<Proc> = copying
        .map(|(mount, copy)| readers::copy(mount.host(), &mount.join("image"), copy))
        .collect();
    for reader in &mut running {
        reader.wait_success(TRANSFER);
    }
    for copy in &copies {
        assert_eq!(digest_of(copy), image.digest);
    }
    let totals = server.status().totals;
    // Without the rules for demand, each of them would demand most of the file: at least half of
    // all pages sent would be demanded ones.
    assert!(totals.demanded * 4 < totals.pages_sent, "{totals:?}");
}

#[test]
fn pages_are_not_demanded_any_more_after_their_reader_was_killed() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let server = lab.server().start();
    // No page ever arrives, so the client demands the pages of a waiting reader repeatedly.
    let rules = "add table inet deaf; \
                 add chain inet deaf input { type filter hook input priority 0; }; \
                 add rule inet deaf input udp dport 9000 drop";
    let output = lab.client(1).run("nft", [rules]);
    assert!(output.status.success(), "{output:?}");
    let mount = lab.mount(1).option("fill=demand").start();
    let _file = File::open(mount.join("image")).unwrap();
    server.wait_cast("image", "the open joined", |cast| cast.members == 1);
    let mut reader = readers::read_at(lab.client(1), &mount.join("image"), mib(8));
    let pages = readers::READ_LEN.div_ceil(1456);
    server.wait_cast("image", "pages are demanded again", |cast| cast.demanded > 2 * pages);
    reader.kill_within(SOON);
    wait_until(SOON, "no request waits", || mount.parked_requests() == 0);
    // The longest pause between two demands is a second.
    let mut last = (0, Instant::now());
    wait_until(TRANSFER, "nothing was demanded for three seconds", || {
        let demanded = server.cast_of("image").map_or(0, |cast| cast.demanded);
        if demanded != last.0 {
            last = (demanded, Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(3)
    });
}

#[test]
fn a_demand_mount_continues_after_a_restart_of_the_server() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(16));
    let mut server = lab.server().start();
    let mount = lab.mount(1).option("fill=demand").start();
    let content = fs::read(&image.path).unwrap();
    let file = File::open(mount.join("image")).unwrap();
    assert_same_at(&mount, &content, offsets(image.size, 3));
    server.kill();
    server.start();
    assert_same_at(&mount, &content, offsets(image.size, 10));
    drop(file);
}

#[test]
fn a_qcow2_overlay_works_on_a_base_file_that_is_read_by_demand() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(64));
    File::options()
        .write(true)
        .open(&image.path)
        .unwrap()
        .write_all_at(&vec![0x5a; 65_536], mib(48))
        .unwrap();
    let server = lab.server().option("--rate", "200mbit").start();
    let mount = lab.mount(1).option("fill=demand").start();
    let overlay = lab.directory().join("overlay.qcow2");
    let base = mount.join("image");
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{program} {args:?}: {stdout} {output:?}");
        assert!(!stdout.contains("verification failed"), "{stdout}");
    };
    let create = ["create", "-f", "qcow2", "-b", text(&base), "-F", "raw", text(&overlay)];
    run("qemu-img", &create);
    let commands =
        ["-c", "read -P 0x5a 48M 64k", "-c", "write -P 0xaa 48M 4k", "-c", "read -P 0xaa 48M 4k"];
    let rest = ["-c", "read -P 0x5a 49156k 60k", text(&overlay)];
    run("qemu-io", &[&["-f", "qcow2"][..], &commands, &rest].concat());
    let totals = server.status().totals;
    assert!(totals.pages_sent * 10 < image.size.div_ceil(1456), "{totals:?}");
}

#[test]
fn get_range_fetches_exactly_the_requested_bytes() {
    let lab = lab_or_skip!(Lab::builder());
    let size = mib(32) + 123;
    let image = lab.put("image", size);
    let server = lab.server().option("--rate", "200mbit").start();
    let content = fs::read(&image.path).unwrap();
    let len = content.len();
    for (asked, bytes) in [
        ("0-499", 0..500),
        ("1455-1456", 1455..1457),
        ("1000000-2999999", 1_000_000..3_000_000),
        ("33554400-", 33_554_400..len),
        ("-500", len - 500..len),
        ("33554400-99999999", 33_554_400..len),
    ] {
        let output = range(lab.client(1), &lab, &["--range", asked, "-O", "-"]);
        assert!(output.status.success(), "{asked}: {output:?}");
        assert!(output.stdout == content[bytes], "{asked}");
    }
    let target = lab.client(1).fresh_path("part");
    let output = range(lab.client(1), &lab, &["-r", "77-99", "-O", text(&target)]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(fs::read(&target).unwrap() == content[77..100]);
    server.wait_no_members();
    let totals = server.status().totals;
    assert_eq!(totals.pages_sent, totals.demanded);
    assert!(totals.demanded < size.div_ceil(1456) / 2, "{totals:?}");
}

#[test]
fn an_invalid_range_gives_one_line_and_exit_code_1() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", 1000);
    let _server = lab.server().start();
    let target = lab.client(1).fresh_path("part");
    for asked in ["9-3", "x", "-0", "1000-", "5000-6000"] {
        let asked = format!("--range={asked}");
        let output = range(lab.client(1), &lab, &[&asked, "-O", text(&target)]);
        assert_eq!(output.status.code(), Some(1), "{asked}: {output:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(errors.trim_end().lines().count(), 1, "{errors}");
        assert!(!target.exists());
    }
}

#[test]
fn a_late_joiner_demands_the_pages_sent_before_and_then_follows_the_stream() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "50mbit").start();
    let mounts = [1, 2].map(|k| lab.mount(k).option("unicast=never").start());
    let valve = lab.hold_multicast_after(mib(6));
    let copies = [1, 2].map(|k| lab.client(k).fresh_path("copy"));
    let copy = |k: usize| readers::copy(lab.client(k + 1), &mounts[k].join("image"), &copies[k]);
    let mut first = copy(0);
    server.wait_cast("image", "a third is sent", |cast| cast.pages_sent * 3 > cast.pages.into());
    let mut second = copy(1);
    lab.wait_members(&server, "image", 1..=2);
    valve.open();
    let before = server.cast_of("image").unwrap().pages_sent;
    first.wait_success(TRANSFER);
    second.wait_success(TRANSFER);
    for copy in &copies {
        assert_eq!(digest_of(copy), image.digest);
    }
    let totals = server.status().totals;
    // While pages are demanded, the stream continues at a tenth of the rate.
    assert!(totals.demanded < before + before / 4 + 1000, "{before} pages, then {totals:?}");
}
