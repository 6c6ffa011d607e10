//! A new version takes from the cache what it shares with an older one, and only the rest is sent.
//! docs/SEMANTICS.md, "New versions of a cached file".

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::content::Image;
use harness::requirements::report_skipped;
use harness::{Lab, MountProc, SOON, ServerProc, digest_of, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::verifying::wait_recorded;
use crate::versions::etag;
use crate::{TRANSFER, keeping, readers, text};

/// Bytes of a leaf.
const LEAF: u64 = 16 << 10;

/// Mounts with a cache that outlives the mount.
fn mount<'lab>(lab: &'lab Lab, k: usize, cache: &Path) -> MountProc<'lab> {
    let dir = format!("cache_dir={}", text(cache));
    lab.mount(k).option(&dir).option("attr_ttl=0s").start()
}

/// Changes a byte in each of these leaves of a file, in place.
fn change(path: &Path, leaves: impl Iterator<Item = u64>) {
    let file = fs::OpenOptions::new().write(true).read(true).open(path).unwrap();
    for leaf in leaves {
        let (mut byte, at) = ([0], leaf * LEAF + leaf % LEAF);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
    }
}

/// Changes a served file, and waits until the server announces that. It compares the bytes first:
/// until then it announces the old version, also to whoever opens the file.
fn publish(lab: &Lab, image: &Image, leaves: impl Iterator<Item = u64>) {
    let before = etag(lab, "image");
    change(&image.path, leaves);
    wait_announced(lab, &before);
}

/// Waits until the server announces another version than this one.
fn wait_announced(lab: &Lab, before: &str) {
    wait_until(TRANSFER, "the new version is announced", || etag(lab, "image") != before);
}

/// One of a hundred leaves: far from each other, and in no order that a stream would have.
fn scattered(image: &Image) -> impl Iterator<Item = u64> + use<> {
    let leaves = image.size / LEAF;
    (0..leaves / 100).map(move |number| (number * 7919 + 13) % leaves)
}

/// Returns the pages and symbols that a server sent.
fn sent(server: &ServerProc<'_>) -> u64 {
    let totals = server.status().totals;
    totals.pages_sent + totals.symbols_sent
}

/// Returns how many pages are this share of a file, in percent.
fn percent_of(image: &Image, percent: u64) -> u64 {
    image.size.div_ceil(1456) * percent / 100
}

/// Casts the first version to a mount, and waits until its cache has it.
fn read_first_version(mount: &MountProc<'_>, cache: &Path, server: &ServerProc<'_>, image: &Image) {
    assert_eq!(digest_of(mount.join("image")), image.digest);
    wait_recorded(cache, 1);
    server.wait_no_members();
}

/// Serves a file. Returns it, the server, and the path of a cache on client 1 that has it.
fn serve_first_version<'lab>(
    lab: &'lab Lab,
    size: u64,
    rate: &str,
) -> (Image, ServerProc<'lab>, PathBuf) {
    let image = lab.put("image", size);
    let server = lab.server().option("--rate", rate).start();
    let cache = lab.client(1).fresh_path("kept");
    let mount = mount(lab, 1, &cache);
    read_first_version(&mount, &cache, &server, &image);
    mount.umount();
    (image, server, cache)
}

/// Opens the present version, and waits until the cache has all of it. Reads nothing before.
fn wait_complete(mount: &MountProc<'_>, cache: &Path) {
    let _file = File::open(mount.join("image")).unwrap();
    wait_recorded(cache, 2);
}

#[test]
fn of_a_new_version_only_what_changed_is_sent() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(64) + 5);
    let server = lab.server().option("--rate", "400mbit").start();
    let mount = lab.mount(1).option("attr_ttl=0s").start();
    read_first_version(&mount, mount.cache(), &server, &image);

    publish(&lab, &image, scattered(&image));
    let before = sent(&server);
    wait_complete(&mount, mount.cache());
    server.wait_no_members();
    let more = sent(&server) - before;
    assert!(more <= percent_of(&image, 3), "{more} pages and symbols; {}", mount.log());
    assert!(more >= percent_of(&image, 1) / 2, "{more}");
    assert_eq!(digest_of(mount.join("image")), digest_of(&image.path));
}

