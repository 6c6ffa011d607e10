//! Requests of a member: join, leave, report, demand.

use std::time::Duration;

use bootcast_proto::Token;
use bootcast_proto::api::{Report, Want, WantBody};
use tracing::{debug, info, warn};

use super::storing::save;
use super::{InFlight, Job};
use crate::io::control::ControlError;
use crate::io::now;
use crate::io::reception::Availability;
use crate::log_limit;
use crate::object::{Object, Snapshot};
use crate::receiver::{Counters, JoinError, ReportError};
use crate::totals::TOTALS;

/// Longest time for which a refused request holds back the next ones.
const HOLD_BACK_MAX: Duration = Duration::from_secs(2);

impl Job {
    /// Joins and passes the result to the object.
    pub(super) async fn join(self) {
        let (object, context) = (&self.object, &self.context);
        let path = &object.key().path;
        let result = context.control.join(path, object.begin_join()).await;
        let result = match result {
            Ok((answer, server)) => {
                TOTALS.joins.add(1);
                if let Some(more) = log_limit::allow_news("joined", path) {
                    info!(%path, group = %answer.connect, pages = answer.pages, "joined{more}");
                }
                if let Some(server) = server {
                    context.server.set(server);
                }
                Ok(answer)
            }
            Err(error) => {
                TOTALS.failed_joins.add(1);
                log_join_error(object, &error);
                Err(error)
            }
        };
        let reads = object.handle_join(result, now());
        match context.multicast.availability(now()) {
            Availability::Available => {}
            Availability::RetryDue => object.presume_no_multicast(false, now()),
            Availability::Unavailable => object.presume_no_multicast(true, now()),
        }
        self.answer(reads);
        self.attend();
    }

    /// Leaves, and then makes a checkpoint, for which an orderly end does not wait.
    pub(super) async fn leave(self, token: Token, in_flight: InFlight) {
        let object = self.object;
        let path = &object.key().path;
        match self.context.control.leave(path, &token).await {
            Ok(()) => {
                let Snapshot { is_complete: complete, counters, .. } = object.snapshot();
                let Counters { bad, strangers, forged, ignored, drops, .. } = counters;
                if let Some(more) = log_limit::allow_news("left", path) {
                    info!(
                        %path, %token, complete, bad, strangers, forged, ignored, drops,
                        "left{more}"
                    );
                }
            }
            Err(error) => {
                if let Some(more) = log_limit::allow("cannot leave", &error) {
                    warn!(%path, %token, %error, "cannot leave the cast{more}");
                }
            }
        }
        drop(in_flight);
        save(object).await;
    }

    /// Reports and passes the result to the object.
    pub(super) async fn report(self, token: Token, report: Report) {
        let object = &self.object;
        let path = &object.key().path;
        let result = self.context.control.report(path, &token, &report).await;
        let (needs, bulk) = (report.needs.len(), report.bulk.len());
        match &result {
            Ok(_) => debug!(%path, %token, needs, bulk, "reported"),
            Err(error) => {
                debug!(%path, %token, needs, bulk, %error, "report failed");
                hold_back(error).await;
            }
        }
        let unreadable = result.as_ref().map_or(&[][..], Vec::as_slice);
        if !unreadable.is_empty() {
            self.answer(object.handle_unreadable(unreadable, now()));
        }
        let result = result.map(drop).map_err(|error| verdict(&error));
        object.handle_report_answer(&token, result, now());
        self.attend();
    }

    /// Demands pages and passes the result to the object.
    pub(super) async fn want(self, token: Token, want: Want) {
        let object = &self.object;
        let path = &object.key().path;
        let (runs, later) = (want.now.len(), want.later.len());
        let body = WantBody { want, useful: Some(object.snapshot().useful) };
        let result = self.context.control.want(path, &token, &body).await;
        match &result {
            Ok(answer) => {
                let queue = answer.queue;
                debug!(%path, %token, runs, later, ?queue, "demanded");
            }
            Err(error) => {
                debug!(%path, %token, runs, later, %error, "demand failed");
                hold_back(error).await;
            }
        }
        let unreadable = result.as_ref().map_or(&[][..], |answer| &answer.unreadable);
        let ends_reads = !unreadable.is_empty();
        if ends_reads {
            self.answer(object.handle_unreadable(unreadable, now()));
        }
        let result = result.map(|answer| answer.queue).map_err(|error| verdict(&error));
        if object.handle_want_answer(&token, &body.want, result, now()) || ends_reads {
            self.attend();
        }
    }
}

/// Waits for as long as the server requests. Until then the request counts as under way, so that
/// the receiver sends no others in its place.
async fn hold_back(error: &ControlError) {
    tokio::time::sleep(error.retry_after().min(HOLD_BACK_MAX)).await;
}

/// Converts the error of a report or a demand to what it says about the membership.
fn verdict(error: &ControlError) -> ReportError {
    if error.is_not_found() { ReportError::UnknownMember } else { ReportError::Temporary }
}

/// Logs the first failure and the change to slow retries, not every attempt.
fn log_join_error(object: &Object, error: &JoinError) {
    let path = &object.key().path;
    match error {
        JoinError::Retry { reason, .. } if object.snapshot().join_failures == 0 => {
            if let Some(more) = log_limit::allow("cannot join yet", reason) {
                warn!(%path, reason, "cannot join yet, trying again{more}");
            }
        }
        JoinError::Retry { reason, .. } => debug!(%path, reason, "cannot join yet"),
        JoinError::NotFound(message)
        | JoinError::Refused(message)
        | JoinError::Garbled(message) => {
            if let Some(more) = log_limit::allow("join refused", message) {
                info!(%path, message, "join refused{more}");
            }
        }
    }
}
