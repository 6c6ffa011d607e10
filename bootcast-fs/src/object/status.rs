//! The state of an object as its user sees it.

use std::time::Instant;

use super::Object;
use super::snapshot::received;
use crate::receiver::{CastCounts, Reception};
use crate::status::{FileState, FileStatus};

impl Object {
    /// Returns the state for the user, without the rate, which needs two moments.
    pub fn status(&self, now: Instant) -> FileStatus {
        let inner = self.lock();
        let receiver = &inner.receiver;
        let counts = receiver.cast_counts();
        let oldest = inner.parked.iter().map(|parked| parked.since).min();
        let wait = oldest.map(|since| now.saturating_duration_since(since).as_millis());
        FileStatus {
            etag: receiver.etag().map(ToString::to_string),
            size: receiver.size(),
            held: receiver.assembly().map_or(0, received),
            verified: receiver.verified_bytes(),
            opens: receiver.readers() as u64,
            waiting: inner.parked.len() as u64,
            oldest_wait_ms: wait.map(|wait| u64::try_from(wait).unwrap_or(u64::MAX)),
            cast_bps: counts.map(|counts| u64::from(counts.rate_kbps) * 1000),
            loss_ppm: counts.map(loss_ppm),
            failure: receiver.failure().map(ToString::to_string),
            ..FileStatus::of(self.key.path.encode(), inner.state())
        }
    }

    /// Returns the number of held bytes while more may arrive; `None` if nothing will.
    pub fn arriving(&self) -> Option<u64> {
        let inner = self.lock();
        let receiver = &inner.receiver;
        receiver.is_member().then(|| receiver.assembly().map_or(0, received))
    }
}

impl super::Inner {
    fn state(&self) -> FileState {
        let receiver = &self.receiver;
        if receiver.is_complete() {
            return FileState::Complete;
        }
        if receiver.failure().is_some() {
            return FileState::Failed;
        }
        if receiver.follows() && receiver.readers() > 0 {
            return FileState::Shared;
        }
        if receiver.has_all_pages() {
            let is_busy = receiver.readers() > 0 || !receiver.is_idle();
            return if is_busy { FileState::Verifying } else { FileState::Closed };
        }
        if receiver.is_idle() {
            return FileState::Closed;
        }
        if receiver.join_failures() > 0 {
            return FileState::Away;
        }
        match (receiver.is_member(), receiver.reception()) {
            (false, _) => FileState::Joining,
            (true, _) if receiver.is_fetching() => FileState::Unicast,
            (true, Reception::Multicast) => FileState::Multicast,
            (true, Reception::Unknown | Reception::Unicast) => FileState::Joined,
        }
    }
}

/// Returns the datagrams that did not arrive, of a million that were sent.
fn loss_ppm(counts: CastCounts) -> u64 {
    let lost = u128::from(counts.sent.saturating_sub(counts.received));
    let share = (lost * 1_000_000).checked_div(counts.sent.into()).unwrap_or(0);
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_the_share_of_the_sent_datagrams_that_did_not_arrive() {
        for (sent, received, ppm) in [(0, 0, 0), (200, 199, 5000), (9, 12, 0), (7, 0, 1_000_000)] {
            assert_eq!(loss_ppm(CastCounts { rate_kbps: 1, sent, received }), ppm);
        }
    }
}