#[test]
fn both_versions_share_blocks_where_the_file_system_can() {
    let lab = lab_or_skip!(Lab::builder());
    let Some(cache) = btrfs(&lab) else { return };
    let image = lab.put("image", mib(32));
    let server = lab.server().option("--rate", "400mbit").start();
    let mount = mount(&lab, 1, &cache);
    read_first_version(&mount, &cache, &server, &image);
    let first = keeping::only_object(&cache).join("data");

    publish(&lab, &image, scattered(&image));
    wait_complete(&mount, &cache);
    assert_eq!(digest_of(mount.join("image")), digest_of(&image.path));
    mount.umount();
    let shared = shared_bytes(&first);
    assert!(shared >= image.size * 9 / 10, "{shared} bytes are shared");
}

/// Mounts a new file system whose files can share blocks. The lab unmounts it. If this machine
/// cannot, reports the test as skipped.
fn btrfs(lab: &Lab) -> Option<PathBuf> {
    let (backing, mounted) = (lab.directory().join("btrfs"), lab.client(1).fresh_path("kept"));
    File::create(&backing).unwrap().set_len(mib(256)).unwrap();
    fs::create_dir(&mounted).unwrap();
    let made = Command::new("mkfs.btrfs").args(["--quiet", text(&backing)]).output();
    if made.is_err() {
        report_skipped("no mkfs.btrfs, install btrfs-progs");
        return None;
    }
    let mount = ["-t", "btrfs", "-o", "loop", text(&backing), text(&mounted)];
    let mount = Command::new("mount").args(mount).output().unwrap();
    if !mount.status.success() {
        let error = String::from_utf8_lossy(&mount.stderr);
        report_skipped(&format!("btrfs cannot be mounted: {}", error.trim()));
        return None;
    }
    Some(mounted)
}

/// Returns the number of bytes of a file whose blocks another file has, too.
fn shared_bytes(path: &Path) -> u64 {
    let extents = Command::new("filefrag").args(["-s", "-v", "-b4096", text(path)]).output();
    let extents = String::from_utf8(extents.unwrap().stdout).unwrap();
    // An extent: "0: 256.. 511: 3584.. 3839: 256: 256: last,shared,eof".
    let shared = extents.lines().filter(|line| line.contains("shared"));
    let blocks = shared.map(|line| line.split(':').nth(3).unwrap().trim().parse::<u64>().unwrap());
    blocks.sum::<u64>() * 4096
}

#[test]
fn where_multicast_is_not_wanted_only_what_changed_is_fetched() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(64));
    let server = lab.server().option("--rate", "400mbit").start();
    let mount = lab.mount(1).option("attr_ttl=0s").option("unicast=always").start();
    read_first_version(&mount, mount.cache(), &server, &image);

    publish(&lab, &image, scattered(&image));
    let before = lab.head().counters().tx_bytes;
    wait_complete(&mount, mount.cache());
    server.wait_no_members();
    let more = lab.head().counters().tx_bytes - before;
    assert!(more <= image.size * 4 / 100, "{more} bytes left the head; {}", mount.log());
    assert_eq!(digest_of(mount.join("image")), digest_of(&image.path));
}

