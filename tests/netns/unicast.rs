//! Networks that drop multicast. Files arrive over HTTP, and by multicast as soon as it works.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;

use harness::binaries::binary;
use harness::{Lab, MountProc, SOON, ServerProc, digest_of, lab_or_skip, mib, wait_until};

use crate::transfers::Copy;
use crate::{CRAWL, TRANSFER, readers, text};

/// Part of the mount's log line when files begin to arrive over HTTP.
const NO_MULTICAST: &str = "no multicast from";

/// Returns the number of those log lines.
fn warnings(mount: &MountProc<'_>) -> usize {
    mount.log().lines().filter(|line| line.contains(NO_MULTICAST)).count()
}

/// Waits until the server knows that this many members of the cast of `path` fetch the file.
fn wait_unicast(server: &ServerProc<'_>, path: &str, members: u32) {
    let condition = format!("{members} members fetch over HTTP");
    server.wait_cast(path, &condition, |cast| cast.unicast == members);
}

#[test]
fn files_can_be_read_through_a_network_that_drops_all_multicast() {
    let lab = lab_or_skip!(Lab::builder());
    let images: Vec<_> = ["a", "b", "c"].map(|name| lab.put(name, mib(8) + 77)).into();
    let server = lab.server().option("--rate", "20mbit").start();
    lab.client(1).drop_multicast();
    let mount = lab.mount(1).start();
    for image in &images {
        let copy = lab.client(1).fresh_path("copy");
        readers::copy(lab.client(1), &mount.join(&image.name), &copy).wait_success(TRANSFER);
        assert_eq!(digest_of(&copy), image.digest, "{}", image.name.display());
    }
    server.wait_no_members();
    assert_eq!(warnings(&mount), 1, "{}", mount.log());
}

#[test]
fn a_cast_whose_members_receive_nothing_stops_sending_and_the_status_shows_them() {
    // The file arrives slowly over HTTP too, so that the test can read the status meanwhile.
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "2mbit").start();
    lab.client(1).drop_multicast();
    let mut copy = Copy::start(&lab, 1, &image);
    wait_unicast(&server, "image", 1);
    let known = server.cast_of("image").unwrap();

    let status = lab.client(1).run_ok(binary("bootcast"), ["status", &lab.url("")]);
    let row: Vec<_> = status
        .lines()
        .find(|line| line.starts_with("image "))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(row[2..4], ["1", "1"], "members, and members that fetch: {status}");
    copy.finish(&image);
    let totals = server.status().totals;
    // Some datagrams were still sent when the report arrived.
    let later = totals.pages_sent + totals.symbols_sent - known.pages_sent - known.symbols_sent;
    assert!(later < 100, "{later} datagrams that no member receives");
    assert_eq!(totals.joins, 1);
}

#[test]
fn when_multicast_works_again_the_rest_arrives_by_multicast() {
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    let image = lab.put("image", mib(24));
    let server = lab.server().option("--rate", "15mbit").start();
    lab.client(1).drop_multicast();
    let mut copy = Copy::start(&lab, 1, &image);
    wait_unicast(&server, "image", 1);
    let before = server.cast_of("image").unwrap().pages_sent;

    lab.client(1).pass_multicast();
    wait_unicast(&server, "image", 0);
    server.wait_cast("image", "pages are sent again", |cast| cast.pages_sent > before + 100);
    wait_until(SOON, "the mount says so", || copy.mount.log().contains("arrives again"));
    copy.finish(&image);
    server.wait_no_members();
    assert_eq!(warnings(&copy.mount), 1, "{}", copy.mount.log());
}

#[test]
fn one_client_without_multicast_costs_the_others_nothing() {
    let lab = lab_or_skip!(Lab::builder().clients(2).rate("100mbit"));
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "40mbit").start();
    lab.client(2).drop_multicast();
    let [hears, fetches] = [1, 2].map(|k| lab.mount(k).start());
    // The member that receives multicast joins first. Pages sent before that would be sent again.
    let mut first = Copy::start_on(hears, &image);
    lab.wait_members(&server, "image", 1..=1);
    let mut second = Copy::start_on(fetches, &image);
    wait_unicast(&server, "image", 1);
    first.finish(&image);
    second.finish(&image);
    server.wait_no_members();
    let totals = server.status().totals;
    let pages = mib(16).div_ceil(1456);
    assert!(totals.pages_sent < pages * 3 / 2, "{totals:?} for a file of {pages} pages");
    assert_eq!((warnings(&first.mount), warnings(&second.mount)), (0, 1));
}

