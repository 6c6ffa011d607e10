//! The profile of a cast's file: who gets it, and when it is to be kept.

use std::sync::Arc;
use std::time::Instant;

use bootcast_proto::{PageRange, Profile, Token};

use super::Cast;

impl Cast {
    /// Sends the profile to a member that joined just now and holds nothing, and records what it
    /// wants first. `known` is what earlier casts of this content learned. Ignores members without
    /// a lease.
    pub fn request_profile(&mut self, token: &Token, known: &Arc<Profile>, now: Instant) {
        if !self.members.has_lease(token) {
            return;
        }
        self.profile.learn(known);
        self.profile.handle_join(token.clone(), now);
        self.assert_invariants();
    }

    /// Returns the profile if it should be kept by now: it changed some time ago, or the cast has
    /// ended.
    pub fn poll_profile(&mut self, now: Instant) -> Option<Profile> {
        let is_due = self.profile.keep_at().is_some_and(|at| at <= now);
        if is_due || self.end_reason().is_some() { self.profile.take_changed() } else { None }
    }

    /// Returns the number of pages that were handed out as part of the profile.
    pub fn profile_pages(&self) -> u64 {
        self.profile.pages_sent()
    }

    /// Returns the next pages of the profile, at most `budget`.
    pub(super) fn poll_profile_pages(&mut self, budget: u32, now: Instant) -> Option<PageRange> {
        let pages = self.profile.poll(budget, now)?;
        self.demand.on_sent(pages, now);
        self.profile.on_sent(pages);
        Some(pages)
    }
}
