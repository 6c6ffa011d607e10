//! Several mounts of one machine share a cache, and one copy of a file that arrives.
//! docs/SEMANTICS.md, "One copy for several mounts".

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use harness::binaries::binary;
use harness::content::Image;
use harness::{Lab, MountProc, SOON, ServerProc, digest_of, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::telling::attribute;
use crate::transfers::Copy;
use crate::{CRAWL, TRANSFER, readers, text};

/// Length of the file that several mounts read.
const SIZE: u64 = mib(16);

/// A file whose transfer takes some seconds, and the cache that all mounts use.
struct Shared<'lab> {
    lab: &'lab Lab,
    image: Image,
    server: ServerProc<'lab>,
    cache: PathBuf,
}

impl<'lab> Shared<'lab> {
    fn new(lab: &'lab Lab, rate: &str) -> Self {
        let image = lab.put("image", SIZE);
        let server = lab.server().option("--rate", rate).start();
        let cache = lab.client(1).fresh_path("shared");
        fs::create_dir(&cache).unwrap();
        Self { lab, image, server, cache }
    }

    /// Mounts with more options.
    fn mount(&self, options: &str) -> MountProc<'lab> {
        let dir = format!("cache_dir={}", text(&self.cache));
        self.lab.mount(1).option(&dir).option(options).start()
    }

    /// Starts to copy the file from a mount that holds it, and from others that follow. Nothing of
    /// it comes before they do.
    fn copy(&self, holder: &str, followers: &[&str]) -> (Copy<'lab>, Vec<Copy<'lab>>) {
        let valve = self.lab.hold_multicast_after(0);
        let start = |options: &str| {
            let options =
                [options, "unicast=never"].join(if options.is_empty() { "" } else { "," });
            Copy::start_on(self.mount(&options), &self.image)
        };
        let holder = start(holder);
        self.server.wait_cast("image", "the first one joined", |cast| cast.members == 1);
        let follow = |options: &&str| {
            let copy = start(options);
            wait_for_state(&copy.mount, "shared");
            copy
        };
        let followers = followers.iter().map(follow).collect();
        valve.open();
        (holder, followers)
    }

    /// Waits until a third of the file is sent to one member.
    fn wait_for_a_third(&self) {
        self.server.wait_cast("image", "a third is sent", |cast| {
            assert!(cast.members <= 1, "{} members of one machine", cast.members);
            cast.pages_sent > u64::from(cast.pages) / 3
        });
    }

    /// Bytes that came to the machine.
    fn came(&self) -> u64 {
        self.lab.client(1).counters().rx_bytes
    }

    /// Requires that the machine got one copy of the file, and keeps one.
    fn assert_one_copy(&self, before: u64) {
        let (came, size) = (self.came() - before, self.image.size);
        assert!(came > size && came < size * 13 / 10, "{came} bytes came of a file of {size}");
        let taken = taken_up(&self.cache);
        assert!(taken < size * 11 / 10, "the cache takes up {taken} bytes");
    }
}

/// Returns how many bytes the objects of a cache take up.
fn taken_up(cache: &Path) -> u64 {
    let files = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
    let objects = files(cache.join("objects"));
    let all = objects.flat_map(|object| files(object.path()));
    all.map(|file| file.metadata().map_or(0, |file| file.blocks() * 512)).sum()
}

fn state(mount: &MountProc<'_>) -> String {
    attribute(&mount.join("image"), "state").unwrap()
}

#[track_caller]
fn wait_for_state(mount: &MountProc<'_>, expected: &str) {
    wait_until(SOON, expected, || state(mount) == expected);
}

/// Requires that a file that is read again becomes complete.
#[track_caller]
fn assert_complete(mount: &MountProc<'_>) {
    let _open = File::open(mount.join("image")).unwrap();
    wait_for_state(mount, "complete");
}

