//! Saying that a cast is over, more than once: the last word is not repeated by anything else.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::CastId;

/// How often it is said.
const TIMES: u32 = 3;

/// Between two of them.
const INTERVAL: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug)]
struct Farewell {
    cast: CastId,
    channel: SocketAddrV4,
    due: Instant,
    left: u32,
}

/// Farewells that are still to be said. They outlive their casts.
#[derive(Debug, Default)]
pub(super) struct Farewells {
    /// By when they are due.
    queue: VecDeque<Farewell>,
}

impl Farewells {
    /// Says it to this channel from now on.
    pub(super) fn push(&mut self, cast: CastId, channel: SocketAddrV4, now: Instant) {
        self.queue.push_front(Farewell { cast, channel, due: now, left: TIMES });
    }

    /// Somebody joined the group: what was to be said there is not true any more.
    pub(super) fn cancel(&mut self, group: SocketAddrV4) {
        self.queue.retain(|farewell| farewell.channel.ip() != group.ip());
    }

    /// The next that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<(CastId, SocketAddrV4)> {
        if self.due_at().is_none_or(|due| now < due) {
            return None;
        }
        let farewell = self.queue.pop_front()?;
        let left = farewell.left - 1;
        if left > 0 {
            self.queue.push_back(Farewell { due: now + INTERVAL, left, ..farewell });
        }
        Some((farewell.cast, farewell.channel))
    }

    /// When one is due; may have passed.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.queue.front().map(|farewell| farewell.due)
    }
}
