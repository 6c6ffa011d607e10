//! A small parent process that keeps the connection of a mount (option `keeper`).
//!
//! ```text
//! keeper --starts--> child: mounts, serves
//!   |  <--READY--      with the descriptors of the connection
//!   |                  .. is killed
//!   '----starts----> child: resumes with the same descriptors
//! ```
//!
//! The child is the same program with the same arguments, and its standard input is a socket to the
//! keeper. The keeper does nothing else, so that hardly anything can go wrong in it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use bootcast_host::signals::EndSignals;
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Builder;
use tracing::{info, warn};

use super::{Connection, Start, receive, send};
use crate::io::now;
use crate::mount::{MountError, kernel};

/// Environment variable of the child.
const VARIABLE: &str = "BOOTCASTFS_KEEPER";

/// Byte with which the child reports that the mount is there.
pub(super) const READY: u8 = b'k';

/// Byte with which the keeper starts a child, with a connection to resume if there is one.
const START: u8 = b's';

/// Number of children in a row that may be killed before they are ready. The next one would fare
/// the same.
const MAX_FAILED_STARTS: u32 = 10;

/// Number of restarts within [`RESTART_WINDOW`] that come without a pause.
const FREE_RESTARTS: usize = 10;

/// Time within which restarts count.
const RESTART_WINDOW: Duration = Duration::from_secs(10);

/// Pause before a restart that comes after many others. A request that kills each process would
/// otherwise take a CPU.
const RESTART_PAUSE: Duration = Duration::from_millis(50);

/// Whether this process is the child of a keeper.
pub fn is_child() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Keeps the connection of the mount at `mountpoint` until the mount ends. `command_line` is that
/// of this process. Calls `ready` when the mount is there.
pub fn run(
    command_line: &[OsString],
    mountpoint: &Path,
    start: Start,
    ready: impl FnOnce(),
) -> Result<(), MountError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let mut keeper = Keeper {
        command_line,
        connection: match start {
            Start::Mount => None,
            Start::Replace(offer) => Some(offer.accept()?),
            Start::Resume(connection) => Some(connection),
        },
        failed_starts: 0,
        restarts: VecDeque::new(),
    };
    let outcome = runtime.block_on(keeper.keep(ready));
    if let Err(error) = &outcome
        && keeper.connection.take().is_some()
    {
        warn!(%error, "giving the mount up");
        // Readers get an error when the connection is closed, and the mount point is free.
        let _ = kernel::unmount(mountpoint, true);
    }
    outcome
}

struct Keeper<'a> {
    command_line: &'a [OsString],
    /// Connection of the mount, as soon as a child has one that can be resumed.
    connection: Option<Connection>,
    /// Number of children in a row that were killed before they were ready.
    failed_starts: u32,
    /// Times of the last restarts.
    restarts: VecDeque<Instant>,
}

