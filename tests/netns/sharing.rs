//! Several mounts of one machine share a cache, and one copy of a file that arrives.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use harness::content::Image;
use harness::{Lab, MountProc, ServerProc, digest_of, lab_or_skip, mib};

use crate::telling::attribute;
use crate::transfers::Copy;
use crate::{TRANSFER, text};

/// Length of the file that several mounts read.
const SIZE: u64 = mib(16);

/// Creates a directory for a cache that several mounts share.
fn shared_cache(lab: &Lab) -> PathBuf {
    let cache = lab.client(1).fresh_path("shared");
    fs::create_dir(&cache).unwrap();
    cache
}

/// Mounts with a cache that others use, too.
fn mount<'lab>(lab: &'lab Lab, cache: &Path, options: &str) -> MountProc<'lab> {
    let dir = format!("cache_dir={}", text(cache));
    lab.mount(1).option(&dir).option(options).start()
}

/// Returns how many bytes the objects of a cache take up.
fn taken_up(cache: &Path) -> u64 {
    let files = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
    let objects = files(cache.join("objects"));
    let all = objects.flat_map(|object| files(object.path()));
    all.map(|file| file.metadata().map_or(0, |file| file.blocks() * 512)).sum()
}

/// Waits until one mount is a member, which has got a third of the file.
fn wait_for_a_third(server: &ServerProc<'_>) {
    server.wait_cast("image", "a third is sent", |cast| {
        assert!(cast.members <= 1, "{} members of one machine", cast.members);
        cast.pages_sent > u64::from(cast.pages) / 3
    });
}

/// Requires that one copy of a file came to the machine, since it had received `before` bytes.
fn assert_one_copy(lab: &Lab, before: u64, image: &Image) {
    let came = lab.client(1).counters().rx_bytes - before;
    assert!(came > image.size, "{came} bytes came");
    assert!(came < image.size * 13 / 10, "{came} bytes came of a file of {}", image.size);
}

#[test]
fn two_mounts_that_read_a_file_at_the_same_time_receive_and_keep_it_once() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", SIZE);
    let server = lab.server().option("--rate", "50mbit").start();
    let cache = shared_cache(&lab);
    let mounts = [(); 2].map(|()| mount(&lab, &cache, "unicast=never"));
    let before = lab.client(1).counters().rx_bytes;
    let mut copies = mounts.map(|mount| Copy::start_on(mount, &image));
    wait_for_a_third(&server);
    let state = |copy: &Copy<'_>| attribute(&copy.mount.join("image"), "state").unwrap();
    let mut states = [state(&copies[0]), state(&copies[1])];
    states.sort();
    assert_eq!(states, ["multicast", "shared"]);
    for copy in &mut copies {
        copy.finish(&image);
    }
    assert_one_copy(&lab, before, &image);
    let taken = taken_up(&cache);
    assert!(taken < image.size * 11 / 10, "the cache takes up {taken} bytes");
    for copy in &copies {
        harness::wait_until(TRANSFER, "all of it is there", || state(copy) == "complete");
        assert_eq!(digest_of(copy.mount.join("image")), image.digest);
    }
}
