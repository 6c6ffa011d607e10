//! The real cores of server and client against a simulated network, on a virtual clock.
//!
//! | module | holds |
//! |---|---|
//! | `scenario` | what is simulated: file, server, crowds of receivers |
//! | `world` | the clock, and who is told what when |
//! | `server`, `client` | the cores, driven |
//! | `core`, `link` | what happens to datagrams on the way that all receivers share, and on that of each |
//! | `outcome` | results, as lines of a table |
//! | `table` | the scenarios that are kept under review |
//!
//! A run depends on nothing but its [`Scenario`]: the same one gives the same [`Outcome`]. Payloads
//! are zeros, and a block of which enough arrived counts as rebuilt.

mod agenda;
mod burst;
mod client;
mod core;
mod link;
mod outcome;
mod random;
mod scenario;
mod server;
pub mod table;
mod world;

pub use core::CoreKind;
pub use link::{LinkKind, Loss};
pub use outcome::{HEADER, Outcome};
pub use scenario::{Crowd, Scenario, Stalls};
pub use world::run;
