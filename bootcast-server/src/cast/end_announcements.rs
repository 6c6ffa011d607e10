//! Announcements that a cast has ended. Each one is sent several times, because nothing else makes
//! up for a lost one.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::Instant;

use bootcast_proto::limits::{END_INTERVAL, END_REPETITIONS};

use super::CastId;

/// Announcement of the end of one cast.
#[derive(Clone, Copy, Debug)]
struct Announcement {
    cast: CastId,
    channel: SocketAddrV4,
    due: Instant,
    /// Number of times that it is still to be sent.
    left: u32,
    /// Number that the next beacon of the cast would have had.
    next_beacon: u32,
}

/// Announcements that are still to be sent. They outlive their casts.
#[derive(Debug, Default)]
pub(super) struct EndAnnouncements {
    /// Pending announcements, the one that is due first at the front.
    queue: VecDeque<Announcement>,
}

impl EndAnnouncements {
    /// Schedules the announcements of the end of a cast on this channel, the first one at `now`.
    pub(super) fn push(
        &mut self,
        cast: CastId,
        channel: SocketAddrV4,
        next_beacon: u32,
        now: Instant,
    ) {
        self.queue.push_front(Announcement {
            cast,
            channel,
            due: now,
            left: END_REPETITIONS,
            next_beacon,
        });
    }

    /// Drops the announcements to a group whose cast has a member again.
    pub(super) fn cancel(&mut self, group: SocketAddrV4) {
        self.queue.retain(|announcement| announcement.channel.ip() != group.ip());
    }

    /// Takes the next announcement that is due: cast, channel, and number of the next beacon.
    pub(super) fn poll(&mut self, now: Instant) -> Option<(CastId, SocketAddrV4, u32)> {
        if self.due_at().is_none_or(|due| now < due) {
            return None;
        }
        let announcement = self.queue.pop_front()?;
        debug_assert!((1..=END_REPETITIONS).contains(&announcement.left), "{announcement:?}");
        let left = announcement.left - 1;
        if left > 0 {
            self.queue.push_back(Announcement { due: now + END_INTERVAL, left, ..announcement });
        }
        Some((announcement.cast, announcement.channel, announcement.next_beacon))
    }

    /// Returns when the next announcement is due. The time may lie in the past.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.queue.front().map(|announcement| announcement.due)
    }
}
