//! `plain_client.py` and `plain_server.py`, which know only the base protocol, with our programs.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use harness::binaries::{binary, peer};
use harness::{Host, Lab, Proc, SOON, digest_of, lab_or_skip, mib, wait_until};

use crate::{TRANSFER, text};

/// Starts `plain_server.py` for the lab's served directory.
pub(crate) fn plain_server(lab: &Lab, options: &[&str]) -> Proc {
    let (served, script) = (lab.served(), peer("plain_server.py"));
    let fixed = [text(&script), "--dir", text(&served)];
    let address = lab.head().address().to_string();
    let proc =
        lab.head().spawn("python3", [&fixed[..], &["--interface", &address], options].concat());
    wait_until(SOON, "plain_server.py listens", || proc.log().contains("listening"));
    proc
}

/// Starts `plain_client.py`.
pub(crate) fn plain_client(host: &Host, url: &str, output: &Path, layout: &str) -> Proc {
    let (script, address) = (peer("plain_client.py"), host.address().to_string());
    host.spawn(
        "python3",
        [text(&script), url, text(output), "--interface", &address, "--layout", layout],
    )
}

#[test]
fn plain_peers_understand_each_other() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let image = lab.put("image", 3_000_001);
    for layout in ["base", "reference"] {
        let _server = plain_server(&lab, &["--layout", layout]);
        let outputs: Vec<_> = lab.clients().iter().map(|host| host.fresh_path("out")).collect();
        let mut clients = Vec::new();
        for (host, output) in lab.clients().iter().zip(&outputs) {
            clients.push(plain_client(host, &lab.url("image"), output, layout));
        }
        for client in &mut clients {
            client.wait_success(TRANSFER);
        }
        for output in outputs {
            assert_eq!(digest_of(output), image.digest, "{layout}");
        }
    }
}

/// File sizes for which the layouts differ: no multiple of the page size, exact multiples, and less
/// than a page.
const SIZES: [u64; 4] = [1_000_000, 1456 * 700, 1456, 17];

#[test]
fn a_plain_client_and_a_mount_complete_in_one_cast_through_2_percent_loss() {
    let lab = lab_or_skip!(Lab::builder().clients(2).loss(2.0));
    let image = lab.put("image", mib(8));
    let server = lab.server().option("--rate", "100mbit").start();
    let mount = lab.mount(2).start();
    let output = lab.client(1).fresh_path("out");
    let mut plain = plain_client(lab.client(1), &lab.url("image"), &output, "base");
    assert_eq!(digest_of(mount.join("image")), image.digest);
    plain.wait_success(TRANSFER);
    assert_eq!(digest_of(output), image.digest);
    server.wait_no_members();
}

#[test]
fn a_plain_client_completes_files_of_every_size() {
    let lab = lab_or_skip!(Lab::builder());
    let server = lab.server().start();
    for size in SIZES.into_iter().chain([0, 1]) {
        let image = lab.put("image", size);
        let output = lab.client(1).fresh_path("out");
        plain_client(lab.client(1), &lab.url("image"), &output, "base").wait_success(TRANSFER);
        assert_eq!(digest_of(output), image.digest, "{size} bytes");
        server.wait_no_members();
    }
}

#[test]
fn a_client_of_the_reference_layout_completes_from_our_server() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 1_000_000);
    let _server = lab.server().option("--layout", "reference").start();
    let output = lab.client(1).fresh_path("out");
    plain_client(lab.client(1), &lab.url("image"), &output, "reference").wait_success(TRANSFER);
    assert_eq!(digest_of(output), image.digest);
}

#[test]
fn our_clients_recognise_the_reference_layout_of_our_server() {
    let lab = lab_or_skip!(Lab::builder());
    let server = lab.server().option("--layout", "reference").start();
    let mount = lab.mount(1).start();
    for size in SIZES {
        let image = lab.put(&format!("{size}"), size);
        assert_eq!(digest_of(mount.join(&image.name)), image.digest, "{size} bytes");
    }
    server.wait_no_members();
}

/// Gets files of every size from `plain_server.py` with `bootcast get`.
fn get_from_a_plain_server(layout: &str) {
    let lab = lab_or_skip!(Lab::builder());
    let _server = plain_server(&lab, &["--layout", layout]);
    for size in SIZES {
        let image = lab.put(&format!("{size}"), size);
        let (url, target) = (lab.url(text(&image.name)), lab.client(1).fresh_path("target"));
        let args = ["get", "--interface", "eth0", &url, "-O", text(&target)];
        lab.client(1).spawn(binary("bootcast"), args).wait_success(TRANSFER);
        assert_eq!(digest_of(target), image.digest, "{layout}, {size} bytes");
    }
}

#[test]
fn get_completes_from_a_plain_server() {
    get_from_a_plain_server("base");
}

#[test]
fn get_completes_from_a_reference_server_despite_the_phantom_page() {
    get_from_a_plain_server("reference");
}

/// Reads files of every size from a mount of `plain_server.py`.
fn mount_a_plain_server(layout: &str) {
    let lab = lab_or_skip!(Lab::builder());
    let _server = plain_server(&lab, &["--layout", layout]);
    let mount = lab.mount(1).start();
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0, "no file was opened yet");
    for size in SIZES {
        let image = lab.put(&format!("{size}"), size);
        let path = mount.join(&image.name);
        assert_eq!(digest_of(&path), image.digest, "{layout}, {size} bytes");
        assert_eq!(fs::metadata(&path).unwrap().len(), size, "{layout}");
    }
    let listed = fs::read_dir(mount.path()).unwrap().count();
    assert_eq!(listed, SIZES.len(), "the directory lists the files that were opened");
    assert!(File::open(mount.join("nothing")).is_err());
}

#[test]
fn a_plain_server_can_be_mounted_and_opening_a_name_joins_it() {
    mount_a_plain_server("base");
}

#[test]
fn a_reference_server_can_be_mounted_despite_the_phantom_page() {
    mount_a_plain_server("reference");
}

#[test]
fn the_exact_size_is_known_before_the_first_read_of_a_plain_server_returns() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(2) + 5);
    let _server = plain_server(&lab, &["--rate", "20"]);
    let mount = lab.mount(1).start();
    let mut file = File::open(mount.join("image")).unwrap();
    file.read_exact(&mut [0; 10]).unwrap();
    assert_eq!(file.metadata().unwrap().len(), image.size);
}
