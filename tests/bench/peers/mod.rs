//! How do bootcast, udpcast, UFTP and nginx compare on the same bad networks?

mod bootcast;
mod nginx;
mod race;
mod table;
mod udpcast;
mod uftp;

use std::fmt::Write;
use std::time::Duration;

use harness::Lab;
use harness::lab::LabBuilder;

use crate::rounds;
use race::Run;
use table::Table;
use udpcast::Setting;

/// Rate of the head's uplink.
const RATE: &str = "200mbit";

/// Number of clients in every run.
const CLIENTS: u8 = 8;

/// A system that transfers the file to all clients.
struct Peer {
    name: &'static str,
    /// Programs that must be installed.
    tools: &'static [&'static str],
    /// Transfers the file once.
    run: fn(&Lab, &Condition) -> Run,
}

const PEERS: [Peer; 4] = [
    Peer { name: "bootcast", tools: &[], run: bootcast::run },
    Peer { name: "udpcast", tools: &["udp-sender", "udp-receiver"], run: udpcast::run },
    Peer { name: "UFTP", tools: &["uftp", "uftpd"], run: uftp::run },
    Peer { name: "nginx", tools: &["nginx", "curl"], run: nginx::run },
];

/// A network, and settings of the peers for it.
struct Condition {
    name: &'static str,
    network: fn(LabBuilder) -> LabBuilder,
    /// Setting with which udpcast is fastest on this network.
    udpcast: Setting,
    /// Whether nginx runs on this network. A run takes 45 s and its time hardly varies, so nginx
    /// runs once, on few networks.
    nginx: bool,
}

const CONDITIONS: [Condition; 9] = [
    Condition { name: "no loss", network: |lab| lab, udpcast: Setting::Hello, nginx: true },
    Condition {
        name: "1 % loss",
        network: |lab| lab.loss(1.0),
        udpcast: Setting::Hello,
        nginx: true,
    },
    Condition {
        name: "5 % loss",
        network: |lab| lab.loss(5.0),
        udpcast: Setting::Hello,
        nginx: true,
    },
    Condition {
        name: "bursts of 50 in 5000",
        network: |lab| lab.bursts(50, 5000),
        udpcast: Setting::Hello,
        nginx: false,
    },
    Condition {
        name: "outages of 20 ms, each packet 0.01 %",
        network: |lab| lab.outages(20, 0.01),
        udpcast: Setting::Fec,
        nginx: false,
    },
    Condition {
        name: "one client at 5 %",
        network: |lab| lab.loss_of(1, 5.0),
        udpcast: Setting::Fec,
        nginx: false,
    },
    Condition {
        name: "1 % shared loss",
        network: |lab| lab.shared_loss(1.0),
        udpcast: Setting::Hello,
        nginx: false,
    },
    Condition {
        name: "cap at the switch, 1 % loss",
        network: |lab| lab.cap_at_switch().loss(1.0),
        udpcast: Setting::Hello,
        nginx: false,
    },
    Condition {
        name: "10 ms delay",
        network: |lab| lab.delay(Duration::from_millis(10)),
        udpcast: Setting::Fec,
        nginx: false,
    },
];

/// Measures every peer on every network, in `ROUNDS` rounds. The environment variable `PEERS`
/// selects peers.
pub(crate) fn measure() -> String {
    let mut table = Table::default();
    for round in 1..=rounds() {
        for condition in &CONDITIONS {
            for peer in PEERS.iter().filter(|peer| is_installed(peer) && is_selected(peer)) {
                if peer.name == "nginx" && !(condition.nginx && round == 1) {
                    continue;
                }
                let lab = Lab::builder().clients(CLIENTS).rate(RATE).memory_disk();
                let lab = (condition.network)(lab).build();
                let run = (peer.run)(&lab, condition);
                println!("round {round}, {}, {}: {run}", condition.name, peer.name);
                table.add(condition.name, peer.name, run);
            }
        }
    }
    let mut text = format!(
        "\n## Peers on bad networks\n\n\
         128 MiB to {CLIENTS} clients at {RATE}, all started together, everything verified; by \
         turns, {} rounds (nginx one). The limit is what one copy takes at the full rate with its \
         headers, {:.2} s. A run that is not over after {} s counts as not complete. udpcast has \
         `--rexmit-hello-interval 200`, or its default with `--fec 8x8/128` where that does \
         better (outages, one client at 5 %, delay); UFTP a fixed rate.\n\n",
        rounds(),
        race::limit(RATE).as_secs_f64(),
        race::DEADLINE.as_secs(),
    );
    text += &table.text();
    for peer in PEERS.iter().filter(|peer| !is_installed(peer)) {
        let script = "tests/scripts/install-bench-deps.sh";
        writeln!(text, "\n{} is left out: not installed ({script}).", peer.name).unwrap();
    }
    text
}

fn is_selected(peer: &Peer) -> bool {
    let names = std::env::var("PEERS").ok();
    names.is_none_or(|names| names.split(',').any(|name| name == peer.name))
}

fn is_installed(peer: &Peer) -> bool {
    peer.tools.iter().all(|tool| harness::requirements::has_tool(tool))
}