impl Keeper<'_> {
    /// Runs one child after the other until one ends by itself.
    async fn keep(&mut self, ready: impl FnOnce()) -> Result<(), MountError> {
        let mut signals = EndSignals::listen().map_err(failed)?;
        let mut ready = Some(ready);
        loop {
            let status = self.run_child(&mut signals, &mut ready).await?;
            match status.signal() {
                Some(signal)
                    if self.connection.is_some() && self.failed_starts < MAX_FAILED_STARTS =>
                {
                    warn!(signal, "the process of the mount was killed: starting it again");
                    tokio::time::sleep(self.pause_before_restart(now())).await;
                }
                Some(signal) => {
                    let reason = format!("its process was killed by signal {signal}");
                    return Err(MountError::failed(&reason));
                }
                None => {
                    // It has unmounted itself.
                    self.connection = None;
                    let reason = format!("its process ended: {status}");
                    return status.success().then_some(()).ok_or(MountError::Failed(reason));
                }
            }
        }
    }

    /// Starts a child and waits until it ends. Passes signals on to it. Fails if the child reports
    /// that it cannot mount.
    async fn run_child(
        &mut self,
        signals: &mut EndSignals,
        ready: &mut Option<impl FnOnce()>,
    ) -> Result<ExitStatus, MountError> {
        let (mut child, socket) = self.start_child().map_err(failed)?;
        let pid = Pid::from_child(&child);
        let mut report = tokio::task::spawn_blocking(move || receive_report(&socket));
        let mut ended = tokio::task::spawn_blocking(move || child.wait());
        let mut is_reported = false;
        loop {
            tokio::select! {
                biased;
                reported = &mut report, if !is_reported => {
                    is_reported = true;
                    let reported = reported.map_err(|error| failed(io::Error::other(error)))?;
                    self.failed_starts += 1;
                    if let Report::Ready(connection) = reported? {
                        self.failed_starts = 0;
                        self.connection = connection.or(self.connection.take());
                        if let Some(ready) = ready.take() {
                            ready();
                        }
                    }
                }
                status = &mut ended, if is_reported => {
                    let status = status.map_err(|error| failed(io::Error::other(error)))?;
                    return status.map_err(failed);
                }
                signal = signals.recv() => {
                    info!(signal = signal.name(), "passing the signal on");
                    // Fails if the child has ended.
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
        }
    }

    /// Starts this program again, as a child. Returns the socket to it.
    fn start_child(&self) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let name = self.command_line.first().map(OsString::as_os_str).unwrap_or_default();
        let child = Command::new("/proc/self/exe")
            .arg0(name)
            .args(self.command_line.iter().skip(1))
            .env(VARIABLE, "1")
            .stdin(OwnedFd::from(theirs))
            .spawn()?;
        send(&ours, START, self.connection.as_ref())?;
        Ok((child, ours))
    }

    /// Records a restart. Returns how long to wait before it.
    fn pause_before_restart(&mut self, now: Instant) -> Duration {
        let is_old = |restart: &Instant| now.duration_since(*restart) > RESTART_WINDOW;
        while self.restarts.front().is_some_and(is_old) {
            self.restarts.pop_front();
        }
        self.restarts.push_back(now);
        if self.restarts.len() <= FREE_RESTARTS { Duration::ZERO } else { RESTART_PAUSE }
    }
}

/// Report of a child that can mount.
enum Report {
    /// The mount is there. It can be resumed if there is a connection.
    Ready(Option<Connection>),
    /// The child ended without a report.
    None,
}

/// Waits for the report of a child. Fails with the error that it reports.
fn receive_report(mut socket: &UnixStream) -> Result<Report, MountError> {
    match receive(socket) {
        Ok(Some((READY, connection))) => Ok(Report::Ready(connection)),
        Ok(Some((code, _))) => {
            let mut text = Vec::new();
            // If this fails, the message has only the bytes that were read before.
            let _ = socket.read_to_end(&mut text);
            let text = String::from_utf8_lossy(&text);
            let usage = MountError::usage(&text);
            Err(if code == usage.exit_code() { usage } else { MountError::failed(&text) })
        }
        Ok(None) | Err(_) => Ok(Report::None),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: io::Error) -> MountError {
    MountError::failed(&format!("cannot keep a mount: {error}"))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    #[test]
    fn many_restarts_within_a_short_time_are_slowed_down() {
        let (failed_starts, restarts) = (0, VecDeque::new());
        let mut keeper = Keeper { command_line: &[], connection: None, failed_starts, restarts };
        let start = Instant::now();
        for _ in 0..FREE_RESTARTS {
            assert_eq!(keeper.pause_before_restart(start), Duration::ZERO);
        }
        assert_eq!(keeper.pause_before_restart(start + RESTART_WINDOW), RESTART_PAUSE);
        assert_eq!(keeper.pause_before_restart(start + 3 * RESTART_WINDOW), Duration::ZERO);
    }
}
