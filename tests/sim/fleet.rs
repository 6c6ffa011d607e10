//! Simulates a cast to a fleet and prints its lines of the table.

use std::str::FromStr;
use std::time::Duration;

use bootcast_proto::BitRate;
use bootcast_server::cast::CeilingSource;
use clap::Parser;
use harness::sim::{CoreKind, Crowd, HEADER, LinkKind, Loss, Scenario, Stalls, run, table};

/// Simulates a cast to a fleet and prints what it took.
#[derive(Debug, Parser)]
struct Cli {
    /// Speed of a link that all datagrams cross
    #[arg(long)]
    core: Option<BitRate>,
    /// Bytes that the queue before it takes
    #[arg(long, default_value_t = 256_000)]
    core_queue: u32,
    /// Simulates all scenarios that the goals are stated for, or those with this text in their name
    #[arg(long, value_name = "TEXT", num_args = 0..=1, default_missing_value = "")]
    goals: Option<String>,
    /// Clients that know the extensions
    #[arg(long, default_value_t = 100)]
    clients: usize,
    /// Clients that know the base protocol only
    #[arg(long, default_value_t = 0)]
    plain: usize,
    /// Pages of the file, 1456 bytes each
    #[arg(long, default_value_t = 100_000)]
    pages: u32,
    /// Ceiling of the server
    #[arg(long, default_value = "1gbit")]
    rate: BitRate,
    /// Loss of each client's own, such as 1%
    #[arg(long, default_value = "0%")]
    loss: Percent,
    /// Mean length of a run of losses, in datagrams
    #[arg(long, default_value_t = 0.0)]
    burst: f64,
    /// Loss that the clients of a port have in common
    #[arg(long, default_value = "0%")]
    shared_loss: Percent,
    /// Clients of a port
    #[arg(long, default_value_t = 10)]
    port: usize,
    /// Datagrams that are overtaken
    #[arg(long, default_value = "0%")]
    overtaken: Percent,
    /// How much later they come at most, in milliseconds
    #[arg(long, default_value_t = 5)]
    jitter_ms: u64,
    /// Datagrams that come twice
    #[arg(long, default_value = "0%")]
    duplicated: Percent,
    /// Speed of the last hop, as a share of the rate
    #[arg(long, default_value = "0%")]
    access: Percent,
    /// Datagrams that the queue before the last hop takes
    #[arg(long, default_value_t = 100)]
    queue: u32,
    /// Speed of the clients' machines, as a share of the rate
    #[arg(long, default_value = "0%")]
    machine: Percent,
    /// Datagrams that their sockets have room for; 2700 are about 4 MB
    #[arg(long, default_value_t = 2700)]
    socket: u32,
    /// The ceiling is the speed of the interface, and the path behind it may be slower
    #[arg(long)]
    guessed: bool,
    /// The ceiling is invented
    #[arg(long)]
    assumed: bool,
    /// Time over which clients come, in file times
    #[arg(long, default_value_t = 0.0)]
    arrivals: f64,
    /// Clients that vanish without a leave
    #[arg(long, default_value = "0%")]
    dying: Percent,
    /// Clients do not run for so many milliseconds, ten times as rarely
    #[arg(long, default_value_t = 0)]
    stall_ms: u64,
    /// Further clients with --outlier-loss
    #[arg(long, default_value_t = 0)]
    outliers: usize,
    /// Loss of each of those
    #[arg(long, default_value = "20%")]
    outlier_loss: Percent,
    /// Round trip of requests, in milliseconds
    #[arg(long, default_value_t = 1)]
    rtt_ms: u64,
    /// Loss of requests and answers
    #[arg(long, default_value = "0%")]
    control_loss: Percent,
    /// Seed of every random decision, with --goals too
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
        let bad = LinkKind { loss: Loss::independent(self.outlier_loss.0), ..link };
        let crowds = vec![
            crowd(self.clients, false, link),
            crowd(self.plain, true, link),
            crowd(self.outliers, false, bad),
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
            ..Scenario::new("as asked", self.pages, crowds)
        }
    }
}

fn main() {
    let cli = Cli::parse();
    let scenarios = match &cli.goals {
        Some(text) => {
            let all = table::goals().into_iter();
            let all = all.chain(table::rate_goals());
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
        if let Some(most) = outcome.most_done() {
            print!("    95% of the clients after {:.2} s", most.as_secs_f64());
        }
        if let Some(share) = outcome.flows_share() {
            print!(", TCP got {:.1}% of the core", share * 100.0);
        }
        println!();
    }
}
