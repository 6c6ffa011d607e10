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
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use bootcast_host::signals::{EndSignal, EndSignals};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tracing::{info, warn};

use super::{Connection, Start, receive, send};
use crate::io::now;
use crate::mount::{MountError, kernel};

/// Environment variable of the child.
const VARIABLE: &str = "BOOTCASTFS_KEEPER";

/// Byte with which the child reports that the mount is there.
pub(super) const READY: u8 = b'k';

/// Byte with which the child reports that it waits for its server.
pub(super) const WAITING: u8 = b'w';

/// Byte with which the child reports that another process takes the mount over.
pub(super) const GIVEN: u8 = b'g';

/// Maximum length in bytes of the message of an error.
const MAX_MESSAGE: usize = 64 << 10;

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
/// of this process. Calls `ready` when the mount is there, or waits for its server.
pub fn run(
    command_line: &[OsString],
    mountpoint: &Path,
    start: Start,
    ready: impl FnOnce(),
) -> Result<(), MountError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
    // Comes first: until then a signal ends this process, which may be the only one that has the
    // connection.
    let signals = runtime.block_on(async { EndSignals::listen() });
    let mut signals = signals.map_err(failed)?;
    let mut keeper = Keeper::new(command_line, mountpoint, start.connection()?);
    let outcome = runtime.block_on(keeper.keep(&mut signals, ready));
    keeper.give_up(outcome.as_ref().err());
    outcome
}

struct Keeper<'a> {
    command_line: &'a [OsString],
    mountpoint: &'a Path,
    /// Connection of the mount, as soon as a child has one that can be resumed.
    connection: Option<Connection>,
    /// Number of that connection, see [`kernel::connection_number`].
    number: Option<u32>,
    /// Number of children in a row that were killed before they were ready.
    failed_starts: u32,
    /// Times of the last restarts.
    restarts: VecDeque<Instant>,
    /// First signal that was passed on to a child.
    stopped_by: Option<EndSignal>,
    /// Whether a process that is no child takes the mount over.
    is_given_away: bool,
    /// Error that the child reports.
    fault: Option<MountError>,
}

impl<'a> Keeper<'a> {
    fn new(
        command_line: &'a [OsString],
        mountpoint: &'a Path,
        connection: Option<Connection>,
    ) -> Self {
        let number = connection.as_ref().and_then(|it| it.number(mountpoint));
        Self {
            command_line,
            mountpoint,
            connection,
            number,
            failed_starts: 0,
            restarts: VecDeque::new(),
            stopped_by: None,
            is_given_away: false,
            fault: None,
        }
    }

    /// Runs one child after the other until the mount ends, or belongs to another process.
    async fn keep(
        &mut self,
        signals: &mut EndSignals,
        ready: impl FnOnce(),
    ) -> Result<(), MountError> {
        let mut ready = Some(ready);
        loop {
            let status = self.run_child(signals, &mut ready).await?;
            let Some(signal) = self.restart_after(status)? else { return Ok(()) };
            warn!(signal, "the process of the mount was killed: starting it again");
            tokio::time::sleep(self.pause_before_restart(now())).await;
        }
    }

    /// Returns the signal that killed a child, if another one is to take its place. Drops the
    /// connection of a mount that has ended.
    fn restart_after(&mut self, status: ExitStatus) -> Result<Option<i32>, MountError> {
        if self.is_given_away {
            return Ok(None);
        }
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        match (status.signal(), self.stopped_by) {
            (None, _) if status.success() => {
                // It has unmounted itself.
                self.connection = None;
                Ok(None)
            }
            (None, _) => Err(MountError::Failed(format!("its process ended: {status}"))),
            // A child that has no handlers yet dies of the signal that it is to end by.
            (Some(_), Some(_)) if self.connection.is_some() => Ok(None),
            (Some(_), Some(signal)) => Err(signal.into()),
            (Some(signal), None)
                if self.connection.is_some() && self.failed_starts < MAX_FAILED_STARTS =>
            {
                Ok(Some(signal))
            }
            (Some(signal), None) => {
                Err(MountError::failed(&format!("its process was killed by signal {signal}")))
            }
        }
    }

    /// Unmounts what the last child left mounted. Readers get an error when the connection is
    /// closed, and the mount point is free.
    fn give_up(&mut self, error: Option<&MountError>) {
        if self.connection.take().is_none() {
            return;
        }
        if let Some(error) = error {
            warn!(%error, "giving the mount up");
        }
        if let Some(number) = self.number {
            kernel::detach(self.mountpoint, number);
        }
    }

    /// Starts a child and waits until it ends. Passes signals on to it.
    async fn run_child(
        &mut self,
        signals: &mut EndSignals,
        ready: &mut Option<impl FnOnce()>,
    ) -> Result<ExitStatus, MountError> {
        let (mut child, process, socket) = self.start_child().map_err(failed)?;
        self.failed_starts += 1;
        let mut ended = tokio::task::spawn_blocking(move || child.wait());
        let mut is_open = true;
        loop {
            tokio::select! {
                biased;
                report = receive_report(&socket), if is_open => match report {
                    Some(report) => self.take(report, ready),
                    None => is_open = false,
                },
                status = &mut ended, if !is_open => {
                    let status = status.map_err(|error| failed(io::Error::other(error)))?;
                    return status.map_err(failed);
                }
                signal = signals.recv() => {
                    info!(signal = signal.name(), "passing the signal on");
                    self.stopped_by.get_or_insert(signal);
                    // Fails if the child has ended.
                    let _ = pidfd_send_signal(&process, Signal::TERM);
                }
            }
        }
    }

