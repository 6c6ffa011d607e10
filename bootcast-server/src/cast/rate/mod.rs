//! Rate control of one cast: below the ceiling of the interface, the rate follows what the members
//! receive. docs/PROTOCOL.md, "Rate".
//!
//! | module | decides |
//! |---|---|
//! | [`panel`] | which losses the members' counters show for the last interval |
//! | [`controller`] | which rate follows from these losses |
//! | [`opening`] | how long a new cast updates its rate every few milliseconds |
//! | [`allowance`] | when the next datagrams of a cast may leave at that rate |

mod allowance;
mod controller;
mod opening;
mod panel;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bootcast_proto::api::Report;
use bootcast_proto::wire::Pace;
use bootcast_proto::{BitRate, Share, Token};

pub(super) use allowance::Allowance;
pub use controller::CeilingSource;
use controller::{Controller, Usage};
use opening::Opening;
use panel::{Cutoff, Panel, ReportContext};

/// Time between two reports of a panel member, and between two updates of the rate.
const INTERVAL: Duration = Duration::from_millis(250);

/// Target size of the panels of all casts together; with more casts than this, each has one member.
///
/// 24 members send 96 reports a second. Because hashes choose them, it may be some 120, which
/// leaves room for reports of needs. With 20 to 39 members the second worst stands for the worst
/// twentieth, so a few more members would add nothing.
const PANEL_MEMBERS: usize = 24;

/// Target size of the panel of a cast that opens. It is smaller because reports are 25 times as
/// frequent.
const OPENING_PANEL_MEMBERS: usize = 12;

/// Share of the interval that must have passed before the next update of the rate. Below 1, so that
/// a report that arrives slightly early still causes the update of its interval.
const UPDATE_DUE_SHARE: f64 = 0.9;

/// Span over which sent datagrams are remembered. A report cannot claim more datagrams than the
/// cast sent in it.
const HISTORY: Duration = Duration::from_secs(5);

/// Least share of its rate that a cast must have sent for the rate to count as the limit. Below it,
/// something else limited the cast, and a higher rate would change nothing.
const FULL_USAGE_SHARE: f64 = 0.7;

/// Rate control of one cast.
#[derive(Debug)]
pub(super) struct RateControl {
    controller: Controller,
    panel: Panel,
    /// Size of a full datagram on the wire, in bytes.
    datagram_wire: u64,
    /// Pages and symbols handed out to the driver.
    sent: u64,
    /// Whether the cast had nothing to send at some time since the last update.
    was_idle: bool,
    /// Times of the updates of the last [`HISTORY`], with `sent` at each; oldest first.
    updates: VecDeque<(Instant, u64)>,
    /// Target size of this cast's panel.
    panel_members: usize,
    /// Time between two reports of a panel member after the opening.
    interval: Duration,
    /// `None` once the opening is over.
    opening: Option<Opening>,
    /// Value of `sent` when the rate last changed.
    sent_at_change: u64,
    /// Last change of the rate that makes earlier losses meaningless; `None` before the first.
    cutoff: Option<Cutoff>,
}

impl RateControl {
    /// Creates the control of a cast that has sent nothing. `last_good` is the rate that congestion
    /// left to an earlier cast. `datagram_wire` is the size of a full datagram on the wire, in
    /// bytes.
    pub(super) fn new(
        ceiling: BitRate,
        source: CeilingSource,
        last_good: Option<BitRate>,
        datagram_wire: u64,
        now: Instant,
    ) -> Self {
        let controller = Controller::new(ceiling, source, last_good, now);
        Self {
            opening: controller.is_opening().then(Opening::default),
            controller,
            panel: Panel::default(),
            datagram_wire,
            sent: 0,
            was_idle: true,
            updates: VecDeque::from([(now, 0)]),
            panel_members: PANEL_MEMBERS,
            interval: INTERVAL,
            sent_at_change: 0,
            cutoff: None,
        }
    }

    /// Divides the panel among `casts` casts, with at least one member for each. Beyond
    /// [`PANEL_MEMBERS`] casts the interval grows instead.
    pub(super) fn share_panel(&mut self, casts: usize) {
        self.panel_members = (PANEL_MEMBERS / casts.max(1)).max(1);
        let stretch = casts.div_ceil(PANEL_MEMBERS).max(1);
        self.interval = INTERVAL * u32::try_from(stretch).unwrap_or(u32::MAX);
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        debug_assert!(
            self.updates.back().is_some_and(|&(_, counted)| counted <= self.sent),
            "an update counted datagrams that were not sent"
        );
        debug_assert!(
            self.sent_at_change <= self.sent,
            "the rate changed after a datagram that was not sent yet"
        );
        debug_assert!(self.cutoff.is_none_or(|cutoff| cutoff.sent <= self.sent));
        debug_assert!(
            self.opening.is_some() == self.controller.is_opening(),
            "the controller disagrees on whether the cast opens"
        );
        debug_assert!((1..=PANEL_MEMBERS).contains(&self.panel_members));
    }

    /// Counts pages or symbols that were handed out. The first ones start the first interval.
    pub(super) fn on_sent(&mut self, datagrams: u64, now: Instant) {
        if self.sent == 0 {
            self.updates = VecDeque::from([(now, 0)]);
        }
        self.sent += datagrams;
        if let Some(opening) = self.opening.as_mut().filter(|_| datagrams > 0) {
            opening.on_sent(now);
        }
        self.assert_invariants();
    }

    /// Whether the cast opens, so that beacons must follow each other quickly.
    pub(super) fn is_opening(&self) -> bool {
        self.opening.is_some()
    }

