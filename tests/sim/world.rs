//! Connects server, network and clients on one virtual clock.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bootcast_proto::PageHash;

use super::burst::Burst;
use super::client::{Answer, Client, Request};
use super::core::Core;
use super::event_queue::EventQueue;
use super::intruder::Intruder;
use super::liar::Liar;
use super::link::{Delivery, Link, Mask, SharedLoss, all};
use super::outcome::Outcome;
use super::random::Random;
use super::scenario::Scenario;
use super::server::Server;

/// Delay from the server to any receiver.
const DELAY: Duration = Duration::from_micros(200);

/// First retransmission timeout of TCP. It doubles each time.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// Virtual time within which every cast must end.
const MAX_TIME: Duration = Duration::from_secs(3600);

/// Number of times in a row that the server may wake at once although it had nothing to send. A few
/// happen: a deferred need may be promised before its turn.
const MAX_WAKES_FOR_NOTHING: u32 = 100;

/// An event of the simulation. The numbers are indices of clients.
#[derive(Debug)]
enum Event {
    /// A timer of the server is due.
    ServerTimer,
    /// A burst reaches the core.
    BurstAtCore(Rc<Burst>),
    /// A burst has crossed the core, which lost the datagrams of the mask.
    BurstAtPorts(Rc<Burst>, Mask),
    /// The datagrams of the mask reach a client, whose socket has dropped this many before them.
    DatagramsAtClient(usize, Rc<Burst>, Mask, u64),
    /// A request of a client reaches the server.
    RequestAtServer(usize, Request),
    /// An answer reaches a client.
    AnswerAtClient(usize, Answer),
    /// A timer of a client is due.
    ClientTimer(usize),
    /// A client opens the file.
    ClientArrives(usize),
    /// A client disappears without a leave.
    ClientDies(usize),
    /// A client begins to pause.
    ClientStalls(usize),
    /// A client ends its pause.
    ClientResumes(usize),
    /// An intruder sends something.
    IntruderTurn,
    /// A liar sends requests.
    LiarTurn,
}

/// A running simulation.
struct World<'a> {
    scenario: &'a Scenario,
    start: Instant,
    now: Instant,
    events: EventQueue<Event>,
    server: Server,
    /// Time of the scheduled timer event of the server.
    server_timer: Option<Instant>,
    /// Number of wakes in a row that found nothing to send and were due again at once.
    wakes_for_nothing: u32,
    clients: Vec<Client>,
    core: Option<Core>,
    intruder: Option<Intruder>,
    liar: Option<Liar>,
    /// Switch ports at which loss is shared.
    ports: Vec<SharedLoss>,
    random: Random,
    outcome: Outcome,
    /// Number of living clients that are not complete, including those that arrive later.
    incomplete: usize,
}

/// Runs a scenario to its end.
///
/// # Panics
///
/// Panics if a property that every cast must have does not hold.
pub fn run(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario, clock_start());
    while let Some((at, event)) = world.events.pop() {
        world.now = at;
        assert!(at - world.start < MAX_TIME, "{}: the cast does not end", scenario.name);
        world.handle(event);
    }
    world.finish()
}

