//! The real binary on loopback: what a client sees. docs/PROTOCOL.md.

mod casts;
mod confinement;
mod files;
mod http;
mod process;
mod startup;
