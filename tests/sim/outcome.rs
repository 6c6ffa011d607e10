//! Results of a run, as lines of a table.

use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use bootcast_proto::PageSize;

use super::scenario::Scenario;
use super::server::Sent;

/// Results of one scenario.
#[derive(Debug)]
pub struct Outcome {
    name: String,
    pages: u32,
    datagram: u64,
    /// Clients of all crowds.
    clients: usize,
    file: Duration,
    /// When the first page was sent.
    began: Option<Instant>,
    crowds: Vec<CrowdOutcome>,
    /// When each report reached the server.
    reports: Vec<Instant>,
    /// Share of the core that TCP got until 95 % of the clients were complete.
    flows_share: Option<f64>,
    /// Sent until the last client was complete.
    until_done: Sent,
    /// Sent until the end.
    in_all: Sent,
}

/// Completion of one crowd.
#[derive(Debug)]
struct CrowdOutcome {
    label: String,
    /// Time that each client took since its arrival, or since the first page if that was later.
    taken: Vec<Duration>,
}

impl Outcome {
    /// Creates the results before anything happened.
    pub(super) fn new(scenario: &Scenario) -> Self {
        let datagram = PageSize::for_mtu(1500).expect("room for a page").wire_len();
        let crowds = scenario
            .crowds
            .iter()
            .map(|crowd| CrowdOutcome { label: crowd.to_string(), taken: Vec::new() });
        Self {
            name: scenario.name.clone(),
            pages: scenario.pages,
            datagram,
            clients: scenario.crowds.iter().map(|crowd| crowd.count).sum(),
            file: scenario.rate.time_to_send(datagram * u64::from(scenario.pages)),
            began: None,
            crowds: crowds.collect(),
            reports: Vec::new(),
            flows_share: None,
            until_done: Sent::default(),
            in_all: Sent::default(),
        }
    }

    /// Time to send the file once at the server's rate.
    pub(super) fn file_time(&self) -> Duration {
        self.file
    }

    /// Bytes of a full page on the wire.
    pub(super) fn datagram(&self) -> u64 {
        self.datagram
    }

    /// Records what the server sent.
    pub(super) fn sent(&mut self, before: Sent, after: Sent, now: Instant) {
        if before.pages == 0 && after.pages > 0 {
            self.began = Some(now);
        }
    }

    /// Records a report to the server.
    pub(super) fn reported(&mut self, now: Instant) {
        self.reports.push(now);
    }

    /// Records that a client that arrived at `came` has every page.
    pub(super) fn completed(
        &mut self,
        crowd: usize,
        came: Option<Instant>,
        now: Instant,
        sent: Sent,
    ) {
        let from = came.max(self.began).unwrap_or(now);
        self.crowds[crowd].taken.push(now.saturating_duration_since(from));
        self.until_done = sent;
    }

    /// Records the share of the core that TCP got until now.
    pub(super) fn shared(&mut self, share: f64) {
        if self.done() <= self.most() {
            self.flows_share = Some(share);
        }
    }

    fn done(&self) -> usize {
        self.crowds.iter().map(|crowd| crowd.taken.len()).sum()
    }

    /// Number of clients that are 95 % of all.
    fn most(&self) -> usize {
        (self.clients * 95).div_ceil(100)
    }

    /// Longest time that the fastest 95 % of the clients took.
    pub fn most_done(&self) -> Option<Duration> {
        let mut taken: Vec<_> =
            self.crowds.iter().flat_map(|crowd| crowd.taken.iter().copied()).collect();
        taken.sort_unstable();
        taken.get(self.most().checked_sub(1)?).copied()
    }

    /// Share of the core that TCP connections got until then.
    pub fn flows_share(&self) -> Option<f64> {
        self.flows_share
    }

    /// Records the end of the cast.
    pub(super) fn ended(&mut self, sent: Sent) {
        self.in_all = sent;
    }

    /// Datagrams with pages and symbols for each page of the file, until the last client was
    /// complete.
    pub fn sent_per_page(&self) -> f64 {
        self.per_page(self.until_done)
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn per_page(&self, sent: Sent) -> f64 {
        (sent.pages + sent.symbols) as f64 / f64::from(self.pages)
    }

    /// Most reports within any second.
    fn peak(&self) -> usize {
        let second = Duration::from_secs(1);
        let within = |first: usize| {
            let until = self.reports[first] + second;
            self.reports.partition_point(|&at| at < until) - first
        };
        (0..self.reports.len()).map(within).max().unwrap_or(0)
    }
}

/// Column headings of [`Outcome`]'s lines.
pub const HEADER: &str = concat!(
    "scenario                  tx/P  after  beacons  reports  peak/s",
    "  receivers                              mean     max"
);

impl fmt::Display for Outcome {
    /// Writes a line for each crowd. The first also has the values that hold for all crowds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_secs_f64();
        let mut common = String::new();
        write!(
            common,
            "{:<22} {:>7.4} {:>6.3} {:>8} {:>8} {:>7}",
            self.name,
            self.sent_per_page(),
            self.per_page(self.in_all) - self.sent_per_page(),
            self.in_all.beacons,
            self.reports.len(),
            self.peak(),
        )?;
        for crowd in &self.crowds {
            let longest = crowd.taken.iter().max().copied().unwrap_or_default();
            let count = u32::try_from(crowd.taken.len()).unwrap_or(u32::MAX);
            let mean = crowd.taken.iter().sum::<Duration>().checked_div(count);
            let mean = mean.unwrap_or_default().as_secs_f64() / file;
            let longest = longest.as_secs_f64() / file;
            writeln!(f, "{common:<63}  {:<36} {mean:>6.3}  {longest:>6.3}", crowd.label)?;
            common.clear();
        }
        Ok(())
    }
}
