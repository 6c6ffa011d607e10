//! Server, network and clients on one virtual clock.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::agenda::Agenda;
use super::burst::Burst;
use super::client::{Answer, Client, Request};
use super::core::Core;
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
const PATIENCE: Duration = Duration::from_secs(3600);

/// An event of the simulation.
#[derive(Debug)]
enum Happening {
    ServerWakes,
    Sent(Rc<Burst>),
    /// A burst has crossed the shared network, without these datagrams.
    Spreads(Rc<Burst>, Mask),
    /// Datagrams of a burst reach a client whose socket dropped this many before.
    Arrives(usize, Rc<Burst>, Mask, u64),
    Asked(usize, Request),
    Answered(usize, Answer),
    ClientWakes(usize),
    Comes(usize),
    Dies(usize),
    Stalls(usize),
    Resumes(usize),
}

/// A running simulation.
struct World<'a> {
    scenario: &'a Scenario,
    start: Instant,
    now: Instant,
    agenda: Agenda<Happening>,
    server: Server,
    server_timer: Option<Instant>,
    clients: Vec<Client>,
    core: Option<Core>,
    ports: Vec<SharedLoss>,
    random: Random,
    outcome: Outcome,
    /// Living clients that have arrived or will, and are not complete.
    wanting: usize,
}

/// Runs a scenario to its end.
///
/// # Panics
///
/// Panics if a property that every cast must have does not hold.
pub fn run(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario, first_moment());
    while let Some((at, what)) = world.agenda.pop() {
        world.now = at;
        assert!(at - world.start < PATIENCE, "{}: the cast does not end", scenario.name);
        world.happen(what);
    }
    world.finish()
}

