//! Sparse files: members that have the zero map are not sent what it shows.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use harness::binaries::binary;
use harness::{Lab, Proc, SOON, ServerProc, digest_of, lab_or_skip, mib, wait_until};
use rustix::fs::{SeekFrom, seek};

use crate::plain_peers::plain_client;
use crate::proving::wait_hashed;
use crate::second_implementation::extended_client;
use crate::verifying::wait_recorded;
use crate::{TRANSFER, readers, text};

/// Bytes of each of four pieces of data.
const PIECE: usize = 128 << 10;

/// Creates a file of 64 MiB with 512 KiB of data, and starts a server that has hashed it.
fn serve<'lab>(lab: &'lab Lab, rate: &str) -> ServerProc<'lab> {
    let path = lab.served().join("image");
    let file = File::create(&path).unwrap();
    file.set_len(mib(64) + 5).unwrap();
    for place in [1, 17, 40, 63] {
        file.write_all_at(&vec![7; PIECE], mib(place) + 1000).unwrap();
    }
    let server = lab.server().option("--rate", rate).start();
    wait_hashed(lab, "image");
    server
}

/// Waits until the programs end, and requires that their outputs equal the served file.
fn finish(lab: &Lab, mut running: impl AsMut<[Proc]>, outputs: &[PathBuf]) {
    let expected = digest_of(lab.served().join("image"));
    for (program, output) in running.as_mut().iter_mut().zip(outputs) {
        program.wait_success(TRANSFER);
        assert_eq!(digest_of(output), expected, "{}", output.display());
    }
}

#[test]
fn members_with_the_zero_map_complete_by_the_data_alone_also_through_loss() {
    let lab = lab_or_skip!(Lab::builder().clients(2).loss(2.0));
    // A small part is sent until the last member has the map. All would take two minutes.
    let server = serve(&lab, "5mbit");
    let outputs = [1, 2].map(|k| lab.client(k).fresh_path("out"));
    let start =
        |k: usize| extended_client(lab.client(k), &lab.url("image"), &outputs[k - 1], &["--zeros"]);
    finish(&lab, [start(1), start(2)], &outputs);
    server.wait_no_members();
    let totals = server.status().totals;
    let pages = mib(64).div_ceil(1456);
    assert!(totals.pages_sent < pages / 4, "{totals:?} of {pages} pages, 400 of them data");
}

/// Starts `bootcast get`.
fn get(lab: &Lab, k: usize, output: &Path) -> Proc {
    get_with(lab, k, output, &[])
}

/// Starts `bootcast get` with more arguments.
fn get_with(lab: &Lab, k: usize, output: &Path, more: &[&str]) -> Proc {
    let arguments = ["get", "--interface", "eth0", &lab.url("image"), "-O", text(output)];
    lab.client(k).spawn(binary("bootcast"), [&arguments, more].concat())
}

#[test]
fn mounts_and_fetches_are_sent_the_data_alone_also_late_ones_and_through_loss() {
    let lab = lab_or_skip!(Lab::builder().clients(4).loss(2.0));
    let server = serve(&lab, "5mbit");
    let outputs = [1, 2, 3, 4].map(|k| lab.client(k).fresh_path("out"));
    let mounts = [1, 3].map(|k| lab.mount(k).start());
    let mut running = vec![
        readers::copy(lab.client(1), &mounts[0].join("image"), &outputs[0]),
        get(&lab, 2, &outputs[1]),
    ];
    server.wait_cast("image", "zeros are left out", |cast| cast.zero_pages > 0);
    running.push(readers::copy(lab.client(3), &mounts[1].join("image"), &outputs[2]));
    running.push(get(&lab, 4, &outputs[3]));
    finish(&lab, running, &outputs);
    server.wait_no_members();
    let totals = server.status().totals;
    let pages = mib(64).div_ceil(1456);
    assert!(totals.pages_sent < pages / 4, "{totals:?} of {pages} pages, 400 of them data");
}

#[test]
fn pinned_mounts_and_fetches_are_sent_the_data_alone() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let server = serve(&lab, "5mbit");
    let hash = digest_of(lab.served().join("image")).to_hex().to_string();
    let outputs = [1, 2].map(|k| lab.client(k).fresh_path("out"));
    let pins = lab.client(1).fresh_path("pins");
    fs::write(&pins, format!("{hash}  image\n")).unwrap();
    let mount = lab.mount(1).option(&format!("pins={}", text(&pins))).start();
    let running = [
        readers::copy(lab.client(1), &mount.join("image"), &outputs[0]),
        get_with(&lab, 2, &outputs[1], &["--b3", &hash]),
    ];
    finish(&lab, running, &outputs);
    server.wait_no_members();
    let totals = server.status().totals;
    let pages = mib(64).div_ceil(1456);
    assert!(totals.pages_sent < pages / 4, "{totals:?} of {pages} pages, 400 of them data");
}

#[test]
fn all_clients_complete_in_one_cast_whether_they_know_the_zero_map_or_not() {
    let lab = lab_or_skip!(Lab::builder().clients(4));
    let server = serve(&lab, "200mbit");
    let outputs = [1, 2, 3, 4].map(|k| lab.client(k).fresh_path("out"));
    let mount = lab.mount(1).start();
    let running = [
        readers::copy(lab.client(1), &mount.join("image"), &outputs[0]),
        extended_client(lab.client(2), &lab.url("image"), &outputs[1], &["--zeros"]),
        plain_client(lab.client(3), &lab.url("image"), &outputs[2], "base"),
        extended_client(lab.client(4), &lab.url("image"), &outputs[3], &[]),
    ];
    finish(&lab, running, &outputs);
    server.wait_no_members();
}

