//! Decides when to report what this member lacks. docs/PROTOCOL.md, "When a client reports".

use std::time::{Duration, Instant};

use bootcast_proto::wire::Beacon;
use bootcast_proto::{Share, Token};

/// Pause after a report that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Longest spread that is believed: another member may forge beacons.
const MAX_SPREAD: Duration = Duration::from_secs(1);

/// Says when a report is due.
///
/// ```text
/// Quiet --short, permitted--> Drawn --still short--> Asking --answer--> Holding --+
///   ^                           |                      '--no answer--> Retrying --+
///   '----- promised by now -----'                                                 |
///   '---------------------- time, or a beacon that promises all ------------------'
/// ```
#[derive(Debug)]
pub(super) struct Reporter {
    random: SplitMix,
    /// Hash of the membership's token, over the whole range.
    hash: u16,
    lease: Option<Duration>,
    /// When to renew the lease, whatever is lacking.
    renewal: Option<Instant>,
    /// When to report something other than needs.
    requested: Option<Instant>,
    newest: Option<Guidance>,
    phase: Phase,
    /// Whether a report of counters alone is in flight; no other may be sent meanwhile.
    counters_in_flight: bool,
}

/// Instructions of the newest beacon for members that would report.
#[derive(Clone, Copy, Debug)]
struct Guidance {
    number: u32,
    members: u32,
    permit: Share,
    spread: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nothing to report, or not permitted.
    Quiet,
    /// Waiting for its turn; a beacon may make the report unnecessary.
    Drawn { due: Instant, fraction: f64 },
    /// The report is in flight.
    Asking,
    /// Waiting for the effect of the report.
    Holding { since: Instant, had_beacon: bool },
    /// The report failed.
    Retrying { until: Instant },
}

