//! What one host may cost. docs/PROTOCOL.md, "Budgets".

use std::fs::File;

use harness::{Lab, SOON, ServerProc, lab_or_skip, mib, wait_until};

use crate::TRANSFER;

/// A file that is larger than the budget of 256 MiB.
const LARGE: u64 = 300 << 20;

/// Creates a file of zeros that takes no room.
fn put_sparse(lab: &Lab, name: &str, size: u64) {
    File::create(lab.served().join(name)).unwrap().set_len(size).unwrap();
}

/// Waits until no cast runs, and returns the pages that were sent as a share of [`LARGE`].
fn files_sent(server: &ServerProc<'_>) -> f64 {
    wait_until(TRANSFER, "no cast runs", || server.status().casts.is_empty());
    let pages = u32::try_from(server.status().totals.pages_sent).unwrap();
    f64::from(pages) / f64::from(u32::try_from(LARGE.div_ceil(1456)).unwrap())
}

#[test]
fn a_dead_plain_client_costs_one_large_file_and_is_then_refused() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    put_sparse(&lab, "image", LARGE);
    put_sparse(&lab, "other", LARGE);
    // The rate is high for the sake of the test's duration, and in vain for the host.
    let server = lab.server().option("--rate", "2gbit").start();
    assert_eq!(lab.client(1).get(&lab.url("join/image")).status, 200);
    wait_until(SOON, "the cast runs", || server.status().totals.pages_sent > 0);
    let files = files_sent(&server);
    assert!((1.0..1.05).contains(&files), "{files}");
    let refused = lab.client(1).get(&lab.url("join/other"));
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(refused.body.contains("plain members that never left"), "{}", refused.body);
    assert_eq!(server.status().budgets.joins, 1);
    assert_eq!(lab.client(2).get(&lab.url("join/other")).status, 200, "another host");
}

#[test]
fn plain_clients_are_refused_where_they_are_denied_and_others_are_not() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(1));
    let server = lab.server().option("--plain", "deny").start();
    let refused = lab.client(1).get(&lab.url("join/image"));
    assert_eq!(refused.status, 403, "{}", refused.body);
    let joined = lab.client(1).get_with(&lab.url("join/image"), &[("X-BOOTCAST", "1")]);
    assert_eq!(joined.status, 200, "{}", joined.body);
    assert_eq!(server.status().totals.joins, 1);
}
