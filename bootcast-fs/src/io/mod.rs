//! The only place of the client with sockets and a clock.

mod caller;
mod control;
mod fetch;
mod group_socket;
mod intake;
mod interface;
mod reception;
#[expect(
    unsafe_code,
    reason = "the door to system calls that no safe library offers as we need them"
)]
mod sys;

pub use caller::Caller;
pub use control::{Control, ControlError, FileAnswer};
pub use intake::{Intake, IntakeConfig};
pub use interface::InterfaceChoice;

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

/// Current time, for modules that must not read a clock.
#[expect(clippy::disallowed_methods, reason = "the one reading of the clock that the client has")]
pub fn now() -> Instant {
    Instant::now()
}

/// Random number, for modules that have no randomness of their own.
pub fn seed() -> u64 {
    RandomState::new().hash_one(())
}
