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
    /// Pages of the file.
    pages: u32,
    /// Bytes of a full page on the wire.
    datagram: u64,
    /// Number of clients in all crowds.
    clients: usize,
    /// Time to send the file once at the server's rate.
    file: Duration,
    /// Time at which the first page was sent.
    began: Option<Instant>,
    crowds: Vec<CrowdOutcome>,
    /// Times at which reports reached the server.
    reports: Vec<Instant>,
    /// Share of the core that TCP got until 95 % of the clients were complete.
    flows_share: Option<f64>,
    /// Datagrams sent until the last client was complete.
    until_done: Sent,
    /// Datagrams sent until the end.
    in_all: Sent,
    /// Bytes of the manifest that complete clients have to fetch over HTTP.
    manifest_bytes: u64,
    /// Bytes of wrong leaves, and of hashes, that clients fetched over HTTP.
    fetched_bytes: u64,
}

/// Results of one crowd.
#[derive(Debug)]
struct CrowdOutcome {
    /// Description of the crowd.
    label: String,
    /// Time that each complete client took, counted from its arrival, or from the first page if
    /// that was sent later.
    durations: Vec<Duration>,
}

impl Outcome {
    /// Creates empty results.
    pub(super) fn new(scenario: &Scenario) -> Self {
        let datagram = PageSize::for_mtu(1500).expect("room for a page").wire_len();
        let crowds = scenario
            .crowds
            .iter()
            .map(|crowd| CrowdOutcome { label: crowd.to_string(), durations: Vec::new() });
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
            manifest_bytes: 0,
            fetched_bytes: 0,
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

    /// Records that the server's counters grew from `before` to `after`.
    pub(super) fn record_sent(&mut self, before: Sent, after: Sent, now: Instant) {
        if before.pages == 0 && after.pages > 0 {
            self.began = Some(now);
        }
    }

    /// Records that a report reached the server.
    pub(super) fn record_report(&mut self, now: Instant) {
        self.reports.push(now);
    }

    /// Records that a client of `crowd` has every page.
    pub(super) fn record_completion(
        &mut self,
        crowd: usize,
        arrived_at: Option<Instant>,
        now: Instant,
        sent: Sent,
    ) {
        let from = arrived_at.max(self.began).unwrap_or(now);
        self.crowds[crowd].durations.push(now.saturating_duration_since(from));
        self.until_done = sent;
    }

    /// Records the share of the core that TCP got until now. Ignored once more than 95 % of the
    /// clients are complete.
    pub(super) fn record_flows_share(&mut self, share: f64) {
        if self.complete_clients() <= self.clients_95() {
            self.flows_share = Some(share);
        }
    }

    fn complete_clients(&self) -> usize {
        self.crowds.iter().map(|crowd| crowd.durations.len()).sum()
    }

    /// Number of clients that are 95 % of all.
    fn clients_95(&self) -> usize {
        (self.clients * 95).div_ceil(100)
    }

    /// Longest time that the fastest 95 % of the clients took. `None` if fewer are complete.
    pub fn time_95(&self) -> Option<Duration> {
        let mut durations: Vec<_> =
            self.crowds.iter().flat_map(|crowd| crowd.durations.iter().copied()).collect();
        durations.sort_unstable();
        durations.get(self.clients_95().checked_sub(1)?).copied()
    }

    /// Share of the core that TCP connections got until 95 % of the clients were complete.
    pub fn flows_share(&self) -> Option<f64> {
        self.flows_share
    }

    /// Records the bytes of the manifest that a client has to fetch over HTTP.
    pub(super) fn record_manifest(&mut self, bytes: u64) {
        self.manifest_bytes += bytes;
    }

    /// Bytes of the manifest that all clients together have to fetch over HTTP, as a multiple of
    /// the file.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub fn manifest_per_file(&self) -> f64 {
        self.manifest_bytes as f64 / (1456.0 * f64::from(self.pages))
    }

    /// Records bytes that a client fetches over HTTP because of a forger: wrong leaves, and hashes.
    pub(super) fn record_fetched(&mut self, bytes: u64) {
        self.fetched_bytes += bytes;
    }

    /// Bytes that all clients together fetched over HTTP because of a forger, as a multiple of the
    /// file.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub fn fetched_per_file(&self) -> f64 {
        self.fetched_bytes as f64 / (1456.0 * f64::from(self.pages))
    }

    /// Leaf lists sent for each page of the file, until the end.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub fn lists_per_page(&self) -> f64 {
        self.in_all.lists as f64 / f64::from(self.pages)
    }

    /// Records the end of the cast.
    pub(super) fn record_end(&mut self, sent: Sent) {
        self.in_all = sent;
    }

    /// Pages and symbols sent for each page of the file, until the last client was complete.
    pub fn sent_per_page(&self) -> f64 {
        self.per_page(self.until_done)
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn per_page(&self, sent: Sent) -> f64 {
        (sent.pages + sent.symbols) as f64 / f64::from(self.pages)
    }

    /// Largest number of reports within one second.
    fn peak_reports(&self) -> usize {
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
    /// Writes a line for each crowd. The first line begins with the values of the whole cast.
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
            self.peak_reports(),
        )?;
        for crowd in &self.crowds {
            let longest = crowd.durations.iter().max().copied().unwrap_or_default();
            let count = u32::try_from(crowd.durations.len()).unwrap_or(u32::MAX);
            let mean = crowd.durations.iter().sum::<Duration>().checked_div(count);
            let mean = mean.unwrap_or_default().as_secs_f64() / file;
            let longest = longest.as_secs_f64() / file;
            writeln!(f, "{common:<63}  {:<36} {mean:>6.3}  {longest:>6.3}", crowd.label)?;
            common.clear();
        }
        Ok(())
    }
}
