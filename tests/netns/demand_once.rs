//! A demanded page is sent about once, even if it takes long to arrive.

use harness::{Lab, digest_of, lab_or_skip, mib};

/// Reads a file of `size` bytes by demand from a server that sends at `rate`. Returns the number of
/// pages sent, as a percentage of the file's pages.
fn percent_sent(lab: &Lab, size: u64, rate: &str) -> u64 {
    let image = lab.put("image", size);
    let server = lab.server().option("--rate", rate).start();
    let mount = lab.mount(1).option("fill=demand").start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    server.wait_no_members();
    server.status().totals.pages_sent * 100 / size.div_ceil(1456)
}

#[test]
fn over_a_full_link_a_file_read_by_demand_is_sent_about_once() {
    let lab = lab_or_skip!(Lab::builder().rate("100mbit"));
    // At this rate a read of 128 KiB waits for 11 ms, and the next read for twice that.
    let percent = percent_sent(&lab, mib(16), "100mbit");
    assert!(percent < 120, "{percent} % of the file");
}

#[test]
fn over_a_link_slower_than_the_server_demanded_pages_in_flight_are_not_sent_again() {
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    // The link's queue of 1.5 MB delays pages by 0.6 s. The server can only learn that from the
    // delay that the client states in its wants.
    let percent = percent_sent(&lab, mib(4), "200mbit");
    assert!(percent < 150, "{percent} % of the file");
}

#[test]
fn through_loss_a_file_read_by_demand_is_right_and_few_pages_are_sent_twice() {
    let lab = lab_or_skip!(Lab::builder().loss(2.0));
    let percent = percent_sent(&lab, mib(16), "200mbit");
    assert!(percent < 130, "{percent} % of the file");
}
