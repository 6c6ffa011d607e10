//! Whether multicast arrives from the server at all, as the joined files show, and what the log
//! says of it.

use std::mem::discriminant;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bootcast_proto::Backoff;
use tracing::{info, warn};

use crate::panics;
use crate::receiver::{Cause, Notice, Reception};

/// Shortest time between two log messages of the same kind of cause.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Pauses before files try multicast again while the others are fetched over HTTP.
const RETRY: Backoff = Backoff::new(Duration::from_secs(4), Duration::from_secs(64));

/// Whether a file that joins now can rely on the multicast of its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Availability {
    /// No outage is known.
    Available,
    /// Multicast does not arrive, and this file is the next one to try it.
    RetryDue,
    /// Multicast does not arrive, and the next try is not due yet.
    Unavailable,
}

/// Follows whether the multicast of one server arrives, and logs changes.
#[derive(Debug)]
pub(super) struct MulticastMonitor {
    /// Host and port of the server, for the log.
    server: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Set while files are fetched over HTTP because no multicast arrives.
    outage: Option<Outage>,
    /// Time of the last log message of each kind of cause.
    logged: Vec<(Cause, Instant)>,
}

#[derive(Clone, Debug)]
struct Outage {
    since: Instant,
    cause: Cause,
    /// Whether the log says so, and therefore must say when it is over.
    is_logged: bool,
    /// Time from which the next file that joins tries multicast.
    retry_at: Instant,
    /// Tries since the outage began.
    tries: u32,
}

impl MulticastMonitor {
    /// Creates the monitor of `server`, given as host and port for the log.
    pub(super) fn new(server: &str) -> Self {
        Self { server: server.to_owned(), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        panics::lock(&self.state)
    }

    /// Records why a file lacks multicast, and logs it unless the log has it already.
    ///
    /// Each kind of cause is logged at most once a minute. A cause that makes its file fetch over
    /// HTTP is logged only if it begins an outage.
    pub(super) fn record_notice(&self, notice: &Notice, now: Instant) {
        let must_log = self.lock().record_notice(notice, now);
        if must_log {
            warn!("{}", message(notice, &self.server));
        }
    }

    /// Records how a file arrives. Its first datagram by multicast ends an outage.
    pub(super) fn record_reception(&self, reception: Reception) {
        let ended =
            (reception == Reception::Multicast).then(|| self.lock().outage.take()).flatten();
        if ended.is_some_and(|outage| outage.is_logged) {
            info!("multicast from {} arrives again", self.server);
        }
    }

    /// Returns for how long no multicast has arrived, and the cause; `None` if no outage is known.
    pub(super) fn outage(&self, now: Instant) -> Option<(Duration, String)> {
        let state = self.lock();
        let Outage { since, cause, .. } = state.outage.as_ref()?;
        let notice = Notice { cause: cause.clone(), fetches: true };
        Some((now.saturating_duration_since(*since), message(&notice, &self.server)))
    }

    /// Returns whether a file that joins now can rely on multicast. Only one file gets
    /// [`Availability::RetryDue`]; the call schedules the next try.
    pub(super) fn availability(&self, now: Instant) -> Availability {
        self.lock().availability(now)
    }
}

impl State {
    /// Records a notice. Returns whether it must be logged.
    fn record_notice(&mut self, notice: &Notice, now: Instant) -> bool {
        let is_same = |cause: &Cause| discriminant(cause) == discriminant(&notice.cause);
        let last = self.logged.iter_mut().find(|(cause, _)| is_same(cause));
        let is_recent = last.is_some_and(|(_, at)| now < *at + LOG_INTERVAL);
        let was_outage = self.outage.is_some();
        // Without the repair channel a file lacks only a few pages: other files may still rely on
        // multicast.
        if notice.fetches && !matches!(notice.cause, Cause::RepairLost { .. }) {
            self.outage.get_or_insert_with(|| Outage {
                since: now,
                cause: notice.cause.clone(),
                is_logged: !is_recent,
                retry_at: now + RETRY.first,
                tries: 0,
            });
        }
        if is_recent || was_outage && notice.fetches {
            return false;
        }
        self.logged.retain(|(cause, _)| !is_same(cause));
        self.logged.push((notice.cause.clone(), now));
        true
    }

