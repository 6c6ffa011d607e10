//! Sockets, requests to the server and the clock. The rest of the client does no network I/O and
//! reads no clock.

mod answers;
mod caller;
mod control;
mod group_socket;
mod intake;
mod interface;
mod receive;
mod reception;
mod requests;
mod sharing;
mod stated_ids;
#[expect(
    unsafe_code,
    reason = "the door to system calls that no safe library offers as we need them"
)]
mod sys;

pub use caller::Caller;
pub use control::{Control, ControlError, FileAnswer, SegmentRange, SmallAnswer};
pub use intake::{Intake, IntakeConfig};
pub use interface::InterfaceChoice;
pub(crate) use sharing::fuzz_message as fuzz_message_of_holder;

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

/// Returns the current time. All modules get it here or as an argument.
#[expect(clippy::disallowed_methods, reason = "the only place where the client reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Returns a random seed for modules that must be deterministic.
pub fn seed() -> u64 {
    RandomState::new().hash_one(())
}
