//! One run: all clients want the same file at the same time.

use std::fmt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bootcast_proto::BitRate;
use harness::content::{Image, try_digest_of};
use harness::{Lab, Proc, mib};
use rustix::process::Signal;

/// Bytes of the file.
pub(super) const SIZE: u64 = mib(128);

/// Time after which a run is ended.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// Time that clients get after their server is gone.
const ORPHANED: Duration = Duration::from_secs(5);

/// Payload and size on the wire of a packet with 1472 bytes after its UDP header: 38 bytes of
/// Ethernet, 20 of IPv4, 8 of UDP.
const PACKET: (f64, f64) = (1472.0, 1538.0);

/// Time that one copy takes at this rate, headers included.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(super) fn limit(rate: &str) -> Duration {
    let rate: BitRate = rate.parse().unwrap();
    let bits = SIZE as f64 * 8.0 * PACKET.1 / PACKET.0;
    Duration::from_secs_f64(bits / rate.bits_per_second() as f64)
}

/// Result of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Clients that have the right bytes.
    pub(super) complete: usize,
    /// Clients.
    pub(super) clients: usize,
    /// When the last client was complete; `None` unless all were.
    pub(super) last: Option<Duration>,
    /// Bytes that left the head, in files.
    pub(super) sent: f64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { complete, clients, last, sent } = self;
        write!(f, "{complete}/{clients} complete, {sent:.3} files sent")?;
        last.map_or(Ok(()), |last| write!(f, ", the last after {:.2} s", last.as_secs_f64()))
    }
}

/// State of a client.
pub(super) enum State {
    Running,
    Finished,
    Failed,
}

/// A running race.
pub(super) struct Race<'lab> {
    lab: &'lab Lab,
    start: Instant,
    sent_before: u64,
}

impl<'lab> Race<'lab> {
    /// Starts the clock.
    pub(super) fn start(lab: &'lab Lab) -> Self {
        crate::warm_memory(2);
        Self { lab, start: Instant::now(), sent_before: lab.head().counters().tx_bytes }
    }

    /// Waits until every client has finished or failed. Returns when each finished. A client fails
    /// at the deadline, or soon after its server is gone.
    pub(super) fn watch(
        &self,
        mut state: impl FnMut(usize) -> State,
        mut has_server: impl FnMut() -> bool,
    ) -> Vec<Option<Duration>> {
        let mut deadline = self.start + DEADLINE;
        let mut is_orphaned = false;
        let mut finished = vec![None; self.lab.clients().len()];
        let mut running: Vec<usize> = (0..finished.len()).collect();
        while !running.is_empty() && Instant::now() < deadline {
            running.retain(|&client| match state(client) {
                State::Running => true,
                State::Finished => {
                    finished[client] = Some(self.start.elapsed());
                    false
                }
                State::Failed => false,
            });
            if !is_orphaned && !has_server() {
                is_orphaned = true;
                deadline = deadline.min(Instant::now() + ORPHANED);
            }
            sleep(Duration::from_millis(5));
        }
        finished
    }

    /// Like [`Self::watch`], if each client is a program that ends when it has the file. Ends those
    /// that still run.
    pub(super) fn watch_programs(
        &self,
        clients: &mut [Proc],
        has_server: impl FnMut() -> bool,
    ) -> Vec<Option<Duration>> {
        let finished = self.watch(
            |client| match clients[client].exited() {
                None => State::Running,
                Some(status) if status.success() => State::Finished,
                Some(_) => State::Failed,
            },
            has_server,
        );
        for client in clients {
            client.signal(Signal::KILL);
        }
        finished
    }

    /// Sums up and checks what the clients have.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub(super) fn finish(
        self,
        finished: &[Option<Duration>],
        copies: &[PathBuf],
        image: &Image,
    ) -> Run {
        let sent = (self.lab.head().counters().tx_bytes - self.sent_before) as f64 / SIZE as f64;
        let is_right = |copy: &Path| try_digest_of(copy).is_ok_and(|digest| digest == image.digest);
        let times: Vec<_> = finished
            .iter()
            .zip(copies)
            .filter_map(|(time, copy)| time.filter(|_| is_right(copy)))
            .collect();
        let all = times.len() == finished.len();
        Run {
            complete: times.len(),
            clients: finished.len(),
            last: times.into_iter().max().filter(|_| all),
            sent,
        }
    }
}

/// Path of each client's copy.
pub(super) fn copies(lab: &Lab) -> Vec<PathBuf> {
    lab.clients().iter().map(|host| host.fresh_path("copy")).collect()
}
