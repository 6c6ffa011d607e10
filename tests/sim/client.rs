//! Drives the real receiver of a client, with its simulated socket.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bootcast_fs::receiver::{
    Action, Arrival, JoinError, Pin, Receiver, RepairArrival, ReportError, Timing,
};
use bootcast_proto::api::Report;
use bootcast_proto::wire::LeafList;
use bootcast_proto::{Geometry, JoinAnswer, PageIndex, PageRange, Token};

use super::audit::ClientAudit;
use super::burst::{Burst, Channel};
use super::link::{Link, Mask};
use super::scenario::Stalls;
use super::server::ADDRESS;

/// Request of a client to the server.
#[derive(Debug)]
pub(super) enum Request {
    /// Join the cast.
    Join,
    /// Leave the cast.
    Leave(Token),
    /// Send a report.
    Report(Token, Report),
}

/// Answer of the server to a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// Answer to a join; `None` if the server refused it.
    Join(Option<JoinAnswer>),
    /// Answer to a report of a membership: whether the server knows the member.
    Report(Token, bool),
}

/// One client with its link and its machine.
#[derive(Debug)]
pub(super) struct Client {
    /// Index of its crowd in the scenario.
    pub(super) crowd: usize,
    /// Index of its switch port, if loss is shared.
    pub(super) port: Option<usize>,
    /// Link from the server.
    pub(super) link: Link,
    /// Time of the scheduled timer event.
    pub(super) timer: Option<Instant>,
    /// Time of its arrival.
    pub(super) arrived_at: Option<Instant>,
    /// Time at which it had every page.
    pub(super) completed_at: Option<Instant>,
    /// Whether it died without a leave.
    pub(super) dead: bool,
    receiver: Receiver,
    audit: ClientAudit,
    /// Whether it is subscribed to the data port, and to the repair channel.
    subscribed: (bool, bool),
    /// The present pause, if any.
    stall: Option<Stall>,
}

/// A pause in which the client does not run.
#[derive(Debug)]
struct Stall {
    until: Instant,
    /// Number of datagrams that the socket still has room for.
    room: usize,
    /// Datagrams in the socket, in order of arrival.
    waiting: Vec<(Rc<Burst>, Mask)>,
    /// Number of datagrams that the socket dropped.
    dropped: u64,
}

impl Client {
    /// Creates a client that has not arrived yet.
    pub(super) fn new(crowd: usize, port: Option<usize>, link: Link, seed: u64) -> Self {
        let timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
        Self {
            crowd,
            port,
            link,
            timer: None,
            arrived_at: None,
            completed_at: None,
            dead: false,
            receiver: Receiver::new(Pin::default(), None, timing, seed),
            audit: ClientAudit::default(),
            subscribed: (false, false),
            stall: None,
        }
    }

    /// Whether it is alive and subscribed to this channel.
    pub(super) fn is_listening(&self, channel: Channel) -> bool {
        let (data, repair) = self.subscribed;
        !self.dead && if channel == Channel::Data { data } else { repair }
    }

    /// End of the present pause.
    pub(super) fn stalled_until(&self) -> Option<Instant> {
        self.stall.as_ref().map(|stall| stall.until)
    }

    /// Handles its arrival: it opens the file.
    pub(super) fn handle_arrival(&mut self, now: Instant) {
        self.arrived_at = Some(now);
        self.receiver.handle_open();
    }

    /// Begins a pause.
    pub(super) fn stall(&mut self, stalls: Stalls, now: Instant) {
        let until = now + stalls.lasting;
        self.stall = Some(Stall { until, room: stalls.socket, waiting: Vec::new(), dropped: 0 });
    }

    /// Ends the pause and reads the datagrams that wait in the socket.
    pub(super) fn resume(&mut self, now: Instant) {
        let Some(stall) = self.stall.take() else { return };
        self.receiver.handle_drops(stall.dropped);
        for (burst, which) in stall.waiting {
            self.read(&burst, which, now);
        }
        self.receiver.handle_timeout(now);
    }

    /// Reports to the receiver how many datagrams its socket dropped.
    pub(super) fn handle_drops(&mut self, datagrams: u64) {
        self.receiver.handle_drops(datagrams);
    }

    /// Delivers datagrams to its socket.
    pub(super) fn deliver(&mut self, burst: &Rc<Burst>, which: Mask, now: Instant) {
        let Some(stall) = &mut self.stall else {
            self.read(burst, which, now);
            return;
        };
        let (mut kept, mut rest) = (0, which);
        while rest != 0 && stall.room > 0 {
            let lowest = rest & rest.wrapping_neg();
            kept |= lowest;
            rest ^= lowest;
            stall.room -= 1;
        }
        stall.dropped += u64::from(rest.count_ones());
        if kept != 0 {
            stall.waiting.push((Rc::clone(burst), kept));
        }
    }

