//! End-to-end tests: real programs, kernel multicast and real mounts, in network namespaces.
//!
//! ```text
//! head eth0 ---- head [ switch: br0 ] c1 ---- eth0 c1      bootcastfs, bootcast, plain_client.py
//! 10.77.0.1                           c2 ---- eth0 c2
//! bootcast-server,                    ...     10.77.0.11, .12, ..
//! plain_server.py                             own loss (nftables); rate cap at the head (tbf)
//! ```
//!
//! IGMP snooping is on and a querier runs, so a client gets only the groups that it joined. Each
//! test has a lab of its own. On a machine that cannot have one, tests print `skipped` and the
//! reason.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod absence;
mod budgets;
mod bundles;
mod cache_tool;
mod capacity;
mod casting;
mod chaos;
mod conditions;
mod content_ids;
mod continuing;
mod damaging;
mod deafness;
mod demand_once;
mod demanding;
mod errors;
mod failing_disk;
mod fetching;
mod fetching_cached;
mod file_handles;
mod filling;
mod forging;
mod forging_at_rate;
mod full_cache;
mod handing_over;
mod hanging;
mod hashing;
mod identity;
mod ignored_signals;
mod installing;
mod interfaces;
mod keeping;
mod kernel_facts;
mod killing;
mod laboratory;
mod large_directory;
mod loss;
mod lying;
mod many_readers;
mod members;
mod metadata;
mod model;
mod mounting;
mod mounting_away;
mod new_versions;
mod outages;
mod outputs;
mod panicking;
mod plain_peers;
mod prehashing;
mod profiles;
mod proving;
mod rates;
mod readers;
mod reading;
mod relapsing;
mod renumbering;
mod replacing;
mod replaying;
mod second_implementation;
mod sharing;
mod single_file;
mod slow_links;
mod slow_readers;
mod sparse;
mod stopped;
mod telling;
mod torture;
mod transfers;
mod tree;
mod two_heads;
mod unicast;
mod unreadable;
mod urlmount;
mod verifying;
mod versions;
mod waiting;
mod web;
mod withholding;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A rate at which a cast needs minutes for 16 MiB, so that readers of the end of the file wait.
const CRAWL: &str = "1mbit";

/// Deadline of a transfer that takes a few seconds on an idle machine. Long enough for a single
/// core that other programs keep busy, but a transfer that hangs still fails.
const TRANSFER: Duration = Duration::from_secs(180);

/// Returns a path of the lab as an argument for a command line.
fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Sets a flag when dropped, also if the test fails. Threads that check the flag then end.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
