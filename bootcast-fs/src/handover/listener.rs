//! Socket at which the process of a mount gives its connection to the next process.
//!
//! ```text
//! new process --connect----> old process      checks the peer's user
//!             <--descriptors--                goes on serving until GO
//!             --GO---------->                 saves what it holds, and ends
//! ```
//!
//! If the new process goes away before `GO`, nothing happened.

use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tracing::{info, warn};

use super::{Connection, send, socket_path};
use crate::log_limit;

/// Byte with which the new process takes over.
pub(super) const GO: u8 = b'g';

/// Byte that comes with the descriptors.
pub(super) const OFFER: u8 = b'o';

/// Longest time that a new process may take to decide.
const DECISION_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a failed offer. Without a free descriptor, each attempt fails at once.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Listening socket of a mount. Dropping it removes the socket, unless another mount has one there
/// by now: the kernel gives the number of a mount that has ended to the next one.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket in the file system.
    identity: (u64, u64),
    connection: Arc<Connection>,
}

impl Listener {
    /// Offers `connection`, of the mount with this minor device number. Must be called within a
    /// tokio runtime.
    pub(crate) fn bind(minor: u32, connection: Connection) -> io::Result<Self> {
        let path =
            socket_path(minor).ok_or_else(|| io::Error::other("XDG_RUNTIME_DIR is unset"))?;
        Self::bind_at(path, connection)
    }

    /// Offers `connection` at this path.
    fn bind_at(path: PathBuf, connection: Connection) -> io::Result<Self> {
        let directory = path.parent().unwrap_or(&path);
        DirBuilder::new().mode(0o700).recursive(true).create(directory)?;
        // The kernel uses the number of a mount again, whose process may have been killed.
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let socket = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        let identity = identity(&path)?;
        Ok(Self { socket, path, identity, connection: Arc::new(connection) })
    }

    /// Waits until a new process has the connection and wants to take over.
    pub(crate) async fn next_process(&self) {
        loop {
            match self.offer().await {
                Ok(true) => return,
                Ok(false) => info!("a process asked for the connection, and did not take it over"),
                Err(error) => {
                    if let Some(more) = log_limit::allow("offer", &error) {
                        warn!(%error, "cannot offer the connection to another process{more}");
                    }
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
        }
    }

    /// Offers the connection to one process. Returns whether it takes over.
    async fn offer(&self) -> io::Result<bool> {
        let (stream, _) = self.socket.accept().await?;
        let user = stream.peer_cred()?.uid();
        if ![0, rustix::process::geteuid().as_raw()].contains(&user) {
            return Err(io::Error::other(format!("user {user} asked for it")));
        }
        let stream = stream.into_std()?;
        let connection = self.connection.clone();
        let decision = tokio::task::spawn_blocking(move || decide(stream, &connection));
        decision.await.map_err(io::Error::other)?
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns device and inode of a file.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Sends the connection, and waits for the decision of the new process.
fn decide(mut stream: UnixStream, connection: &Connection) -> io::Result<bool> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(DECISION_TIMEOUT))?;
    send(&stream, OFFER, Some(connection))?;
    let mut byte = [0];
    Ok(stream.read(&mut byte)? == 1 && byte == [GO])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        let file = || tempfile::tempfile().unwrap();
        Connection { device: file().into(), journal: file() }
    }

    #[tokio::test]
    async fn the_socket_of_the_next_mount_with_the_same_number_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("7.sock");
        let old = Listener::bind_at(path.clone(), connection()).unwrap();
        let new = Listener::bind_at(path.clone(), connection()).unwrap();
        drop(old);
        assert!(path.exists());
        drop(new);
        assert!(!path.exists());
    }
}
