//! The real binary on loopback: what a client sees. docs/PROTOCOL.md.
#![expect(clippy::unwrap_used, reason = "a helper that cannot do its work fails the test")]
#![expect(clippy::disallowed_methods, reason = "deadlines need a clock, looking again a pause")]

mod casts;
mod confinement;
mod files;
mod http;
mod process;
mod repair;
mod startup;
mod tags;