impl Reporter {
    /// Creates a reporter that draws its times from `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: SplitMix(seed),
            hash: 0,
            lease: None,
            renewal: None,
            requested: None,
            newest: None,
            phase: Phase::Quiet,
            counters_in_flight: false,
        }
    }

    /// Starts a membership.
    pub(super) fn begin(&mut self, token: &Token, lease: Option<Duration>, now: Instant) {
        self.hash = hash(token);
        self.lease = lease;
        self.requested = None;
        self.newest = None;
        self.phase = Phase::Quiet;
        self.counters_in_flight = false;
        self.renew(now);
    }

    /// Renews the lease, because the server got a request of this member. The next renewal is at a
    /// random time within half the lease, because many members joined with it.
    pub(super) fn renew(&mut self, now: Instant) {
        let share = 0.375 + 0.125 * self.random.fraction();
        self.renewal = self.lease.map(|lease| now + lease.mul_f64(share));
        debug_assert!(
            self.renewal <= self.lease.map(|lease| now + lease),
            "the lease would expire before it is renewed"
        );
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        debug_assert!(
            !(self.counters_in_flight && self.is_asking()),
            "two reports are in flight: an answer would be taken for that of the other"
        );
    }

    /// Requests a report as soon as possible, whatever is lacking.
    pub(super) fn request(&mut self, now: Instant) {
        self.requested.get_or_insert(now);
    }

    /// When that report may go out: after the pause that follows a report.
    fn requested_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Asking => None,
            Phase::Holding { since, .. } => self.requested.map(|at| at.max(self.pause_end(since))),
            Phase::Retrying { until } => self.requested.map(|at| at.max(until)),
            Phase::Quiet | Phase::Drawn { .. } => self.requested,
        }
    }

    /// Whether the beacon with this number is newer than all before.
    pub(super) fn is_newest(&self, number: u32) -> bool {
        self.newest.is_none_or(|newest| newest.number < number)
    }

    /// Forgets the newest beacon: the next one counts, whatever its number.
    pub(super) fn forget_beacons(&mut self) {
        self.newest = None;
    }

    /// The number of the newest beacon of this membership.
    pub(super) fn newest(&self) -> Option<u32> {
        self.newest.map(|newest| newest.number)
    }

    /// Handles the newest beacon. `is_short` already accounts for its promises.
    pub(super) fn beacon(&mut self, beacon: &Beacon, is_short: bool, now: Instant) {
        let guidance = Guidance {
            number: beacon.number,
            members: beacon.members,
            permit: beacon.permit,
            spread: Duration::from_millis(beacon.spread_ms.into()).min(MAX_SPREAD),
        };
        self.newest = Some(guidance);
        match &mut self.phase {
            // Everything is promised: whatever is lacking from now on was promised and lost.
            Phase::Holding { .. } if !is_short => self.phase = Phase::Quiet,
            Phase::Holding { had_beacon, .. } => *had_beacon = true,
            // If the spread became shorter because few members are left, the wait does too.
            Phase::Drawn { due, fraction } => {
                *due = (*due).min(now + guidance.wait(*fraction));
            }
            Phase::Quiet | Phase::Asking | Phase::Retrying { .. } => {}
        }
        self.review(is_short, now);
    }

    /// Starts to wait for a turn if there is something to report.
    fn review(&mut self, is_short: bool, now: Instant) {
        if self.free_at().is_some_and(|at| at <= now) {
            self.phase = Phase::Quiet;
        }
        let Some(guidance) = self.newest.filter(|newest| newest.permit.includes(self.hash)) else {
            return;
        };
        if is_short && matches!(self.phase, Phase::Quiet) {
            let fraction = self.random.fraction();
            self.phase = Phase::Drawn { due: now + guidance.wait(fraction), fraction };
        }
    }

    /// When the pause after a report ends.
    fn free_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Holding { since, had_beacon: true } => Some(self.pause_end(since)),
            Phase::Retrying { until } => Some(until),
            Phase::Quiet | Phase::Drawn { .. } | Phase::Asking | Phase::Holding { .. } => None,
        }
    }

    /// End of the pause after a report that was accepted at `since`.
    fn pause_end(&self, since: Instant) -> Instant {
        since + 2 * self.newest.map_or(Duration::ZERO, |newest| newest.spread)
    }

    /// Runs what is due. Returns whether to report now.
    pub(super) fn handle_timeout(&mut self, is_short: bool, now: Instant) -> bool {
        self.review(is_short, now);
        if self.counters_in_flight {
            return false;
        }
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let mut is_due_now = is_due(self.renewal) || is_due(self.requested_at());
        match self.phase {
            Phase::Asking => return false,
            Phase::Drawn { due, .. } if due <= now => {
                is_due_now |= is_short;
                self.phase = Phase::Quiet;
            }
            Phase::Quiet | Phase::Drawn { .. } | Phase::Holding { .. } | Phase::Retrying { .. } => {
            }
        }
        if is_due_now {
            self.requested = None;
            self.phase = Phase::Asking;
        }
        self.assert_invariants();
        is_due_now
    }

    /// Requests a report for the panel. Needs that wait for their turn go with it; otherwise it has
    /// counters alone. Returns `false` if a report is in flight.
    pub(super) fn begin_counters(&mut self, is_short: bool) -> bool {
        if self.is_in_flight() {
            return false;
        }
        match self.phase {
            Phase::Drawn { .. } if is_short => self.phase = Phase::Asking,
            _ => self.counters_in_flight = true,
        }
        self.assert_invariants();
        true
    }

    /// Handles the answer to a report of counters alone. Returns `false` if none was in flight.
    pub(super) fn counters_answered(&mut self, is_known: bool, now: Instant) -> bool {
        let were_counters = std::mem::take(&mut self.counters_in_flight);
        if were_counters && is_known {
            self.renew(now);
        }
        were_counters
    }

    /// Whether a report of any kind is in flight.
    pub(super) fn is_in_flight(&self) -> bool {
        self.counters_in_flight || self.is_asking()
    }

    /// Whether this member belongs to a share that a beacon names.
    pub(super) fn is_within(&self, share: Share) -> bool {
        share.includes(self.hash)
    }

    /// Whether a report of needs is in flight.
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.phase, Phase::Asking)
    }

    /// Handles an accepted report. `is_answered`: a beacon that arrived before this showed its
    /// effect.
    pub(super) fn accepted(&mut self, is_answered: bool, now: Instant) {
        debug_assert!(self.is_asking(), "an answer to no report");
        self.phase = Phase::Holding { since: now, had_beacon: is_answered };
        self.renew(now);
    }

    /// Handles a report that failed.
    pub(super) fn failed(&mut self, now: Instant) {
        self.phase = Phase::Retrying { until: now + RETRY };
        self.renewal = self.renewal.map(|at| at.max(now + RETRY));
    }

    /// When [`Self::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let own = match self.phase {
            Phase::Asking => return None,
            Phase::Drawn { due, .. } => Some(due),
            Phase::Holding { .. } | Phase::Retrying { .. } => self.free_at(),
            Phase::Quiet => None,
        };
        [own, self.renewal, self.requested_at()].into_iter().flatten().min()
    }

    /// Random time up to `longest`, so that members do not act all at once.
    pub(super) fn draw(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.random.fraction())
    }
}

impl Guidance {
    /// Time to wait before a report. It is rarely short, so that few members report before the
    /// first report takes effect (RFC 5740, 5.3). `fraction` is random, from 0 to 1.
    fn wait(self, fraction: f64) -> Duration {
        debug_assert!((0.0..=1.0).contains(&fraction), "{fraction} is not a fraction");
        let lambda = f64::from(self.members.max(1)).ln() + 1.0;
        self.spread.mul_f64((fraction * lambda.exp_m1()).ln_1p() / lambda)
    }
}

/// FNV-1a with its high bits mixed down, because tokens may differ only in their last characters.
fn hash(token: &Token) -> u16 {
    let fnv = token.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = SplitMix(fnv).next().to_be_bytes();
    u16::from_be_bytes([mixed[0], mixed[1]])
}

/// `SplitMix64` (Steele, Lea and Flood, 2014): good enough to spread members.
#[derive(Clone, Copy, Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Random number from 0 up to, but not including, 1.
    fn fraction(&mut self) -> f64 {
        let bits = u32::try_from(self.next() >> 32).expect("the upper half of 64 bits");
        f64::from(bits) / 2f64.powi(32)
    }
}

#[cfg(test)]
mod tests;
