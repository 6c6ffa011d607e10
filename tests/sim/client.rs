//! A client's real core behind a simulated network.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bootcast_fs::receiver::{
    Action, Arrival, JoinError, Pin, Receiver, RepairArrival, ReportError, Timing,
};
use bootcast_proto::api::Report;
use bootcast_proto::{JoinAnswer, PageRange, Token};

use super::burst::{Burst, Channel};
use super::link::{Link, Mask};
use super::scenario::Stalls;
use super::server::ADDRESS;

/// Request of a client to the server.
#[derive(Debug)]
pub(super) enum Request {
    /// Become a member.
    Join,
    /// End the membership.
    Leave(Token),
    /// Report what it lacks.
    Report(Token, Report),
}

/// Answer of the server.
#[derive(Debug)]
pub(super) enum Answer {
    /// Answer to a join; `None` if the server refused it.
    Join(Option<JoinAnswer>),
    /// Answer to a report: whether the server knows the member.
    Report(bool),
}

/// One receiver with its machine.
#[derive(Debug)]
pub(super) struct Client {
    /// Index of its crowd in the scenario.
    pub(super) crowd: usize,
    /// Index of its port, if loss is shared.
    pub(super) port: Option<usize>,
    /// Link from the server.
    pub(super) link: Link,
    /// Time of the planned timer event.
    pub(super) timer: Option<Instant>,
    /// When it arrived.
    pub(super) came: Option<Instant>,
    /// When it had every page.
    pub(super) done: Option<Instant>,
    /// Whether it died without leaving.
    pub(super) dead: bool,
    receiver: Receiver,
    /// Whether it listens to the pages, and to the repair channel.
    hears: (bool, bool),
    stall: Option<Stall>,
}

/// A pause in which the client does not run.
#[derive(Debug)]
struct Stall {
    until: Instant,
    room: usize,
    waiting: Vec<(Rc<Burst>, Mask)>,
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
            came: None,
            done: None,
            dead: false,
            receiver: Receiver::new(Pin::default(), None, timing, seed),
            hears: (false, false),
            stall: None,
        }
    }

    /// Whether datagrams of this channel reach it.
    pub(super) fn is_listening(&self, channel: Channel) -> bool {
        let (pages, repair) = self.hears;
        !self.dead && if channel == Channel::Data { pages } else { repair }
    }

    /// End of the present pause.
    pub(super) fn stalled_until(&self) -> Option<Instant> {
        self.stall.as_ref().map(|stall| stall.until)
    }

    /// Handles its arrival: it wants the file.
    pub(super) fn come(&mut self, now: Instant) {
        self.came = Some(now);
        self.receiver.handle_open();
    }

    /// Pauses the client.
    pub(super) fn stall(&mut self, stalls: Stalls, now: Instant) {
        let until = now + stalls.lasting;
        self.stall = Some(Stall { until, room: stalls.socket, waiting: Vec::new(), dropped: 0 });
    }

    /// Ends the pause and reads what the socket kept.
    pub(super) fn resume(&mut self, now: Instant) {
        let Some(stall) = self.stall.take() else { return };
        self.receiver.handle_drops(stall.dropped);
        for (burst, which) in stall.waiting {
            self.read(&burst, which, now);
        }
        self.receiver.handle_timeout(now);
    }

    /// Counts datagrams that its socket had no room for.
    pub(super) fn dropped(&mut self, datagrams: u64) {
        self.receiver.handle_drops(datagrams);
    }

    /// Delivers datagrams to its socket.
    pub(super) fn arrive(&mut self, burst: &Rc<Burst>, which: Mask, now: Instant) {
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
            Arrival::New(page) => self.receiver.handle_stored(PageRange::single(page.index)),
            Arrival::Duplicate(_) => {}
            Arrival::Bad(error) => panic!("a page of the server is bad: {error}"),
        }
    }

    fn read_repair(&mut self, datagram: &[u8], now: Instant) {
        match self.receiver.handle_repair_datagram(ADDRESS, datagram, now) {
            RepairArrival::Symbol { block, number, .. } => {
                self.receiver.handle_symbol_stored(block, number);
            }
            RepairArrival::Nothing => {}
            // The last symbol of a burst may find the file complete.
            RepairArrival::Bad(error) => {
                assert!(self.receiver.is_complete(), "a symbol of the server is bad: {error}");
            }
        }
    }

    fn rebuild(&mut self) {
        while let Some(block) = self.receiver.poll_decodable() {
            let plan = self.receiver.decode_plan(block);
            for (_, page) in plan.into_iter().flat_map(|plan| plan.missing) {
                self.receiver.handle_stored(PageRange::single(page));
            }
        }
    }

    /// Delivers an answer of the server.
    pub(super) fn answered(&mut self, answer: &Answer, now: Instant) {
        match answer {
            Answer::Join(Some(answer)) => self.receiver.handle_join(answer, now),
            Answer::Join(None) => {
                let (after, reason) = (Duration::ZERO, "lost".to_owned());
                self.receiver.handle_join_error(JoinError::Retry { after, reason }, now);
            }
            Answer::Report(known) => {
                let result = if *known { Ok(()) } else { Err(ReportError::UnknownMember) };
                self.receiver.handle_reported(result, now);
            }
        }
    }

    /// Runs what is due.
    pub(super) fn wake(&mut self, now: Instant) {
        self.receiver.handle_timeout(now);
    }

    /// When [`Self::wake`] must be called next.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.receiver.poll_timeout()
    }

    /// Next request to the server.
    pub(super) fn next_request(&mut self) -> Option<Request> {
        loop {
            match self.receiver.poll_action()? {
                Action::Subscribe(to) => self.hears = (true, to.repair.is_some()),
                Action::Unsubscribe => self.hears = (false, false),
                Action::Join => return Some(Request::Join),
                Action::Leave(token) => return Some(Request::Leave(token)),
                // The simulation has no readers, so nothing is demanded.
                Action::Want(_) => {}
                Action::Report(report) => {
                    // For a membership that has ended, no report is expected.
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
}
