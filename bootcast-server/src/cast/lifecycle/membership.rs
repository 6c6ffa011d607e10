//! Members of a cast that come and go.

use std::time::Instant;

use bootcast_proto::Token;

use super::super::principal::Principal;
use super::{Cast, EndReason, MemberKind, State};

impl Cast {
    /// Adds a member. A running stream continues where it is. For the first member that wants the
    /// whole file it starts with page 1, after a hold.
    pub fn handle_join(&mut self, token: Token, kind: MemberKind, now: Instant) {
        self.handle_join_of(token, kind, None, now);
    }

    /// Does the same as [`Self::handle_join`], for a member of this principal.
    pub(in crate::cast) fn handle_join_of(
        &mut self,
        token: Token,
        kind: MemberKind,
        principal: Option<Principal>,
        now: Instant,
    ) {
        let name = token.clone();
        self.add_member(token, kind, now);
        if let Some(principal) = principal {
            self.members.set_owner(&name, principal, self.stream.pages_sent());
        }
    }

    fn add_member(&mut self, token: Token, kind: MemberKind, now: Instant) {
        // Without a repair channel every member knows only the base protocol.
        let kind = if self.repair.is_some() { kind } else { MemberKind::Plain };
        let is_first = self.members.whole_file_members() == 0 && kind != MemberKind::Demand;
        match kind {
            MemberKind::Plain => {
                let pages = self.pages_of_passes(self.policy.idle_passes.get().into());
                self.members.join_plain(token, self.carousel_pages, pages);
            }
            kind => self.members.join_leased(token, kind == MemberKind::Demand, now),
        }
        self.joins += 1;
        self.on_heard(kind);
        match self.state {
            State::Lingering { .. } => {
                self.must_announce_end = false;
                self.hold(now, now);
            }
            State::Holding { .. } | State::Serving if is_first => self.hold(now, now),
            State::Holding { since, .. } if kind != MemberKind::Demand => self.hold(since, now),
            State::Holding { .. } | State::Serving | State::Ended(_) => {}
        }
        match kind {
            MemberKind::Plain => {}
            MemberKind::Extended | MemberKind::Resuming => {
                self.had_leased = true;
                if kind == MemberKind::Extended {
                    self.stream.want_all();
                }
                if let Some(repair) = &mut self.repair {
                    repair.on_change(now);
                }
                self.notify_repair();
            }
            MemberKind::Demand => self.had_leased = true,
        }
        self.assert_invariants();
    }

    /// Sets the number of passes after which a plain member is forgotten.
    pub(in crate::cast) fn limit_passes(&mut self, token: &Token, passes: u64) {
        self.members.limit_plain(token, self.pages_of_passes(passes));
    }

    fn pages_of_passes(&self, passes: u64) -> u64 {
        passes.saturating_mul(self.pages.into())
    }

    /// Forgets all plain members of a principal, because its budget is used up. Returns their
    /// number.
    pub(in crate::cast) fn forget_plain_of(&mut self, principal: Principal) -> usize {
        let forgotten = self.members.forget_plain_of(principal);
        if forgotten > 0 && self.members.is_empty() && self.end_reason().is_none() {
            self.end(EndReason::IdlePasses);
        }
        self.assert_invariants();
        forgotten
    }

    /// Removes a member. Returns `false` if the token is not a member.
    pub fn handle_leave(&mut self, token: &Token, now: Instant) -> bool {
        let (pages, sent) = (self.pages.into(), self.stream.pages_sent());
        if self.members.had_a_pass(token, pages, sent, self.carousel_pages) {
            self.members.prove(token);
        }
        let Some(kind) = self.members.leave(token) else { return false };
        self.credits.forget(token);
        self.profile.handle_leave(token);
        self.on_heard(kind);
        self.on_members_gone();
        if self.members.is_empty() {
            self.linger(now);
        }
        self.assert_invariants();
        true
    }
}
