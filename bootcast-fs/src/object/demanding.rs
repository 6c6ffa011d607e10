//! Demands pages that readers wait for.

use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::{PageRange, Token};

use super::{Inner, Object, Ready};
use crate::receiver::{Fill, ReportError};

/// Consequences of a read.
#[derive(Debug, Default)]
#[must_use]
pub struct Wants {
    /// Demand to send at once, with the member's token.
    pub now: Option<(Token, Want)>,
    /// Whether the intake must attend to the object: something is due earlier than it knows, or
    /// must be fetched.
    pub attend: bool,
}

impl Wants {
    /// Issues the demand that is due after a read. It does not wait for the receive thread.
    pub(super) fn after_read(inner: &mut Inner, now: Instant) -> Self {
        inner.receiver.want_if_due(now);
        let token = inner.receiver.token().cloned();
        let want = token.and_then(|token| Some((token, inner.receiver.poll_want()?)));
        let receiver = &inner.receiver;
        let attend = inner.is_due_earlier() || receiver.may_fetch() || receiver.has_action();
        Self { now: want, attend }
    }
}

impl Inner {
    /// Whether something is due before the time that the intake knows.
    fn is_due_earlier(&self) -> bool {
        let due = self.receiver.poll_timeout();
        due.is_some_and(|due| self.told_due.is_none_or(|told| due < told))
    }
}

impl Object {
    /// Whether somebody reads here and there, so that the time of each page counts.
    pub fn is_hurried(&self, now: Instant) -> bool {
        self.lock().receiver.is_hurried(now)
    }

    /// Which pages should arrive.
    pub fn fill(&self) -> Fill {
        self.lock().receiver.fill()
    }

    /// Handles the answer to a demand of the membership `token`. Returns whether the intake must
    /// attend to the object, because something is due earlier than it knows.
    #[must_use]
    pub fn wanted(
        &self,
        token: &Token,
        want: &Want,
        result: Result<Duration, ReportError>,
        now: Instant,
    ) -> bool {
        let mut inner = self.lock();
        inner.receiver.handle_wanted(token, want, result, now);
        inner.is_due_earlier()
    }

    /// The server cannot read these pages. Returns the reads that this ends.
    #[must_use]
    pub fn unreadable_pages(&self, runs: &[PageRange], now: Instant) -> Vec<Ready> {
        let mut inner = self.lock();
        inner.receiver.handle_unreadable(runs, now);
        self.settle(&mut inner)
    }

    /// The first bytes of the file that the server cannot read, if it said so lately.
    pub fn unreadable(&self) -> Option<Range<u64>> {
        let inner = self.lock();
        let size = inner.receiver.assembly()?.geometry().size();
        inner.receiver.unreadable(&(0..size))
    }
}
