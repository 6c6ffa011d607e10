//! A cache that is full: its budget, or its disk. docs/SEMANTICS.md, "The budget of the cache".

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::binaries::binary;
use harness::content::Image;
use harness::{Lab, MountProc, Random, SOON, digest_of, lab_or_skip, mib, wait_until};
use rustix::fs::FlockOperation;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::plain_peers::plain_server;
use crate::{TRANSFER, text};

/// Returns what a directory takes up, with everything below it.
fn taken_up(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| taken_up(&entry.path())).sum::<u64>()
}

fn mount<'lab>(lab: &'lab Lab, cache: &Path, options: &str) -> MountProc<'lab> {
    lab.mount(1).option(&format!("cache_dir={},{options}", text(cache))).start()
}

/// Reads images in random order, some by several readers at once.
fn read_at_random(mount: &MountProc<'_>, images: &[Image], times: usize) {
    let mut random = Random::new();
    for _ in 0..times {
        let image = &images[usize::try_from(random.below(images.len() as u64)).unwrap()];
        assert_eq!(digest_of(mount.join(&image.name)), image.digest, "{}", image.name.display());
    }
}

#[test]
fn two_mounts_and_a_prune_with_one_cache_keep_to_its_budget_and_read_the_right_bytes() {
    let lab = lab_or_skip!(Lab::builder());
    let images: Vec<_> = (0..20).map(|at| lab.put(&format!("image{at}"), mib(3))).collect();
    let _server = lab.server().start();
    let cache = lab.client(1).fresh_path("kept");
    fs::create_dir(&cache).unwrap();
    let options = "cache_size=20M,cache_min_free=0,linger=0s";
    let mounts = [mount(&lab, &cache, options), mount(&lab, &cache, options)];
    let (is_over, most) = (AtomicBool::new(false), std::sync::Mutex::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // Otherwise files go and come while they are added up.
                let lock = File::open(cache.join("lock")).unwrap();
                rustix::fs::flock(&lock, FlockOperation::LockShared).unwrap();
                let taken = taken_up(&cache);
                drop(lock);
                let mut most = most.lock().unwrap();
                *most = taken.max(*most);
            }
        });
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let args = ["cache", "prune", "--size", "12M", "--cache-dir", text(&cache)];
                let output = lab.client(1).run(text(&binary("bootcast")), args);
                assert!(output.status.success(), "{output:?}");
            }
        });
        let readers = mounts.each_ref().map(|mount| {
            let images = &images;
            scope.spawn(move || read_at_random(mount, images, 30))
        });
        let results = readers.map(std::thread::ScopedJoinHandle::join);
        is_over.store(true, Ordering::Relaxed);
        for (result, mount) in results.into_iter().zip(&mounts) {
            assert!(result.is_ok(), "{}", mount.log());
        }
    });
    let most = *most.lock().unwrap();
    assert!(most <= mib(20), "the cache took up {most} bytes");
    assert!(most > mib(10), "the cache took up {most} bytes only");
}

#[test]
fn a_file_larger_than_the_budget_is_read_past_the_cache() {
    let lab = lab_or_skip!(Lab::builder());
    let (large, small) = (lab.put("large", mib(24) + 77), lab.put("small", mib(1)));
    let _server = lab.server().start();
    let cache = lab.client(1).fresh_path("kept");
    let mount = mount(&lab, &cache, "cache_size=8M,cache_min_free=0");
    let open = File::open(mount.join("large")).unwrap();
    for _ in 0..2 {
        assert_eq!(digest_of(mount.join("large")), large.digest, "{}", mount.log());
        assert_eq!(digest_of(mount.join("small")), small.digest, "{}", mount.log());
    }
    let mut bytes = [0; 77];
    open.read_exact_at(&mut bytes, mib(24)).unwrap();
    assert!(fs::read(&large.path).unwrap().ends_with(&bytes));
    assert!(taken_up(&cache) <= mib(8));
    assert!(mount.log().contains("the cache has no room"), "{}", mount.log());
}