    fn read(&mut self, burst: &Burst, mut which: Mask, now: Instant) {
        while which != 0 {
            let datagram = burst.datagram(which.trailing_zeros() as usize);
            which &= which - 1;
            match burst.channel() {
                Channel::Data => self.read_page(datagram, now),
                Channel::Repair => self.read_repair(datagram, now),
            }
        }
        self.rebuild();
    }

    fn read_page(&mut self, datagram: &[u8], now: Instant) {
        match self.receiver.handle_datagram(ADDRESS, datagram, now) {
            Arrival::New(page) => self.store(page.index),
            Arrival::Duplicate(_) => {}
            Arrival::Bad(error) => panic!("the receiver refuses a page of the server: {error}"),
        }
    }

    fn store(&mut self, page: PageIndex) {
        let assembly = self.receiver.assembly().expect("a page has a size");
        self.audit.store_page(page, assembly.geometry());
        self.receiver.handle_stored(PageRange::single(page), self.receiver.epoch());
    }

    fn read_repair(&mut self, datagram: &[u8], now: Instant) {
        if let Ok(list) = LeafList::decode(datagram) {
            self.audit.store_list(&list);
        }
        match self.receiver.handle_repair_datagram(ADDRESS, datagram, now) {
            RepairArrival::Symbol { block, number, round, .. } => {
                self.audit.store_symbol(block, number);
                self.receiver.handle_symbol_stored(block, number, round);
            }
            RepairArrival::Nothing => {}
            // A complete receiver refuses the remaining symbols of a burst.
            RepairArrival::Bad(error) => {
                let is_complete = self.receiver.is_complete();
                assert!(is_complete, "the receiver refuses a symbol of the server: {error}");
            }
        }
    }

    /// Marks the missing pages of blocks that can be rebuilt as stored.
    fn rebuild(&mut self) {
        while let Some(block) = self.receiver.poll_decodable() {
            let Some(plan) = self.receiver.decode_plan(block) else { continue };
            self.audit.check_plan(&plan);
            for (_, page) in plan.missing {
                self.store(page);
            }
        }
    }

    /// Handles an answer of the server.
    pub(super) fn handle_answer(&mut self, answer: &Answer, now: Instant) {
        match answer {
            Answer::Join(Some(answer)) => self.receiver.handle_join(answer, now),
            Answer::Join(None) => {
                let (after, reason) = (Duration::ZERO, "lost".to_owned());
                self.receiver.handle_join_error(JoinError::Retry { after, reason }, now);
            }
            Answer::Report(token, known) => {
                let result = if *known { Ok(()) } else { Err(ReportError::UnknownMember) };
                self.receiver.handle_report_answer(token, result, now);
            }
        }
    }

    /// Handles due timers.
    pub(super) fn wake(&mut self, now: Instant) {
        self.receiver.handle_timeout(now);
    }

    /// Time at which [`Self::wake`] must be called next.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.receiver.poll_timeout()
    }

    /// Takes the next request to the server.
    pub(super) fn next_request(&mut self) -> Option<Request> {
        loop {
            match self.receiver.poll_action()? {
                Action::Subscribe(to) => self.subscribed = (true, to.repair.is_some()),
                Action::Unsubscribe => self.subscribed = (false, false),
                Action::Join => return Some(Request::Join),
                Action::Leave(token) => return Some(Request::Leave(token)),
                // The simulation has no readers and no bytes, so nothing is demanded or verified.
                Action::Want(_) | Action::Lists(_) | Action::ZeroMap | Action::Replace(_) => {}
                Action::Report(report) => {
                    ClientAudit::check_useful(report.useful, self.receiver.counters());
                    // A report without a membership is dropped.
                    if let Some(token) = self.receiver.token() {
                        return Some(Request::Report(token.clone(), report));
                    }
                }
            }
        }
    }

    /// Whether it has every page.
    pub(super) fn is_complete(&self) -> bool {
        self.receiver.is_complete()
    }

    /// Bytes of the manifest that it has to fetch over HTTP.
    pub(super) fn manifest_bytes(&self, file: &Geometry) -> u64 {
        self.audit.manifest_bytes(file)
    }

    /// What it stored.
    pub(super) fn audit(&self) -> &ClientAudit {
        &self.audit
    }

    /// Checks that it has the file, and has left the group.
    pub(super) fn check_complete(&self, file: &Geometry) {
        self.audit.check_complete(self.receiver.size(), self.receiver.counters(), file);
        assert_eq!(self.subscribed, (false, false), "a complete client still listens");
    }
}
