//! How fast one cast sends: below the ceiling of its interface, its rate follows what its members
//! get. docs/PROTOCOL.md, "Rate".
//!
//! | module | decides |
//! |---|---|
//! | [`panel`] | what members' counters say of the last interval |
//! | [`controller`] | what rate follows from that |
//! | [`opening`] | how long the first moments last, in which it looks often |
//! | [`allowance`] | when the next datagrams of a cast may leave at that rate |

mod allowance;
mod controller;
mod opening;
mod panel;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bootcast_proto::api::Report;
use bootcast_proto::wire::Pace;
use bootcast_proto::{BitRate, Token};

pub(super) use allowance::Allowance;
pub use controller::CeilingSource;
use controller::{Controller, Usage};
use opening::Opening;
use panel::{Expected, Panel, Since};

/// Time between two reports of a panel member, and between two updates of the rate.
const INTERVAL: Duration = Duration::from_millis(250);

/// Most panel members of all casts together, while there are fewer casts than this. They send 96
/// reports a second, or some 120 by the chance of their hashes, which leaves room for reports of
/// needs. From 20 to 39 members the worst but one counts as the worst twentieth, so more members
/// would add nothing.
const PANEL_MEMBERS: usize = 24;

/// The same in the first moments of a cast, where reports come many times as often.
const OPENING_MEMBERS: usize = 12;

/// An interval counts as over after this share of it, so that reports sent once per interval are
/// used once per interval.
const NEARLY: f64 = 0.9;

/// Age of datagrams above which a report says nothing about the present.
const RECENT: Duration = Duration::from_secs(5);

/// A cast that sent less than this share of its rate was limited by something else; a higher rate
/// would change nothing.
const LIMITED_SHARE: f64 = 0.7;

/// Rate control of one cast.
#[derive(Debug)]
pub(super) struct RateControl {
    controller: Controller,
    panel: Panel,
    /// Size of a full datagram on the wire, in bytes.
    datagram_wire: u64,
    /// Pages and symbols handed out.
    sent: u64,
    /// Whether there was nothing to send at some time since the last update.
    rested: bool,
    /// Time of recent updates, up to [`RECENT`] ago, with `sent` at that time; oldest first.
    looks: VecDeque<(Instant, u64)>,
    /// Most panel members of this cast.
    members: usize,
    interval: Duration,
    /// `None` once it is over.
    opening: Option<Opening>,
    /// What was sent before the rate changed last.
    sent_before: u64,
    /// The last change that makes older losses meaningless.
    since: Option<Since>,
}

