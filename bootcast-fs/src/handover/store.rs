//! Keepers of a connection, as seen by the process that serves the mount: systemd with its
//! descriptor store, or the parent process of the option `keeper`.
//!
//! systemd: `FileDescriptorStoreMax=` in `systemd.service(5)`, `FDSTORE=1` in `sd_notify(3)`.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use sd_notify::NotifyState;
use tracing::{debug, warn};

use super::{Connection, keeper, receive, send, sys};
use crate::mount::MountError;

/// Names of the two descriptors in the store.
const DEVICE_NAME: &str = "bootcastfs-device";
const JOURNAL_NAME: &str = "bootcastfs-journal";

/// Process that keeps the descriptors of the connection while this one may be killed.
#[derive(Debug)]
pub enum Store {
    /// Nothing.
    None,
    /// The parent process, see [`keeper`].
    Parent(UnixStream),
    /// The service manager that `NOTIFY_SOCKET` names.
    ServiceManager,
}

impl Store {
    /// Returns the store of this process, and the connection in it if a previous process left one.
    /// `is_service` tells whether the process stays in the foreground, as services do. Must be
    /// called only once: it takes the descriptors that this process inherited.
    pub fn open(is_service: bool) -> Result<(Self, Option<Connection>), MountError> {
        let failed = |error: io::Error| MountError::failed(&format!("no connection: {error}"));
        if keeper::is_child() {
            let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
            let socket = UnixStream::from(socket);
            let received = receive(&socket).map_err(failed)?;
            let (_, connection) =
                received.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
            return Ok((Self::Parent(socket), connection));
        }
        if !is_service || std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok((Self::None, None));
        }
        let (device, journal) = stored().map_err(failed)?;
        if device.is_some() != journal.is_some() {
            // The previous process was killed while it stored them.
            Self::ServiceManager.remove();
        }
        let connection = device.zip(journal);
        let connection =
            connection.map(|(device, journal)| Connection { device, journal: journal.into() });
        Ok((Self::ServiceManager, connection))
    }

    /// Whether a process that takes over from this one would be out of reach of what manages it.
    pub fn is_service_manager(&self) -> bool {
        matches!(self, Self::ServiceManager)
    }

    /// Reports that the mount is there. Leaves its connection in the store, if it has one that can
    /// be resumed.
    pub(crate) fn keep(&self, connection: Option<&Connection>) {
        let kept = match self {
            Self::None => Ok(()),
            Self::Parent(socket) => send(socket, keeper::READY, connection),
            Self::ServiceManager => {
                let kept = connection.map_or(Ok(()), |Connection { device, journal }| {
                    // A device without a journal would only keep readers waiting.
                    store(JOURNAL_NAME, journal.as_fd())?;
                    store(DEVICE_NAME, device.as_fd())
                });
                if kept.is_err() {
                    self.remove();
                }
                let reported = sd_notify::notify(&[NotifyState::Ready]);
                kept.and(reported)
            }
        };
        if let Err(error) = kept {
            warn!(%error, "nothing keeps this mount when its process is killed");
        }
    }

    /// Tells the parent that the mount waits for its server.
    pub(crate) fn report_waiting(&self) {
        self.tell_parent(keeper::WAITING);
    }

    /// Tells the parent that another process takes the mount over. However this process ends from
    /// here on, the parent must not start another one.
    pub(crate) fn give_away(&self) {
        self.tell_parent(keeper::GIVEN);
    }

    fn tell_parent(&self, byte: u8) {
        if let Self::Parent(socket) = self
            && let Err(error) = send(socket, byte, None)
        {
            debug!(%error, "the parent process is gone");
        }
    }

    /// Passes an error on to the parent, which reports it. Returns whether there is a parent.
    pub fn report_error(&self, error: &MountError) -> bool {
        let Self::Parent(socket) = self else { return false };
        let report = [&[error.exit_code()], error.to_string().as_bytes()].concat();
        // Fails only if the parent is gone.
        let _ = (&*socket).write_all(&report);
        true
    }

    /// Takes the connection out of the store when the mount has ended.
    pub fn remove(&self) {
        if let Self::ServiceManager = self {
            for name in [DEVICE_NAME, JOURNAL_NAME] {
                let remove = [NotifyState::FdStoreRemove, NotifyState::FdName(name)];
                if let Err(error) = sd_notify::notify(&remove) {
                    debug!(%error, "cannot remove a descriptor from the store");
                }
            }
        }
    }
}

/// Puts one descriptor into the store of the service manager.
fn store(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let state = [NotifyState::FdStore, NotifyState::FdName(name)];
    sd_notify::notify_with_fds(&state, &[descriptor])
}

/// Returns device and journal that a previous process left with the service manager.
fn stored() -> io::Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    let (mut device, mut journal) = (None, None);
    for (descriptor, name) in sd_notify::listen_fds_with_names()? {
        let slot = match name.as_str() {
            DEVICE_NAME => &mut device,
            JOURNAL_NAME => &mut journal,
            _ => continue,
        };
        // The newest of each name counts.
        *slot = Some(sys::inherited(descriptor));
    }
    Ok((device, journal))
}
