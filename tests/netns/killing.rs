//! Readers that wait for pages can be killed, without harm to other readers.

use std::fs::File;

use harness::{Host, Lab, Proc, SOON, digest_of, lab_or_skip, mib};

use crate::readers;
use crate::readers::READ_LEN;

/// Asserts that a reader can be killed while it waits for pages, and that other reads still work.
/// `read` starts the reader.
fn assert_killable(read: impl Fn(&Host, &std::path::Path) -> Proc) {
    let lab = lab_or_skip!(Lab::builder().valve());
    let small = lab.put("small", 100_000);
    lab.put("image", mib(16));
    let server = lab.server().option("--rate", "50mbit").start();
    let mount = lab.mount(1).option("unicast=never").start();
    assert_eq!(digest_of(mount.join("small")), small.digest);
    // While the valve is closed no page arrives, so a reader that dies did not wait for its page.
    let valve = lab.hold_multicast_after(0);
    let _other = File::open(mount.join("image")).unwrap();
    server.wait_cast("image", "the open joined", |cast| cast.members == 1);

    let mut reader = read(lab.client(1), &mount.join("image"));
    mount.wait_parked(1);
    assert!(reader.exited().is_none(), "{}", reader.log());
    reader.kill_within(SOON);

    valve.open();
    let mut others = readers::read_at(lab.client(1), &mount.join("image"), 0);
    others.wait_success(crate::TRANSFER);
    assert_eq!(digest_of(mount.join("small")), small.digest);
}

#[test]
fn a_reader_that_waits_in_read_can_be_killed_and_others_go_on() {
    assert_killable(|host, path| readers::read_at(host, path, mib(16) - READ_LEN));
}

#[test]
fn a_reader_that_waits_in_a_page_fault_can_be_killed_and_others_go_on() {
    assert_killable(readers::fault_at_end);
}

#[test]
fn a_reader_that_waits_in_a_direct_read_can_be_killed_and_others_go_on() {
    assert_killable(|host, path| readers::read_direct_at(host, path, mib(16) - READ_LEN));
}