#[test]
fn two_mounts_that_read_a_file_at_the_same_time_receive_and_keep_it_once() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let shared = Shared::new(&lab, "50mbit");
    let mounts = [(); 2].map(|()| shared.mount("unicast=never"));
    let before = shared.came();
    let mut copies = mounts.map(|mount| Copy::start_on(mount, &shared.image));
    shared.wait_for_a_third();
    wait_until(SOON, "one of them follows", || {
        let mut states = [state(&copies[0].mount), state(&copies[1].mount)];
        states.sort();
        states == ["multicast", "shared"]
    });
    for copy in &mut copies {
        copy.finish(&shared.image);
    }
    shared.assert_one_copy(before);
    for copy in &copies {
        assert_complete(&copy.mount);
        assert_eq!(digest_of(copy.mount.join("image")), shared.image.digest);
    }
    shared.assert_one_copy(before);
}

#[test]
fn what_a_follower_waits_for_is_demanded_by_the_holder() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let shared = Shared::new(&lab, CRAWL);
    let content = fs::read(&shared.image.path).unwrap();
    for (at, options) in (0..).zip(["fill=demand", "fill=eager", "fill=demand,verify=tag"]) {
        let [holder, follower] = ["fill=demand", options].map(|options| shared.mount(options));
        let _open = File::open(holder.join("image")).unwrap();
        let file = File::open(follower.join("image")).unwrap();
        assert_eq!(state(&follower), "shared", "{options}");
        let before = shared.server.status().totals.demanded;
        for offset in [mib(15 - at), mib(3 + at) + 4096, mib(9 + at) + 77] {
            let mut bytes = [0; 4096];
            file.read_exact_at(&mut bytes, offset).unwrap();
            let start = usize::try_from(offset).unwrap();
            assert!(bytes == content[start..start + 4096], "{options}: at {offset}");
        }
        assert!(shared.server.status().totals.demanded > before, "{options}");
        assert_eq!(state(&follower), "shared", "{options}");
    }
}

#[test]
fn the_file_goes_on_arriving_for_a_follower_when_the_holder_has_closed_it() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let shared = Shared::new(&lab, "50mbit");
    let before = shared.came();
    let holder = shared.mount("linger=0s,unicast=never");
    let open = File::open(holder.join("image")).unwrap();
    let follower = shared.mount("linger=0s,unicast=never");
    let mut copy = Copy::start_on(follower, &shared.image);
    wait_for_state(&copy.mount, "shared");
    drop(open);
    copy.finish(&shared.image);
    shared.assert_one_copy(before);
}

/// Ends the holder in some way while a third of the file is there, and has two others finish.
fn end_holder(end: impl Fn(&mut Copy<'_>)) {
    let lab = lab_or_skip!(Lab::builder().valve());
    let shared = Shared::new(&lab, "50mbit");
    let before = shared.came();
    let (mut holder, mut followers) = shared.copy("", &["", ""]);
    shared.wait_for_a_third();
    end(&mut holder);
    for follower in &mut followers {
        follower.finish(&shared.image);
    }
    shared.assert_one_copy(before);
    for follower in &followers {
        assert_complete(&follower.mount);
    }
}

#[test]
fn when_the_holder_is_killed_another_one_takes_its_place() {
    end_holder(|holder| holder.mount.proc().kill_within(SOON));
}

#[test]
fn when_the_holder_is_unmounted_another_one_takes_its_place() {
    end_holder(|holder| {
        holder.mount.proc().signal(Signal::TERM);
        holder.mount.proc().wait_success(SOON);
    });
}

#[test]
fn a_holder_that_is_stopped_is_followed_no_more() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let shared = Shared::new(&lab, "50mbit");
    let (mut holder, mut followers) = shared.copy("", &["verify=leaf", "verify=tag"]);
    shared.wait_for_a_third();
    holder.mount.proc().signal(Signal::STOP);
    for follower in &mut followers {
        follower.finish(&shared.image);
        assert!(follower.mount.log().contains("does not share"), "{}", follower.mount.log());
    }
    holder.mount.proc().signal(Signal::CONT);
    holder.finish(&shared.image);
}

