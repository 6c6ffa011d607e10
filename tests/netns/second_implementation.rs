//! `extended_client.py`, which was written from docs/PROTOCOL.md alone, with our programs.

use std::fs;
use std::path::Path;

use harness::binaries::peer;
use harness::{Host, Lab, Proc, digest_of, lab_or_skip, mib};

use crate::plain_peers::{plain_client, plain_server};
use crate::proving::{b3, forge_all_pages, wait_hashed};
use crate::transfers::{Copy, Get};
use crate::{CRAWL, TRANSFER, readers, text};

/// Starts `extended_client.py`.
pub(crate) fn extended_client(host: &Host, url: &str, output: &Path, options: &[&str]) -> Proc {
    let (script, address) = (peer("extended_client.py"), host.address().to_string());
    // Without files of compiled modules in the source tree.
    let fixed = ["-B", text(&script), url, text(output), "--interface", &address];
    host.spawn("python3", [&fixed[..], options].concat())
}

#[test]
fn it_completes_in_one_cast_with_a_mount_and_a_plain_client_through_5_percent_loss() {
    let lab = lab_or_skip!(Lab::builder().clients(3).loss(5.0));
    let image = lab.put("image", mib(1) + 17);
    // The cast is slow, so that it still runs when the Python interpreters have started.
    let server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).start();
    let [copy, second, plain] = [1, 2, 3].map(|k| lab.client(k).fresh_path("out"));
    let mut running = [
        readers::copy(lab.client(1), &mount.join("image"), &copy),
        extended_client(lab.client(2), &lab.url("image"), &second, &[]),
        plain_client(lab.client(3), &lab.url("image"), &plain, "base"),
    ];
    server.wait_cast("image", "all are in one cast", |cast| cast.members == 3);
    for client in &mut running {
        client.wait_success(TRANSFER);
    }
    for output in [copy, second, plain] {
        assert_eq!(digest_of(&output), image.digest, "{}", output.display());
    }
    server.wait_no_members();
}

/// Fields and headers that clients of an earlier version do not send. `extended_client.py` does not
/// send them either.
const LATER: [&str; 7] = ["drops", "seen", "useful", "stream_only", "RESUME", "delay_us", "lossy"];

#[test]
fn clients_of_an_earlier_version_and_of_this_one_complete_also_after_a_server_restart() {
    let script = fs::read_to_string(peer("extended_client.py")).unwrap();
    assert!(LATER.iter().all(|word| !script.contains(word)), "the script sends later fields");
    let lab = lab_or_skip!(Lab::builder().clients(3).loss(10.0));
    let image = lab.put("image", mib(1) + 17);
    // Without `--rate`, the cast finds its rate by the reports of its members.
    let mut server = lab.server().start();
    let outputs = [2, 3].map(|k| lab.client(k).fresh_path("out"));
    let start = |k: usize| extended_client(lab.client(k), &lab.url("image"), &outputs[k - 2], &[]);
    let mut copy = Copy::start(&lab, 1, &image);
    let mut old = start(2);
    copy.finish(&image);
    old.wait_success(TRANSFER);
    assert_eq!(digest_of(&outputs[0]), image.digest);
    server.wait_no_members();
    server.stop();

    let mut server = lab.server().option("--rate", "2mbit").start();
    let mut old = start(3);
    server.wait_cast("image", "the script has joined", |cast| cast.members == 1);
    let mut get = Get::start(&lab, 1, &image);
    server.wait_cast("image", "both are members, and a third is sent", |cast| {
        cast.members == 2 && cast.pages_sent * 3 > u64::from(cast.pages)
    });
    server.kill();
    server.start();
    get.finish(&image);
    old.wait_success(TRANSFER);
    assert_eq!(digest_of(&outputs[1]), image.digest);
    server.wait_no_members();
}

#[test]
fn its_reports_bring_symbols_for_the_pages_that_it_lacks() {
    let mut symbols = 0;
    for size in [1, 1456, 1456 * 127, 1456 * 129, mib(3)] {
        let lab = lab_or_skip!(Lab::builder().loss(5.0).valve());
        let server = lab.server().option("--rate", "50mbit").start();
        let image = lab.put("image", size);
        let output = lab.client(1).fresh_path("out");
        let valve = lab.hold_multicast_after(0);
        let mut client = extended_client(lab.client(1), &lab.url("image"), &output, &[]);
        lab.wait_members(&server, "image", 1..=1);
        valve.open();
        client.wait_success(TRANSFER);
        assert_eq!(digest_of(output), image.digest, "{size} bytes");
        server.wait_no_members();
        let totals = server.status().totals;
        let pages = size.div_ceil(1456);
        assert!(
            totals.pages_sent <= pages * 2,
            "{} pages sent for a file of {pages}: symbols did not replace pages",
            totals.pages_sent
        );
        symbols += totals.symbols_sent;
    }
    assert!(symbols > 0);
}

