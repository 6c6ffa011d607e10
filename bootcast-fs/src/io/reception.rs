//! Whether multicast arrives from the server at all, as its files show one after another.

use std::mem::discriminant;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::receiver::{Cause, Notice, Reception};

/// A complaint is repeated no sooner than this.
const REPEATED: Duration = Duration::from_secs(60);
/// While files come over HTTP for lack of multicast, one of them tries it after this time; then
/// after twice as long each time.
const TRY_MIN: Duration = Duration::from_secs(4);
/// The longest.
const TRY_MAX: Duration = Duration::from_secs(64);

/// What a new file should take the multicast of its server for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presumption {
    /// It comes.
    Comes,
    /// It does not come, but it is time to see whether that is still so.
    Untried,
    /// It does not come.
    Missing,
}

/// Reception of one server's multicast. Logs when it changes.
#[derive(Debug, Default)]
pub(super) struct Multicast {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    missing: Option<Missing>,
    /// When each cause was complained of last.
    told: Vec<(Cause, Instant)>,
}

#[derive(Clone, Copy, Debug)]
struct Missing {
    try_at: Instant,
    pause: Duration,
}

impl Multicast {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file has something to say of its reception. Says it in the log, once a minute at most, and
    /// what leads to HTTP only once until multicast comes again.
    pub(super) fn complain(&self, notice: &Notice, server: &str, now: Instant) {
        let is_news = self.lock().note(notice, now);
        if is_news {
            warn!("{}", complaint(notice, server));
        }
    }

    /// A file is received in this way.
    pub(super) fn note(&self, reception: Reception, server: &str) {
        if reception == Reception::Multicast && self.lock().missing.take().is_some() {
            info!("multicast from {server} comes again");
        }
    }

    /// What a file that is joined now should presume.
    pub(super) fn presumption(&self, now: Instant) -> Presumption {
        self.lock().presumption(now)
    }
}

impl State {
    /// Whether the log has to hear of it.
    fn note(&mut self, notice: &Notice, now: Instant) -> bool {
        let is_same = |cause: &Cause| discriminant(cause) == discriminant(&notice.cause);
        let last = self.told.iter_mut().find(|(cause, _)| is_same(cause));
        let was_told = last.is_some_and(|(_, at)| now < *at + REPEATED);
        let was_missing = self.missing.is_some();
        // Without repair a file is short of a few pages: the others may rely on multicast.
        if notice.fetches && !matches!(notice.cause, Cause::RepairLost { .. }) {
            self.missing.get_or_insert(Missing { try_at: now + TRY_MIN, pause: TRY_MIN });
        }
        if was_told || was_missing && notice.fetches {
            return false;
        }
        self.told.retain(|(cause, _)| !is_same(cause));
        self.told.push((notice.cause.clone(), now));
        true
    }

    fn presumption(&mut self, now: Instant) -> Presumption {
        match &mut self.missing {
            None => Presumption::Comes,
            Some(missing) if missing.try_at <= now => {
                missing.pause = TRY_MAX.min(2 * missing.pause);
                missing.try_at = now + missing.pause;
                Presumption::Untried
            }
            Some(_) => Presumption::Missing,
        }
    }
}

/// What happened, to what, and what to do.
fn complaint(notice: &Notice, server: &str) -> String {
    let then = if notice.fetches { "fetching over HTTP" } else { "waiting for it" };
    match &notice.cause {
        Cause::NothingCame => format!("no multicast from {server}: {then}"),
        Cause::PagesLost { sent, port, too_long: None } => format!(
            "no datagram on UDP {port} from {server}, although {sent} were sent: is the port closed \
             by a firewall? {then}"
        ),
        Cause::PagesLost { sent, port, too_long: Some(packet) } => format!(
            "only short datagrams on UDP {port} from {server}, although {sent} were sent: is the MTU \
             of a link below {packet}? Start the server with a smaller --page-size; {then}"
        ),
        Cause::CannotListen { port, error } => {
            format!("cannot listen on UDP {port} to multicast from {server}: {error}; {then}")
        }
        Cause::MtuTooSmall { packet, mtu } => format!(
            "datagrams of {packet} bytes from {server} do not fit this interface's MTU of {mtu}: \
             raise the MTU, or start the server with --page-size {}; {then}",
            mtu.saturating_sub(44) / 2 * 2
        ),
        Cause::RepairLost { port } => {
            let then = if notice.fetches { "; fetching the rest over HTTP" } else { "" };
            format!(
                "UDP {port} is closed: pages come from {server}, but no beacons: lost pages cannot be \
                 repaired{then}"
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
    fn who_waits_complains_once_a_minute() {
        let (mut state, now) = (State::default(), Instant::now());
        let lost = |sent| notice(Cause::PagesLost { sent, port: 9000, too_long: None }, false);
        let told: Vec<_> = (0..125)
            .filter(|at| state.note(&lost(7 + u64::from(*at)), now + SECOND * *at))
            .collect();
        assert_eq!(told, [0, 60, 120]);
        assert!(state.note(&notice(Cause::RepairLost { port: 9001 }, false), now + 125 * SECOND));
        assert_eq!(state.presumption(now + 125 * SECOND), Presumption::Comes);
    }

    #[test]
    fn who_fetches_complains_once_and_others_presume_it_until_one_tries() {
        let (mut state, now) = (State::default(), Instant::now());
        let nothing = notice(Cause::NothingCame, true);
        let told = (0..300).filter(|at| state.note(&nothing, now + SECOND * *at)).count();
        assert_eq!(told, 1);
        assert_eq!(state.presumption(now), Presumption::Missing);
        let mut tries = Vec::new();
        for at in 0..60 {
            let presumption = state.presumption(now + SECOND * at);
            tries.extend((presumption == Presumption::Untried).then_some(at));
        }
        assert_eq!(tries, [4, 12, 28]);
    }

    #[test]
    fn a_lack_of_repair_says_nothing_of_other_files() {
        let (mut state, now) = (State::default(), Instant::now());
        assert!(state.note(&notice(Cause::RepairLost { port: 9001 }, true), now));
        assert_eq!(state.presumption(now), Presumption::Comes);
    }

    #[test]
    fn a_complaint_names_the_port_the_numbers_and_what_to_do() {
        let text = |cause| complaint(&notice(cause, true), "head:8888");
        let lost = text(Cause::PagesLost { sent: 400, port: 9000, too_long: None });
        assert!(["UDP 9000", "400", "firewall", "over HTTP"].iter().all(|it| lost.contains(it)));
        let mtu = text(Cause::MtuTooSmall { packet: 9000, mtu: 1500 });
        assert!(["9000", "1500", "--page-size 1456"].iter().all(|it| mtu.contains(it)), "{mtu}");
        let short = text(Cause::PagesLost { sent: 9, port: 9000, too_long: Some(9000) });
        assert!(["MTU", "9000"].iter().all(|it| short.contains(it)), "{short}");
        assert!(text(Cause::RepairLost { port: 9001 }).starts_with("UDP 9001 is closed"));
    }
}
