//! Programs of all kinds read the server's bytes from a mount.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use harness::{Host, Lab, SOON, digest_of, lab_or_skip, mib, wait_until};

use crate::{TRANSFER, readers, text};

fn run_ok(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the bytes that the head sent from its `eth0`, as a multiple of `size`.
#[expect(clippy::cast_precision_loss, reason = "a ratio for comparison with 1.3")]
fn files_sent(head: &Host, size: u64) -> f64 {
    head.counters().tx_bytes as f64 / size as f64
}

#[test]
fn four_clients_read_at_once_with_several_programs_and_the_server_sends_about_one_file() {
    let lab = lab_or_skip!(Lab::builder().clients(4).valve());
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "50mbit").start();
    let mounts: Vec<_> = (1..=4).map(|k| lab.mount(k).option("unicast=never").start()).collect();
    // All are members before the first page. Pages need not be sent again for a late joiner, and a
    // program that reads late finds the pages in the cache.
    let _open = readers::open_together(&lab, &server, &mounts);
    let copies: Vec<_> = lab.clients().iter().map(|host| host.fresh_path("copy")).collect();
    let readers = [readers::copy, readers::copy_with_dd, readers::copy_with_mmap, readers::copy];
    let mut running = Vec::new();
    for ((mount, copy), start) in mounts.iter().zip(&copies).zip(readers) {
        running.push(start(mount.host(), &mount.join("image"), copy));
    }
    for reader in &mut running {
        reader.wait_success(TRANSFER);
    }
    for copy in &copies {
        assert_eq!(digest_of(copy), image.digest, "{}", copy.display());
    }
    let sent = files_sent(lab.head(), image.size);
    let totals = server.status().totals;
    assert!(sent < 1.3, "the server sent {sent:.2} files for four clients: {totals:?}");
}

#[test]
fn cmp_finds_no_difference_between_the_mount_and_the_served_file() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(8) + 12_345);
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    run_ok("cmp", &[text(&mount.join("image")), text(&image.path)]);
}

#[test]
fn files_of_every_size_read_back() {
    let lab = lab_or_skip!(Lab::builder());
    let sizes = [0, 1, 1455, 1456, 1457, 2912, 4096, 4097, 131_072, 131_073, 1456 * 100];
    let images: Vec<_> = sizes.iter().map(|size| lab.put(&format!("{size}"), *size)).collect();
    let server = lab.server().start();
    let mount = lab.mount(1).start();
    for image in &images {
        let path = mount.join(&image.name);
        assert_eq!(fs::metadata(&path).unwrap().len(), image.size);
        assert_eq!(digest_of(&path), image.digest, "{} bytes", image.size);
    }
    server.wait_no_members();
}

#[test]
fn reads_at_any_offset_and_length_return_the_right_bytes() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(4) + 77);
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    let expected = fs::read(&image.path).unwrap();
    let file = File::open(mount.join("image")).unwrap();
    for (offset, len) in [(4_194_300, 81), (0, 1), (1455, 2), (131_071, 2), (1_000_003, 300_007)] {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset).unwrap();
        let start = usize::try_from(offset).unwrap();
        assert!(bytes == expected[start..start + len], "{len} bytes at {offset}");
    }
    assert_eq!(file.read_at(&mut [0; 10], image.size).unwrap(), 0, "end of file");
}

#[test]
fn qemu_img_reads_a_qcow2_file_from_the_mount() {
    let lab = lab_or_skip!(Lab::builder());
    let raw = lab.put("raw", mib(16));
    let qcow2 = lab.served().join("disk.qcow2");
    run_ok("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&raw.path), text(&qcow2)]);
    let _server = lab.server().start();
    let mount = lab.mount(1).start();

    let info = run_ok("qemu-img", &["info", "--output=json", text(&mount.join("disk.qcow2"))]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["format"], "qcow2");
    assert_eq!(info["virtual-size"], raw.size);

    let copy = lab.directory().join("converted.raw");
    let from = mount.join("disk.qcow2");
    run_ok("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", text(&from), text(&copy)]);
    assert_eq!(digest_of(copy), raw.digest);
}

#[test]
fn a_file_of_5_gib_can_be_opened_and_has_its_real_size() {
    let lab = lab_or_skip!(Lab::builder());
    let size = 5 << 30;
    File::create(lab.served().join("huge")).unwrap().set_len(size).unwrap();
    let server = lab.server().start();
    let mount = lab.mount(1).option("linger=0s").start();
    let file = File::open(mount.join("huge")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    server.wait_cast("huge", "the open joined", |cast| cast.size == size && cast.members == 1);
    drop(file);
    server.wait_no_members();
}

#[test]
fn a_complete_file_is_read_again_without_another_join_or_page() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(8));
    let server = lab.server().start();
    let mount = lab.mount(1).start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    wait_until(SOON, "the cast has ended", || server.status().casts.is_empty());
    let sent = server.status().totals.pages_sent;
    assert_eq!(digest_of(mount.join("image")), image.digest);
    let totals = server.status().totals;
    assert_eq!((totals.pages_sent, totals.joins), (sent, 1));
}
