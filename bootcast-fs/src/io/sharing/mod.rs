//! Connections between processes of this machine that share one copy of a file.
//! docs/SEMANTICS.md, "One copy for several mounts"; docs/adr/0031.
//!
//! | module | holds |
//! |---|---|
//! | `holding` | the process that receives the file, and tells of it |
//! | `following` | a process that learns what arrives |
//!
//! The holder listens on the socket `share` in the directory of the object. A message is its
//! length, 4 bytes little-endian, and JSON. Each side drops the connection if it does not
//! understand the other, for example because that is another version of the program.
//!
//! ```text
//! follower                       holder
//!    | ------------ Hello --------> |
//!    | <----------- File ---------- |    when it knows the file
//!    | <----------- Readable ------ |    what may be read, as it arrives
//!    | ------------ Wishes -------> |    what readers wait for, whenever that changes
//!    | <----------- Alive --------- |    each second
//!    | <--- one of the others ------ |    at the end
//! ```

mod following;
mod holding;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bootcast_proto::{ContentId, Geometry, PageSize};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cache::SHARE_SOCKET;
use crate::receiver::Description;

pub(super) use following::follow;
pub(super) use holding::hold;

/// Version of the messages.
const VERSION: u32 = 1;
/// Longest message in bytes.
const MAX_MESSAGE: u32 = 1 << 20;
/// Maximum number of ranges in a message.
const MAX_RANGES: usize = 4096;
/// Messages that are received ahead of their use.
const MAX_QUEUED: usize = 16;
/// Pause between signs of life of a holder.
const ALIVE_PERIOD: Duration = Duration::from_secs(1);

/// A range of numbers.
type Span = (u64, u64);

/// Message of a follower.
#[derive(Debug, Serialize, Deserialize)]
enum FromFollower {
    /// The first message.
    Hello {
        version: u32,
        /// Whether it verifies leaves.
        verifies: bool,
    },
    /// Everything that readers wait for now.
    Wishes { bytes: Vec<Span>, fill: bool },
}

/// Message of a holder.
#[derive(Debug, Serialize, Deserialize)]
enum FromHolder {
    /// Description of the file. The follower counts all of it as missing from here on.
    File(FileMessage),
    /// Leaves or pages that may be read.
    Readable(Vec<Span>),
    /// Bytes that cannot arrive for now.
    Unreadable(Span),
    /// The holder runs.
    Alive,
    /// The object is complete, and can be locked.
    Settled,
    /// The holder is about to unlock the object.
    Ending,
    /// The server no longer has the version.
    Gone,
    /// The rest does not arrive in the cache.
    Failed,
}

/// Description of a file.
#[derive(Debug, Serialize, Deserialize)]
struct FileMessage {
    size: u64,
    page_size: u32,
    content: Option<ContentId>,
    has_hashes: bool,
    /// Whether [`FromHolder::Readable`] has pages and not leaves.
    by_pages: bool,
}

impl FileMessage {
    fn new(file: &Description, by_pages: bool) -> Self {
        let Description { geometry, content, has_hashes } = *file;
        let (size, page_size) = (geometry.size(), geometry.page_size().get());
        Self { size, page_size, content, has_hashes, by_pages }
    }

    /// Returns the file; `None` if there is no such file.
    fn file(&self) -> Option<Description> {
        let page_size = PageSize::new(self.page_size.into()).ok()?;
        let geometry = Geometry::new(self.size, page_size).ok()?;
        let Self { content, has_hashes, .. } = *self;
        Some(Description { geometry, content, has_hashes })
    }
}

/// Parses a message of a holder, and one of a follower, for fuzzing.
pub(crate) fn fuzz_message(json: &[u8]) {
    let _ = serde_json::from_slice::<FromFollower>(json);
    if let Ok(FromHolder::File(message)) = serde_json::from_slice(json) {
        let _ = message.file();
    }
}

/// Returns a path of the socket of an object that is short enough for an address. It is valid while
/// the directory is open.
fn socket_path(dir: &impl std::os::fd::AsRawFd) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(SHARE_SOCKET)
}

/// Fails unless the other end belongs to the same user: the directory of the cache is private.
fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let user = stream.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    if user == own { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

/// Sends a message.
async fn send(socket: &mut OwnedWriteHalf, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let len = u32::try_from(body.len()).map_err(io::Error::other)?;
    socket.write_all(&[&len.to_le_bytes()[..], &body].concat()).await
}

/// Messages of the other end.
struct Messages<T> {
    queue: mpsc::Receiver<T>,
    task: JoinHandle<()>,
}

impl<T: DeserializeOwned + Send + 'static> Messages<T> {
    /// Starts to receive.
    fn receive(mut socket: OwnedReadHalf) -> Self {
        let (sender, queue) = mpsc::channel(MAX_QUEUED);
        let task = tokio::spawn(async move {
            while let Ok(message) = receive(&mut socket).await {
                if sender.send(message).await.is_err() {
                    break;
                }
            }
        });
        Self { queue, task }
    }

    /// Returns the next message; `None` if the connection ended.
    async fn next(&mut self) -> Option<T> {
        self.queue.recv().await
    }
}

impl<T> Drop for Messages<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive<T: DeserializeOwned>(socket: &mut OwnedReadHalf) -> io::Result<T> {
    let len = socket.read_u32_le().await?;
    if len > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = Vec::new();
    socket.take(len.into()).read_to_end(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}