#[test]
fn a_server_that_restarted_and_a_file_that_grew_make_no_difference() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, mut server, cache) = serve_first_version(&lab, mib(32), "400mbit");
    let before = etag(&lab, "image");
    server.kill();

    let new = lab.directory().join("new");
    fs::copy(&image.path, &new).unwrap();
    change(&new, scattered(&image));
    let file = fs::OpenOptions::new().write(true).open(&new).unwrap();
    file.write_all_at(&vec![7; 99_999], image.size).unwrap();
    fs::rename(&new, &image.path).unwrap();
    server.start();
    wait_announced(&lab, &before);
    let mount = mount(&lab, 1, &cache);
    wait_complete(&mount, &cache);
    let more = sent(&server);
    assert!(more <= percent_of(&image, 3), "{more} pages and symbols; {}", mount.log());
    assert_eq!(digest_of(mount.join("image")), digest_of(&image.path));
}

#[test]
fn bytes_that_are_damaged_in_the_older_version_come_from_the_server() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, server, cache) = serve_first_version(&lab, mib(32), "400mbit");

    let leaves = image.size / LEAF;
    change(&keeping::only_object(&cache).join("data"), (0..leaves).step_by(100));
    publish(&lab, &image, scattered(&image));
    let before = sent(&server);
    let mount = mount(&lab, 1, &cache);
    wait_complete(&mount, &cache);
    let more = sent(&server) - before;
    assert!(more <= percent_of(&image, 5), "{more} pages and symbols; {}", mount.log());
    assert!(more >= percent_of(&image, 2), "the damaged leaves were believed");
    assert_eq!(digest_of(mount.join("image")), digest_of(&image.path));
}

#[test]
fn a_client_that_was_killed_goes_on_with_what_it_has() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, mut server, cache) = serve_first_version(&lab, mib(64), "400mbit");
    let before = etag(&lab, "image");
    server.kill();
    drop(server);

    change(&image.path, scattered(&image));
    let server = lab.server().option("--rate", "1mbit").start();
    wait_announced(&lab, &before);
    let mut killed = mount(&lab, 1, &cache);
    let reader = readers::read_at(lab.client(1), &killed.join("image"), 0);
    server.wait_cast("image", "a part of the new version is sent", |cast| cast.pages_sent > 50);
    killed.proc().signal(Signal::KILL);
    wait_until(SOON, "the daemon is gone", || killed.proc().exited().is_some());
    drop((reader, killed));
    let mount = mount(&lab, 1, &cache);
    wait_complete(&mount, &cache);
    assert_eq!(digest_of(mount.join("image")), digest_of(&image.path));
    let more = sent(&server);
    assert!(more <= percent_of(&image, 3), "{more} pages and symbols; {}", mount.log());
}

#[test]
fn members_with_and_without_an_older_version_complete_beside_each_other() {
    let lab = lab_or_skip!(Lab::builder().clients(2).loss(1.0));
    let (image, _server, cache) = serve_first_version(&lab, mib(16), "100mbit");

    publish(&lab, &image, scattered(&image));
    let expected = digest_of(&image.path);
    let outputs = [1, 2].map(|k| lab.client(k).fresh_path("out"));
    let mounts = [mount(&lab, 1, &cache), mount(&lab, 2, &lab.client(2).fresh_path("new"))];
    let mut copies: Vec<_> = (mounts.iter().zip(&outputs))
        .map(|(mount, output)| readers::copy(mount.host(), &mount.join("image"), output))
        .collect();
    for (copy, output) in copies.iter_mut().zip(&outputs) {
        copy.wait_success(TRANSFER);
        assert_eq!(digest_of(output), expected);
    }
}

#[test]
fn a_version_that_lacks_half_joins_the_stream_for_that_half() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, server, cache) = serve_first_version(&lab, mib(32), "400mbit");

    publish(&lab, &image, image.size / LEAF / 2..image.size / LEAF);
    let before = sent(&server);
    let mount = mount(&lab, 1, &cache);
    wait_complete(&mount, &cache);
    assert_eq!(digest_of(mount.join("image")), digest_of(&image.path));
    let more = sent(&server) - before;
    let half = percent_of(&image, 50)..percent_of(&image, 70);
    assert!(half.contains(&more), "{more} pages and symbols; {}", mount.log());
}
