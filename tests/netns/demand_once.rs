//! What is demanded is sent once, however long it waits on its way.

use harness::{Lab, digest_of, lab_or_skip, mib};

/// Pages of a file that is sent as a whole.
fn pages(size: u64) -> u64 {
    size.div_ceil(1456)
}

#[test]
fn a_file_that_is_read_by_demand_over_a_full_link_is_sent_about_once() {
    let lab = lab_or_skip!(Lab::builder().rate("100mbit"));
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "100mbit").start();
    let mount = lab.mount(1).option("fill=demand").start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    server.wait_no_members();
    let totals = server.status().totals;
    // Reads of 128 KiB wait for 11 ms at this rate, and those behind them for twice that.
    assert!(totals.pages_sent * 10 < pages(image.size) * 12, "{totals:?}");
}

#[test]
fn a_slow_link_behind_a_fast_sender_is_not_filled_with_what_it_carries_already() {
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    let image = lab.put("image", mib(4));
    // The link's queue, of 1.5 MB, is 0.6 s long: nothing tells the server but the pages' time.
    let server = lab.server().option("--rate", "200mbit").start();
    let mount = lab.mount(1).option("fill=demand").start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    server.wait_no_members();
    let totals = server.status().totals;
    assert!(totals.pages_sent * 10 < pages(image.size) * 15, "{totals:?}");
}

#[test]
fn a_file_that_is_read_by_demand_through_loss_is_right_and_little_is_sent_twice() {
    let lab = lab_or_skip!(Lab::builder().loss(2.0));
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "200mbit").start();
    let mount = lab.mount(1).option("fill=demand").start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    server.wait_no_members();
    let totals = server.status().totals;
    assert!(totals.pages_sent * 10 < pages(image.size) * 13, "{totals:?}");
}