    /// Takes note of what a child reports.
    fn take(&mut self, report: Report, ready: &mut Option<impl FnOnce()>) {
        match report {
            Report::Ready(connection) => {
                self.failed_starts = 0;
                self.connection = connection.or(self.connection.take());
                let number = || kernel::connection_number(self.mountpoint).ok();
                self.number = self.number.or_else(number);
                if let Some(ready) = ready.take() {
                    ready();
                }
            }
            Report::Waiting => {
                if let Some(ready) = ready.take() {
                    ready();
                }
            }
            Report::GivenAway => {
                self.connection = None;
                self.is_given_away = true;
            }
            Report::Failed(error) => self.fault = Some(error),
        }
    }

    /// Starts this program again, as a child. Returns its pidfd and the socket to it, too.
    fn start_child(&self) -> io::Result<(Child, OwnedFd, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let name = self.command_line.first().map(OsString::as_os_str).unwrap_or_default();
        let child = Command::new("/proc/self/exe")
            .arg0(name)
            .args(self.command_line.iter().skip(1))
            .env(VARIABLE, "1")
            .stdin(OwnedFd::from(theirs))
            .spawn()?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        send(&ours, START, self.connection.as_ref())?;
        ours.set_nonblocking(true)?;
        Ok((child, process, UnixStream::from_std(ours)?))
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

/// Report of a child.
#[derive(Debug)]
enum Report {
    /// The mount is there. It can be resumed if there is a connection.
    Ready(Option<Connection>),
    /// The mount waits for its server.
    Waiting,
    /// Another process takes the mount over.
    GivenAway,
    /// The child ends with this error.
    Failed(MountError),
}

/// Waits for the next report of a child; `None` if there will be none.
async fn receive_report(socket: &UnixStream) -> Option<Report> {
    let received = socket.async_io(Interest::READABLE, || receive(socket)).await;
    Some(match received.ok()?? {
        (READY, connection) => Report::Ready(connection),
        (WAITING, _) => Report::Waiting,
        (GIVEN, _) => Report::GivenAway,
        (code, _) => {
            // The child wrote code and message at once.
            let mut text = vec![0; MAX_MESSAGE];
            let len = socket.try_read(&mut text).unwrap_or(0);
            let text = String::from_utf8_lossy(&text[..len]);
            let usage = MountError::usage(&text);
            Report::Failed(if code == usage.exit_code() {
                usage
            } else {
                MountError::failed(&text)
            })
        }
    })
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: io::Error) -> MountError {
    MountError::failed(&format!("cannot keep a mount: {error}"))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::super::store::Store;
    use super::*;

    /// Wait status of a process that was killed by SIGTERM.
    const TERMINATED: i32 = 15;

    /// Returns a keeper, and whether a child has reported a connection to it.
    fn keeper(has_connection: bool) -> Keeper<'static> {
        let mut keeper = Keeper::new(&[], Path::new("/nonexistent/mnt"), None);
        if has_connection {
            let file = || tempfile::tempfile().unwrap();
            let connection = Connection { device: file().into(), journal: file() };
            keeper.take(Report::Ready(Some(connection)), &mut Some(|| ()));
        }
        keeper
    }

    #[test]
    fn a_child_that_was_killed_is_started_again() {
        let killed = ExitStatus::from_raw(TERMINATED);
        assert_eq!(keeper(true).restart_after(killed), Ok(Some(TERMINATED)));
        assert!(keeper(false).restart_after(killed).is_err(), "nothing to resume");
    }

    #[test]
    fn a_child_that_dies_of_a_signal_that_was_passed_on_is_not_started_again() {
        let killed = ExitStatus::from_raw(TERMINATED);
        let mut stopped = keeper(true);
        stopped.stopped_by = Some(EndSignal::Interrupt);
        assert_eq!(stopped.restart_after(killed), Ok(None));
        assert!(stopped.connection.is_some(), "it is still mounted");
        let mut early = keeper(false);
        early.stopped_by = Some(EndSignal::Terminate);
        assert_eq!(early.restart_after(killed), Err(EndSignal::Terminate.into()));
    }

    #[test]
    fn a_mount_that_was_given_away_is_left_alone_however_the_child_ends() {
        for status in [0, TERMINATED] {
            let mut keeper = keeper(true);
            keeper.take(Report::GivenAway, &mut None::<fn()>);
            assert!(keeper.connection.is_none());
            assert_eq!(keeper.restart_after(ExitStatus::from_raw(status)), Ok(None));
        }
    }

    #[tokio::test]
    async fn all_reports_of_a_child_arrive() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = UnixStream::from_std(ours).unwrap();
        let store = Store::Parent(theirs);
        store.report_waiting();
        store.keep(None);
        store.give_away();
        let error = MountError::usage(&"no such option");
        assert!(store.report_error(&error));
        drop(store);
        let mut reports = Vec::new();
        while let Some(report) = receive_report(&ours).await {
            reports.push(report);
        }
        let [Report::Waiting, Report::Ready(None), Report::GivenAway, Report::Failed(reported)] =
            &reports[..]
        else {
            panic!("{reports:?}")
        };
        assert_eq!(*reported, error);
    }

    #[test]
    fn many_restarts_within_a_short_time_are_slowed_down() {
        let mut keeper = keeper(false);
        let start = Instant::now();
        for _ in 0..FREE_RESTARTS {
            assert_eq!(keeper.pause_before_restart(start), Duration::ZERO);
        }
        assert_eq!(keeper.pause_before_restart(start + RESTART_WINDOW), RESTART_PAUSE);
        assert_eq!(keeper.pause_before_restart(start + 3 * RESTART_WINDOW), Duration::ZERO);
    }
}
