//! End to end: real binaries, kernel multicast, real mounts, in network namespaces.
//!
//! ```text
//! head eth0 ---- head [ switch: br0 ] c1 ---- eth0 c1      bootcastfs, bootcast, plain_client.py
//! 10.77.0.1                           c2 ---- eth0 c2
//! bootcast-server,                    ...     10.77.0.11, .12, ..
//! plain_server.py                             own loss (nftables); rate cap at the head (tbf)
//! ```
//!
//! IGMP snooping is on and a querier runs: a client gets only what it subscribed to. Each test has
//! a lab of its own. Where no lab can be built, tests print `skipped` and why.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod absence;
mod casting;
mod conditions;
mod deafness;
mod demand_once;
mod demanding;
mod fetching;
mod forging;
mod hanging;
mod identity;
mod ignored_signals;
mod keeping;
mod kernel_facts;
mod killing;
mod laboratory;
mod large_directory;
mod loss;
mod lying;
mod members;
mod mounting;
mod outages;
mod outputs;
mod plain_peers;
mod rates;
mod readers;
mod reading;
mod relapsing;
mod renumbering;
mod replacing;
mod second_implementation;
mod slow_links;
mod slow_readers;
mod transfers;
mod tree;
mod unicast;
mod unreadable;
mod waiting;
mod web;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A rate at which the far end of a file of 16 MiB is minutes away, so its readers wait.
const CRAWL: &str = "1mbit";

/// Deadline of a transfer that takes a few seconds on an idle machine. Far more than any test needs
/// on one core that other programs keep busy; a transfer that hangs fails all the same.
const TRANSFER: Duration = Duration::from_secs(180);

/// A path of the lab as a command line takes it.
fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Sets the flag also where the test fails, so that the threads that look at it end.
struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