#[test]
fn unicast_never_waits_for_multicast() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(1));
    let server = lab.server().start();
    lab.client(1).drop_multicast();
    let mount = lab.mount(1).option("unicast=never,soft,timeo=3s").start();
    let mut file = File::open(mount.join("image")).unwrap();
    let error = file.read(&mut [0; 4096]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert_eq!((warnings(&mount), server.status().totals.joins > 0), (0, true));
}

#[test]
fn unicast_always_joins_no_group() {
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).option("unicast=always").start();
    let mut copy = Copy::start_on(mount, &image);
    wait_unicast(&server, "image", 1);
    assert!(!lab.client(1).is_in_a_group());
    copy.finish(&image);
    server.wait_no_members();
    assert_eq!(warnings(&copy.mount), 0);
}

#[test]
fn a_read_at_a_distant_offset_does_not_wait_for_the_bytes_before_it() {
    // The whole file would take half a minute.
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    let image = lab.put("image", mib(64));
    let bytes = fs::read(&image.path).unwrap();
    let server = lab.server().option("--rate", "2mbit").start();
    lab.client(1).drop_multicast();
    let mount = lab.mount(1).start();
    let file = File::open(mount.join("image")).unwrap();
    wait_unicast(&server, "image", 1);
    for offset in [mib(60), mib(30), mib(50)] {
        let at = usize::try_from(offset).unwrap();
        let mut chunk = vec![0; 8192];
        file.read_exact_at(&mut chunk, offset).unwrap();
        assert!(chunk == bytes[at..at + 8192], "other bytes at {offset}");
    }
    let cast = server.cast_of("image").unwrap();
    assert_eq!(cast.members, 1, "the file should not be complete yet");
}

#[test]
fn a_fetch_continues_after_a_crash_and_restart_of_the_server() {
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    let image = lab.put("image", mib(16));
    let mut server = lab.server().option("--rate", "2mbit").start();
    lab.client(1).drop_multicast();
    let mut copy = Copy::start(&lab, 1, &image);
    wait_unicast(&server, "image", 1);
    server.kill();
    server.start();
    copy.finish(&image);
    server.wait_no_members();
}

#[test]
fn versions_of_a_file_that_is_replaced_while_it_is_fetched_never_mix() {
    const ESTALE: i32 = 116;
    const CHUNK: usize = 65_536;
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    let image = lab.put("image", mib(16));
    let old_bytes = fs::read(&image.path).unwrap();
    let server = lab.server().option("--rate", "2mbit").start();
    lab.client(1).drop_multicast();
    let mount = lab.mount(1).start();
    let old = File::open(mount.join("image")).unwrap();
    wait_unicast(&server, "image", 1);

    let new = lab.put("new-version", image.size);
    fs::rename(&new.path, &image.path).unwrap();
    let mut stale = 0;
    for (number, expected) in old_bytes.chunks(CHUNK).enumerate() {
        let mut chunk = vec![0; expected.len()];
        let offset = u64::try_from(number * CHUNK).unwrap();
        match old.read_exact_at(&mut chunk, offset) {
            Ok(()) => assert!(chunk == expected, "other bytes at {offset} of the old version"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(ESTALE), "{error}");
                stale += 1;
            }
        }
    }
    assert!(stale > 0, "the file should have been replaced before it was complete");
    wait_until(TRANSFER, "an open gives the new version", || {
        harness::content::try_digest_of(&mount.join("image")).is_ok_and(|it| it == new.digest)
    });
}

#[test]
fn get_falls_back_to_http_by_itself() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(4) + 5);
    let server = lab.server().start();
    lab.client(1).drop_multicast();
    let target = lab.client(1).fresh_path("image");
    let args = ["get", "--interface", "eth0", &lab.url("image"), "-O", text(&target)];
    lab.client(1).run_ok(binary("bootcast"), args);
    assert_eq!(digest_of(&target), image.digest);
    let streamed = lab.client(1).run(binary("bootcast"), ["get", &lab.url("image"), "-O", "-"]);
    assert!(streamed.status.success() && streamed.stdout == fs::read(&image.path).unwrap());
    server.wait_no_members();
}
