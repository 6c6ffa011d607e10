//! The zero map of a version: when to request it, and whether its pages were taken.
//! docs/PROTOCOL.md, "The zero map".
//!
//! The map is one more source of pages, beside the cast and HTTP. Pages that it shows *arrive*
//! without a byte on the way, because the store has a hole there. Like all others, they are read
//! only when their leaves are verified. So nobody has to believe the map.

use std::time::{Duration, Instant};

use super::retry::Retry;

/// Progress of the zero map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Not requested, or the request failed.
    #[default]
    Unknown,
    /// Requested, or its pages are being taken.
    Requested,
    /// All of its pages arrived.
    Taken,
}

/// Zero map of one version, for one page size.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Zeros {
    state: State,
    retry: Retry,
}

impl Zeros {
    /// Whether to request the map now. It then counts as requested.
    pub(super) fn poll_request(&mut self, now: Instant) -> bool {
        let is_due = self.state == State::Unknown && self.retry.is_due(now);
        if is_due {
            self.state = State::Requested;
        }
        is_due
    }

    /// When [`Self::poll_request`] returns `true`, unless that is now.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.retry.at().filter(|_| self.state == State::Unknown)
    }

    /// Handles a request that brought no map. The server asks for a pause of `after` at least.
    pub(super) fn handle_failed(&mut self, after: Duration, now: Instant) {
        if self.state == State::Requested {
            self.state = State::Unknown;
            self.retry.failed(after, now);
        }
    }

    /// Handles that all pages of the map arrived.
    pub(super) fn handle_taken(&mut self) {
        self.state = State::Taken;
    }

    /// Whether all pages of the map arrived.
    pub(super) fn is_taken(&self) -> bool {
        self.state == State::Taken
    }
}
