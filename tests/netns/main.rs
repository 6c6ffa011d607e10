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

mod laboratory;
mod plain_peers;

use std::path::Path;

/// A path of the lab as a command line takes it.
fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