#[test]
fn on_a_full_disk_files_are_read_and_they_are_kept_once_it_has_room() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, other) = (lab.put("image", mib(12)), lab.put("other", mib(1)));
    let _server = lab.server().start();
    let cache = lab.client(1).fresh_path("disk");
    fs::create_dir(&cache).unwrap();
    rustix::mount::mount("tmpfs", &cache, "tmpfs", MountFlags::empty(), c"size=16m").unwrap();
    {
        let mount = mount(&lab, &cache, "cache_size=100%,cache_min_free=0,attr_ttl=0");
        fs::write(cache.join("others"), vec![1; 13 << 20]).unwrap();
        let open = File::open(mount.join("image")).unwrap();
        for _ in 0..2 {
            assert_eq!(digest_of(mount.join("image")), image.digest, "{}", mount.log());
            assert_eq!(digest_of(mount.join("other")), other.digest, "{}", mount.log());
        }
        fs::remove_file(cache.join("others")).unwrap();
        wait_until(TRANSFER, "the file is filled", || {
            mount.log().contains("the cache has room again")
        });
        wait_until(TRANSFER, "the file is kept", || taken_up(&cache) >= mib(12));
        assert_eq!(digest_of(mount.join("image")), image.digest);
        drop(open);
        mount.umount();
    }
    wait_until(SOON, "the disk is free", || {
        rustix::mount::unmount(&cache, UnmountFlags::empty()).is_ok()
    });
}

/// Reads parts of an image at random places, and compares them.
fn read_parts(mount: &MountProc<'_>, image: &Image) {
    let (right, mut random) = (fs::read(&image.path).unwrap(), Random::new());
    let file = File::open(mount.join(&image.name)).unwrap();
    for _ in 0..80 {
        let mut part = vec![0; usize::try_from(1 + random.below(150_000)).unwrap()];
        let at = random.below(image.size - part.len() as u64);
        file.read_exact_at(&mut part, at).unwrap();
        let own = &right[usize::try_from(at).unwrap()..][..part.len()];
        assert!(part == own, "wrong bytes at {at} of {}", image.name.display());
    }
}

/// Reads two files on a full disk, each from its start and at random places at the same time. Both
/// are larger than their part of the memory for bytes without room.
fn read_on_a_full_disk(option: &str) {
    let lab = lab_or_skip!(Lab::builder().loss(1.0));
    let images: Vec<_> = (0..2).map(|at| lab.put(&format!("image{at}"), mib(40) + at)).collect();
    let _server = lab.server().start();
    let cache = lab.client(1).fresh_path("disk");
    fs::create_dir(&cache).unwrap();
    rustix::mount::mount("tmpfs", &cache, "tmpfs", MountFlags::empty(), c"size=4m").unwrap();
    let mount = mount(&lab, &cache, &format!("cache_size=100%,cache_min_free=0,{option}"));
    // Fails when the disk is full.
    let _ = fs::write(cache.join("others"), vec![1; 5 << 20]);
    std::thread::scope(|scope| {
        for image in &images {
            let mount = &mount;
            scope.spawn(move || read_parts(mount, image));
            scope.spawn(move || {
                assert_eq!(digest_of(mount.join(&image.name)), image.digest, "{}", mount.log());
            });
        }
    });
    mount.umount();
    wait_until(SOON, "the disk is free", || {
        rustix::mount::unmount(&cache, UnmountFlags::empty()).is_ok()
    });
}

#[test]
fn readers_of_files_on_a_full_disk_get_the_right_bytes() {
    read_on_a_full_disk("fill=full");
}

#[test]
fn readers_of_files_on_a_full_disk_get_the_right_bytes_over_http() {
    read_on_a_full_disk("unicast=always");
}

#[test]
fn readers_of_files_on_a_full_disk_get_the_right_bytes_without_hashes() {
    read_on_a_full_disk("verify=tag");
}

#[test]
fn a_file_of_a_plain_server_is_read_past_a_full_cache() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(2) + 77);
    let _server = plain_server(&lab, &[]);
    let mount = lab.mount(1).option("cache_size=1M,cache_min_free=0").start();
    for _ in 0..2 {
        assert_eq!(digest_of(mount.join("image")), image.digest, "{}", mount.log());
    }
    assert!(mount.log().contains("the cache has no room"), "{}", mount.log());
}

#[test]
fn a_cache_in_memory_keeps_to_its_budget() {
    let lab = lab_or_skip!(Lab::builder());
    let images: Vec<_> = (0..4).map(|at| lab.put(&format!("image{at}"), mib(6))).collect();
    let large = lab.put("large", mib(24));
    let _server = lab.server().start();
    let mount = lab.mount(1).option("cache=memory,cache_size=8M").start();
    for _ in 0..2 {
        for image in images.iter().chain([&large]) {
            assert_eq!(digest_of(mount.join(&image.name)), image.digest, "{}", mount.log());
        }
    }
}
