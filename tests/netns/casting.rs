//! When a cast begins, which clients it reaches and when it ends, as seen at the server and on the
//! wire.

use std::fs::File;
use std::io::Read;

use harness::capture::Capture;
use harness::{Lab, SOON, digest_of, lab_or_skip, mib, wait_until};

use crate::CRAWL;
use crate::transfers::Copy;

#[test]
fn a_late_joiner_becomes_a_member_of_the_running_cast_and_gets_every_page() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "100mbit").start();
    let [early, late] = [1, 2].map(|k| lab.mount(k).option("unicast=never").start());
    let valve = lab.hold_multicast_after(mib(4));

    let mut first = Copy::start_on(early, &image);
    server
        .wait_cast("image", "a fifth is sent", |cast| cast.pages_sent > u64::from(cast.pages) / 5);
    let mut second = Copy::start_on(late, &image);
    lab.wait_members(&server, "image", 1..=2);
    valve.open();
    first.finish(&image);
    second.finish(&image);
    assert_eq!(server.status().totals.casts, 1);
}

#[test]
fn the_client_leaves_when_all_pages_are_held_although_the_file_is_still_open() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(8));
    let server = lab.server().start();
    let mount = lab.mount(1).start();
    let requests = Capture::start(lab.client(1), "tcp dst port 8888 and tcp[13] & 8 != 0");
    let mut file = File::open(mount.join("image")).unwrap();
    std::io::copy(&mut file, &mut std::io::sink()).unwrap();

    server.wait_no_members();
    wait_until(SOON, "the cast has ended", || server.status().casts.is_empty());
    assert_eq!(server.status().totals.leaves, 1);
    requests.wait_text("GET /leave/image");
    wait_until(SOON, "the client left the group", || !lab.client(1).is_in_a_group());
    drop(file);
}

#[test]
fn a_second_open_on_the_same_mount_shares_the_join() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).start();
    let mut first = File::open(mount.join("image")).unwrap();
    let mut second = File::open(mount.join("image")).unwrap();
    first.read_exact(&mut [0; 100]).unwrap();
    second.read_exact(&mut [0; 100]).unwrap();
    let cast = server.cast_of("image").unwrap();
    assert_eq!((cast.joins, cast.members), (1, 1));
}

#[test]
fn after_the_last_close_of_an_incomplete_file_the_client_lingers_and_then_leaves() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let server = lab.server().option("--rate", CRAWL).start();
    let patient = lab.mount(1).option("linger=10m").start();

    drop(File::open(patient.join("image")).unwrap());
    server.wait_cast("image", "the open joined", |cast| cast.members == 1);
    // Within the linger time another open uses the same membership.
    drop(File::open(patient.join("image")).unwrap());
    let totals = server.status().totals;
    assert_eq!((totals.joins, totals.leaves), (1, 0));
    patient.umount();
    server.wait_no_members();

    let mount = lab.mount(1).option("linger=1s").start();
    drop(File::open(mount.join("image")).unwrap());
    wait_until(SOON, "the mount has left by itself", || server.status().totals.leaves == 2);
    assert_eq!(server.status().totals.joins, 2);
}

#[test]
fn the_switch_sends_pages_only_to_members() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let image = lab.put("image", mib(8));
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    let before = lab.client(2).counters().rx_bytes;
    assert_eq!(digest_of(mount.join("image")), image.digest);
    let stray = lab.client(2).counters().rx_bytes - before;
    assert!(stray < image.size / 100, "{stray} bytes at a client that joined nothing");
}

#[test]
fn two_mounts_on_one_host_are_two_members_and_both_get_every_page() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let image = lab.put("image", mib(4));
    let server = lab.server().option("--rate", "50mbit").start();
    let mounts = [(); 2].map(|()| lab.mount(1).option("unicast=never").start());
    let valve = lab.hold_multicast_after(0);
    let mut copies = mounts.map(|mount| Copy::start_on(mount, &image));
    server.wait_cast("image", "two are members", |cast| cast.members == 2);
    valve.open();
    for copy in &mut copies {
        copy.finish(&image);
    }
}

#[test]
fn simultaneous_casts_have_different_groups() {
    let lab = lab_or_skip!(Lab::builder());
    let server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).start();
    let open: Vec<File> = ["a", "b", "c"]
        .iter()
        .map(|name| {
            lab.put(name, mib(1));
            File::open(mount.join(name)).unwrap()
        })
        .collect();
    wait_until(SOON, "three casts run", || server.status().casts.len() == 3);
    let mut groups: Vec<String> =
        server.status().casts.into_iter().map(|cast| cast.group).collect();
    groups.sort();
    groups.dedup();
    assert_eq!(groups.len(), 3, "{groups:?}");
    drop(open);
}

#[test]
fn a_cast_without_a_sign_of_life_ends_after_the_idle_passes() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(1));
    let server = lab.server().option("--idle-passes", "2").option("--rate", "100mbit").start();
    let answer = lab.client(1).get(&lab.url("join/image"));
    assert_eq!(answer.status, 200, "{}", answer.body);
    wait_until(SOON, "the cast has ended", || {
        let status = server.status();
        status.casts.is_empty() && status.totals.pages_sent > 0
    });
    let totals = server.status().totals;
    let pages = mib(1).div_ceil(1456);
    assert!((pages * 2..=pages * 3).contains(&totals.pages_sent), "{totals:?}");
}

#[test]
fn a_server_ends_its_casts_on_sigterm_and_exits_0() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let mut server = lab.server().option("--rate", CRAWL).start();
    assert_eq!(lab.client(1).get(&lab.url("join/image")).status, 200);
    server.wait_cast("image", "pages are being sent", |cast| cast.pages_sent > 0);
    server.stop();
}
