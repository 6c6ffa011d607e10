//! Executes the commands of the HTTP handlers.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use bootcast_proto::api::{CastStatus, Report, Status, WantBody};
use bootcast_proto::{Etag, Geometry, RemotePath, Token};
use tokio::sync::oneshot;

use super::log::Begun;
use super::reading::CastReader;
use super::{CastId, Driver};
use crate::cast::{Joined, Newcomer};
use crate::io::sender::{Command, Join, JoinError, WantAnswer};
use crate::source::Version;

impl Driver {
    /// Executes a command.
    pub(super) fn execute(&mut self, command: Command) -> ControlFlow<()> {
        let now = Instant::now();
        match command {
            Command::Join { join, etag, geometry, reply } => {
                self.join(join, &etag, geometry, reply, now);
            }
            Command::Leave { path, token, reply } => {
                let left = self.scheduler.handle_leave(&path, &token, now);
                if let Some(cast) = left {
                    let members = self.member_count(cast);
                    tracing::debug!(%cast, %path, %token, members, "left");
                }
                let _ = reply.send(left.is_some());
            }
            Command::Report { path, token, report, reply } => {
                let accepted = self.scheduler.handle_report(&path, &token, &report, now);
                let needs = report.needs.len();
                let Report { bulk, sent, received, drops, .. } = &report;
                tracing::debug!(
                    %path, %token, accepted, needs, ?bulk, sent, received, drops,
                    "report received"
                );
                let _ = reply.send(accepted.then(|| self.scheduler.select_unreadable(&path, &[])));
            }
            Command::Want { path, token, want, reply } => {
                let _ = reply.send(self.demand(&path, &token, want, now));
            }
            Command::Manifest { path, etag, manifest } => {
                self.scheduler.handle_manifest(&path, &etag, manifest, now);
            }
            Command::Status { reply } => {
                let _ = reply.send(self.status(now));
            }
            Command::Heard(heard) => self.handle_heard(heard),
            Command::Outcome(cast, outcome) => self.handle_outcome(cast, outcome),
            Command::Stop => return ControlFlow::Break(()),
        }
        self.remove_ended_casts();
        ControlFlow::Continue(())
    }

    /// Adds a member. Undoes that if its client disconnected before the reply, because that client
    /// would never leave.
    fn join(
        &mut self,
        join: Join,
        etag: &Etag,
        geometry: Geometry,
        reply: oneshot::Sender<Result<Joined, JoinError>>,
        now: Instant,
    ) {
        let Join { path, source, token, kind, principal, newer_than, wants_leaves, profile } = join;
        let running = self.version_of(&path).filter(|it| *it != source.version());
        if let Some(running) = running.filter(|running| newer_than != Some(*running)) {
            self.close(source);
            // A failed reply means that the client disconnected.
            let _ = reply.send(Err(JoinError::Outdated { running }));
            return;
        }
        let name = token.clone();
        let newcomer = Newcomer { token, kind, principal };
        let joined = self.scheduler.handle_join(&path, etag, geometry, newcomer, now);
        if let Ok(joined) = joined {
            let (cast, group) = (joined.cast, joined.group);
            if joined.has_started_cast {
                self.add_reader(cast, Arc::clone(&source), geometry, kind);
                self.groups.begin(cast, group);
                let size = geometry.size();
                self.log.log_begin(&Begun { cast, path: &path, etag, size, group }, now);
            }
            if wants_leaves {
                self.scheduler.request_leaves(cast, &name);
            }
            if let Some(profile) = &profile {
                self.scheduler.request_profile(cast, &name, profile, now);
            }
            let members = self.member_count(cast);
            tracing::debug!(%cast, %path, token = %name, members, "joined");
        }
        self.close(source);
        if reply.send(joined.map_err(JoinError::from)).is_err() {
            self.scheduler.handle_leave(&path, &name, now);
        }
    }

    /// Returns the version that the running cast of a path sends.
    fn version_of(&self, path: &RemotePath) -> Option<Version> {
        let cast = self.scheduler.cast_of(path)?.id;
        self.readers.get(&cast).map(CastReader::version)
    }

    /// Queues demanded pages. Returns `None` if the token may not demand.
    fn demand(
        &mut self,
        path: &RemotePath,
        token: &Token,
        want: WantBody,
        now: Instant,
    ) -> Option<WantAnswer> {
        let WantBody { want, useful } = want;
        if let Some(useful) = useful {
            self.scheduler.handle_progress(path, token, useful, now);
        }
        let queue_time = self.scheduler.handle_want(path, token, &want, now);
        tracing::trace!(%path, %token, ?queue_time, ?want, "pages demanded");
        let demanded = [want.now, want.later].concat();
        let queue_time = queue_time?;
        let unreadable = self.scheduler.select_unreadable(path, &demanded);
        Some(WantAnswer { queue_time, unreadable })
    }

    /// Returns the number of members of a cast; 0 if it has ended.
    fn member_count(&self, cast: CastId) -> usize {
        self.scheduler.cast(cast).map_or(0, |view| view.cast.members())
    }

    /// Returns the state of the server for `/status`.
    pub(super) fn status(&self, now: Instant) -> Status {
        let casts = self.scheduler.casts().map(|view| CastStatus {
            path: view.path.encode(),
            etag: view.etag.clone(),
            group: view.group.to_string(),
            size: view.geometry.size(),
            pages: view.geometry.pages(),
            page_size: view.geometry.page_size().get(),
            members: u32::try_from(view.cast.members()).unwrap_or(u32::MAX),
            unicast: u32::try_from(view.cast.unicast_members()).unwrap_or(u32::MAX),
            joins: view.cast.joins(),
            pages_sent: view.cast.pages_sent(),
            demanded: view.cast.demanded(),
            zero_pages: view.cast.zero_pages(),
            symbols_sent: view.cast.symbols_sent(),
            repair_level: view.cast.redundancy(),
            rate_bps: view.rate.bits_per_second(),
            passes: view.cast.passes(),
            age_s: now.saturating_duration_since(view.started_at).as_secs(),
        });
        let reading: u64 = self.readers.values().map(CastReader::bytes_read).sum();
        let mut totals = self.scheduler.totals();
        totals.bytes_read = self.bytes_read + reading;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: now.saturating_duration_since(self.started).as_secs(),
            rate_bps: self.scheduler.rate().bits_per_second(),
            casts: casts.collect(),
            totals,
            budgets: self.scheduler.budgets(),
        }
    }
}
