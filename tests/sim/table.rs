//! The scenarios of `scenarios.txt`, and larger ones that measure the goals of a release.

use std::time::Duration;

use bootcast_server::cast::CeilingSource;

use super::core::CoreKind;
use super::intruder::IntruderKind;
use super::liar::LiarKind;
use super::link::{LinkKind, Loss};
use super::scenario::{Crowd, Scenario, Stalls};

/// Pages of a small file, which takes a quarter of a second at 1 Gbit/s.
const SMALL: u32 = 20_000;

/// Pages of a large file, which takes 1.2 s at 1 Gbit/s.
const LARGE: u32 = 100_000;

/// Pages of a file of 512 MiB, which takes 4.5 s at 1 Gbit/s.
const HALF_A_GIB: u32 = 368_731;

/// Returns the scenarios of `scenarios.txt`: all kinds of trouble, in sizes that together take a
/// minute.
pub fn reviewed() -> Vec<Scenario> {
    let mut table = Vec::new();
    for clients in [1, 8, 100] {
        for percent in [0.0, 0.1, 1.0, 5.0] {
            table.push(uniform(&format!("independent {percent}%"), SMALL, clients, percent));
        }
    }
    table.push(uniform("many", SMALL, 1000, 1.0));
    table.push(uniform("large", LARGE, 100, 1.0));
    table.push(uniform("few pages", 100, 100, 1.0));
    table.extend(bursts(SMALL, 100));
    table.extend([late(SMALL, 100), outliers(SMALL, 200), shared(SMALL, 100), disorder(SMALL, 50)]);
    table.extend([mixed(SMALL, 20), dying(SMALL, 50), slow(SMALL, 20), stalls(SMALL, 50)]);
    table.push(rough_control(SMALL, 100));
    table.extend(rates(LARGE, 40));
    table.extend(slow_machines(LARGE));
    table.extend(intruders(SMALL, 50));
    table.extend([forger(SMALL, 50, true), forger(SMALL, 50, false)]);
    table.extend(liars(HALF_A_GIB, 8));
    table
}

/// Returns scenarios with a host that lies or floods, and first one without, to compare with.
pub fn liars(pages: u32, clients: usize) -> Vec<Scenario> {
    let kinds = [
        ("no liar", None),
        ("liar: needs", Some(LiarKind::Needs)),
        ("liar: deficits", Some(LiarKind::Deficits)),
        ("liar: bulk", Some(LiarKind::Bulk)),
        ("liar: wants", Some(LiarKind::Wants)),
        ("liar: joins", Some(LiarKind::Joins)),
        ("liar: plain joins", Some(LiarKind::PlainJoins)),
        ("liar: dead joins", Some(LiarKind::DeadJoins)),
    ];
    let scenario = |(name, liar)| {
        let crowds = vec![Crowd::new(clients, lossy(0.1))];
        Scenario { liar, ..Scenario::new(name, pages, crowds) }
    };
    kinds.map(scenario).into()
}

/// Returns a scenario with a member that forges each page before the server sends it, from a port
/// of its own or from the server's.
pub fn forger(pages: u32, clients: usize, has_own_port: bool) -> Scenario {
    let name = if has_own_port { "forger" } else { "forger, server's port" };
    let intruder = Some(IntruderKind::Forger { has_own_port });
    let crowds = vec![Crowd::new(clients, lossy(1.0))];
    Scenario { intruder, leaf_lists: true, ..Scenario::new(name, pages, crowds) }
}

/// Returns scenarios with a host that sends in the server's name. Few receivers lose so much that
/// they cannot do without reports.
fn intruders(pages: u32, clients: usize) -> [Scenario; 2] {
    [("replayer", IntruderKind::Replayer), ("thief of time", IntruderKind::Thief)].map(
        |(name, kind)| {
            let crowds = vec![Crowd::new(clients, lossy(1.0)), Crowd::new(2, lossy(40.0))];
            Scenario { intruder: Some(kind), ..Scenario::new(name, pages, crowds) }
        },
    )
}

/// Returns the scenarios for which the goals are stated. They take minutes in a release build.
pub fn goals() -> Vec<Scenario> {
    let mut table: Vec<_> = [0.0, 0.1, 1.0, 5.0]
        .map(|percent| uniform(&format!("independent {percent}%"), LARGE, 1000, percent))
        .into();
    table.extend(bursts(LARGE, 1000));
    table.extend([late(LARGE, 1000), outliers(LARGE, 1000), shared(LARGE, 1000)]);
    table.extend([mixed(LARGE, 100), dying(LARGE, 1000), slow(LARGE, 1000), stalls(LARGE, 1000)]);
    table.push(uniform("ten thousand", LARGE, 10_000, 1.0));
    table
}

/// Pages of a file of 2 GB.
const HUGE: u32 = 1_373_626;

/// Returns the scenarios that measure rate control. They take minutes in a release build.
pub fn rate_goals() -> Vec<Scenario> {
    let mut table: Vec<_> = rates(HUGE, 200).into();
    table.extend(slow_machines(HUGE));
    table
}

/// Returns the scenarios with a host that lies or floods beside 8 and 1000 receivers.
pub fn liar_goals() -> Vec<Scenario> {
    [8, 1000].into_iter().flat_map(|clients| liars(HALF_A_GIB, clients)).collect()
}

