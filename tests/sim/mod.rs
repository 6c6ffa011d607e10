//! Simulation: the real protocol code of server and client, a simulated network and a virtual
//! clock.
//!
//! | module | holds |
//! |---|---|
//! | `scenario` | description of a run: file, server, crowds of receivers |
//! | `world` | the virtual clock, and the delivery of datagrams and requests |
//! | `server`, `client` | drivers of the real server and client |
//! | `core` | the network core: a link that all receivers share |
//! | `link` | the link of each receiver |
//! | `intruder` | a host that sends in the server's name |
//! | `liar` | a host whose requests are lies, or a flood |
//! | `audit` | checks of what the server sends and what a client stores |
//! | `outcome` | results, as lines of a table |
//! | `table` | the scenarios of `scenarios.txt`, and those of the goals |
//!
//! A run depends on nothing but its [`Scenario`]: equal scenarios give equal [`Outcome`]s. Payloads
//! are zeros, and a block counts as rebuilt as soon as enough of its pages and symbols arrived.

mod audit;
mod burst;
mod client;
mod core;
mod event_queue;
mod intruder;
mod liar;
mod link;
mod outcome;
mod random;
mod scenario;
mod server;
pub mod table;
mod world;

pub use core::CoreKind;
pub use intruder::IntruderKind;
pub use liar::LiarKind;
pub use link::{LinkKind, Loss};
pub use outcome::{HEADER, Outcome};
pub use scenario::{Crowd, Scenario, Stalls};
pub use world::run;
