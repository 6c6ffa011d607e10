//! Socket at which the process of a mount gives its connection to the next process.
//!
//! ```text
//! new process --connect----> old process      checks the peer's user
//!             <--descriptors--                both serve nothing anew yet
//!             --GO---------->                 saves what it holds, and ends
//! ```
//!
//! If the new process goes away before `GO`, nothing happened.

use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tracing::{info, warn};

use super::{Connection, send, socket_path};

/// Byte with which the new process takes over.
pub(super) const GO: u8 = b'g';

/// Byte that comes with the descriptors.
pub(super) const OFFER: u8 = b'o';

/// Longest time that a new process may take to decide.
const DECISION_TIMEOUT: Duration = Duration::from_secs(10);

/// Listening socket of a mount. Dropping it removes the socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    connection: Arc<Connection>,
}

impl Listener {
    /// Offers `connection`, of the mount with this minor device number. Must be called within a
    /// tokio runtime.
    pub(crate) fn bind(minor: u32, connection: Connection) -> io::Result<Self> {
        let path =
            socket_path(minor).ok_or_else(|| io::Error::other("XDG_RUNTIME_DIR is unset"))?;
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
        Ok(Self { socket, path, connection: Arc::new(connection) })
    }

    /// Waits until a new process has the connection and wants to take over.
    pub(crate) async fn next_process(&self) {
        loop {
            match self.offer().await {
                Ok(true) => return,
                Ok(false) => info!("a process asked for the connection, and did not take it over"),
                Err(error) => warn!(%error, "cannot offer the connection to another process"),
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
        let _ = fs::remove_file(&self.path);
    }
}

/// Sends the connection, and waits for the decision of the new process.
fn decide(mut stream: UnixStream, connection: &Connection) -> io::Result<bool> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(DECISION_TIMEOUT))?;
    send(&stream, OFFER, Some(connection))?;
    let mut byte = [0];
    Ok(stream.read(&mut byte)? == 1 && byte == [GO])
}
