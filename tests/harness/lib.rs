//! Several hosts on one machine, made of network namespaces, and the programs that run on them.
//!
//! ```text
//! head eth0 ---- head [ switch: br0 ] c1 ---- eth0 c1
//! 10.77.0.1                           c2 ---- eth0 c2
//!                                     ...     10.77.0.11, .12, ..
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`lab`] | the network: hosts, switch, rate cap, loss, delay |
//! | [`host`] | one host: commands, HTTP requests and counters in its network namespace |
//! | [`process`] | a running program: log, deadline, end |
//! | [`server`] | `bootcast-server` on the head |
//! | [`mount`] | `bootcastfs` on a client |
//! | [`capture`] | `tcpdump` on a host |
//! | [`forger`] | datagrams that a host sends in the name of the server |
//! | [`content`] | seeded random files and digests |
//! | [`random`] | random choices from a seed that is printed |
//! | [`generated`] | the generated part of a document |
//! | [`sim`] | a simulation without a network: protocol logic on a virtual clock |
//! | [`requirements`] | what a lab needs; tests say `skipped` where it is missing |
//! | [`valve`] | holds multicast back until a condition is met |
//! | [`wait`] | conditions with a deadline |
//!
//! All processes, mounts and namespaces of a test end with it, also if it panics. `make clean-lab`
//! removes those of a test run that was killed.
#![expect(
    clippy::disallowed_methods,
    reason = "tests run on the real clock: deadlines are measured, conditions polled"
)]

pub mod binaries;
pub mod capture;
pub mod content;
mod delay_line;
pub mod forger;
pub mod generated;
pub mod host;
mod impairment;
pub mod lab;
mod link;
pub mod mount;
mod mount_namespace;
pub mod process;
pub mod random;
pub mod requirements;
pub mod server;
#[path = "../sim/mod.rs"]
pub mod sim;
mod sys;
pub mod valve;
pub mod wait;

pub use content::{Content, digest_of, mib};
pub use forger::{Forger, sending_socket};
pub use host::Host;
pub use lab::Lab;
pub use mount::MountProc;
pub use process::Proc;
pub use random::Random;
pub use server::ServerProc;
pub use wait::{SOON, wait_for, wait_until};

/// Builds the lab. If this machine cannot have one, says `skipped` and returns from the test.
#[macro_export]
macro_rules! lab_or_skip {
    ($builder:expr) => {{
        let builder = $builder;
        match builder.skip_reason() {
            None => builder.build(),
            Some(reason) => return $crate::requirements::report_skipped(&reason),
        }
    }};
}
