//! `fill=full`: a file is filled once its readers have shown that they want it. Small
//! files need no cast. docs/SEMANTICS.md, "Filling" and "Small files".

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use harness::{Lab, SOON, digest_of, lab_or_skip, mib, wait_until};

use crate::verifying::wait_recorded;
use crate::{TRANSFER, readers};

#[test]
fn what_looks_at_the_beginning_and_the_end_of_files_does_not_make_them_arrive() {
    let lab = lab_or_skip!(Lab::builder());
    let images: Vec<_> = (0..4).map(|k| lab.put(&format!("image{k}"), mib(64))).collect();
    let server = lab.server().option("--rate", "400mbit").start();
    let mount = lab.mount(1).option("fill=full").option("linger=1s").start();
    for (k, image) in images.iter().enumerate() {
        let file = File::open(mount.join(format!("image{k}"))).unwrap();
        let mut bytes = vec![0; 100_000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let mut expected = vec![0; bytes.len()];
        File::open(&image.path).unwrap().read_exact_at(&mut expected, 0).unwrap();
        assert!(bytes == expected, "image{k}");
        file.read_exact_at(&mut bytes, mib(64) - 100_000).unwrap();
    }
    server.wait_no_members();
    let totals = server.status().totals;
    assert_eq!(totals.pages_sent, totals.demanded, "a stream runs: {totals:?}");
    let read = 4 * 200_000u64.div_ceil(1456);
    // The kernel reads ahead, and a client that waits long demands pages again.
    assert!(totals.pages_sent < 8 * read, "{totals:?}");
}

#[test]
fn who_reads_a_whole_file_gets_it_about_once_and_the_cache_has_it() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(64));
    let server = lab.server().option("--rate", "200mbit").start();
    let mount = lab.mount(1).option("fill=full").start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    wait_recorded(mount.cache(), 1);
    server.wait_no_members();
    let totals = server.status().totals;
    let streamed = totals.pages_sent - totals.demanded;
    let pages = image.size.div_ceil(1456);
    assert!(streamed * 4 > pages, "no stream runs: {totals:?}");
    assert!(totals.pages_sent * 2 < pages * 3, "{totals:?} of {pages}");
}

#[test]
fn a_file_of_which_half_was_read_becomes_complete_by_itself() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "200mbit").start();
    let mount = lab.mount(1).option("fill=full").start();
    let file = File::open(mount.join("image")).unwrap();
    let mut bytes = vec![0; usize::try_from(mib(9)).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    wait_recorded(mount.cache(), 1);
    server.wait_no_members();
    drop(server);
    assert_eq!(digest_of(mount.join("image")), image.digest, "without the server");
}

#[test]
fn eight_who_read_a_whole_file_share_a_stream() {
    let lab = lab_or_skip!(Lab::builder().clients(8).memory_disk());
    let image = lab.put("image", mib(32));
    let server = lab.server().option("--rate", "50mbit").start();
    let mounts: Vec<_> = (1..=8).map(|k| lab.mount(k).option("fill=full").start()).collect();
    let copies: Vec<_> = lab.clients().iter().map(|host| host.fresh_path("copy")).collect();
    let copy = |k: usize| readers::copy(mounts[k].host(), &mounts[k].join("image"), &copies[k]);
    let mut running: Vec<_> = (0..8).map(copy).collect();
    for reader in &mut running {
        reader.wait_success(TRANSFER);
    }
    for copy in &copies {
        assert_eq!(digest_of(copy), image.digest);
    }
    let totals = server.status().totals;
    // One copy for each would be eight files.
    assert!(totals.pages_sent < 3 * image.size.div_ceil(1456), "{totals:?}");
}

#[test]
fn small_files_arrive_without_a_cast_and_stay_in_the_cache() {
    let lab = lab_or_skip!(Lab::builder());
    let sizes = [0, 1, 4096, 16_384, 16_385, 65_536];
    let images = sizes.map(|size| lab.put(&format!("small{size}"), size));
    let mut server = lab.server().start();
    let mount = lab.mount(1).option("fill=full").option("attr_ttl=60s").start();
    for (size, image) in sizes.iter().zip(&images) {
        assert_eq!(digest_of(mount.join(format!("small{size}"))), image.digest, "{size}");
    }
    let totals = server.status().totals;
    assert_eq!((totals.casts, totals.joins), (0, 0), "{totals:?}");
    wait_until(SOON, "the cache has recorded them", || {
        let objects = fs::read_dir(mount.cache().join("objects")).unwrap();
        objects.filter(|it| it.as_ref().unwrap().path().join("state").exists()).count() >= 5
    });
    server.kill();
    for (size, image) in sizes.iter().zip(&images) {
        assert_eq!(digest_of(mount.join(format!("small{size}"))), image.digest, "{size}, cached");
    }
}

#[test]
fn a_small_file_that_a_second_host_wants_at_the_same_time_is_cast() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let images: Vec<_> = (0..20).map(|k| lab.put(&format!("small{k}"), 5000 + k)).collect();
    let server = lab.server().start();
    let mounts = [1, 2].map(|k| lab.mount(k).option("fill=full").start());
    for (k, image) in images.iter().enumerate() {
        for mount in &mounts {
            assert_eq!(digest_of(mount.join(format!("small{k}"))), image.digest);
        }
    }
    let totals = server.status().totals;
    // A machine that is held up for a second between two reads is served over HTTP.
    assert!((1..=20).contains(&totals.casts), "{totals:?}");
    assert!(totals.joins <= 20, "the first host needs no cast: {totals:?}");
}
