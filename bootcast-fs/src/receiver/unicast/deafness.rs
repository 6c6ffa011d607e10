//! How a member finds out that multicast does not bring the file, or does again.
//! docs/PROTOCOL.md, "Unicast".

use std::time::{Duration, Instant};

use bootcast_proto::PageIndex;
use bootcast_proto::api::Want;

use super::super::hearing::Proof;
use super::super::membership::Silence;
use super::super::{Action, Assembly, Receiver};
use super::{RELISTEN, Unicast};

/// After a return to multicast that did not last, the file is fetched for so long before the next
/// return; twice as long each time.
const RETURN_MIN: Duration = Duration::from_secs(2);
/// The longest.
const RETURN_MAX: Duration = Duration::from_secs(64);
/// A return that lasted for so long was right: the next one need not wait.
const LASTING: Duration = Duration::from_secs(60);
/// Bytes of an IP packet beside those of its page: headers of IPv4, UDP and the page.
const OVERHEAD: u32 = 44;
/// Pages, and runs of them, that a member without HTTP and repair asks for at a time.
const ASK_PAGES: usize = 4096;
const ASK_PAIRS: usize = 512;
/// The longest pause between two such requests.
const ASK_PAUSE_MAX: Duration = Duration::from_secs(16);

/// Why multicast does not bring the file, as far as that can be told from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No full page came within a second, of a server that should have sent some.
    NothingCame,
    /// Beacons tell that pages were sent, and none came.
    PagesLost {
        /// How many.
        sent: u64,
        /// UDP port of the pages.
        port: u16,
        /// Bytes of an IP packet with a full page, where only shorter ones came.
        too_long: Option<u32>,
    },
    /// The socket of the data port could not be opened.
    CannotListen {
        /// UDP port of the pages.
        port: u16,
        /// What the kernel says.
        error: String,
    },
    /// A full page does not fit the MTU of the interface that the datagrams come in by.
    MtuTooSmall {
        /// Bytes of an IP packet with a full page.
        packet: u32,
        /// The interface's.
        mtu: u32,
    },
    /// Pages come, but neither beacons nor symbols do.
    RepairLost {
        /// UDP port of the repair channel.
        port: u16,
    },
}

/// What a user should hear of the reception.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Why something does not come.
    pub cause: Cause,
    /// Whether the file is fetched over HTTP from now on.
    pub fetches: bool,
}

/// When a member that fetches may rely on multicast again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Returns {
    /// The last return.
    pub(super) last: Option<Instant>,
    /// Returns in a row that did not last.
    relapses: u32,
    /// No return before this.
    not_before: Option<Instant>,
    /// It is deaf, and must not fetch.
    pub(super) waits: bool,
}

impl Returns {
    /// Multicast does not come, or not any more.
    pub(super) fn relapsed(&mut self, now: Instant) {
        let Some(last) = self.last.take() else { return };
        if last + LASTING <= now {
            (self.relapses, self.not_before) = (0, None);
            return;
        }
        let doubled = RETURN_MIN.saturating_mul(1 << self.relapses.min(16));
        self.not_before = Some(now + doubled.min(RETURN_MAX));
        self.relapses = self.relapses.saturating_add(1);
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }
}

/// Whether the server was asked for a sign of life because nothing is heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Probe {
    #[default]
    None,
    /// A report is to go out, or is out.
    Asked,
    /// The server knows this member: its datagrams get lost.
    Answered,
}

impl Receiver {
    /// The socket of a port could not be opened: nothing will come there.
    pub fn handle_no_socket(&mut self, is_repair: bool, error: &str, now: Instant) {
        let (port, repair_port) = self.unicast.ports;
        if is_repair {
            self.unicast.hearing.close_repair();
            self.unicast.notify(Cause::RepairLost { port: repair_port }, false);
        } else {
            self.become_deaf(Cause::CannotListen { port, error: error.to_owned() }, now);
        }
    }

    /// The interface that the datagrams come in by has this MTU.
    pub fn handle_mtu(&mut self, mtu: u32, now: Instant) {
        let Some(packet) = self.packet() else { return };
        if mtu < packet && !self.unicast.is_deaf() {
            self.become_deaf(Cause::MtuTooSmall { packet, mtu }, now);
        }
    }