impl RateControl {
    /// Nothing was sent yet. `last_good`: the rate of an earlier cast, after congestion.
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
            rested: true,
            looks: VecDeque::from([(now, 0)]),
            members: PANEL_MEMBERS,
            interval: INTERVAL,
            sent_before: 0,
            since: None,
        }
    }

    /// Divides the panel among this many casts, with at least one member for each.
    pub(super) fn share_panel(&mut self, casts: usize) {
        self.members = (PANEL_MEMBERS / casts.max(1)).max(1);
        let stretch = casts.div_ceil(PANEL_MEMBERS).max(1);
        self.interval = INTERVAL * u32::try_from(stretch).unwrap_or(u32::MAX);
    }

    /// Counts pages or symbols that were handed out.
    pub(super) fn on_sent(&mut self, datagrams: u64, now: Instant) {
        if self.sent == 0 {
            self.looks = VecDeque::from([(now, 0)]);
        }
        self.sent += datagrams;
        if let Some(opening) = self.opening.as_mut().filter(|_| datagrams > 0) {
            opening.on_sent(now);
        }
    }

    /// Whether the cast is in its first moments: members are to hear beacons often.
    pub(super) fn is_opening(&self) -> bool {
        self.opening.is_some()
    }

    /// Ends the first moments when their time is over, or where nobody is there who reports.
    /// `true`: the rate is another one now.
    pub(super) fn end_opening(&mut self, reporters: usize, now: Instant) -> bool {
        let is_over = |it: &Opening| it.is_over(now) || (reporters == 0 && self.sent > 0);
        let Some(opening) = self.opening.take_if(|it| is_over(it)) else { return false };
        let before = self.rate();
        self.controller.end_opening(opening.is_heard());
        // An average over intervals of this length says nothing.
        self.panel.forget_samples();
        self.rate() != before
    }

    /// Between two reports of a member of the panel.
    fn interval(&self) -> Duration {
        if self.is_opening() { opening::INTERVAL } else { self.interval }
    }

    /// So many of the datagrams handed out were not sent, because their pages cannot be read.
    pub(super) fn on_unsent(&mut self, datagrams: u64) {
        let counted = self.looks.back().map_or(0, |&(_, sent)| sent);
        self.sent = self.sent.saturating_sub(datagrams).max(counted);
    }

    /// Records that there is nothing to send at present.
    pub(super) fn rest(&mut self) {
        self.rested = true;
    }

    /// Forgets a member that left or receives nothing any more.
    pub(super) fn forget(&mut self, token: &Token) {
        self.panel.forget(token);
    }

    /// Handles the counters of a member. Returns whether the rate changed.
    pub(super) fn handle_report(&mut self, token: &Token, report: &Report, now: Instant) -> bool {
        if report.unicast {
            self.forget(token);
            return false;
        }
        let recently = self.sent - self.looks.front().map_or(0, |&(_, sent)| sent);
        let interval = self.interval();
        let expected = Expected { recently, interval, since: self.since };
        self.panel.handle_report(token, report, &expected, now);
        let Some(&(looked_at, sent)) = self.looks.back() else { return false };
        let elapsed = now.saturating_duration_since(looked_at);
        if elapsed < interval.mul_f64(NEARLY) {
            return false;
        }
        self.look(elapsed, self.sent - sent, now)
    }

    fn look(&mut self, elapsed: Duration, datagrams: u64, now: Instant) -> bool {
        self.looks.push_back((now, self.sent));
        while self.looks.len() > 2 && self.looks[1].0 + RECENT <= now {
            self.looks.pop_front();
        }
        let rested = std::mem::take(&mut self.rested);
        let Some(summary) = self.panel.summary() else { return false };
        let before = self.rate();
        let used = share(datagrams * self.datagram_wire, before.bytes_in(elapsed));
        let usage = match used {
            LIMITED_SHARE.. => Usage::Full,
            _ if rested => Usage::Rested,
            _ => Usage::Limited(used),
        };
        let is_obsolete =
            self.controller.update(&summary, usage, self.is_timely(summary.seen), now);
        if is_obsolete {
            self.panel.forget_samples();
        }
        let after = self.rate();
        if after != before {
            self.sent_before = self.sent;
        }
        if is_obsolete || after < before {
            let patience = if self.is_opening() { opening::PATIENCE } else { Duration::ZERO };
            self.since = Some(Since { sent: self.sent, patience: now + patience });
        }
        if let Some(opening) = &mut self.opening {
            let may_grow = !matches!(usage, Usage::Limited(_)) && self.controller.may_grow();
            opening.on_look(after == before && !may_grow);
        }
        after != before
    }

    /// Whether reports tell of half of what was sent at the present rate, at least. Where a long
    /// queue delays them, they tell of a rate that is no more.
    fn is_timely(&self, seen: u64) -> bool {
        let sent = self.sent - self.sent_before;
        seen == 0 || seen.saturating_sub(self.sent_before).saturating_mul(2) >= sent
    }

    /// Rate at present.
    pub(super) fn rate(&self) -> BitRate {
        self.controller.rate()
    }

    /// How long a full datagram takes at the present rate.
    pub(super) fn datagram_time(&self) -> Duration {
        self.rate().time_to_send(self.datagram_wire)
    }

    /// Rate for later casts of this server to start at.
    pub(super) fn last_good(&self) -> Option<BitRate> {
        self.controller.last_good()
    }

    /// Rate section of a beacon. `members` is the number of members that may report.
    pub(super) fn pace(&self, members: usize) -> Pace {
        let chosen = if self.is_opening() { OPENING_MEMBERS } else { PANEL_MEMBERS };
        let share = (self.members.min(chosen) as u64 * (1 << 16)).div_ceil(members.max(1) as u64);
        Pace {
            sent: self.sent,
            rate_kbps: u32::try_from(self.rate().bits_per_second() / 1000).unwrap_or(u32::MAX),
            panel: u16::try_from(share).unwrap_or(u16::MAX),
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
