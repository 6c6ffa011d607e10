//! What is sent, when and to which group. No I/O: time and randomness are arguments.
//!
//! | module | decides |
//! |---|---|
//! | [`Cast`] | which datagrams of one file go out next, and when their sending ends |
//! | [`Scheduler`] | which cast is next, so that all share the rate fairly |
//! | [`Pacer`] | when the next datagrams may leave |
//! | `rate` | how fast a cast sends below the ceiling of all |
//! | [`GroupPool`] | which multicast address a cast gets |
//! | `urgent` | which casts go first, because readers wait for pages of them |
//!
//! A cast is put together from
//!
//! | module | decides |
//! |---|---|
//! | `members` | who is believed to listen |
//! | `stream` | which pages go out next |
//! | `repair` | which repair symbols go out next, and what members are told |
//! | `demand` | which pages members asked for, and go out before all that |
//! | `precedence` | how much the others get while demand goes first |
//! | `recall` | when those who hear nothing are told that there is something to hear |
//!
//! The unit of sending is a few datagrams of one kind ([`Transmit`]). How they get their bytes is left to
//! [`crate::io`].

mod demand;
mod farewells;
mod groups;
mod lifecycle;
mod members;
mod pacer;
mod precedence;
mod range_map;
mod rate;
mod recall;
mod repair;
mod scheduler;
mod stream;
mod urgent;

pub use groups::{GroupPool, GroupPoolError};
pub use lifecycle::{Cast, CastPolicy, EndReason, HOLD, RepairSettings, SHORT_HOLD, Sending};
pub use members::MemberKind;
pub use pacer::{Pacer, TokenBucket};
pub use repair::Symbol;
pub use scheduler::{
    CastId, CastView, Event, JoinRefusal, Joined, MAX_MEMBERS, Scheduler, Settings, Transmit,
};
pub use stream::PASS_INTERVAL;
