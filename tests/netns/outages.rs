//! The server disappears and comes back. Readers wait and continue.

use std::fs::File;
use std::io::{ErrorKind, Read};

use harness::{Lab, SOON, digest_of, lab_or_skip, mib, wait_until};

use crate::transfers::Copy;
use crate::{CRAWL, TRANSFER, readers};

#[test]
fn a_reader_gets_the_right_bytes_although_the_server_crashes_and_restarts() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let image = lab.put("image", mib(16));
    let mut server = lab.server().option("--rate", "50mbit").start();
    let mount = lab.mount(1).option("unicast=never").start();
    let valve = lab.hold_multicast_after(mib(8));
    let mut copy = Copy::start_on(mount, &image);
    server
        .wait_cast("image", "a third is sent", |cast| cast.pages_sent > u64::from(cast.pages) / 3);
    server.kill();
    valve.open();
    server.start();
    copy.finish(&image);
    server.wait_no_members();
}

#[test]
fn a_member_joins_again_when_the_server_has_ended_its_cast() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let image = lab.put("image", mib(8));
    let server = lab.server().option("--rate", "20mbit").start();
    let mount = lab.mount(1).option("unicast=never").start();
    let valve = lab.hold_multicast_after(mib(1));
    let copy = lab.client(1).fresh_path("copy");
    let mut reader = readers::copy(lab.client(1), &mount.join("image"), &copy);
    server.wait_cast("image", "pages are being sent", |cast| cast.pages_sent > 100);
    // A new time is a new version, although the bytes are equal: the server must end the cast.
    let file = File::options().append(true).open(&image.path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    valve.open();
    wait_until(TRANSFER, "the reader has ended", || reader.exited().is_some());
    let whole = digest_of(mount.join("image"));
    assert_eq!(whole, image.digest);
}

#[test]
fn a_read_of_a_soft_mount_fails_with_eio_after_timeo() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let mut server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).option("soft").option("timeo=1s").start();
    let mut file = File::open(mount.join("image")).unwrap();
    server.wait_cast("image", "the open joined", |cast| cast.members == 1);
    server.kill();
    let mut bytes = Vec::new();
    let error = file.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert_eq!(file.metadata().unwrap().len(), mib(16), "a failed read must not change the size");
}

#[test]
fn a_name_that_is_removed_on_the_server_disappears_from_the_mount() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 1000);
    let _server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=0s").start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    std::fs::remove_file(&image.path).unwrap();
    wait_until(SOON, "the name is gone", || {
        std::fs::metadata(mount.join("image"))
            .is_err_and(|error| error.kind() == ErrorKind::NotFound)
    });
}