#[test]
fn a_follower_that_is_stopped_and_continued_goes_on_with_its_holder() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let shared = Shared::new(&lab, "50mbit");
    let before = shared.came();
    let (mut holder, mut followers) = shared.copy("", &[""]);
    shared.wait_for_a_third();
    followers[0].mount.proc().signal(Signal::STOP);
    holder.finish(&shared.image);
    followers[0].mount.proc().signal(Signal::CONT);
    followers[0].finish(&shared.image);
    shared.assert_one_copy(before);
}

#[test]
fn pinned_and_unverified_mounts_follow_and_are_followed() {
    for holder in 0..3 {
        let lab = lab_or_skip!(Lab::builder().valve());
        let shared = Shared::new(&lab, "50mbit");
        let pins = lab.client(1).fresh_path("pins");
        fs::write(&pins, format!("{}  image\n", shared.image.digest.to_hex())).unwrap();
        let pinned = format!("pins={}", text(&pins));
        let all = ["verify=leaf", "verify=tag", &pinned];
        let (mut first, mut followers) = shared.copy(all[holder], &all);
        for copy in std::iter::once(&mut first).chain(&mut followers) {
            copy.finish(&shared.image);
        }
    }
}

#[test]
fn a_follower_of_a_holder_without_room_reads_past_the_cache_as_well() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let shared = Shared::new(&lab, "50mbit");
    let small = "cache_size=4M,cache_min_free=0";
    let (mut holder, mut followers) = shared.copy(small, &[small]);
    holder.finish(&shared.image);
    followers[0].finish(&shared.image);
    assert!(taken_up(&shared.cache) <= mib(4));
}

#[test]
fn readers_of_all_mounts_get_estale_when_the_version_is_gone() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let shared = Shared::new(&lab, CRAWL);
    let [holder, follower] = [(); 2].map(|()| shared.mount("attr_ttl=1h,unicast=never"));
    let _valve = lab.hold_multicast_after(0);
    let mut first = readers::read_at(lab.client(1), &holder.join("image"), SIZE / 2);
    shared.server.wait_cast("image", "the first one joined", |cast| cast.members == 1);
    let mut second = readers::read_at(lab.client(1), &follower.join("image"), SIZE - mib(1));
    wait_for_state(&follower, "shared");
    let new = lab.put("new", SIZE);
    fs::rename(&new.path, &shared.image.path).unwrap();
    for reader in [&mut first, &mut second] {
        assert!(!reader.wait(TRANSFER).success(), "{}", reader.log());
    }
}

#[test]
fn a_file_that_a_mount_receives_is_warm_when_it_is_there() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let shared = Shared::new(&lab, "50mbit");
    let before = shared.came();
    let (mut holder, _) = shared.copy("", &[]);
    let url = lab.url("image");
    let cache = text(&shared.cache);
    let args = ["cache", "warm", "--interface", "eth0", "--cache-dir", cache, &url];
    let mut warm = lab.client(1).spawn(binary("bootcast"), args);
    warm.wait_success(TRANSFER);
    holder.finish(&shared.image);
    shared.assert_one_copy(before);
    let output =
        lab.client(1).run_ok(binary("bootcast"), ["cache", "verify", "--cache-dir", cache]);
    println!("{output}");
}

#[test]
fn nobody_removes_a_file_that_a_follower_reads() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let shared = Shared::new(&lab, "50mbit");
    let before = shared.came();
    let (mut holder, mut followers) = shared.copy("", &[""]);
    let prune = || {
        let args = ["cache", "prune", "--all", "--cache-dir", text(&shared.cache)];
        lab.client(1).run_ok(binary("bootcast"), args);
    };
    prune();
    shared.wait_for_a_third();
    holder.mount.proc().signal(Signal::TERM);
    holder.mount.proc().wait_success(SOON);
    wait_until(SOON, "the follower receives it", || state(&followers[0].mount) != "shared");
    prune();
    followers[0].finish(&shared.image);
    prune();
    shared.assert_one_copy(before);
}
