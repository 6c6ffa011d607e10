//! Budgets: what is sent for members that proved nothing comes out of their principals' accounts.

use std::time::Instant;

use bootcast_proto::RemotePath;

use super::super::accounts::{Entry, PlainTrust};
use super::super::principal::Principal;
use super::{CastId, Event, JoinRefusal, MemberKind, Scheduler};

impl Scheduler {
    /// Returns as what kind of member a client is admitted to the cast of a file of `size` bytes,
    /// as far as the budget of its principal goes.
    pub(super) fn admit(
        &mut self,
        path: &RemotePath,
        size: u64,
        kind: MemberKind,
        principal: Principal,
        now: Instant,
    ) -> Result<MemberKind, JoinRefusal> {
        let trust = self.settings.plain;
        if kind == MemberKind::Plain && trust == PlainTrust::Deny {
            return Err(JoinRefusal::PlainDenied);
        }
        // Without a repair channel every member knows only the base protocol.
        let kind = if self.settings.repair.is_some() { kind } else { MemberKind::Plain };
        if matches!(kind, MemberKind::Demand | MemberKind::Resuming) || trust == PlainTrust::Allow {
            return Ok(kind);
        }
        if kind == MemberKind::Plain {
            self.accounts.on_plain_join(principal, path, now);
        }
        let Some(after) = self.accounts.refills_in(principal, size, now) else { return Ok(kind) };
        if kind == MemberKind::Extended {
            self.budgets.joins += 1;
            self.events.push_back(Event::BudgetUsedUp(principal, path.clone()));
            return Ok(MemberKind::Resuming);
        }
        let is_idle = self.cast_of(path).is_none_or(|it| it.cast.whole_file_members() == 0);
        if !is_idle {
            return Ok(kind);
        }
        self.budgets.joins += 1;
        self.events.push_back(Event::BudgetUsedUp(principal, path.clone()));
        Err(JoinRefusal::BudgetUsedUp { after })
    }

    /// Makes the entries of a cast in the accounts of principals. Forgets plain members whose
    /// principals have used up their budgets.
    pub(super) fn settle(&mut self, id: CastId, now: Instant) {
        let Some(running) = self.casts.get_mut(&id) else { return };
        let entries = running.cast.take_entries();
        let is_limited = self.settings.plain != PlainTrust::Allow;
        let size = running.geometry.size();
        let mut charged = Vec::new();
        for entry in entries {
            match entry {
                Entry::Deferred(principal, count) => {
                    self.budgets.deferred += count;
                    self.events.push_back(Event::RationUsedUp(principal, running.path.clone()));
                }
                _ if !is_limited => {}
                Entry::Charge(principal, bytes) => {
                    self.accounts.charge(principal, bytes, now);
                    charged.push(principal);
                }
                Entry::Proof(principal) => self.accounts.prove(principal, now),
                Entry::Forgotten(principal, token) => {
                    self.accounts.on_forgotten(principal, token, &running.path, now);
                    self.budgets.plain += 1;
                }
            }
        }
        let mut any_forgotten = false;
        for principal in charged {
            if self.accounts.is_used_up(principal, size, now)
                && running.cast.forget_plain_of(principal) > 0
            {
                any_forgotten = true;
                let path = running.path.clone();
                self.events.push_back(Event::BudgetUsedUp(principal, path));
            }
        }
        if any_forgotten {
            self.settle(id, now);
        }
    }
}