    /// Bytes of an IP packet with a full page.
    fn packet(&self) -> Option<u32> {
        self.assembly.as_ref().map(|assembly| assembly.page_size().get() + OVERHEAD)
    }

    /// What the user is to be told since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.unicast.notices)
    }

    /// Multicast does not bring the file: fetches it, where that may be.
    pub(super) fn become_deaf(&mut self, cause: Cause, now: Instant) {
        let unicast = &mut self.unicast;
        let falls_back = unicast.may_fall_back();
        if falls_back && unicast.is_fetching && unicast.awaited_since.is_none() {
            return;
        }
        unicast.notify(cause, falls_back);
        if !falls_back {
            // To join again and again would have the server send the file each time. The answers
            // to reports tell whether the cast still is.
            unicast.returns.waits = true;
            self.adjust_silence();
            return;
        }
        unicast.awaited_since = None;
        unicast.probe = Probe::None;
        unicast.is_fetching = true;
        unicast.returns.relapsed(now);
        unicast.hearing.forget_row();
        unicast.relisten.at = Some(now + RELISTEN);
        self.adjust_silence();
        self.tell_news(now);
    }

    /// A page of the cast came, `is_new` or not.
    pub(in crate::receiver) fn page_came(&mut self, page: PageIndex, is_new: bool, now: Instant) {
        let Some(geometry) = self.assembly.as_ref().map(Assembly::geometry) else { return };
        // The only page of a file is as long as they get.
        let is_full = geometry.pages() <= 1
            || geometry.page_len(page).is_none_or(|len| len == geometry.page_size().get());
        let hearing = &mut self.unicast.hearing;
        hearing.page(is_full, is_new, now);
        if is_new {
            self.came(is_full, now);
        } else if hearing.is_moving(page.0) {
            self.membership.heard(now);
        }
        // One that this member asked for a moment ago is no old one sent again.
        let is_answer = is_new && is_full && self.demand.is_asked(page);
        if self.unicast.is_fetching && (self.unicast.hearing.has_row() || is_answer) {
            self.rely_on_multicast(now);
        }
    }

    /// A symbol came. One that is of use is as good as a page.
    pub(in crate::receiver) fn symbol_came(&mut self, is_useful: bool, now: Instant) {
        self.unicast.hearing.symbol(is_useful, now);
        if is_useful {
            self.came(true, now);
        }
    }

    /// Something new came by multicast; `is_long`: in a datagram as long as they get.
    fn came(&mut self, is_long: bool, now: Instant) {
        self.membership.progressed(now);
        self.ends.progressed();
        self.useful += 1;
        self.unicast.probe = Probe::None;
        let asked = self.unicast.ask_at.take().is_some();
        if asked | std::mem::take(&mut self.unicast.returns.waits) {
            self.adjust_silence();
        }
        if is_long {
            self.unicast.has_heard = true;
            self.unicast.awaited_since = None;
        }
    }

    /// A beacon came that is newer than all before; it tells how many datagrams were sent.
    pub(in crate::receiver) fn beacon_came(&mut self, sent: u64, now: Instant) {
        self.membership.heard(now);
        self.unicast.probe = Probe::None;
        let is_fetching = self.unicast.is_fetching;
        match self.unicast.hearing.beacon(sent, is_fetching, now) {
            Some(Proof::Heard) => {
                self.unicast.has_heard = true;
                self.unicast.awaited_since = None;
                if is_fetching {
                    self.rely_on_multicast(now);
                }
            }
            Some(Proof::Deaf { sent }) => {
                self.become_deaf(self.pages_lost(sent), now);
            }
            None => {}
        }
    }

    /// Multicast comes again: fetches no more.
    fn rely_on_multicast(&mut self, now: Instant) {
        let unicast = &mut self.unicast;
        // What only the repair channel could bring must be fetched as long as that is closed.
        if !unicast.may_fall_back() || unicast.lacks_repair() || !unicast.returns.is_due(now) {
            return;
        }
        unicast.is_fetching = false;
        unicast.has_heard = true;
        unicast.awaited_since = None;
        unicast.returns.last = Some(now);
        unicast.relisten.at = None;
        unicast.fetches.clear();
        debug_assert!(!self.may_fetch(), "a member that relies on multicast still fetches");
        self.membership.heard(now);
        self.adjust_silence();
        if let Some(repair) = &mut self.repair {
            // The server takes it that nothing is needed: it is to hear of everything that is.
            repair.close_all();
        }
        self.tell_news(now);
    }

    /// No page came in time, though the server was to send some.
    pub(super) fn become_deaf_of_nothing(&mut self, now: Instant) {
        if self.unicast.is_fetching {
            // It was presumed, and the server does not know.
            self.unicast.relisten.at = Some(now + RELISTEN);
            self.tell_news(now);
        } else {
            let cause = match self.unicast.hearing.lost(self.panel.sent()) {
                Some(sent) => self.pages_lost(sent),
                None => Cause::NothingCame,
            };
            self.become_deaf(cause, now);
        }
    }

    /// Beacons came, pages did not.
    fn pages_lost(&self, sent: u64) -> Cause {
        let is_short_only = self.unicast.hearing.is_short_only();
        let too_long = self.packet().filter(|_| is_short_only);
        Cause::PagesLost { sent, port: self.unicast.ports.0, too_long }
    }

    /// The stream brought what it will: fetches the rest, or asks for it.
    pub(super) fn go_on_without_repair(&mut self, now: Instant) {
        let port = self.unicast.ports.1;
        if self.unicast.may_fall_back() {
            return self.become_deaf(Cause::RepairLost { port }, now);
        }
        // The answers tell whether the cast still is.
        self.membership.expect_silence(Silence::Long);
        let unicast = &mut self.unicast;
        unicast.ask_at = Some(now + unicast.ask_pause);
        unicast.ask_pause = (unicast.ask_pause * 2).min(ASK_PAUSE_MAX);
        let Some(assembly) = self.assembly.as_ref().filter(|_| self.membership.token().is_some())
        else {
            return;
        };
        let later = missing_pairs(assembly);
        self.membership.act(Action::Want(Want { later, ..Want::default() }));
    }

    /// Asks the server for a sign of life when nothing is heard of it. Where it answers, but still
    /// sends nothing, the network is to blame.
    pub(super) fn tend_silence(&mut self, now: Instant) {
        let Some(silence) = self.silence().filter(|silence| silence.ask_at() <= now) else {
            return;
        };
        match self.unicast.probe {
            Probe::None => {
                self.unicast.probe = Probe::Asked;
                self.reporter.hurry(now);
            }
            Probe::Answered if silence.end() <= now => self.become_deaf(Cause::NothingCame, now),
            Probe::Asked | Probe::Answered => {}
        }
    }

    /// The silence of a member that could fetch the file instead of waiting.
    pub(super) fn silence(&self) -> Option<SilentSince> {
        let Unicast { is_fetching, server, .. } = &self.unicast;
        let since = self.membership.silent_since()?;
        let matters = self.unicast.may_fall_back() && server.has_lease && !is_fetching;
        matters.then_some(SilentSince { since, patience: self.membership.silence() })
    }
}

