//! Datagrams get lost; files do not.

use harness::{Lab, digest_of, lab_or_skip, mib};

use crate::{TRANSFER, readers};

#[test]
fn every_client_reads_the_same_bytes_through_2_percent_loss() {
    let lab = lab_or_skip!(Lab::builder().clients(4).loss(2.0));
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "200mbit").start();
    let mounts: Vec<_> = (1..=4).map(|k| lab.mount(k).start()).collect();
    let copies: Vec<_> = lab.clients().iter().map(|host| host.fresh_path("copy")).collect();
    let mut running: Vec<_> = mounts
        .iter()
        .zip(&copies)
        .map(|(mount, copy)| readers::copy(mount.host(), &mount.join("image"), copy))
        .collect();
    for reader in &mut running {
        reader.wait_success(TRANSFER);
    }
    for copy in &copies {
        assert_eq!(digest_of(copy), image.digest, "{}", copy.display());
    }
    server.wait_no_members();
}