    /// Ends the opening if its time is over, or if the cast has sent and has no members that
    /// report. Returns whether the rate changed.
    pub(super) fn end_opening(&mut self, reporters: usize, now: Instant) -> bool {
        let is_over = |it: &Opening| it.is_over(now) || (reporters == 0 && self.sent > 0);
        let Some(opening) = self.opening.take_if(|it| is_over(it)) else { return false };
        let before = self.rate();
        self.controller.end_opening(opening.has_reports());
        // Samples of such short intervals must not enter averages over seconds.
        self.panel.forget_samples();
        self.assert_invariants();
        self.rate() != before
    }

    /// Time between two reports of a panel member, at present.
    fn interval(&self) -> Duration {
        if self.is_opening() { opening::INTERVAL } else { self.interval }
    }

    /// Subtracts datagrams that were handed out but not sent, because their pages cannot be read.
    pub(super) fn on_unsent(&mut self, datagrams: u64) {
        let counted = self.updates.back().map_or(0, |&(_, sent)| sent);
        self.sent = self.sent.saturating_sub(datagrams).max(counted);
        self.assert_invariants();
    }

    /// Records that the cast has nothing to send at present.
    pub(super) fn on_idle(&mut self) {
        self.was_idle = true;
    }

    /// Forgets a member that left or no longer receives datagrams.
    pub(super) fn forget(&mut self, token: &Token) {
        self.panel.forget(token);
    }

    /// Takes over the counters of a member, and updates the rate if an interval has passed. Returns
    /// whether the rate changed.
    pub(super) fn handle_report(&mut self, token: &Token, report: &Report, now: Instant) -> bool {
        if report.unicast {
            self.forget(token);
            return false;
        }
        let recently_sent = self.sent - self.updates.front().map_or(0, |&(_, sent)| sent);
        let interval = self.interval();
        let context = ReportContext { recently_sent, interval, cutoff: self.cutoff };
        self.panel.handle_report(token, report, &context, now);
        let Some(&(updated_at, sent)) = self.updates.back() else { return false };
        let elapsed = now.saturating_duration_since(updated_at);
        if elapsed < interval.mul_f64(UPDATE_DUE_SHARE) {
            return false;
        }
        self.update(elapsed, self.sent - sent, now)
    }

    /// Updates the rate after an interval of length `elapsed`, in which `datagrams` were sent.
    /// Returns whether the rate changed.
    fn update(&mut self, elapsed: Duration, datagrams: u64, now: Instant) -> bool {
        self.updates.push_back((now, self.sent));
        while self.updates.len() > 2 && self.updates[1].0 + HISTORY <= now {
            self.updates.pop_front();
        }
        let was_idle = std::mem::take(&mut self.was_idle);
        let Some(summary) = self.panel.summary() else { return false };
        let before = self.rate();
        let used = share(datagrams * self.datagram_wire, before.bytes_in(elapsed));
        let usage = match used {
            FULL_USAGE_SHARE.. => Usage::Full,
            _ if was_idle => Usage::Idle,
            _ => Usage::Limited(used),
        };
        let are_samples_obsolete =
            self.controller.update(&summary, usage, self.is_timely(summary.seen), now);
        if are_samples_obsolete {
            self.panel.forget_samples();
        }
        let after = self.rate();
        if after != before {
            self.sent_at_change = self.sent;
        }
        if are_samples_obsolete || after < before {
            let drain = if self.is_opening() { opening::QUEUE_DRAIN_TIME } else { Duration::ZERO };
            self.cutoff = Some(Cutoff { sent: self.sent, until: now + drain });
        }
        if let Some(opening) = &mut self.opening {
            let may_grow = !matches!(usage, Usage::Limited(_)) && self.controller.may_grow();
            opening.on_update(after == before && !may_grow);
        }
        self.assert_invariants();
        after != before
    }

    /// Whether reports up to datagram `seen` cover at least half of those sent at the present rate.
    /// A long queue delays reports, and late ones describe an earlier rate. `seen` is 0 if unknown.
    fn is_timely(&self, seen: u64) -> bool {
        let sent = self.sent - self.sent_at_change;
        seen == 0 || seen.saturating_sub(self.sent_at_change).saturating_mul(2) >= sent
    }

    /// Returns the present rate.
    pub(super) fn rate(&self) -> BitRate {
        self.controller.rate()
    }

    /// Returns the time that a full datagram takes at the present rate.
    pub(super) fn datagram_time(&self) -> Duration {
        self.rate().time_to_send(self.datagram_wire)
    }

    /// Returns the rate at which later casts of this server can start. `None` if congestion does
    /// not limit this cast.
    pub(super) fn last_good(&self) -> Option<BitRate> {
        self.controller.last_good()
    }

    /// Returns the rate fields of a beacon. `members` is the number of members that report
    /// counters.
    pub(super) fn pace(&self, members: usize) -> Pace {
        let limit = if self.is_opening() { OPENING_PANEL_MEMBERS } else { PANEL_MEMBERS };
        Pace {
            sent: self.sent,
            rate_kbps: u32::try_from(self.rate().bits_per_second() / 1000).unwrap_or(u32::MAX),
            panel: Share::of(self.panel_members.min(limit) as u64, members as u64),
            interval_ms: u16::try_from(self.interval().as_millis()).unwrap_or(u16::MAX),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share, to a few digits")]
fn share(used: u64, allowed: u64) -> f64 {
    used as f64 / allowed.max(1) as f64
}

#[cfg(test)]
mod tests;
