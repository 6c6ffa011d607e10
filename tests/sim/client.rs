//! Drives the real receiver of a client, with its simulated socket.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bootcast_fs::receiver::{
    Action, Arrival, Finding, HashRequest, JoinError, ListRequest, Pin, Receiver, RepairArrival,
    Replacement, ReportError, Timing, Verify,
};
use bootcast_proto::api::Report;
use bootcast_proto::manifest::{ContentId, LEAF_BYTES, Value};
use bootcast_proto::wire::LeafList;
use bootcast_proto::{Geometry, JoinAnswer, PageHash, PageIndex, PageRange, Token};

use super::audit::ClientAudit;
use super::burst::{Burst, Channel};
use super::intruder::FORGED_BYTE;
use super::link::{Link, Mask};
use super::scenario::Stalls;
use super::server::{ADDRESS, LEAF_VALUE};

/// Request of a client to the server.
#[derive(Debug)]
pub(super) enum Request {
    /// Join the cast.
    Join,
    /// Leave the cast.
    Leave(Token),
    /// Send a report.
    Report(Token, Report),
    /// Get hashes.
    Lists(ListRequest),
    /// Get the hashes of pages.
    PageHashes(HashRequest),
    /// Get leaves that were wrong.
    Replace(Replacement),
}

/// Answer of the server to a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// Answer to a join; `None` if the server refused it.
    Join(Option<JoinAnswer>),
    /// Answer to a report of a membership: whether the server knows the member.
    Report(Token, bool),
    /// Hashes, and the content id.
    Lists(ListRequest, Option<ContentId>, Vec<Value>),
    /// The hashes of pages.
    PageHashes(HashRequest),
    /// The right bytes of leaves.
    Replaced(Replacement),
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
    /// Pages that are stored with forged bytes.
    forged: BTreeSet<PageIndex>,
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
    pub(super) fn new(
        crowd: usize,
        port: Option<usize>,
        link: Link,
        seed: u64,
        verifies: bool,
    ) -> Self {
        let timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
        let mut receiver = Receiver::new(Pin::default(), None, timing, seed);
        if verifies {
            receiver.set_verify(Verify::Leaf);
        }
        Self {
            crowd,
            port,
            link,
            timer: None,
            arrived_at: None,
            completed_at: None,
            dead: false,
            receiver,
            audit: ClientAudit::default(),
            forged: BTreeSet::new(),
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
                Channel::Data => self.read_page(burst.sender(), datagram, now),
                Channel::Repair => self.read_repair(datagram, now),
            }
        }
        self.rebuild();
        if self.receiver.has_check() {
            self.verify(now);
        }
    }

    fn read_page(&mut self, sender: SocketAddr, datagram: &[u8], now: Instant) {
        match self.receiver.handle_datagram(sender, datagram, now) {
            Arrival::New(page) => {
                if page.payload[0] == FORGED_BYTE {
                    self.forged.insert(page.index);
                }
                self.store(page.index);
            }
            Arrival::Duplicate(_) | Arrival::Ignored => {}
            // A forger is ignored at some time, and a complete receiver refuses the rest.
            Arrival::Bad(error) => {
                let is_refused = sender != ADDRESS || self.receiver.has_all_pages();
                assert!(is_refused, "the receiver refuses a page of the server: {error}");
            }
        }
    }

    /// Checks the leaves that can be checked.
    fn verify(&mut self, now: Instant) {
        let page = self.receiver.assembly().map_or(1, |it| u64::from(it.page_size().get()));
        while let Some(check) = self.receiver.poll_check() {
            let bytes = check.bytes();
            let pages = bytes.start / page..bytes.end.div_ceil(page);
            let [first, end] = [pages.start, pages.end]
                .map(|page| PageIndex(u32::try_from(page).expect("a page of the file")));
            let index = |at: u64| usize::try_from(at).expect("an index");
            let mut stored = vec![0; index(bytes.end - bytes.start)];
            let mut wrong = BTreeSet::new();
            for forged in self.forged.range(first..end) {
                let start = u64::from(forged.0) * page;
                let own = start.max(bytes.start)..(start + page).min(bytes.end);
                wrong.extend([own.start / LEAF_BYTES, (own.end - 1) / LEAF_BYTES]);
                stored[index(own.start - bytes.start)..index(own.end - bytes.start)]
                    .fill(FORGED_BYTE);
            }
            let finding = if check.has_leaf_values() {
                Finding::Wrong(wrong.into_iter().collect())
            } else {
                let value = |leaf| if wrong.contains(&leaf) { [0xff; 32] } else { LEAF_VALUE };
                Finding::Values(check.leaves().map(value).collect())
            };
            self.receiver.handle_checked_bytes(&check, &finding, &stored, now);
            self.receiver.handle_check_result(&check, &finding, now);
        }
        self.receiver.handle_timeout(now);
    }

    /// Handles the right bytes of leaves that were wrong.
    fn replace(&mut self, leaves: &Replacement, now: Instant) {
        let bytes = leaves.bytes();
        let right = vec![0; usize::try_from(bytes.end - bytes.start).expect("about a MiB")];
        self.receiver.handle_fetched_leaves(leaves, &[], &right, now);
        self.receiver.handle_replaced(leaves, Some(&[]), now);
        // Blocks are rebuilt from the right bytes from now on.
        let geometry = *self.receiver.assembly().expect("leaves of a file").geometry();
        for page in geometry.pages_covering(bytes).iter() {
            if self.receiver.holds(&geometry.byte_range(PageRange::single(page))) {
                self.forged.remove(&page);
            }
        }
        self.receiver.handle_timeout(now);
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
            let is_spoilt = plan.present.iter().any(|(_, page)| self.forged.contains(page));
            for (_, page) in plan.missing {
                self.receiver.record_other_pages(PageRange::single(page), true);
                if is_spoilt {
                    self.forged.insert(page);
                }
                self.store(page);
            }
        }
    }

    /// Handles an answer of the server.
    pub(super) fn handle_answer(&mut self, answer: &Answer, now: Instant) {
        match answer {
            Answer::Join(Some(answer)) => {
                self.receiver.handle_join(answer, now);
                if self.receiver.tree().is_some() {
                    // Requests hashes.
                    self.receiver.handle_timeout(now);
                }
            }
            Answer::Join(None) => {
                let (after, reason) = (Duration::ZERO, "lost".to_owned());
                self.receiver.handle_join_error(JoinError::Retry { after, reason }, now);
            }
            Answer::Report(token, known) => {
                let result = if *known { Ok(()) } else { Err(ReportError::UnknownMember) };
                self.receiver.handle_report_answer(token, result, now);
            }
            Answer::Lists(request, id, values) => {
                self.receiver.handle_lists(request, *id, values, now);
                self.verify(now);
            }
            Answer::PageHashes(request) => {
                // The file consists of zeros.
                let hash = PageHash::of(&vec![0; request.size.get() as usize]);
                let hashes = vec![hash; request.pages.len() as usize];
                self.receiver.handle_page_hashes(request, Some(hashes), now);
            }
            Answer::Replaced(leaves) => self.replace(leaves, now),
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
                // The simulation has no readers, so nothing is demanded.
                Action::Want(_) | Action::ZeroMap => {}
                Action::Lists(request) => return Some(Request::Lists(request)),
                Action::PageHashes(request) => return Some(Request::PageHashes(request)),
                Action::Replace(leaves) => return Some(Request::Replace(leaves)),
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

    /// Record of the pages and symbols that it stored.
    pub(super) fn audit(&self) -> &ClientAudit {
        &self.audit
    }

    /// Checks that it has the file, and has left the group.
    pub(super) fn check_complete(&self, file: &Geometry) {
        self.audit.check_complete(self.receiver.size(), self.receiver.counters(), file);
        assert_eq!(self.subscribed, (false, false), "a complete client still listens");
    }
}
