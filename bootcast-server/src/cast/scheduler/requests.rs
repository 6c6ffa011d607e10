//! Requests of clients: joins, leaves, reports and demands.

use std::time::{Duration, Instant};

use bootcast_proto::api::{Report, Want};
use bootcast_proto::{Etag, Geometry, RemotePath, Token};

use super::super::accounts::PlainTrust;
use super::super::principal::share_of;
use super::{CastId, EndReason, JoinRefusal, Joined, MAX_MEMBERS, Newcomer, Scheduler};

impl Scheduler {
    /// Adds a member to the cast of this version, and starts the cast if there is none. Ends a cast
    /// of another version of the path, because the file has changed.
    pub fn handle_join(
        &mut self,
        path: &RemotePath,
        etag: &Etag,
        geometry: Geometry,
        Newcomer { token, kind, principal }: Newcomer,
        now: Instant,
    ) -> Result<Joined, JoinRefusal> {
        let present = self.by_path.get(path).copied();
        let same = present.filter(|id| self.casts[id].etag == *etag);
        if let (Some(outdated), None) = (present, same) {
            self.handle_end(outdated, EndReason::FileChanged, now);
        }
        let kind = self.admit(path, geometry.size(), kind, principal, now)?;
        let id = match same {
            Some(id) => id,
            None => self.start_cast(path, etag, geometry, principal, now)?,
        };
        let running = self.casts.get_mut(&id).expect("found or started above");
        if running.cast.members() >= MAX_MEMBERS {
            return Err(JoinRefusal::TooManyMembers);
        }
        let owned = running.cast.members_of(principal);
        if owned >= share_of(MAX_MEMBERS) {
            return Err(JoinRefusal::TooManyOfHost(owned));
        }
        let name = token.clone();
        running.cast.handle_join_of(token, kind, Some(principal), now);
        if self.settings.plain == PlainTrust::Limited {
            let passes = self.accounts.passes_of(principal, geometry.size(), now);
            running.cast.limit_passes(&name, passes);
        }
        self.end_announcements.cancel(running.group);
        self.totals.joins += 1;
        self.assert_invariants();
        let running = &self.casts[&id];
        let rate = running.control.rate();
        let members = running.cast.members() as u64;
        let (group, has_started_cast) = (running.group, same.is_none());
        Ok(Joined { cast: id, group, has_started_cast, rate, members })
    }

    /// Removes a member from the cast of this path; `None` if the token is not a member.
    pub fn handle_leave(
        &mut self,
        path: &RemotePath,
        token: &Token,
        now: Instant,
    ) -> Option<CastId> {
        let running = self.by_path.get(path).and_then(|id| Some((*id, self.casts.get_mut(id)?)));
        let running = running.filter(|(_, running)| running.cast.is_member(token));
        let Some((id, running)) = running else {
            self.accounts.on_late_leave(token, now);
            return None;
        };
        running.cast.handle_leave(token, now);
        running.control.forget(token);
        self.totals.leaves += 1;
        self.reap(id, now);
        Some(id)
    }

    /// Handles a report to the cast of this path. Returns `false` if the token may not report.
    pub fn handle_report(
        &mut self,
        path: &RemotePath,
        token: &Token,
        report: &Report,
        now: Instant,
    ) -> bool {
        let Some(&id) = self.by_path.get(path) else { return false };
        let Some(running) = self.casts.get_mut(&id) else { return false };
        if !running.cast.handle_report(token, report, now) {
            return false;
        }
        if running.cast.serves(token) {
            let is_changed = running.control.handle_report(token, report, now);
            running.apply_rate(is_changed, now);
        } else {
            // The counters of a deaf member say nothing about the rate.
            running.control.forget(token);
        }
        running.end_opening(now);
        self.settle(id, now);
        true
    }

    /// Records the `useful` that a demand of a member states.
    pub fn handle_progress(&mut self, path: &RemotePath, token: &Token, useful: u64, now: Instant) {
        let Some(&id) = self.by_path.get(path) else { return };
        if let Some(running) = self.casts.get_mut(&id) {
            running.cast.handle_progress(token, useful);
        }
        self.settle(id, now);
    }

    /// Queues pages that a member of the cast of this path demands. Returns the estimated time
    /// until the last urgent one is sent, or `None` if the token may not demand.
    pub fn handle_want(
        &mut self,
        path: &RemotePath,
        token: &Token,
        want: &Want,
        now: Instant,
    ) -> Option<Duration> {
        let &id = self.by_path.get(path)?;
        let mut others = self.casts.iter().filter(|(other, _)| **other != id);
        let has_neighbours = others.any(|(_, it)| it.cast.whole_file_members() > 0);
        let running = self.casts.get_mut(&id)?;
        running.cast.set_has_neighbours(has_neighbours);
        if !running.cast.handle_want(token, want, now) {
            return None;
        }
        if running.cast.next_urgent(1).is_some() {
            self.urgent.push(id);
        }
        self.settle(id, now);
        Some(self.urgent_queue(id, now))
    }
}
