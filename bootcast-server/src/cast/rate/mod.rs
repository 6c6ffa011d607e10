//! How fast one cast sends: below the ceiling of its interface, its rate follows what its members get. docs/PROTOCOL.md, "Rate".
//!
//! | module | decides |
//! |---|---|
//! | [`panel`] | what members' counters say of the last interval |
//! | [`controller`] | what rate follows from that |
//! | [`allowance`] | when the next datagrams of a cast may leave at that rate |

mod allowance;
mod controller;
mod panel;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bootcast_proto::api::Report;
use bootcast_proto::wire::Pace;
use bootcast_proto::{BitRate, Token};

pub(super) use allowance::Allowance;
pub(super) use controller::Start;
use controller::{Controller, Usage};
use panel::Panel;

/// Between two reports of a member of the panel, and between two looks at what they say.
const INTERVAL: Duration = Duration::from_millis(250);

/// Members that report regularly, of all casts together as long as these are fewer: 96 reports in a second, and by the chance of
/// their hashes some 120, which leaves room for those who lack something. Of 20 to 39 members the worst but one counts for the
/// worst twentieth, so that more of them would tell no more of it.
const PANEL_MEMBERS: usize = 24;

/// An interval is over when this share of it is, so that reports that come once an interval are looked at once an interval.
const NEARLY: f64 = 0.9;

/// What a report counts was sent within this time, or is too old to say anything of the present.
const RECENT: Duration = Duration::from_secs(5);

/// A cast that sent less than this share of its rate was held up by something else: more rate would change nothing.
const LIMITED_SHARE: f64 = 0.7;

/// The rate of one cast, and what it follows.
#[derive(Debug)]
pub(super) struct RateControl {
    controller: Controller,
    panel: Panel,
    /// Bytes of a full datagram on the wire.
    datagram_wire: u64,
    /// Pages and symbols that were handed out.
    sent: u64,
    /// There was nothing to send at some time since the last look.
    rested: bool,
    /// The last look, and `sent` at looks up to [`RECENT`] ago, oldest first.
    looks: VecDeque<(Instant, u64)>,
    /// Of the panel, at most.
    members: usize,
    interval: Duration,
}

impl RateControl {
    /// Nothing was sent yet.
    pub(super) fn new(ceiling: BitRate, start: Start, datagram_wire: u64, now: Instant) -> Self {
        Self {
            controller: Controller::new(ceiling, start, now),
            panel: Panel::default(),
            datagram_wire,
            sent: 0,
            rested: true,
            looks: VecDeque::from([(now, 0)]),
            members: PANEL_MEMBERS,
            interval: INTERVAL,
        }
    }

    /// So many casts run: together they get no more reports than one would, but for one of each.
    pub(super) fn share_panel(&mut self, casts: usize) {
        self.members = (PANEL_MEMBERS / casts.max(1)).max(1);
        let stretch = casts.div_ceil(PANEL_MEMBERS).max(1);
        self.interval = INTERVAL * u32::try_from(stretch).unwrap_or(u32::MAX);
    }

    /// Pages or symbols were handed out.
    pub(super) fn on_sent(&mut self, datagrams: u64, now: Instant) {
        if self.sent == 0 {
            self.looks = VecDeque::from([(now, 0)]);
        }
        self.sent += datagrams;
    }

    /// So many of the datagrams handed out were not sent, because their pages cannot be read.
    pub(super) fn on_unsent(&mut self, datagrams: u64) {
        let counted = self.looks.back().map_or(0, |&(_, sent)| sent);
        self.sent = self.sent.saturating_sub(datagrams).max(counted);
    }

    /// There is nothing to send at present.
    pub(super) fn rest(&mut self) {
        self.rested = true;
    }

    /// A member left, or hears nothing any more.
    pub(super) fn forget(&mut self, token: &Token) {
        self.panel.forget(token);
    }

    /// A member told what it got. `true`: the rate is another one now.
    pub(super) fn handle_report(&mut self, token: &Token, report: &Report, now: Instant) -> bool {
        if report.unicast {
            self.forget(token);
            return false;
        }
        let recently = self.sent - self.looks.front().map_or(0, |&(_, sent)| sent);
        self.panel.handle_report(token, report, recently, self.interval, now);
        let Some(&(looked_at, sent)) = self.looks.back() else { return false };
        let elapsed = now.saturating_duration_since(looked_at);
        if elapsed < self.interval.mul_f64(NEARLY) {
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
        let Some(view) = self.panel.view() else { return false };
        let before = self.rate();
        let used = share(datagrams * self.datagram_wire, before.bytes_in(elapsed));
        let usage = match used {
            LIMITED_SHARE.. => Usage::Full,
            _ if rested => Usage::Rested,
            _ => Usage::HeldUp(used),
        };
        if self.controller.update(&view, usage, now) {
            self.panel.forget_samples();
        }
        self.rate() != before
    }

    /// At present.
    pub(super) fn rate(&self) -> BitRate {
        self.controller.rate()
    }

    /// What a later cast of this server may begin with.
    pub(super) fn last_good(&self) -> Option<BitRate> {
        self.controller.last_good()
    }

    /// What a beacon says. `members`: of those who may report.
    pub(super) fn pace(&self, members: usize) -> Pace {
        let share = (self.members as u64 * (1 << 16)).div_ceil(members.max(1) as u64);
        Pace {
            sent: self.sent,
            rate_kbps: u32::try_from(self.rate().bits_per_second() / 1000).unwrap_or(u32::MAX),
            panel: u16::try_from(share).unwrap_or(u16::MAX),
            interval_ms: u16::try_from(self.interval.as_millis()).unwrap_or(u16::MAX),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share, to a few digits")]
fn share(used: u64, allowed: u64) -> f64 {
    used as f64 / allowed.max(1) as f64
}

#[cfg(test)]
mod tests;
