//! Rate limit for log messages of this process; see [`bootcast_proto::log_limit`].

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bootcast_proto::log_limit::{Limiter, Suppressed};

use crate::io::now;

/// Kind of a message, and a detail that distinguishes causes of this kind.
type Cause = (&'static str, String);

static LIMITER: Mutex<Limiter<Cause, Instant>> = Mutex::new(Limiter::new());

static NEWS_LIMITER: Mutex<Limiter<Cause, Instant>> = Mutex::new(Limiter::new());

/// Like [`allow`], for messages that tell of no fault. They have a limit of their own, so that many
/// paths in the news do not keep warnings out of the log.
pub(crate) fn allow_news(
    kind: &'static str,
    detail: &(impl ToString + ?Sized),
) -> Option<Suppressed> {
    let mut limiter = NEWS_LIMITER.lock().unwrap_or_else(PoisonError::into_inner);
    limiter.allow(&(kind, detail.to_string()), now()).map(Suppressed)
}

/// Returns whether a message may be logged now, and how many were suppressed before it.
///
/// `None` means that this `kind` was logged with the same `detail`, such as the text of an error,
/// less than a minute ago. Every message that an outside event can repeat must ask first.
pub(crate) fn allow(kind: &'static str, detail: &(impl ToString + ?Sized)) -> Option<Suppressed> {
    let mut limiter = LIMITER.lock().unwrap_or_else(PoisonError::into_inner);
    limiter.allow(&(kind, detail.to_string()), now()).map(Suppressed)
}
