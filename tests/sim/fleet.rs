//! Simulates a cast to many clients, as described by the command line.

use std::str::FromStr;
use std::time::Duration;

use bootcast_proto::BitRate;
use bootcast_server::cast::CeilingSource;
use clap::Parser;
use harness::sim::{CoreKind, Crowd, HEADER, LinkKind, Loss, Scenario, Stalls, run, table};

/// Simulates a cast to many clients and prints its results
#[derive(Debug, Parser)]
struct Cli {
    /// Rate of a link that all clients share
    #[arg(long)]
    core: Option<BitRate>,
    /// Size of the queue of that link, in bytes
    #[arg(long, default_value_t = 256_000)]
    core_queue: u32,
    /// Simulate the scenarios of the goals instead, or those whose names contain this text
    #[arg(long, value_name = "TEXT", num_args = 0..=1, default_missing_value = "")]
    goals: Option<String>,
    /// Number of clients that know the extensions
    #[arg(long, default_value_t = 100)]
    clients: usize,
    /// Number of clients that know only the base protocol
    #[arg(long, default_value_t = 0)]
    plain: usize,
    /// Pages of the file, 1456 bytes each
    #[arg(long, default_value_t = 100_000)]
    pages: u32,
    /// Ceiling of the server's rate
    #[arg(long, default_value = "1gbit")]
    rate: BitRate,
    /// Loss rate of each client, such as 1%
    #[arg(long, default_value = "0%")]
    loss: Percent,
    /// Mean length of a run of losses, in datagrams
    #[arg(long, default_value_t = 0.0)]
    burst: f64,
    /// Loss rate of each switch port, the same datagrams for all clients at the port
    #[arg(long, default_value = "0%")]
    shared_loss: Percent,
    /// Number of clients at a switch port
    #[arg(long, default_value_t = 10)]
    port: usize,
    /// Share of datagrams that others overtake
    #[arg(long, default_value = "0%")]
    overtaken: Percent,
    /// Longest additional delay of those, in milliseconds
    #[arg(long, default_value_t = 5)]
    jitter_ms: u64,
    /// Share of datagrams that arrive twice
    #[arg(long, default_value = "0%")]
    duplicated: Percent,
    /// Rate of each client's last hop, as a share of --rate; 0%: no bottleneck
    #[arg(long, default_value = "0%")]
    access: Percent,
    /// Size of the queue before the last hop, in datagrams
    #[arg(long, default_value_t = 100)]
    queue: u32,
    /// Rate at which each client's machine reads datagrams, as a share of --rate; 0%: no bottleneck
    #[arg(long, default_value = "0%")]
    machine: Percent,
    /// Size of the clients' socket buffers, in datagrams; 2700 are about 4 MB
    #[arg(long, default_value_t = 2700)]
    socket: u32,
    /// The ceiling is the speed of the server's interface, and the path may be slower
    #[arg(long)]
    guessed: bool,
    /// The ceiling is an assumption, because the speed of the interface is unknown
    #[arg(long)]
    assumed: bool,
    /// Time over which clients arrive, as a multiple of the time to send the file
    #[arg(long, default_value_t = 0.0)]
    arrivals: f64,
    /// Share of clients that disappear without a leave
    #[arg(long, default_value = "0%")]
    dying: Percent,
    /// Length of pauses in which a client does not run, in milliseconds; they take a tenth of the
    /// time
    #[arg(long, default_value_t = 0)]
    stall_ms: u64,
    /// Number of further clients, with the loss rate --outlier-loss
    #[arg(long, default_value_t = 0)]
    outliers: usize,
    /// Loss rate of each of those
    #[arg(long, default_value = "20%")]
    outlier_loss: Percent,
    /// Round-trip time of requests, in milliseconds
    #[arg(long, default_value_t = 1)]
    rtt_ms: u64,
    /// Share of requests and answers that are lost
    #[arg(long, default_value = "0%")]
    control_loss: Percent,
    /// Seed of every random decision, also with --goals
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A share, written as `1%`.
#[derive(Clone, Copy, Debug)]
struct Percent(f64);

impl FromStr for Percent {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
        let share = number.map(|number| number / 100.0).filter(|it| (0.0..1.0).contains(it));
        share.map(Self).ok_or("write a share from 0% to below 100%, such as 1%")
    }
}

impl Cli {
    fn scenario(&self) -> Scenario {
        let link = LinkKind {
            loss: Loss::bursts(self.loss.0, self.burst),
            shared: Loss::independent(self.shared_loss.0),
            port: if self.shared_loss.0 > 0.0 { self.port } else { 0 },
            overtaken: self.overtaken.0,
            jitter: Duration::from_millis(self.jitter_ms),
            duplicated: self.duplicated.0,
            access: self.access.0,
            queue: self.queue,
            machine: self.machine.0,
            socket: self.socket,
            ..LinkKind::default()
        };
        let stalls = (self.stall_ms > 0).then(|| Stalls {
            every: Duration::from_millis(10 * self.stall_ms),
            lasting: Duration::from_millis(self.stall_ms),
            socket: 250,
        });
        let crowd = |count, plain, link| Crowd {
            plain,
            arrivals: self.arrivals,
            dying: self.dying.0,
            stalls,
            ..Crowd::new(count, link)
        };
        let outlier = LinkKind { loss: Loss::independent(self.outlier_loss.0), ..link };
        let crowds = vec![
            crowd(self.clients, false, link),
            crowd(self.plain, true, link),
            crowd(self.outliers, false, outlier),
        ];
        let crowds = crowds.into_iter().filter(|crowd| crowd.count > 0).collect();
        Scenario {
            rate: self.rate,
            source: match (self.guessed, self.assumed) {
                (_, true) => CeilingSource::Assumption,
                (true, false) => CeilingSource::Interface,
                (false, false) => CeilingSource::Operator,
            },
            rtt: Duration::from_millis(self.rtt_ms),
            control_loss: self.control_loss.0,
            core: self.core.map(|rate| CoreKind {
                rate,
                until: None,
                queue: self.core_queue,
                flows: 0,
            }),
            seed: self.seed,
            ..Scenario::new("command line", self.pages, crowds)
        }
    }
}

fn main() {
    let cli = Cli::parse();
    let scenarios = match &cli.goals {
        Some(text) => {
            let all = table::goals().into_iter();
            let all = all.chain(table::rate_goals()).chain(table::liar_goals());
            all.filter(|scenario| scenario.name.contains(text.as_str()))
                .map(|scenario| Scenario { seed: cli.seed, ..scenario })
                .collect()
        }
        None => vec![cli.scenario()],
    };
    println!("{HEADER}");
    for scenario in &scenarios {
        let outcome = run(scenario);
        print!("{outcome}");
        if let Some(time) = outcome.time_95() {
            print!("    95% of the clients after {:.2} s", time.as_secs_f64());
        }
        if let Some(share) = outcome.flows_share() {
            print!(", TCP got {:.1}% of the core", share * 100.0);
        }
        println!();
    }
}
