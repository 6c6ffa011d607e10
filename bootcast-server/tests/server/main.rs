//! Runs the real binary on loopback and tests it as a client sees it. docs/PROTOCOL.md.
#![expect(clippy::unwrap_used, reason = "a helper that fails must fail the test")]
#![expect(clippy::disallowed_methods, reason = "deadlines need a clock, and polling needs a pause")]

mod boot_clients;
mod bundles;
mod casts;
mod confinement;
mod demand;
mod files;
mod http;
mod leaf_lists;
mod manifests;
mod prehash;
mod process;
mod profiles;
mod repair;
mod startup;
mod state_dir;
mod tags;
mod versions;
mod zeros;
