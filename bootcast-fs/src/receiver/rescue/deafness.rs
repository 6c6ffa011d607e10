//! Detects that multicast does not bring the file, and that it does again.
//! docs/PROTOCOL.md, "Unicast".

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::limits::{WANT_PAGES, WANT_RUNS};
use bootcast_proto::units::PACKET_OVERHEAD;
use bootcast_proto::{Backoff, PageIndex, PageRange, PageSize};

use super::super::Assembly;
use super::super::demand::{add, missing};
use super::super::hearing::{PATIENCE, Proof};
use super::super::membership::{Silence, SilentSince};
use super::{RELISTEN, Rescue, RescueEvent, RescueView};

/// Pauses before the next return to multicast after returns that did not last.
const RETURN: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(64));
/// A return that lasted this long was right: the next one need not wait.
const LASTING: Duration = Duration::from_secs(60);
/// Pauses between requests for pages that a closed repair channel does not bring.
const ASK: Backoff = Backoff::new(PATIENCE, Duration::from_secs(16));

/// Why multicast does not bring the file, as far as that can be told from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No full page came within a second, of a server that should have sent some.
    NothingCame,
    /// Beacons tell that pages were sent, and none came.
    PagesLost {
        /// Number of datagrams sent to the data port.
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
        /// Error of the kernel.
        error: String,
    },
    /// A full page does not fit the MTU of the interface that the datagrams come in by.
    MtuTooSmall {
        /// Bytes of an IP packet with a full page.
        packet: u32,
        /// MTU of the interface, in bytes.
        mtu: u32,
    },
    /// A sender forged pages and is not listened to any more.
    Forger {
        /// Its address and port.
        sender: SocketAddr,
    },
    /// A sender forged pages and cannot be told from the server.
    ForgerWithServersPort,
    /// Pages come, but neither beacons nor symbols do.
    RepairLost {
        /// UDP port of the repair channel.
        port: u16,
    },
}

/// Message to the user about the reception.
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
    /// Time of the last return.
    pub(super) last: Option<Instant>,
    /// Returns in a row that did not last.
    relapses: u32,
    /// Earliest time of the next return.
    not_before: Option<Instant>,
    /// Whether the member is deaf and must not fetch.
    pub(super) waits: bool,
}

impl Returns {
    /// Records that multicast does not come, or no longer.
    pub(super) fn relapsed(&mut self, now: Instant) {
        let Some(last) = self.last.take() else { return };
        if last + LASTING <= now {
            (self.relapses, self.not_before) = (0, None);
            return;
        }
        self.not_before = Some(now + RETURN.pause(self.relapses));
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

/// A page that arrived by multicast.
#[derive(Clone, Copy, Debug)]
pub(in crate::receiver) struct PageArrival {
    pub(in crate::receiver) page: PageIndex,
    /// Whether its datagram is as long as the longest of the cast.
    pub(in crate::receiver) is_full: bool,
    /// Whether this member demanded the page and has not stored it.
    pub(in crate::receiver) was_demanded: bool,
}

/// Meaning of a page that was here already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::receiver) enum Repeat {
    /// It is the same as the last one: nothing.
    Echo,
    /// It counts among the datagrams that came.
    Counted,
    /// The same, and it shows that a cast without beacons goes on.
    SignOfLife,
}

impl Rescue {
    /// Handles a socket that could not be opened: nothing will come to its port.
    pub(in crate::receiver) fn handle_no_socket(
        &mut self,
        is_repair: bool,
        error: &str,
        now: Instant,
    ) {
        let (port, repair_port) = self.ports;
        if is_repair {
            self.hearing.close_repair();
            self.notify(Cause::RepairLost { port: repair_port }, false);
        } else {
            self.become_deaf(Cause::CannotListen { port, error: error.to_owned() }, now);
        }
    }

