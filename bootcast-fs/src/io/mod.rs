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

/// The present moment, for those who have no clock.
#[expect(clippy::disallowed_methods, reason = "the one reading of the clock that the client has")]
pub fn now() -> Instant {
    Instant::now()
}

/// A number unlike those of other machines, for those who have no randomness.
pub fn seed() -> u64 {
    RandomState::new().hash_one(())
}
