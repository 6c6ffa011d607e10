//! Decides what is sent, when, and to which group. No I/O: time and randomness are arguments.
//!
//! | module | decides |
//! |---|---|
//! | [`Cast`] | which datagrams of one file go out next, and when the cast ends |
//! | [`Scheduler`] | which cast sends next, so that all share the rate fairly |
//! | [`Pacer`] | when the next datagrams may leave |
//! | `rate` | how fast one cast sends, below the ceiling that all casts share |
//! | `urgent` | which casts send first, because readers wait for their pages |
//! | [`GroupPool`] | which multicast address a cast gets |
//! | `end_announcements` | when the end of a cast is announced to its group |
//! | `accounts` | what may still be sent for members that proved nothing |
//! | `restart_backoff` | when a file whose casts fail repeatedly may get the next cast |
//!
//! A cast consists of
//!
//! | module | decides |
//! |---|---|
//! | `members` | which clients still take part |
//! | `principal` | whose clients they are |
//! | `rations` | how much goes before the stream for a single principal |
//! | `shares` | what each principal owes for members that proved nothing |
//! | `credit` | whether the requests of a member are still served |
//! | `stream` | which pages go out next |
//! | `repair` | which repair symbols go out next, and what beacons say |
//! | `demand` | which demanded pages go out before all that |
//! | `leaf_lists` | which leaf values go out ahead of the pages that they prove |
//! | `profile` | which leaves members wanted first, and when new members get them |
//! | `precedence` | how much is left for everything else while demanded pages go first |
//! | `unreadable` | which pages are left out because they cannot be read |
//! | `multicast_probe` | when a beacon and a few pages go to members that are all deaf |
//!
//! The unit of sending is a few datagrams of one kind ([`Transmit`]). [`crate::io`] fills them with
//! bytes.

mod accounts;
mod credit;
mod demand;
mod end_announcements;
mod group_ranges;
mod groups;
mod leaf_lists;
mod lifecycle;
mod members;
mod multicast_probe;
mod pacer;
mod precedence;
mod principal;
mod profile;
mod rate;
mod rations;
mod repair;
mod restart_backoff;
mod scheduler;
mod shares;
mod stream;
mod unreadable;
mod urgent;

pub use accounts::PlainTrust;
pub use groups::{GroupPool, GroupPoolError};
pub use lifecycle::{Cast, CastPolicy, EndReason, RepairSettings, Sending};
pub use members::MemberKind;
pub use pacer::{Pacer, TokenBucket};
pub use principal::Principal;
pub use rate::CeilingSource;
pub use repair::Symbol;
pub use scheduler::{
    CastId, CastView, Ended, Event, JoinRefusal, Joined, Lane, MAX_MEMBERS, Newcomer, Scheduler,
    Settings, Taken, Transmit,
};
pub use stream::PASS_INTERVAL;