/// When a member is silent for too long.
#[derive(Clone, Copy)]
pub(super) struct SilentSince {
    since: Instant,
    /// After which it joins again.
    patience: Duration,
}

impl SilentSince {
    pub(super) fn ask_at(self) -> Instant {
        self.since + self.patience * 3 / 4
    }

    pub(super) fn end(self) -> Instant {
        self.since + self.patience
    }
}

impl Unicast {
    pub(super) fn notify(&mut self, cause: Cause, fetches: bool) {
        self.notices.push(Notice { cause, fetches });
    }
}

/// The first missing pages as pairs of the first, counted from 1, and how many.
fn missing_pairs(assembly: &Assembly) -> Vec<(u32, u32)> {
    let (held, all) = (assembly.held(), assembly.geometry().all());
    let mut pairs: Vec<(u32, u32)> = Vec::new();
    let mut rest = all;
    for _ in 0..ASK_PAGES {
        let Some(page) = held.first_missing(rest) else { break };
        rest.start = PageIndex(page.0 + 1);
        let is_full = pairs.len() == ASK_PAIRS;
        match pairs.last_mut() {
            Some((first, count)) if *first + *count == page.0 + 1 => *count += 1,
            _ if is_full => break,
            _ => pairs.push((page.0 + 1, 1)),
        }
    }
    debug_assert!(pairs.len() <= ASK_PAIRS, "the server reads no more pairs");
    pairs
}
