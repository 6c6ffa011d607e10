//! Asking the server for what readers wait for.

use std::time::{Duration, Instant};

use bootcast_proto::Token;
use bootcast_proto::api::Want;

use super::{Inner, Object};
use crate::receiver::{Fill, ReportError};

/// What a read led to.
#[derive(Debug, Default)]
#[must_use]
pub struct Wants {
    /// To be sent at once, as the member of this token.
    pub now: Option<(Token, Want)>,
    /// The intake must attend to the object, because something is due earlier than it knows, or is to be fetched.
    pub attend: bool,
}

impl Wants {
    /// Asks for what is due after a read: that need not wait for the receive thread.
    pub(super) fn after_read(inner: &mut Inner, now: Instant) -> Self {
        inner.receiver.want_if_due(now);
        let token = inner.receiver.token().cloned();
        let want = token.and_then(|token| Some((token, inner.receiver.poll_want()?)));
        Self { now: want, attend: inner.is_due_earlier() || inner.receiver.may_fetch() }
    }
}

impl Inner {
    /// Whether something is due before the time that the intake was told.
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

    /// What this member wants.
    pub fn fill(&self) -> Fill {
        self.lock().receiver.fill()
    }

    /// Takes the server's word on a want of the membership `token`. `true`: the intake must attend to the object, because something is
    /// due earlier than it knows.
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
}