    fn availability(&mut self, now: Instant) -> Availability {
        match &mut self.outage {
            None => Availability::Available,
            Some(outage) if outage.retry_at <= now => {
                outage.tries = outage.tries.saturating_add(1);
                outage.retry_at = now + RETRY.pause(outage.tries);
                Availability::RetryDue
            }
            Some(_) => Availability::Unavailable,
        }
    }
}

/// Formats the log message of a notice: what happened, the likely cause, what to do, and what the
/// client does meanwhile.
fn message(notice: &Notice, server: &str) -> String {
    let then = if notice.fetches { "fetching over HTTP" } else { "reads wait for multicast" };
    match &notice.cause {
        Cause::NothingCame => format!("no multicast from {server}: {then}"),
        Cause::PagesLost { sent, port, too_long: None } => format!(
            "no datagram on UDP {port} from {server}, although {sent} were sent: check that no \
             firewall closes the port; {then}"
        ),
        Cause::PagesLost { sent, port, too_long: Some(packet) } => format!(
            "only short datagrams on UDP {port} from {server}, although {sent} were sent: a link \
             may have an MTU below {packet}; raise it, or start the server with a smaller \
             --page-size; {then}"
        ),
        Cause::CannotListen { port, error } => {
            format!("cannot listen on UDP {port} for multicast from {server}: {error}; {then}")
        }
        Cause::MtuTooSmall { packet, mtu } => format!(
            "datagrams of {packet} bytes from {server} do not fit this interface's MTU of {mtu}: \
             raise the MTU, or start the server with --page-size {}; {then}",
            mtu.saturating_sub(44) / 2 * 2
        ),
        Cause::Forger { sender } => format!(
            "{sender} sends wrong pages in the name of {server}: it is not listened to any more; \
             a member of the cast forges them"
        ),
        Cause::ForgerWithServersPort => format!(
            "somebody sends wrong pages in the name of {server}, from its address and port: pages \
             are compared with hashes that {server} sends over HTTP; a member of the cast forges \
             them"
        ),
        Cause::RepairLost { port } => {
            let then = if notice.fetches { "; fetching the rest over HTTP" } else { "" };
            format!(
                "UDP {port} is closed: pages arrive from {server}, but no beacons, so lost pages \
                 cannot be repaired; open the port{then}"
            )
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn notice(cause: Cause, fetches: bool) -> Notice {
        Notice { cause, fetches }
    }

    #[test]
    fn without_http_each_kind_of_cause_is_logged_once_a_minute() {
        let (mut state, now) = (State::default(), Instant::now());
        let lost = |sent| notice(Cause::PagesLost { sent, port: 9000, too_long: None }, false);
        let logged: Vec<_> = (0..125)
            .filter(|at| state.record_notice(&lost(7 + u64::from(*at)), now + SECOND * *at))
            .collect();
        assert_eq!(logged, [0, 60, 120]);
        assert!(
            state.record_notice(
                &notice(Cause::RepairLost { port: 9001 }, false),
                now + 125 * SECOND
            )
        );
        assert_eq!(state.availability(now + 125 * SECOND), Availability::Available);
    }

    #[test]
    fn an_outage_is_logged_once_and_multicast_is_tried_after_4_12_and_28_seconds() {
        let (mut state, now) = (State::default(), Instant::now());
        let nothing = notice(Cause::NothingCame, true);
        let logged =
            (0..300).filter(|at| state.record_notice(&nothing, now + SECOND * *at)).count();
        assert_eq!(logged, 1);
        assert_eq!(state.availability(now), Availability::Unavailable);
        let mut tries = Vec::new();
        for at in 0..60 {
            let availability = state.availability(now + SECOND * at);
            tries.extend((availability == Availability::RetryDue).then_some(at));
        }
        assert_eq!(tries, [4, 12, 28]);
    }

    #[test]
    fn a_lost_repair_channel_is_no_outage() {
        let (mut state, now) = (State::default(), Instant::now());
        assert!(state.record_notice(&notice(Cause::RepairLost { port: 9001 }, true), now));
        assert_eq!(state.availability(now), Availability::Available);
    }

    #[test]
    fn a_message_has_the_port_the_numbers_and_what_to_do() {
        let text = |cause| message(&notice(cause, true), "head:8888");
        let lost = text(Cause::PagesLost { sent: 400, port: 9000, too_long: None });
        assert!(["UDP 9000", "400", "firewall", "over HTTP"].iter().all(|it| lost.contains(it)));
        let mtu = text(Cause::MtuTooSmall { packet: 9000, mtu: 1500 });
        assert!(["9000", "1500", "--page-size 1456"].iter().all(|it| mtu.contains(it)), "{mtu}");
        let short = text(Cause::PagesLost { sent: 9, port: 9000, too_long: Some(9000) });
        assert!(["MTU", "9000"].iter().all(|it| short.contains(it)), "{short}");
        assert!(text(Cause::RepairLost { port: 9001 }).starts_with("UDP 9001 is closed"));
    }
}
