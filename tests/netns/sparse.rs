//! Sparse files: members that have the zero map are not sent what it shows.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use harness::binaries::binary;
use harness::{Lab, Proc, ServerProc, digest_of, lab_or_skip, mib};

use crate::plain_peers::plain_client;
use crate::proving::wait_hashed;
use crate::second_implementation::extended_client;
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

#[test]
fn plain_clients_and_mounts_complete_beside_a_member_with_the_zero_map() {
    let lab = lab_or_skip!(Lab::builder().clients(3));
    let server = serve(&lab, "200mbit");
    let outputs = [1, 2, 3].map(|k| lab.client(k).fresh_path("out"));
    let mount = lab.mount(1).start();
    let running = [
        readers::copy(lab.client(1), &mount.join("image"), &outputs[0]),
        extended_client(lab.client(2), &lab.url("image"), &outputs[1], &["--zeros"]),
        plain_client(lab.client(3), &lab.url("image"), &outputs[2], "base"),
    ];
    finish(&lab, running, &outputs);
    server.wait_no_members();
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
    let arguments = ["get", &lab.url("image"), "-O", text(&outputs[1])];
    let running = [
        readers::copy(lab.client(1), &mount.join("image"), &outputs[0]),
        lab.client(2).spawn(binary("bootcast"), arguments),
    ];
    finish(&lab, running, &outputs);
    server.wait_no_members();
    for path in [mount.cache(), &outputs[1]] {
        let bytes = disk_bytes(path);
        let data = 4 * PIECE as u64;
        assert!((data..mib(8)).contains(&bytes), "{} takes {bytes} bytes", path.display());
    }
}
