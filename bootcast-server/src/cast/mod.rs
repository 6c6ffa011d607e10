//! What is sent, when and to which group. No I/O: time and randomness are arguments.
//!
//! | module | decides |
//! |---|---|
//! | [`Cast`] | which pages of one file go out next, and when their sending ends |
//! | [`Scheduler`] | which cast is next, so that all share the rate fairly |
//! | [`Pacer`] | when the next run of pages may leave |
//! | [`GroupPool`] | which multicast address a cast gets |
//!
//! The unit of sending is a run of pages ([`Transmit`]). How it becomes datagrams is left to
//! [`crate::io`].

mod carousel;
mod groups;
mod pacer;
mod scheduler;

pub use carousel::{Cast, CastPolicy, EndReason, HOLD, PASS_INTERVAL};
pub use groups::{GroupPool, GroupPoolError};
pub use pacer::{Pacer, TokenBucket};
pub use scheduler::{
    CastId, CastView, Event, JoinRefusal, Joined, MAX_MEMBERS, Scheduler, Settings, Transmit,
};