    /// Handles the MTU of the interface that the datagrams come in by.
    pub(in crate::receiver) fn handle_mtu(&mut self, mtu: u32, page_size: PageSize, now: Instant) {
        let packet = packet_len(page_size);
        if mtu < packet && !self.is_deaf() {
            self.become_deaf(Cause::MtuTooSmall { packet, mtu }, now);
        }
    }

    /// Records that a sender is not listened to any more.
    pub(in crate::receiver) fn notify_forger(&mut self, sender: SocketAddr) {
        self.notify(Cause::Forger { sender }, false);
    }

    /// Records that pages are compared with their hashes, because a sender that forges cannot be
    /// told from the server.
    pub(in crate::receiver) fn notify_comparing(&mut self) {
        self.notify(Cause::ForgerWithServersPort, false);
    }

    /// Returns what the user is to be told since the last call.
    pub(in crate::receiver) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Fetches the file, where that is allowed, because multicast does not bring it.
    fn become_deaf(&mut self, cause: Cause, now: Instant) {
        let falls_back = self.may_fall_back();
        if falls_back && self.is_fetching && self.awaited_since.is_none() {
            return;
        }
        self.notify(cause, falls_back);
        if !falls_back {
            // To join again and again would have the server send the file each time. The answers
            // to reports tell whether the cast still exists.
            self.returns.waits = true;
            self.review_silence();
            return;
        }
        self.awaited_since = None;
        self.probe = Probe::None;
        self.is_fetching = true;
        self.returns.relapsed(now);
        self.hearing.forget_row();
        self.relisten.at = Some(now + RELISTEN);
        self.review_silence();
        self.request_report();
    }

    /// Handles a page of the cast that was missing.
    pub(in crate::receiver) fn handle_new_page(&mut self, arrival: PageArrival, now: Instant) {
        let PageArrival { is_full, was_demanded, .. } = arrival;
        self.hearing.new_page(is_full, now);
        self.progressed(is_full);
        // Not many of a stranger's old datagrams have a page that was demanded.
        let is_answer = is_full && was_demanded;
        if self.is_fetching && (self.hearing.has_row() || is_answer) {
            self.return_to_multicast(now);
        }
    }

    /// Handles a page of the cast that was here already. docs/PROTOCOL.md, "What counts as news".
    pub(in crate::receiver) fn handle_repeated_page(&mut self, arrival: PageArrival) -> Repeat {
        if self.hearing.repeated_page(arrival.page, arrival.is_full) {
            Repeat::Echo
        } else if self.hearing.counts_repeats() {
            Repeat::SignOfLife
        } else {
            Repeat::Counted
        }
    }

    /// Handles a new symbol. A useful one is as good as a page.
    pub(in crate::receiver) fn handle_symbol(&mut self, is_useful: bool, now: Instant) {
        self.hearing.symbol(is_useful, now);
        if is_useful {
            self.progressed(true);
        }
    }

    /// Records that something new came by multicast. `is_long`: in a datagram as long as the
    /// longest.
    fn progressed(&mut self, is_long: bool) {
        self.probe = Probe::None;
        let asked = self.ask_at.take().is_some();
        if asked | std::mem::take(&mut self.returns.waits) {
            self.review_silence();
        }
        if is_long {
            self.has_heard = true;
            self.awaited_since = None;
        }
    }

    /// Handles a beacon newer than all before. `sent`: how many datagrams the server had sent.
    pub(in crate::receiver) fn handle_beacon(
        &mut self,
        sent: u64,
        page_size: PageSize,
        now: Instant,
    ) {
        self.probe = Probe::None;
        match self.hearing.beacon(sent, self.is_fetching, now) {
            Some(Proof::Heard) => {
                self.has_heard = true;
                self.awaited_since = None;
                if self.is_fetching {
                    self.return_to_multicast(now);
                }
            }
            Some(Proof::Deaf { sent }) => {
                self.become_deaf(self.pages_lost(sent, Some(page_size)), now);
            }
            None => {}
        }
    }