/// Returns the start of the virtual clock. Only durations since the start matter.
#[expect(clippy::disallowed_methods, reason = "an Instant cannot be created otherwise")]
fn clock_start() -> Instant {
    Instant::now()
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, now: Instant) -> Self {
        let mut world = Self {
            scenario,
            start: now,
            now,
            events: EventQueue::new(),
            server: Server::new(scenario, now),
            server_timer: None,
            wakes_for_nothing: 0,
            clients: Vec::new(),
            core: scenario.core.map(|kind| Core::new(kind, now)),
            intruder: None,
            liar: None,
            ports: Vec::new(),
            random: Random::new(scenario.seed, 2),
            outcome: Outcome::new(scenario),
            incomplete: 0,
        };
        for crowd in 0..scenario.crowds.len() {
            world.add_crowd(crowd);
        }
        if let Some(kind) = scenario.intruder {
            let random = Random::new(scenario.seed, 3);
            let (geometry, key) = (world.server.geometry(), scenario.key());
            world.intruder = Some(Intruder::new(kind, geometry, key, random));
            world.events.schedule(now, Event::IntruderTurn);
        }
        if let Some(kind) = scenario.liar {
            world.liar = Some(Liar::new(kind, Random::new(scenario.seed, 4)));
            // It is there when the others come.
            world.events.schedule(now, Event::LiarTurn);
        }
        world
    }

    /// Creates the clients of a crowd and schedules their arrivals, deaths and pauses.
    fn add_crowd(&mut self, number: usize) {
        let crowd = &self.scenario.crowds[number];
        let first = self.ports.len();
        let file = self.outcome.file_time();
        let datagram = self.outcome.datagram();
        for member in 0..crowd.count {
            let index = self.clients.len();
            let mut random = Random::new(self.scenario.seed, 1000 + index as u64);
            let port = member.checked_div(crowd.link.port).map(|port| first + port);
            if port.is_some_and(|port| port == self.ports.len()) {
                let seeded = Random::new(random.next(), 0);
                self.ports.push(SharedLoss::new(crowd.link.shared, seeded));
            }
            let arrival = self.start + random.within(file.mul_f64(crowd.arrivals));
            self.events.schedule(arrival, Event::ClientArrives(index));
            if random.chance(crowd.dying) {
                self.events.schedule(arrival + random.within(file), Event::ClientDies(index));
            }
            if let Some(stalls) = crowd.stalls {
                let at = arrival + random.exponential(stalls.every);
                self.events.schedule(at, Event::ClientStalls(index));
            }
            let seed = random.next();
            let link = Link::new(crowd.link, self.scenario.rate, datagram, random, self.start);
            let verifies = self.scenario.has_forger();
            self.clients.push(Client::new(number, port, link, seed, verifies));
            self.incomplete += 1;
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::ServerTimer => {
                self.server_timer = None;
                self.run_server();
            }
            Event::BurstAtCore(burst) => self.cross_core(&burst),
            Event::BurstAtPorts(burst, lost) => self.distribute(&burst, lost),
            Event::DatagramsAtClient(index, burst, which, dropped) => {
                if self.clients[index].is_listening(burst.channel()) {
                    self.clients[index].handle_drops(dropped);
                    self.clients[index].deliver(&burst, which, self.now);
                    self.after_client_event(index);
                }
            }
            Event::RequestAtServer(index, request) => self.handle_request(index, request),
            Event::AnswerAtClient(index, answer) => self.handle_answer(index, answer),
            Event::ClientTimer(index) => self.handle_client_timer(index),
            Event::ClientArrives(index) => {
                self.clients[index].handle_arrival(self.now);
                self.after_client_event(index);
            }
            Event::ClientDies(index) => {
                if self.clients[index].completed_at.is_none() {
                    self.clients[index].dead = true;
                    self.incomplete -= 1;
                }
            }
            Event::ClientStalls(index) => self.stall(index),
            Event::IntruderTurn => self.intrude(),
            Event::LiarTurn => self.lie(),
            Event::ClientResumes(index) => {
                self.clients[index].resume(self.now);
                self.after_client_event(index);
            }
        }
    }

    /// Sends what the intruder sends, past the core, for as long as a client lacks something.
    fn intrude(&mut self) {
        let Some(intruder) = self.intruder.as_mut().filter(|_| self.incomplete > 0) else { return };
        let (bursts, pause) = (intruder.take_turn(), intruder.pause());
        for burst in bursts {
            self.distribute(&burst, 0);
        }
        self.events.schedule(self.now + pause, Event::IntruderTurn);
    }

    /// Handles the requests of the liar, for as long as a client lacks something.
    fn lie(&mut self) {
        let Some(liar) = self.liar.as_mut().filter(|_| self.incomplete > 0) else { return };
        liar.take_turn(&mut self.server, self.now);
        self.events.schedule(self.now + Liar::pause(), Event::LiarTurn);
        self.run_server();
    }

    /// Sends a burst through the core, if there is one.
    fn cross_core(&mut self, burst: &Rc<Burst>) {
        let Some(core) = &mut self.core else { return self.distribute(burst, 0) };
        let (lost, at) = core.carry(burst.wire_lens(), self.now);
        if lost != all(burst.wire_lens().len()) {
            self.events.schedule(at, Event::BurstAtPorts(Rc::clone(burst), lost));
        }
    }

    /// Delivers a burst to all clients, without the datagrams that the core lost.
    fn distribute(&mut self, burst: &Rc<Burst>, lost_in_core: Mask) {
        let lens = burst.wire_lens();
        let lost: Vec<Mask> = self.ports.iter_mut().map(|port| port.next(lens.len())).collect();
        let mut late = Vec::new();
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if !client.is_listening(burst.channel()) {
                continue;
            }
            let lost_before = lost_in_core | client.port.map_or(0, |port| lost[port]);
            let which = client.link.carry(lens, lost_before, self.now, &mut late);
            if which != 0 {
                client.deliver(burst, which, self.now);
                self.after_client_event(index);
            }
            for Delivery { at, which, dropped } in late.drain(..) {
                let event = Event::DatagramsAtClient(index, Rc::clone(burst), which, dropped);
                self.events.schedule(at, event);
            }
        }
    }

    /// Sends the requests of a client, records its completion and schedules its timer. Must be
    /// called after each event of the client.
    fn after_client_event(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.dead || client.stalled_until().is_some() {
            return;
        }
        while let Some(request) = client.next_request() {
            let delay = request_delay(&mut self.random, self.scenario);
            self.events.schedule(self.now + delay, Event::RequestAtServer(index, request));
        }
        if client.completed_at.is_none() && client.is_complete() {
            client.completed_at = Some(self.now);
            self.incomplete -= 1;
            let sent = self.server.sent();
            self.outcome.record_completion(client.crowd, client.arrived_at, self.now, sent);
            if let Some(core) = &mut self.core {
                self.outcome.record_flows_share(core.share_of_flows(self.now));
            }
        }
        if let Some(at) = client.next_wake()
            && client.timer.is_none_or(|scheduled| at < scheduled)
        {
            client.timer = Some(at);
            self.events.schedule(at.max(self.now), Event::ClientTimer(index));
        }
    }

    fn handle_client_timer(&mut self, index: usize) {
        let client = &mut self.clients[index];
        // A timer event is void if a timer for an earlier time has replaced it.
        if client.timer.is_none_or(|timer| timer > self.now) || client.dead {
            return;
        }
        client.timer = None;
        if let Some(until) = client.stalled_until() {
            client.timer = Some(until);
            self.events.schedule(until, Event::ClientTimer(index));
            return;
        }
        client.wake(self.now);
        self.after_client_event(index);
    }

    /// Begins a pause of a client, and schedules its end and the next pause.
    fn stall(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(stalls) = self.scenario.crowds[client.crowd].stalls else { return };
        if client.dead || client.completed_at.is_some() {
            return;
        }
        client.stall(stalls, self.now);
        let resumes = self.now + stalls.lasting;
        self.events.schedule(resumes, Event::ClientResumes(index));
        let next = resumes + self.random.exponential(stalls.every);
        self.events.schedule(next, Event::ClientStalls(index));
    }

    /// Handles a request at the server. Requests that a client sent before its death still arrive.
    fn handle_request(&mut self, index: usize, request: Request) {
        let plain = self.scenario.crowds[self.clients[index].crowd].plain;
        let answer = match request {
            Request::Join => Some(Answer::Join(self.server.join(plain, self.now))),
            Request::Leave(token) => {
                self.server.leave(&token, self.now);
                None
            }
            Request::Report(token, report) => {
                self.outcome.record_report(self.now);
                let is_known = self.server.report(&token, &report, self.now);
                Some(Answer::Report(token, is_known))
            }
            Request::Lists(request) => {
                let (id, values) = (self.server.content_id(), self.server.lists(&request));
                Some(Answer::Lists(request, id, values))
            }
            Request::PageHashes(request) => {
                self.outcome.record_fetched(u64::from(request.pages.len()) * PageHash::LEN as u64);
                Some(Answer::PageHashes(request))
            }
            Request::Replace(leaves) => {
                let bytes = leaves.bytes();
                self.outcome.record_fetched(bytes.end - bytes.start);
                Some(Answer::Replaced(leaves))
            }
        };
        if let Some(answer) = answer {
            let delay = request_delay(&mut self.random, self.scenario);
            self.events.schedule(self.now + delay, Event::AnswerAtClient(index, answer));
        }
        self.run_server();
    }

    fn handle_answer(&mut self, index: usize, answer: Answer) {
        let client = &mut self.clients[index];
        if client.dead {
            return;
        }
        if let Some(until) = client.stalled_until() {
            self.events.schedule(until, Event::AnswerAtClient(index, answer));
            return;
        }
        client.handle_answer(&answer, self.now);
        self.after_client_event(index);
    }

    /// Runs the server, sends its datagrams and schedules its timer.
    fn run_server(&mut self) {
        let before = self.server.sent();
        // The last members may be forgotten with the last page of their last pass.
        let members = self.server.members();
        let bursts = self.server.wake(self.now);
        let sent = self.server.sent();
        self.outcome.record_sent(before, sent, self.now);
        assert!(
            members > 0 || sent == before,
            "{}: the server sends although it has no members",
            self.scenario.name
        );
        let wake = self.server.next_wake();
        let is_for_nothing = sent == before && wake.is_some_and(|at| at <= self.now);
        self.wakes_for_nothing = if is_for_nothing { self.wakes_for_nothing + 1 } else { 0 };
        let name = &self.scenario.name;
        assert!(self.wakes_for_nothing < MAX_WAKES_FOR_NOTHING, "{name}: the server spins");
        for burst in bursts {
            let burst = Rc::new(burst);
            if let Some(intruder) = &mut self.intruder {
                intruder.record(&burst);
            }
            self.events.schedule(self.now + DELAY, Event::BurstAtCore(burst));
        }
        if let Some(at) = wake
            && self.server_timer.is_none_or(|scheduled| at < scheduled)
        {
            self.server_timer = Some(at);
            self.events.schedule(at.max(self.now), Event::ServerTimer);
        }
    }

    /// Checks that the cast has ended, and that all living clients have the file.
    fn finish(mut self) -> Outcome {
        let name = &self.scenario.name;
        assert!(!self.server.is_casting(), "{name}: the cast does not end");
        assert_eq!(self.incomplete, 0, "{name}: living members without all pages");
        for client in self.clients.iter().filter(|client| client.completed_at.is_some()) {
            client.check_complete(self.server.geometry());
            self.server.check_symbols(client.audit());
            self.outcome.record_manifest(client.manifest_bytes(self.server.geometry()));
        }
        self.outcome.record_end(self.server.sent());
        self.outcome
    }
}

/// Returns the delay of a request or an answer, one way, with retransmissions.
fn request_delay(random: &mut Random, scenario: &Scenario) -> Duration {
    let (mut delay, mut pause) = (scenario.rtt / 2, RETRANSMISSION);
    while random.chance(scenario.control_loss) {
        delay += pause;
        pause *= 2;
    }
    delay
}
