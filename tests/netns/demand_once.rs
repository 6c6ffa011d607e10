//! What is demanded is sent once, however long it waits on its way.

use harness::{Lab, digest_of, lab_or_skip, mib};

/// Reads a file of `size` bytes by demand from a server that sends at `rate`. Returns the pages
/// that were sent, in per cent of the file's.
fn percent_sent(lab: &Lab, size: u64, rate: &str) -> u64 {
    let image = lab.put("image", size);
    let server = lab.server().option("--rate", rate).start();
    let mount = lab.mount(1).option("fill=demand").start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    server.wait_no_members();
    server.status().totals.pages_sent * 100 / size.div_ceil(1456)
}

#[test]
fn a_file_that_is_read_by_demand_over_a_full_link_is_sent_about_once() {
    let lab = lab_or_skip!(Lab::builder().rate("100mbit"));
    // Reads of 128 KiB wait for 11 ms at this rate, and those behind them for twice that.
    let percent = percent_sent(&lab, mib(16), "100mbit");
    assert!(percent < 120, "{percent} % of the file");
}

#[test]
fn a_slow_link_behind_a_fast_sender_is_not_filled_with_what_it_carries_already() {
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    // The link's queue, of 1.5 MB, is 0.6 s long: nothing tells the server but the pages' time.
    let percent = percent_sent(&lab, mib(4), "200mbit");
    assert!(percent < 150, "{percent} % of the file");
}

#[test]
fn a_file_that_is_read_by_demand_through_loss_is_right_and_little_is_sent_twice() {
    let lab = lab_or_skip!(Lab::builder().loss(2.0));
    let percent = percent_sent(&lab, mib(16), "200mbit");
    assert!(percent < 130, "{percent} % of the file");
}
