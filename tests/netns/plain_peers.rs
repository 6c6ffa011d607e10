//! Peers that know the base protocol alone: `plain_client.py`, `plain_server.py`, and ours with them.

use std::path::Path;

use harness::binaries::peer;
use harness::{Host, Lab, Proc, SOON, digest_of, lab_or_skip, wait_until};

use crate::text;

/// Starts `plain_server.py` for the lab's served directory.
fn plain_server(lab: &Lab, options: &[&str]) -> Proc {
    let (served, script) = (lab.served(), peer("plain_server.py"));
    let fixed = [text(&script), "--dir", text(&served)];
    let address = lab.head().address().to_string();
    let proc =
        lab.head().spawn("python3", [&fixed[..], &["--interface", &address], options].concat());
    wait_until(SOON, "plain_server.py listens", || proc.log().contains("listening"));
    proc
}

/// Starts `plain_client.py`.
fn plain_client(host: &Host, url: &str, output: &Path, layout: &str) -> Proc {
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
            client.wait_success(SOON);
        }
        for output in outputs {
            assert_eq!(digest_of(output), image.digest, "{layout}");
        }
    }
}
