//! The server hashes a file while it sends it. docs/SEMANTICS.md, "Versions"; docs/adr/0025.

use std::fs;

use bootcast_proto::JoinAnswer;
use harness::content::Image;
use harness::{Lab, ServerProc, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::proving::{b3, wait_hashed};
use crate::transfers::{Copy, Get};
use crate::{TRANSFER, text};

/// Size of a file that is larger than the part that is hashed ahead of its stream.
const SIZE: u64 = mib(48) + 12_345;

/// Rate at which the stream is slower than hashing. It takes two seconds for the file.
const RATE: &str = "200mbit";

/// Rate that members do not wait for: 24 s for each segment. The stream takes minutes for the file.
const SLOW: &str = "1400kbit";

/// Returns the bytes that the server has read from files.
fn bytes_read(server: &ServerProc<'_>) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", server.proc().pid())).unwrap();
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    read.unwrap().parse().unwrap()
}

/// Waits until the server knows the content id of `image`, without hurrying it.
fn wait_known(lab: &Lab, image: &Image) {
    let host = lab.client(1);
    let zeros = lab.url(&format!("manifest/{}?zeros=1&known=1", text(&image.name)));
    wait_until(TRANSFER, "the file is hashed", || {
        let answer = host.get(&zeros);
        assert_eq!(answer.status, 200);
        !answer.body.is_empty()
    });
    let join = host.get(&lab.url(&format!("join/{}", text(&image.name))));
    let answer = JoinAnswer::parse(&join.body).unwrap();
    assert_eq!(answer.extensions.content_id.unwrap().to_string(), b3(image));
    let token = [("X-TOKEN", answer.token.as_str())];
    host.get_with(&lab.url(&format!("leave/{}", text(&image.name))), &token);
}

#[test]
fn a_file_is_read_once_for_its_cast_and_its_manifest() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let image = lab.put("image", SIZE);
    let server = lab.server().option("--rate", RATE).start();
    let before = bytes_read(&server);
    let valve = lab.hold_multicast_after(0);
    let mut get = Get::start_with(&lab, 1, &image, &["-v"]);
    lab.wait_members(&server, "image", 1..=1);
    valve.open();
    get.finish(&image);
    let log = get.proc.log();
    let stated = format!("b3 {}, as the server states it", b3(&image));
    assert!(log.contains(&stated), "{log}");
    let read = bytes_read(&server) - before;
    assert!(read < SIZE * 13 / 10, "{read} bytes of {SIZE} were read");
}

#[test]
fn members_that_join_while_a_file_is_hashed_complete() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let image = lab.put("image", SIZE);
    let server = lab.server().option("--rate", RATE).start();
    let mut get = Get::start(&lab, 1, &image);
    server.wait_cast("image", "a part is sent", |cast| cast.pages_sent > u64::from(cast.pages) / 4);
    let mut copy = Copy::start(&lab, 2, &image);
    get.finish(&image);
    copy.finish(&image);
    wait_known(&lab, &image);
}

#[test]
fn whoever_asks_for_a_manifest_does_not_wait_for_the_stream() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", SIZE);
    let server = lab.server().option("--rate", SLOW).start();
    let get = Get::start(&lab, 1, &image);
    server.wait_cast("image", "the stream runs", |cast| cast.pages_sent > 0);
    wait_hashed(&lab, text(&image.name));
    let cast = server.cast_of("image").unwrap();
    assert!(cast.pages_sent < u64::from(cast.pages) / 2, "{cast:?}");
    drop(get);
}

#[test]
fn a_slow_cast_or_one_that_ends_does_not_keep_its_file_from_being_hashed() {
    let lab = lab_or_skip!(Lab::builder());
    for (name, rate) in [("slow", SLOW), ("ended", RATE)] {
        let image = lab.put(name, SIZE);
        let server = lab.server().option("--rate", rate).start();
        let mut get = Get::start(&lab, 1, &image);
        server.wait_cast(name, "the stream runs", |cast| cast.pages_sent > 0);
        if name == "ended" {
            get.proc.signal(Signal::TERM);
            get.proc.wait(TRANSFER);
        }
        wait_known(&lab, &image);
    }
}
