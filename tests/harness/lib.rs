//! Several hosts on one machine, and the programs that run on them.
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
//! | [`content`] | seeded random files and digests |
//! | [`sim`] | no network at all: the cores of server and client on a virtual clock |
//! | [`requirements`] | what must be there, else tests say `skipped` |
//! | [`valve`] | holds a cast back until what it must wait for has happened |
//! | [`wait`] | conditions with a deadline |
//!
//! Whatever a test starts ends with it, also when it panics. What a killed test run leaves behind
//! is removed by `make clean-lab`.
#![expect(
    clippy::disallowed_methods,
    reason = "tests run on the real clock: deadlines are measured, conditions polled"
)]

pub mod binaries;
pub mod capture;
pub mod content;
mod delay_line;
pub mod host;
mod impairment;
pub mod lab;
mod link;
pub mod mount;
pub mod process;
pub mod requirements;
pub mod server;
#[path = "../sim/mod.rs"]
pub mod sim;
mod sys;
pub mod valve;
pub mod wait;

pub use content::{Content, digest_of, mib};
pub use host::Host;
pub use lab::Lab;
pub use mount::MountProc;
pub use process::Proc;
pub use server::ServerProc;
pub use wait::{SOON, wait_for, wait_until};

/// Builds the lab, or says `skipped` and returns from the test where this machine cannot have one.
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