/// Start of the virtual clock. Only distances from it count.
#[expect(clippy::disallowed_methods, reason = "there is no other way to an Instant")]
fn first_moment() -> Instant {
    Instant::now()
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, now: Instant) -> Self {
        let mut world = Self {
            scenario,
            start: now,
            now,
            agenda: Agenda::new(),
            server: Server::new(scenario, now),
            server_timer: None,
            clients: Vec::new(),
            core: scenario.core.map(|kind| Core::new(kind, now)),
            ports: Vec::new(),
            random: Random::new(scenario.seed, 2),
            outcome: Outcome::new(scenario),
            wanting: 0,
        };
        for crowd in 0..scenario.crowds.len() {
            world.add_crowd(crowd);
        }
        world
    }

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
            let comes = self.start + random.within(file.mul_f64(crowd.arrivals));
            self.agenda.plan(comes, Happening::Comes(index));
            if random.chance(crowd.dying) {
                self.agenda.plan(comes + random.within(file), Happening::Dies(index));
            }
            if let Some(stalls) = crowd.stalls {
                let at = comes + random.exponential(stalls.every);
                self.agenda.plan(at, Happening::Stalls(index));
            }
            let seed = random.next();
            let link = Link::new(crowd.link, self.scenario.rate, datagram, random, self.start);
            self.clients.push(Client::new(number, port, link, seed));
            self.wanting += 1;
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::ServerWakes => {
                self.server_timer = None;
                self.serve();
            }
            Happening::Sent(burst) => self.cross(&burst),
            Happening::Spreads(burst, lost) => self.spread(&burst, lost),
            Happening::Arrives(index, burst, which, dropped) => {
                if self.clients[index].is_listening(burst.channel()) {
                    self.clients[index].dropped(dropped);
                    self.clients[index].arrive(&burst, which, self.now);
                    self.settle(index);
                }
            }
            Happening::Asked(index, request) => self.ask(index, request),
            Happening::Answered(index, answer) => self.answer(index, answer),
            Happening::ClientWakes(index) => self.wake(index),
            Happening::Comes(index) => {
                self.clients[index].come(self.now);
                self.settle(index);
            }
            Happening::Dies(index) => {
                if self.clients[index].done.is_none() {
                    self.clients[index].dead = true;
                    self.wanting -= 1;
                }
            }
            Happening::Stalls(index) => self.stall(index),
            Happening::Resumes(index) => {
                self.clients[index].resume(self.now);
                self.settle(index);
            }
        }
    }

    /// Sends a burst through the part of the network that all receivers share.
    fn cross(&mut self, burst: &Rc<Burst>) {
        let Some(core) = &mut self.core else { return self.spread(burst, 0) };
        let (lost, at) = core.carry(burst.wire(), self.now);
        if lost != all(burst.wire().len()) {
            self.agenda.plan(at, Happening::Spreads(Rc::clone(burst), lost));
        }
    }

    /// Delivers a burst that has crossed it, without the datagrams lost there.
    fn spread(&mut self, burst: &Rc<Burst>, lost_before: Mask) {
        let wire = burst.wire();
        let lost: Vec<Mask> = self.ports.iter_mut().map(|port| port.next(wire.len())).collect();
        let mut late = Vec::new();
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if !client.is_listening(burst.channel()) {
                continue;
            }
            let before = lost_before | client.port.map_or(0, |port| lost[port]);
            let which = client.link.carry(wire, before, self.now, &mut late);
            if which != 0 {
                client.arrive(burst, which, self.now);
                self.settle(index);
            }
            for Delivery { at, which, dropped } in late.drain(..) {
                let arrives = Happening::Arrives(index, Rc::clone(burst), which, dropped);
                self.agenda.plan(at, arrives);
            }
        }
    }

    /// Does what a client wants after something happened to it.
    fn settle(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.dead || client.stalled_until().is_some() {
            return;
        }
        while let Some(request) = client.next_request() {
            let delay = request_delay(&mut self.random, self.scenario);
            self.agenda.plan(self.now + delay, Happening::Asked(index, request));
        }
        if client.done.is_none() && client.is_complete() {
            client.done = Some(self.now);
            self.wanting -= 1;
            self.outcome.completed(client.crowd, client.came, self.now, self.server.sent());
            if let Some(core) = &mut self.core {
                self.outcome.shared(core.share_of_flows(self.now));
            }
        }
        if let Some(at) = client.next_wake()
            && client.timer.is_none_or(|planned| at < planned)
        {
            client.timer = Some(at);
            self.agenda.plan(at.max(self.now), Happening::ClientWakes(index));
        }
    }

    fn wake(&mut self, index: usize) {
        let client = &mut self.clients[index];
        // A timer that was planned before an earlier one has no effect.
        if client.timer.is_none_or(|timer| timer > self.now) || client.dead {
            return;
        }
        client.timer = None;
        if let Some(until) = client.stalled_until() {
            client.timer = Some(until);
            self.agenda.plan(until, Happening::ClientWakes(index));
            return;
        }
        client.wake(self.now);
        self.settle(index);
    }

    fn stall(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(stalls) = self.scenario.crowds[client.crowd].stalls else { return };
        if client.dead || client.done.is_some() {
            return;
        }
        client.stall(stalls, self.now);
        let resumes = self.now + stalls.lasting;
        self.agenda.plan(resumes, Happening::Resumes(index));
        let next = resumes + self.random.exponential(stalls.every);
        self.agenda.plan(next, Happening::Stalls(index));
    }

    /// Delivers a request to the server. Requests sent before a client's death still arrive.
    fn ask(&mut self, index: usize, request: Request) {
        let plain = self.scenario.crowds[self.clients[index].crowd].plain;
        let answer = match request {
            Request::Join => Some(Answer::Join(self.server.join(plain, self.now))),
            Request::Leave(token) => {
                self.server.leave(&token, self.now);
                None
            }
            Request::Report(token, report) => {
                self.outcome.reported(self.now);
                Some(Answer::Report(self.server.report(&token, &report, self.now)))
            }
        };
        if let Some(answer) = answer {
            let delay = request_delay(&mut self.random, self.scenario);
            self.agenda.plan(self.now + delay, Happening::Answered(index, answer));
        }
        self.serve();
    }

    fn answer(&mut self, index: usize, answer: Answer) {
        let client = &mut self.clients[index];
        if client.dead {
            return;
        }
        if let Some(until) = client.stalled_until() {
            self.agenda.plan(until, Happening::Answered(index, answer));
            return;
        }
        client.answered(&answer, self.now);
        self.settle(index);
    }

    /// Runs the server and sends its datagrams.
    fn serve(&mut self) {
        let before = self.server.sent();
        let bursts = self.server.wake(self.now);
        let sent = self.server.sent();
        self.outcome.sent(before, sent, self.now);
        assert!(
            self.server.members() > 0
                || (sent.pages, sent.symbols) == (before.pages, before.symbols),
            "{}: something is sent although nobody is there",
            self.scenario.name
        );
        for burst in bursts {
            self.agenda.plan(self.now + DELAY, Happening::Sent(Rc::new(burst)));
        }
        if let Some(at) = self.server.next_wake()
            && self.server_timer.is_none_or(|planned| at < planned)
        {
            self.server_timer = Some(at);
            self.agenda.plan(at.max(self.now), Happening::ServerWakes);
        }
    }

    fn finish(mut self) -> Outcome {
        assert!(!self.server.is_casting(), "{}: the cast does not end", self.scenario.name);
        assert_eq!(self.wanting, 0, "{}: living members without all pages", self.scenario.name);
        self.outcome.ended(self.server.sent());
        self.outcome
    }
}

/// Delay of a request or an answer, one way.
fn request_delay(random: &mut Random, scenario: &Scenario) -> Duration {
    let (mut delay, mut pause) = (scenario.rtt / 2, RETRANSMISSION);
    while random.chance(scenario.control_loss) {
        delay += pause;
        pause *= 2;
    }
    delay
}