#[test]
fn it_fetches_an_empty_file() {
    let lab = lab_or_skip!(Lab::builder());
    let _server = lab.server().start();
    let image = lab.put("image", 0);
    let output = lab.client(1).fresh_path("out");
    extended_client(lab.client(1), &lab.url("image"), &output, &[]).wait_success(TRANSFER);
    assert_eq!(digest_of(output), image.digest);
}

#[test]
fn it_gets_demanded_pages_through_loss_without_a_stream() {
    const PAGE: usize = 1456;
    let lab = lab_or_skip!(Lab::builder().loss(10.0));
    let image = lab.put("image", mib(64) + 5);
    let content = fs::read(&image.path).unwrap();
    let pages = content.len().div_ceil(PAGE);
    let server = lab.server().option("--rate", "50mbit").start();
    let wants = [(1, 1), (17, 3), (30_000, 500), (pages, 1)];
    for (first, count) in wants {
        let output = lab.client(1).fresh_path("pages");
        let options = ["--want", &first.to_string(), &count.to_string()];
        extended_client(lab.client(1), &lab.url("image"), &output, &options).wait_success(TRANSFER);
        let end = content.len().min((first - 1 + count) * PAGE);
        let got = fs::read(output).unwrap();
        assert!(got == content[(first - 1) * PAGE..end], "{count} from {first}");
    }
    server.wait_no_members();
    let totals = server.status().totals;
    assert_eq!(totals.pages_sent, totals.demanded, "a stream runs without members for it");
    // A tenth of the 505 pages was lost. Others were demanded again while they were in flight.
    assert!((505..5 * 505).contains(&totals.demanded), "{totals:?}");
    assert_eq!(totals.symbols_sent, 0);
}

#[test]
fn it_fetches_the_file_where_no_multicast_arrives() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(4) + 17);
    let server = lab.server().option("--rate", "2mbit").start();
    lab.client(1).drop_multicast();
    let output = lab.client(1).fresh_path("out");
    extended_client(lab.client(1), &lab.url("image"), &output, &[]).wait_success(TRANSFER);
    assert_eq!(digest_of(output), image.digest);
    server.wait_no_members();
    let totals = server.status().totals;
    assert_eq!(totals.joins, 1, "a member that fetches must not join again");
}

#[test]
fn it_returns_to_multicast_when_that_arrives_again() {
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "15mbit").start();
    lab.client(1).drop_multicast();
    let output = lab.client(1).fresh_path("out");
    let mut client = extended_client(lab.client(1), &lab.url("image"), &output, &[]);
    server.wait_cast("image", "the server knows that it fetches", |cast| cast.unicast == 1);
    let before = server.cast_of("image").unwrap().pages_sent;
    lab.client(1).pass_multicast();
    server.wait_cast("image", "pages are sent again", |cast| cast.pages_sent > before + 100);
    client.wait_success(TRANSFER);
    assert_eq!(digest_of(output), image.digest);
    server.wait_no_members();
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

/// Starts the second implementation such that it proves what it gets.
fn proving_client(lab: &Lab, k: usize, output: &Path) -> Proc {
    extended_client(lab.client(k), &lab.url("image"), output, &["--leaves"])
}

#[test]
fn it_proves_a_file_by_the_lists_of_its_cast() {
    let lab = lab_or_skip!(Lab::builder());
    // Three segments. The last one has one leaf, which is one byte and a chunk long.
    let image = lab.put("image", mib(8) + 1025);
    let server = lab.server().option("--rate", "40mbit").start();
    wait_hashed(&lab, "image");
    let output = lab.client(1).fresh_path("out");
    let mut client = proving_client(&lab, 1, &output);
    client.wait_success(TRANSFER);
    assert_eq!(digest_of(&output), image.digest);
    let log = client.log();
    let proven = format!("{}\nlists: 3 from the cast, 0 over HTTP; wrong leaves: 0\n", b3(&image));
    assert_eq!(log, proven, "the proof of the second implementation");
    server.wait_no_members();
}

#[test]
fn it_proves_files_of_every_shape_also_without_lists_in_the_cast() {
    let lab = lab_or_skip!(Lab::builder());
    let _server = lab.server().start();
    // No list goes out for the first two. The others are hashed while they are sent.
    for size in [1, 16_384, 16_385, 300_001, mib(4), mib(4) + 1] {
        let image = lab.put("image", size);
        let output = lab.client(1).fresh_path("out");
        let mut client = proving_client(&lab, 1, &output);
        client.wait_success(TRANSFER);
        assert_eq!(digest_of(&output), image.digest, "{size} bytes");
        let id = format!("{}\n", b3(&image));
        assert!(client.log().starts_with(&id), "{size} bytes: {}", client.log());
    }
}

#[test]
fn it_replaces_the_pages_that_a_member_forged() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(1) + 17);
    let server = lab.server().option("--rate", "20mbit").start();
    let valve = lab.hold_multicast_after(0);
    let output = lab.client(1).fresh_path("out");
    let mut client = proving_client(&lab, 1, &output);
    forge_all_pages(&lab, &server, &image);
    valve.open();
    client.wait_success(TRANSFER);
    assert_eq!(digest_of(&output), image.digest);
    assert!(client.log().contains("wrong leaves: 65\n"), "{}", client.log());
}
