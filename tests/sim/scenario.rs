//! What is simulated: a file, a server and crowds of receivers.

use std::fmt;
use std::time::Duration;

use bootcast_proto::BitRate;
use bootcast_server::cast::CeilingSource;

use super::core::CoreKind;
use super::link::LinkKind;

/// One simulated cast.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its line in the table.
    pub name: String,
    /// Pages of the file, 1456 bytes each.
    pub pages: u32,
    /// Ceiling of the server.
    pub rate: BitRate,
    /// Origin of the ceiling: named by the operator, told by the interface, or assumed.
    pub source: CeilingSource,
    /// A bottleneck before all receivers.
    pub core: Option<CoreKind>,
    /// There and back, of requests and their answers.
    pub rtt: Duration,
    /// Share of requests and of answers that are lost: TCP sends them again.
    pub control_loss: f64,
    /// Groups of receivers that want the file.
    pub crowds: Vec<Crowd>,
    /// Seed of every random decision: equal seeds make equal runs.
    pub seed: u64,
}

/// Receivers of one kind.
#[derive(Clone, Debug)]
pub struct Crowd {
    /// Number of receivers in this crowd.
    pub count: usize,
    /// Whether these receivers know the base protocol only.
    pub plain: bool,
    /// Link from the server to each of these receivers.
    pub link: LinkKind,
    /// Time over which these receivers join, in file times; 0: all at once.
    pub arrivals: f64,
    /// Share of these receivers that vanish without a leave, at some time within the first pass.
    pub dying: f64,
    /// Pauses in which these receivers do not run.
    pub stalls: Option<Stalls>,
}

/// Times in which a receiver does not run; datagrams wait in its socket.
#[derive(Clone, Copy, Debug)]
pub struct Stalls {
    /// Mean time between two pauses.
    pub every: Duration,
    /// Length of each pause.
    pub lasting: Duration,
    /// Datagrams that the socket has room for.
    pub socket: usize,
}

impl Scenario {
    /// One crowd, 1 Gbit/s, no trouble on the way of the requests.
    pub fn new(name: &str, pages: u32, crowds: Vec<Crowd>) -> Self {
        Self {
            name: name.into(),
            pages,
            rate: "1gbit".parse().expect("a rate"),
            source: CeilingSource::Operator,
            core: None,
            rtt: Duration::from_millis(1),
            control_loss: 0.0,
            crowds,
            seed: 1,
        }
    }
}

impl Crowd {
    /// Extended receivers that come together and stay.
    pub fn new(count: usize, link: LinkKind) -> Self {
        Self { count, plain: false, link, arrivals: 0.0, dying: 0.0, stalls: None }
    }
}

impl fmt::Display for Crowd {
    /// The crowd in a few words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.count)?;
        if self.plain {
            write!(f, " plain")?;
        }
        let LinkKind { loss, shared, access, machine, .. } = self.link;
        for (loss, what) in [(loss, ""), (shared, " shared")] {
            if loss.share > 0.0 {
                write!(f, ", {}%{what}", (loss.share * 1e5).round() / 1e3)?;
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
