//! Casts whose group another sender uses. docs/PROTOCOL.md, "Two senders in one group".

use std::time::{Duration, Instant};

use super::{CastId, EndReason, Scheduler};

/// Time after which a sender that keeps its group gives it up all the same: the other one may not
/// know that it should.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time after which an earlier stranger does not count any more.
const MEMORY: Duration = Duration::from_secs(60);

/// Minimum time between two casts that end for this reason. Anyone can send to a group.
const END_INTERVAL: Duration = Duration::from_secs(10);

/// Strangers in the group of one cast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strangers {
    first: Instant,
    last: Instant,
}

/// What follows from another sender in the group of a cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The cast ends. Its members join again, and get another group.
    Ended,
    /// The cast goes on for now: the other sender should leave, or it is too early.
    Waits,
    /// The cast goes on, because no other group is free.
    NoOtherGroup,
}

impl Scheduler {
    /// Handles another sender that was heard in the group of a cast. `keeps`: by the rule that both
    /// know, the other one should leave. Returns `None` if the cast has ended.
    pub fn handle_taken(&mut self, id: CastId, keeps: bool, now: Instant) -> Option<Taken> {
        let running = self.casts.get_mut(&id)?;
        let known = running.strangers.filter(|known| now <= known.last + MEMORY);
        let first = known.map_or(now, |known| known.first);
        running.strangers = Some(Strangers { first, last: now });
        if keeps && now < first + PATIENCE {
            return Some(Taken::Waits);
        }
        if self.last_taken.is_some_and(|last| now < last + END_INTERVAL) {
            return Some(Taken::Waits);
        }
        if !self.settings.groups.has_free(now) {
            return Some(Taken::NoOtherGroup);
        }
        self.last_taken = Some(now);
        self.handle_end(id, EndReason::GroupTaken, now);
        Some(Taken::Ended)
    }
}