    /// Stops fetching because multicast comes again.
    fn return_to_multicast(&mut self, now: Instant) {
        // What only the repair channel could bring must be fetched as long as that is closed.
        if !self.may_fall_back() || self.lacks_repair() || !self.returns.is_due(now) {
            return;
        }
        self.is_fetching = false;
        self.has_heard = true;
        self.awaited_since = None;
        self.returns.last = Some(now);
        self.relisten.at = None;
        self.fetches.clear();
        debug_assert!(!self.may_fetch(), "a member that relies on multicast still fetches");
        self.events.push_back(RescueEvent::MulticastReturned);
        self.review_silence();
        self.request_report();
    }

    /// Handles that no page came in time, though the server should have sent some.
    pub(super) fn nothing_came(&mut self, view: &RescueView<'_>, now: Instant) {
        if self.is_fetching {
            // Deafness was presumed, and the server does not know.
            self.relisten.at = Some(now + RELISTEN);
            self.request_report();
        } else {
            let page_size = view.assembly.map(Assembly::page_size);
            let cause = match self.hearing.lost(view.sent) {
                Some(sent) => self.pages_lost(sent, page_size),
                None => Cause::NothingCame,
            };
            self.become_deaf(cause, now);
        }
    }

    /// Cause where beacons came and pages did not.
    fn pages_lost(&self, sent: u64, page_size: Option<PageSize>) -> Cause {
        let is_short_only = self.hearing.is_short_only();
        let too_long = page_size.map(packet_len).filter(|_| is_short_only);
        Cause::PagesLost { sent, port: self.ports.0, too_long }
    }

    /// Fetches the rest, or asks for it, because the stream brought all that it will.
    pub(super) fn go_on_without_repair(&mut self, view: &RescueView<'_>, now: Instant) {
        if self.may_fall_back() {
            return self.become_deaf(Cause::RepairLost { port: self.ports.1 }, now);
        }
        // The answers tell whether the cast still exists.
        self.events.push_back(RescueEvent::Silence(Silence::Long));
        self.ask_at = Some(now + ASK.pause(self.asked));
        self.asked = self.asked.saturating_add(1);
        if let Some(assembly) = view.assembly.filter(|_| view.has_token) {
            let later = first_missing(assembly);
            self.events.push_back(RescueEvent::Want(Want { later, ..Want::default() }));
        }
    }

    /// Asks the server for a sign of life when nothing is heard of it. Where it answers, but still
    /// sends nothing, the network is to blame.
    pub(super) fn tend_silence(&mut self, silence: Option<SilentSince>, now: Instant) {
        let silence = self.fetchable_silence(silence);
        let Some(silence) = silence.filter(|silence| silence.ask_at() <= now) else { return };
        match self.probe {
            Probe::None => {
                self.probe = Probe::Asked;
                self.events.push_back(RescueEvent::Report);
            }
            Probe::Answered if silence.end() <= now => self.become_deaf(Cause::NothingCame, now),
            Probe::Asked | Probe::Answered => {}
        }
    }

    /// The silence of a member that could fetch the file instead of waiting.
    pub(super) fn fetchable_silence(&self, silence: Option<SilentSince>) -> Option<SilentSince> {
        silence.filter(|_| self.may_fall_back() && self.server.has_lease && !self.is_fetching)
    }

    /// Queues a notice for the user.
    pub(super) fn notify(&mut self, cause: Cause, fetches: bool) {
        self.notices.push(Notice { cause, fetches });
    }
}

/// Bytes of an IP packet with a full page.
fn packet_len(page_size: PageSize) -> u32 {
    page_size.get() + PACKET_OVERHEAD
}

/// Returns the first missing pages, as many as a request may name.
fn first_missing(assembly: &Assembly) -> Vec<PageRange> {
    let mut runs = Vec::new();
    let pages = missing(assembly.arrived(), assembly.geometry().all());
    let limit = usize::try_from(WANT_PAGES).expect("a number of pages");
    let _ = pages.take(limit).take_while(|page| add(&mut runs, *page)).count();
    debug_assert!(runs.len() <= WANT_RUNS, "the server reads no more runs");
    runs
}
