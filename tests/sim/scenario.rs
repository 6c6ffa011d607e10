//! Description of a simulated cast: a file, a server and crowds of receivers.

use std::fmt;
use std::time::Duration;

use bootcast_proto::{BitRate, DatagramKey};
use bootcast_server::cast::CeilingSource;

use super::core::CoreKind;
use super::intruder::IntruderKind;
use super::liar::LiarKind;
use super::link::LinkKind;

/// One simulated cast.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Name of the scenario in the table of results.
    pub name: String,
    /// Pages of the file, 1456 bytes each.
    pub pages: u32,
    /// Ceiling of the server.
    pub rate: BitRate,
    /// Origin of the ceiling: set by the operator, read from the interface, or assumed.
    pub source: CeilingSource,
    /// Bottleneck that all receivers share; `None`: there is none.
    pub core: Option<CoreKind>,
    /// Round-trip time of a request and its answer.
    pub rtt: Duration,
    /// Share of requests and of answers that are lost. TCP sends them again.
    pub control_loss: f64,
    /// Whether the server knows the manifest, and all extended receivers ask for leaf lists.
    pub leaf_lists: bool,
    /// Host that sends in the server's name; `None`: there is none.
    pub intruder: Option<IntruderKind>,
    /// Host whose requests are lies; `None`: there is none.
    pub liar: Option<LiarKind>,
    /// Receivers of the file, grouped by kind.
    pub crowds: Vec<Crowd>,
    /// Seed of every random decision. Equal seeds give equal runs.
    pub seed: u64,
}

/// Receivers of one kind.
#[derive(Clone, Debug)]
pub struct Crowd {
    /// Number of receivers in this crowd.
    pub count: usize,
    /// Whether these receivers know only the base protocol.
    pub plain: bool,
    /// Link from the server to each of these receivers.
    pub link: LinkKind,
    /// Time over which these receivers join, as a multiple of the time to send the file; 0: all
    /// join at once.
    pub arrivals: f64,
    /// Share of these receivers that disappear without a leave. Each does so within the time to
    /// send the file, after its arrival.
    pub dying: f64,
    /// Pauses in which these receivers do not run; `None`: they always run.
    pub stalls: Option<Stalls>,
}

/// Pauses in which a receiver does not run. Datagrams wait in its socket meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Stalls {
    /// Mean time between the end of a pause and the start of the next.
    pub every: Duration,
    /// Length of each pause.
    pub lasting: Duration,
    /// Number of datagrams that the socket has room for.
    pub socket: usize,
}

impl Scenario {
    /// Key of the datagrams' tags. Only where somebody forges, because tags take most of the time
    /// of a run.
    pub(super) fn key(&self) -> Option<DatagramKey> {
        self.has_forger().then(|| DatagramKey::from_random([7; 32]))
    }

    /// Whether somebody forges pages, so that the receivers verify leaves.
    pub(super) fn has_forger(&self) -> bool {
        matches!(self.intruder, Some(IntruderKind::Forger { .. }))
    }

    /// Creates a cast at 1 Gbit/s without a shared bottleneck and without loss of requests.
    pub fn new(name: &str, pages: u32, crowds: Vec<Crowd>) -> Self {
        Self {
            name: name.into(),
            pages,
            rate: "1gbit".parse().expect("a rate"),
            source: CeilingSource::Operator,
            core: None,
            rtt: Duration::from_millis(1),
            control_loss: 0.0,
            intruder: None,
            liar: None,
            leaf_lists: false,
            crowds,
            seed: 1,
        }
    }
}

impl Crowd {
    /// Creates a crowd of extended receivers that join at once, stay and never pause.
    pub fn new(count: usize, link: LinkKind) -> Self {
        Self { count, plain: false, link, arrivals: 0.0, dying: 0.0, stalls: None }
    }
}

impl fmt::Display for Crowd {
    /// Writes the properties of the crowd in a few words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.count)?;
        if self.plain {
            write!(f, " plain")?;
        }
        let LinkKind { loss, shared, access, machine, .. } = self.link;
        for (loss, suffix) in [(loss, ""), (shared, " shared")] {
            if loss.share > 0.0 {
                write!(f, ", {}%{suffix}", (loss.share * 1e5).round() / 1e3)?;
            }
            if loss.burst > 0.0 {
                write!(f, " by {}", loss.burst)?;
            }
        }
        if access > 0.0 {
            write!(f, ", access {access}")?;
        }
        if machine > 0.0 {
            write!(f, ", machine {machine}")?;
        }
        if self.arrivals > 0.0 {
            write!(f, ", late")?;
        }
        if self.dying > 0.0 {
            write!(f, ", {}% die", self.dying * 100.0)?;
        }
        if self.stalls.is_some() {
            write!(f, ", stalls")?;
        }
        Ok(())
    }
}