#[test]
fn a_file_of_zeros_alone_is_complete_without_a_page() {
    let lab = lab_or_skip!(Lab::builder());
    File::create(lab.served().join("image")).unwrap().set_len(mib(10)).unwrap();
    let server = lab.server().option("--rate", "100kbit").start();
    wait_hashed(&lab, "image");
    let mount = lab.mount(1).start();
    assert_eq!(fs::read(mount.join("image")).unwrap(), vec![0; 10 << 20]);
    server.wait_no_members();
    // All would take a quarter of an hour.
    assert!(server.status().totals.pages_sent < 100, "{:?}", server.status().totals);
}

#[test]
fn reads_of_zeros_demand_no_page() {
    let lab = lab_or_skip!(Lab::builder());
    let server = serve(&lab, "200mbit");
    let mount = lab.mount(1).option("fill=demand").start();
    let file = File::open(mount.join("image")).unwrap();
    let read = |place: u64| {
        let mut bytes = [1; 100];
        file.read_exact_at(&mut bytes, place).unwrap();
        assert_eq!(bytes, [0; 100], "at {place}");
    };
    let demanded = || server.status().totals.demanded;
    let mut place = mib(2);
    wait_until(TRANSFER, "the mount has the zero map", || {
        let before = demanded();
        place += 256 << 10;
        read(place);
        demanded() == before
    });
    let before = demanded();
    (45..55).for_each(|place| read(mib(place)));
    assert_eq!(demanded(), before);
    let mut data = [0; 1000];
    file.read_exact_at(&mut data, mib(40) + 2000).unwrap();
    assert_eq!(data, [7; 1000]);
    assert!(demanded() > before);
}

/// Returns the parts of a file that are data, as `lseek` shows them.
fn data_of(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let (mut parts, mut position) = (Vec::new(), 0);
    while let Ok(start) = seek(&file, SeekFrom::Data(position)) {
        position = seek(&file, SeekFrom::Hole(start)).unwrap();
        parts.push((start, position));
    }
    parts
}

#[test]
fn a_mount_shows_holes_and_copies_keep_them() {
    let lab = lab_or_skip!(Lab::builder());
    let server = serve(&lab, "200mbit");
    let cache = lab.client(1).fresh_path("kept");
    let option = format!("cache_dir={}", text(&cache));
    let mount = lab.mount(1).option(&option).start();
    assert_eq!(digest_of(mount.join("image")), digest_of(lab.served().join("image")));
    server.wait_no_members();
    // The same mount, where reads go through this program, and one that lets the kernel read the
    // cache file.
    wait_recorded(&cache, 1);
    for again in [false, true] {
        let mounted = if again { &lab.mount(1).option(&option).start() } else { &mount };
        let image = mounted.join("image");
        assert_eq!(digest_of(&image), digest_of(lab.served().join("image")));
        let data = || data_of(&image).iter().map(|(start, end)| end - start).sum::<u64>();
        // Until all is verified, zeros count as data.
        wait_until(SOON, "the holes are shown", || data() < mib(1));
        let parts = data_of(&image);
        let holds = |place| parts.iter().any(|(start, end)| (*start..*end).contains(&place));
        assert!([1, 17, 40, 63].iter().all(|place| holds(mib(*place) + 1000)), "{parts:?}");
        let size = mib(64) + 5;
        let file = File::open(&image).unwrap();
        assert_eq!(seek(&file, SeekFrom::Hole(size - 1)), Ok(size - 1));
        for position in [SeekFrom::Hole(size), SeekFrom::Data(size), SeekFrom::Data(size - 1)] {
            assert_eq!(seek(&file, position), Err(rustix::io::Errno::NXIO), "{position:?}");
        }
        let blocks = |path: &Path| fs::metadata(path).unwrap().blocks();
        assert_eq!(blocks(&image), blocks(&lab.served().join("image")));
        let copy = lab.client(1).fresh_path("copy");
        readers::copy(lab.client(1), &image, &copy).wait_success(TRANSFER);
        assert_eq!(digest_of(&copy), digest_of(lab.served().join("image")));
        assert!(disk_bytes(&copy) < mib(1), "the copy takes {} bytes", disk_bytes(&copy));
    }
}

/// Returns the bytes that a file takes on its disk, or all files below a directory.
fn disk_bytes(path: &Path) -> u64 {
    let own = fs::metadata(path).unwrap().blocks() * 512;
    if !path.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| disk_bytes(&entry.unwrap().path()));
    own + entries.sum::<u64>()
}

#[test]
fn the_cache_of_a_mount_and_the_output_of_get_have_holes_for_zeros() {
    let lab = lab_or_skip!(Lab::builder().clients(2).loss(1.0));
    let server = serve(&lab, "200mbit");
    let outputs = [1, 2].map(|k| lab.client(k).fresh_path("out"));
    let mount = lab.mount(1).start();
    let running = [
        readers::copy(lab.client(1), &mount.join("image"), &outputs[0]),
        get(&lab, 2, &outputs[1]),
    ];
    finish(&lab, running, &outputs);
    server.wait_no_members();
    // The hashes of the file take 128 KiB of the cache.
    for path in [mount.cache(), &outputs[1]] {
        let bytes = disk_bytes(path);
        let data = 4 * PIECE as u64;
        assert!((data..mib(2)).contains(&bytes), "{} takes {bytes} bytes", path.display());
    }
}
