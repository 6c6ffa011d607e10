//! The server as an ordinary web server: wget, curl, and the status of malformed requests.

use std::os::unix::fs::symlink;

use harness::binaries::binary;
use harness::{Lab, digest_of, lab_or_skip, mib};

use crate::text;

#[test]
fn wget_fetches_a_file_and_curl_resumes_a_partial_one() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(4) + 3);
    let _server = lab.server().start();
    let (host, url) = (lab.client(1), lab.url("file/image"));
    let target = host.fresh_path("image");
    host.run_ok("wget", ["-q", &url, "-O", text(&target)]);
    assert_eq!(digest_of(&target), image.digest);

    std::fs::File::options().write(true).open(&target).unwrap().set_len(1_000_001).unwrap();
    host.run_ok("curl", ["-sSf", "-C", "-", &url, "-o", text(&target)]);
    assert_eq!(digest_of(&target), image.digest);
}

#[test]
fn a_refused_request_says_why_in_one_line() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("dir/image", 10);
    symlink("/etc/hostname", lab.served().join("out")).unwrap();
    symlink("../../../../../etc/hostname", lab.served().join("dir/up")).unwrap();
    let server = lab.server().start();
    for (path, status) in [
        ("join/nothing", 404),
        ("join/dir", 400),
        ("join/%zz", 400),
        ("join/%2e%2e/x", 400),
        ("join/out", 403),
        ("join/dir/up", 403),
        ("file/out", 403),
        ("file/nothing", 404),
        ("leave/dir/image", 400),
    ] {
        let answer = lab.client(1).get(&lab.url(path));
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert!(answer.body.trim_end().lines().count() <= 1, "{path}: {}", answer.body);
    }
    assert_eq!(server.status().totals.joins, 0);
}

#[test]
fn a_leave_ends_only_the_membership_of_its_token() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(4));
    let server = lab.server().option("--rate", crate::CRAWL).start();
    let client = lab.client(1);
    let answer = client.get(&lab.url("join/image")).body;
    let token = answer.lines().find_map(|line| line.strip_prefix("TOKEN=")).unwrap();

    let stranger = client.get_with(&lab.url("leave/image"), &[("X-TOKEN", "stranger")]);
    assert_eq!((stranger.status, stranger.body.as_str()), (204, ""));
    server.wait_cast("image", "the member is still there", |cast| cast.members == 1);
    let ours = client.get_with(&lab.url("leave/image"), &[("X-TOKEN", token)]);
    assert_eq!((ours.status, ours.body.as_str()), (204, ""));
    server.wait_no_members();
}

#[test]
fn a_page_size_above_the_mtu_is_refused_at_the_start() {
    let lab = lab_or_skip!(Lab::builder());
    let served = lab.served();
    let args = ["--dir", text(&served), "--interface", "eth0", "--page-size", "1458"];
    let output = lab.head().run(binary("bootcast-server"), args);
    assert_eq!(output.status.code(), Some(2));
    let line = String::from_utf8_lossy(&output.stderr);
    assert!(line.contains("1456") && line.contains("MTU"), "{line}");
}
