//! Profiles: which cast they belong to.

use std::sync::Arc;
use std::time::Instant;

use bootcast_proto::{Profile, Token};

use super::{CastId, Scheduler};

impl Scheduler {
    /// Sends the profile to a member that joined this cast just now and holds nothing. `known` is
    /// what earlier casts of this content learned.
    pub fn request_profile(
        &mut self,
        id: CastId,
        token: &Token,
        known: &Arc<Profile>,
        now: Instant,
    ) {
        if let Some(running) = self.casts.get_mut(&id) {
            running.cast.request_profile(token, known, now);
        }
    }
}
