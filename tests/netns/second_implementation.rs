//! `extended_client.py`, written from docs/PROTOCOL.md alone, and ours in the same cast.

use std::path::Path;

use harness::binaries::peer;
use harness::{Host, Lab, Proc, digest_of, lab_or_skip, mib};

use crate::plain_peers::{plain_client, plain_server};
use crate::{TRANSFER, readers, text};

/// Starts `extended_client.py`.
pub(crate) fn extended_client(host: &Host, url: &str, output: &Path, options: &[&str]) -> Proc {
    let (script, address) = (peer("extended_client.py"), host.address().to_string());
    let fixed = [text(&script), url, text(output), "--interface", &address];
    host.spawn("python3", [&fixed[..], options].concat())
}

#[test]
fn it_completes_beside_a_mount_and_a_plain_client_through_5_percent_loss() {
    let lab = lab_or_skip!(Lab::builder().clients(3).loss(5.0));
    let image = lab.put("image", mib(4) + 17);
    let server = lab.server().option("--rate", "20mbit").start();
    let mount = lab.mount(1).start();
    let [copy, second, plain] = [1, 2, 3].map(|k| lab.client(k).fresh_path("out"));
    let mut running = [
        readers::copy(lab.client(1), &mount.join("image"), &copy),
        extended_client(lab.client(2), &lab.url("image"), &second, &[]),
        plain_client(lab.client(3), &lab.url("image"), &plain, "base"),
    ];
    server.wait_cast("image", "all are in one cast", |cast| cast.joins >= 3);
    for client in &mut running {
        client.wait_success(TRANSFER);
    }
    for output in [copy, second, plain] {
        assert_eq!(digest_of(&output), image.digest, "{}", output.display());
    }
    server.wait_no_members();
}

#[test]
fn its_reports_alone_bring_what_it_lacks() {
    let lab = lab_or_skip!(Lab::builder().loss(5.0));
    let server = lab.server().option("--rate", "50mbit").start();
    for size in [0, 1, 1456, 1456 * 127, 1456 * 129, mib(3)] {
        let image = lab.put("image", size);
        let before = server.status().totals;
        let output = lab.client(1).fresh_path("out");
        extended_client(lab.client(1), &lab.url("image"), &output, &[]).wait_success(TRANSFER);
        assert_eq!(digest_of(output), image.digest, "{size} bytes");
        server.wait_no_members();
        let sent = server.status().totals.pages_sent - before.pages_sent;
        let pages = size.div_ceil(1456);
        assert!(
            sent <= pages * 2,
            "{sent} pages sent for a file of {pages}: symbols were of no use"
        );
    }
    assert!(server.status().totals.symbols_sent > 0);
}

#[test]
fn it_completes_from_a_plain_server() {
    let lab = lab_or_skip!(Lab::builder().loss(2.0));
    let image = lab.put("image", mib(1));
    let _server = plain_server(&lab, &[]);
    let output = lab.client(1).fresh_path("out");
    extended_client(lab.client(1), &lab.url("image"), &output, &[]).wait_success(TRANSFER);
    assert_eq!(digest_of(output), image.digest);
}
