//! One run: all clients start to fetch the same file at the same time.

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

/// Time after which a run is stopped.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// Time that clients have left when the server's program has ended.
const ORPHAN_DEADLINE: Duration = Duration::from_secs(5);

/// UDP payload and size on the wire of a full packet, in bytes. The headers are 38 bytes of
/// Ethernet, 20 of IPv4 and 8 of UDP. Headers of the peers' own protocols do not count.
const PACKET: (f64, f64) = (1472.0, 1538.0);

/// Returns the time that one copy takes at this rate, headers included.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(super) fn limit(rate: &str) -> Duration {
    let rate: BitRate = rate.parse().unwrap();
    let bits = SIZE as f64 * 8.0 * PACKET.1 / PACKET.0;
    Duration::from_secs_f64(bits / rate.bits_per_second() as f64)
}

/// Result of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Number of clients that have the right bytes.
    pub(super) complete: usize,
    /// Number of clients.
    pub(super) clients: usize,
    /// Time until the last client was complete; `None` if some were not.
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

/// A run in progress.
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

    /// Waits until every client has finished or failed. Returns the time at which each finished.
    ///
    /// A client has failed if it still runs at the deadline, or [`ORPHAN_DEADLINE`] after the
    /// server's program ended.
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
                deadline = deadline.min(Instant::now() + ORPHAN_DEADLINE);
            }
            sleep(Duration::from_millis(5));
        }
        finished
    }

    /// Like [`Self::watch`], for clients that are programs that end when they have the file. Kills
    /// those that still run.
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

    /// Checks the copies of the clients that finished, and returns the result of the run.
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

/// Returns the path of each client's copy.
pub(super) fn copies(lab: &Lab) -> Vec<PathBuf> {
    lab.clients().iter().map(|host| host.fresh_path("copy")).collect()
}