/// Returns scenarios of rate control with a guessed ceiling of 1 Gbit/s: slower links, competing
/// TCP connections, and losses that the rate does not cause.
fn rates(pages: u32, clients: usize) -> [Scenario; 7] {
    let crowd = |link| Crowd::new(clients, link);
    let guessed = |name: &str, crowds| Scenario {
        source: CeilingSource::Interface,
        ..Scenario::new(&format!("rate: {name}"), pages, crowds)
    };
    let behind = |name: &str, rate: &str, until, flows| {
        let rate = rate.parse().expect("a rate");
        // 4 ms at 1 Gbit/s.
        let core = Some(CoreKind { rate, until, queue: 512 << 10, flows });
        Scenario { core, ..guessed(name, vec![crowd(LinkKind::default())]) }
    };
    let access = LinkKind { access: 0.1, queue: 100, ..LinkKind::default() };
    let one_slow = vec![Crowd::new(clients - 1, LinkKind::default()), Crowd::new(1, access)];
    let stalling = Crowd { stalls: Some(STALLS), ..crowd(LinkKind::default()) };
    [
        guessed("clean", vec![crowd(LinkKind::default())]),
        guessed("random 1%", vec![crowd(lossy(1.0))]),
        behind("core 300 Mbit/s", "300mbit", None, 0),
        guessed("one slow", one_slow),
        guessed("stalls", vec![stalling]),
        behind("4 TCP flows", "1gbit", None, 4),
        behind("400 Mbit/s for 10 s", "400mbit", Some(Duration::from_secs(10)), 0),
    ]
}

/// Returns scenarios at 1 Gbit/s with machines that process only 600 or 200 Mbit/s. Their sockets
/// have room for about 4 MB and drop the rest.
fn slow_machines(pages: u32) -> [Scenario; 4] {
    [(1, 0.6, false), (1, 0.2, true), (8, 0.6, true), (8, 0.2, false)].map(
        |(clients, machine, is_guessed)| {
            let link = LinkKind { machine, socket: 2700, ..LinkKind::default() };
            let (ceiling, source) = if is_guessed {
                ("guessed", CeilingSource::Interface)
            } else {
                ("vouched", CeilingSource::Operator)
            };
            let name = format!("rate: machine, {ceiling}");
            Scenario { source, ..Scenario::new(&name, pages, vec![Crowd::new(clients, link)]) }
        },
    )
}

fn lossy(percent: f64) -> LinkKind {
    LinkKind { loss: Loss::independent(percent / 100.0), ..LinkKind::default() }
}

fn uniform(name: &str, pages: u32, clients: usize, percent: f64) -> Scenario {
    Scenario::new(name, pages, vec![Crowd::new(clients, lossy(percent))])
}

fn bursts(pages: u32, clients: usize) -> [Scenario; 2] {
    [20.0, 100.0].map(|length| {
        let link = LinkKind { loss: Loss::bursts(0.01, length), ..LinkKind::default() };
        Scenario::new(&format!("bursts of {length}"), pages, vec![Crowd::new(clients, link)])
    })
}

fn late(pages: u32, clients: usize) -> Scenario {
    let crowd = Crowd { arrivals: 1.0, ..Crowd::new(clients, lossy(1.0)) };
    Scenario::new("late joiners", pages, vec![crowd])
}

/// Returns a scenario in which one receiver of a hundred has a bad link.
fn outliers(pages: u32, clients: usize) -> Scenario {
    let few = clients / 100;
    let crowds = vec![Crowd::new(clients - few, lossy(0.1)), Crowd::new(few, lossy(20.0))];
    Scenario::new("outliers", pages, crowds)
}

/// Returns a scenario with ten switch ports. A datagram that a port loses is lost for all receivers
/// at that port.
fn shared(pages: u32, clients: usize) -> Scenario {
    let link =
        LinkKind { shared: Loss::independent(0.009), port: clients.div_ceil(10), ..lossy(0.1) };
    Scenario::new("shared loss", pages, vec![Crowd::new(clients, link)])
}

fn disorder(pages: u32, clients: usize) -> Scenario {
    let link = LinkKind {
        delay: Duration::from_millis(10),
        overtaken: 0.05,
        jitter: Duration::from_millis(5),
        duplicated: 0.01,
        ..lossy(1.0)
    };
    Scenario::new("delay and disorder", pages, vec![Crowd::new(clients, link)])
}

fn mixed(pages: u32, clients: usize) -> Scenario {
    let plain = Crowd { plain: true, ..Crowd::new(clients / 4, lossy(1.0)) };
    Scenario::new("mixed", pages, vec![Crowd::new(clients, lossy(1.0)), plain])
}

fn dying(pages: u32, clients: usize) -> Scenario {
    let crowd = Crowd { dying: 0.1, ..Crowd::new(clients, lossy(1.0)) };
    Scenario::new("dying members", pages, vec![crowd])
}

/// Returns a scenario in which one receiver of ten has a link of half the rate.
fn slow(pages: u32, clients: usize) -> Scenario {
    let link = LinkKind { access: 0.5, queue: 100, ..lossy(0.1) };
    let few = clients / 10;
    let crowds = vec![Crowd::new(clients - few, lossy(0.1)), Crowd::new(few, link)];
    Scenario::new("slow links", pages, crowds)
}

/// Pauses of 10 ms, ten times a second on average. The sockets have room for 3 ms of datagrams.
const STALLS: Stalls =
    Stalls { every: Duration::from_millis(100), lasting: Duration::from_millis(10), socket: 250 };

fn stalls(pages: u32, clients: usize) -> Scenario {
    let crowd = Crowd { stalls: Some(STALLS), ..Crowd::new(clients, lossy(0.1)) };
    Scenario::new("stalls", pages, vec![crowd])
}

/// Returns a scenario in which requests and answers are delayed and lost too.
fn rough_control(pages: u32, clients: usize) -> Scenario {
    Scenario {
        rtt: Duration::from_millis(20),
        control_loss: 0.1,
        ..uniform("rough control", pages, clients, 1.0)
    }
}
