//! Keeps repeated messages out of the log; see [`bootcast_proto::log_limit`].

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bootcast_proto::log_limit::{Limiter, Suppressed};

use crate::io::now;

/// What a message is about, and the detail that makes it another cause.
type Cause = (&'static str, String);

static LIMITER: Mutex<Limiter<Cause, Instant>> = Mutex::new(Limiter::new());

/// Returns how many messages were suppressed if one of this kind is due: once a minute for each
/// `detail`, such as the text of an error. Everything that an outside event can repeat asks here.
pub(crate) fn allow(kind: &'static str, detail: &(impl ToString + ?Sized)) -> Option<Suppressed> {
    let mut limiter = LIMITER.lock().unwrap_or_else(PoisonError::into_inner);
    limiter.allow(&(kind, detail.to_string()), now()).map(Suppressed)
}
