//! `bootcastfs --replace MOUNTPOINT`: takes the connection of a mount from the process that serves
//! it.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::warn;

use super::listener::{GO, OFFER};
use super::{Connection, receive, socket_path};
use crate::io::now;
use crate::mount::{MountError, MountRequest, kernel};

/// Longest time that the old process may take to save what it holds. Then it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time to wait for a process that is starting: nobody listens at the socket of a process
/// that was killed until its keeper has started the next one.
const START_TIMEOUT: Duration = Duration::from_secs(3);

/// Interval at which a process that is starting is looked for.
const START_PERIOD: Duration = Duration::from_millis(20);

/// A running process that gives its connection away.
#[derive(Debug)]
pub struct Offer {
    socket: UnixStream,
    process: OwnedFd,
    connection: Connection,
}

impl Offer {
    /// Asks the process that serves this mount point. Changes nothing yet.
    pub fn request(mountpoint: &Path) -> Result<Self, MountError> {
        let name = mountpoint.display();
        let no_offer = |reason: &dyn std::fmt::Display| {
            MountError::failed(&format!(
                "cannot replace the process of {name}: {reason}; unmount it, then mount it again"
            ))
        };
        let minor = kernel::connection_number(mountpoint)?;
        let path = socket_path(minor).ok_or_else(|| no_offer(&"XDG_RUNTIME_DIR is unset"))?;
        let socket = connect(&path).map_err(|error| {
            no_offer(&format!("it does not answer at {}: {error}", path.display()))
        })?;
        let peer = rustix::net::sockopt::socket_peercred(&socket).map_err(|e| no_offer(&e))?;
        // Before the descriptors arrive, so that the process cannot have ended.
        let process =
            pidfd_open(peer.pid, PidfdFlags::empty()).map_err(|error| no_offer(&error))?;
        let connection = match receive(&socket).map_err(|error| no_offer(&error))? {
            Some((OFFER, Some(connection))) => connection,
            Some(_) => return Err(no_offer(&"it is of another version")),
            None => return Err(no_offer(&"it refused")),
        };
        Ok(Self { socket, process, connection })
    }

    /// Parses the command line of the mount, see [`Connection::mount_request`].
    pub fn mount_request(&self) -> Result<MountRequest, MountError> {
        self.connection.mount_request()
    }

    /// Makes the old process end, and waits until it has. From here on there is no way back.
    pub fn accept(mut self) -> Result<Connection, MountError> {
        let failed = |error: &dyn std::fmt::Display| {
            MountError::failed(&format!("cannot take the mount over: {error}"))
        };
        self.socket.write_all(&[GO]).map_err(|error| failed(&error))?;
        if !self.has_ended_within(END_TIMEOUT).map_err(|error| failed(&error))? {
            warn!("the old process does not end: killing it");
            pidfd_send_signal(&self.process, Signal::KILL).map_err(|error| failed(&error))?;
            if !self.has_ended_within(END_TIMEOUT).map_err(|error| failed(&error))? {
                return Err(failed(&"the old process cannot be killed"));
            }
        }
        Ok(self.connection)
    }

    /// Waits until the old process has ended, and its locks in the cache are free.
    fn has_ended_within(&self, timeout: Duration) -> rustix::io::Result<bool> {
        let timeout = Timespec::try_from(timeout).ok();
        rustix::io::retry_on_intr(|| {
            let mut ended = [PollFd::new(&self.process, PollFlags::IN)];
            poll(&mut ended, timeout.as_ref()).map(|count| count > 0)
        })
    }
}

/// Connects to the socket of a mount, as soon as somebody listens there.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let deadline = now() + START_TIMEOUT;
    loop {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && now() < deadline => {
                pause();
            }
            outcome => return outcome,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "nothing tells that a process will listen")]
fn pause() {
    std::thread::sleep(START_PERIOD);
}
