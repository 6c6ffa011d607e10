//! Passing the FUSE connection of a mount from one process to the next, without an unmount.
//!
//! | module | holds |
//! |---|---|
//! | [`replace`] | the new process of `bootcastfs --replace`: asks for the connection |
//! | `listener` | the old process: gives it away |
//! | [`keeper`] | a small parent process that keeps the connection when its child is killed |
//! | [`store`] | systemd, which keeps it when the process is killed or restarted |
//!
//! A connection is two descriptors: the FUSE device and the [journal](crate::journal). While one
//! process holds both, no request gets lost: the next process reads the journal and has the kernel
//! send all unanswered requests again. docs/adr/0029-update-without-unmounting.md.

pub mod keeper;
mod listener;
pub mod replace;
pub mod store;
mod sys;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::journal::Journal;
use crate::mount::{MountError, MountRequest, kernel};
pub(crate) use listener::Listener;
use replace::Offer;

/// Descriptors with which a process can serve a mount that another process served before.
#[derive(Debug)]
pub struct Connection {
    /// The FUSE device.
    pub device: OwnedFd,
    /// The memory file of the journal.
    pub journal: File,
}

/// Origin of the connection that a process serves.
#[derive(Debug)]
pub enum Start {
    /// It mounts.
    Mount,
    /// It takes the connection from a running process, which ends then.
    Replace(Offer),
    /// It has the connection of a process that ended.
    Resume(Connection),
}

impl Start {
    /// Returns the connection to take over; `None` if the process mounts. Makes a running process
    /// end, and waits until it has.
    pub(crate) fn connection(self) -> Result<Option<Connection>, MountError> {
        match self {
            Self::Mount => Ok(None),
            Self::Replace(offer) => offer.accept().map(Some),
            Self::Resume(connection) => Ok(Some(connection)),
        }
    }
}

impl Connection {
    /// Parses the command line of the mount, which the process that ended was started with.
    /// Relative paths in it start where it was typed.
    pub fn mount_request(&self) -> Result<MountRequest, MountError> {
        let typed = Journal::mount_record(&self.journal);
        let typed = typed.map_err(|error| MountError::failed(&error))?;
        let directory = std::env::current_dir();
        // If that directory is gone, only relative paths need it.
        let _ = std::env::set_current_dir(&typed.directory);
        let request = MountRequest::typed(typed);
        if let Ok(directory) = directory {
            let _ = std::env::set_current_dir(directory);
        }
        request
    }

    /// Returns the connection if it is of the mount that `request` names. Otherwise unmounts the
    /// other mount, closes the connection, and returns that mount point.
    pub fn of_mount(self, request: &MountRequest) -> Result<Self, PathBuf> {
        // A journal that cannot be read is reported when it is resumed.
        let Ok(old) = self.mount_request() else { return Ok(self) };
        if old.source == request.source && old.mountpoint == request.mountpoint {
            return Ok(self);
        }
        if let Some(number) = self.number(&old.mountpoint) {
            kernel::detach(&old.mountpoint, number);
        }
        Err(old.mountpoint)
    }

    /// Returns the number of this connection at its mount point, which is the device number
    /// of its file system; `None` if it is mounted there no more.
    pub fn number(&self, mountpoint: &Path) -> Option<u32> {
        kernel::connection_number(mountpoint).ok()
    }

    /// Returns other descriptors of the same connection.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { device: self.device.try_clone()?, journal: self.journal.try_clone()? })
    }
}

/// Sends one byte over a Unix socket, with the descriptors of a connection.
fn send(socket: impl AsFd, byte: u8, connection: Option<&Connection>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = connection.map(|own| [own.device.as_fd(), own.journal.as_fd()]);
    if let Some(descriptors) = &descriptors {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(&[byte])], &mut control, flags)?;
    Ok(())
}

/// Receives what [`send`] sent. Returns `None` if the peer closed its end.
fn receive(socket: impl AsFd) -> io::Result<Option<(u8, Option<Connection>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = rustix::io::retry_on_intr(|| {
        let mut buffers = [IoSliceMut::new(&mut byte)];
        rustix::net::recvmsg(&socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    let mut descriptors = descriptors.into_iter();
    let connection = descriptors.next().zip(descriptors.next());
    let connection =
        connection.map(|(device, journal)| Connection { device, journal: journal.into() });
    Ok(Some((byte[0], connection)))
}

/// Returns the socket at which the process of a mount offers its connection. `minor` is the minor
/// device number of the mount. Returns `None` for a user without a directory for sockets.
fn socket_path(minor: u32) -> Option<PathBuf> {
    let base = if rustix::process::geteuid().is_root() {
        PathBuf::from("/run")
    } else {
        std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty())?.into()
    };
    Some(base.join("bootcastfs").join(format!("{minor}.sock")))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_connection_arrives_with_both_of_its_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let mut journal = tempfile::tempfile().unwrap();
        journal.write_all(b"x").unwrap();
        let connection = Connection { device: writer.into(), journal };
        send(&ours, b'r', Some(&connection)).unwrap();
        send(&ours, b'n', None).unwrap();
        drop((ours, connection));

        let (byte, received) = receive(&theirs).unwrap().unwrap();
        let received = received.unwrap();
        assert_eq!((byte, received.journal.metadata().unwrap().len()), (b'r', 1));
        File::from(received.device).write_all(b"y").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "y");
        assert!(matches!(receive(&theirs), Ok(Some((b'n', None)))));
        assert!(matches!(receive(&theirs), Ok(None)), "closed");
    }
}
