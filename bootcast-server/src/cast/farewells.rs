//! Announces the end of a cast several times, because nothing else repeats a lost announcement.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::CastId;

/// How often the end of a cast is announced.
const TIMES: u32 = 3;

/// Time between two announcements of the same end.
const INTERVAL: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug)]
struct Farewell {
    cast: CastId,
    channel: SocketAddrV4,
    due: Instant,
    left: u32,
    /// The number that the next beacon of the cast would have had.
    next_beacon: u32,
}

/// Announcements that are still to be sent. They outlive their casts.
#[derive(Debug, Default)]
pub(super) struct Farewells {
    /// Pending announcements, by due time.
    queue: VecDeque<Farewell>,
}

impl Farewells {
    /// Schedules the announcements of a cast's end for this channel, the first one at `now`.
    pub(super) fn push(
        &mut self,
        cast: CastId,
        channel: SocketAddrV4,
        next_beacon: u32,
        now: Instant,
    ) {
        self.queue.push_front(Farewell { cast, channel, due: now, left: TIMES, next_beacon });
    }

    /// Drops the announcements for a group that somebody joined again.
    pub(super) fn cancel(&mut self, group: SocketAddrV4) {
        self.queue.retain(|farewell| farewell.channel.ip() != group.ip());
    }

    /// Takes the next announcement that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<(CastId, SocketAddrV4, u32)> {
        if self.due_at().is_none_or(|due| now < due) {
            return None;
        }
        let farewell = self.queue.pop_front()?;
        let left = farewell.left - 1;
        if left > 0 {
            self.queue.push_back(Farewell { due: now + INTERVAL, left, ..farewell });
        }
        Some((farewell.cast, farewell.channel, farewell.next_beacon))
    }

    /// When the next announcement is due; may lie in the past.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.queue.front().map(|farewell| farewell.due)
    }
}
