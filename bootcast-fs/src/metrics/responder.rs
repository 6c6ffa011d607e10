//! Answers HTTP requests for the metrics. One request a connection, with bounds on all that a
//! client can make this program keep or wait for.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::log_limit;
use crate::mount::options::MetricsAddress;

/// Most connections that are served at a time. Further ones wait in the kernel.
const MAX_CONNECTIONS: usize = 8;
/// Most bytes of a request.
const MAX_REQUEST: usize = 8 << 10;
/// Longest time for a request and its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Socket that requests for metrics arrive at. Dropping it removes a socket in the file system.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Socket,
    path: Option<PathBuf>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Listener {
    /// Listens at an address.
    pub(crate) async fn bind(address: &MetricsAddress) -> io::Result<Self> {
        match address {
            MetricsAddress::Tcp(address) => {
                Ok(Self { socket: Socket::Tcp(TcpListener::bind(address).await?), path: None })
            }
            MetricsAddress::Unix(path) => {
                remove_dead_socket(path);
                let socket = Socket::Unix(UnixListener::bind(path)?);
                Ok(Self { socket, path: Some(path.clone()) })
            }
        }
    }

    /// Answers requests for ever with what `text` returns, which may block.
    pub(crate) async fn serve(self, text: impl Fn() -> String + Send + Sync + 'static) {
        let (text, places) = (Arc::new(text), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match self.accept().await {
                Ok(stream) => {
                    let text = text.clone();
                    tokio::spawn(async move {
                        // The client may be gone, which is its own affair.
                        let _ = timeout(PATIENCE, answer(stream, text)).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    if let Some(more) = log_limit::allow("cannot serve metrics", &error) {
                        warn!(%error, "cannot accept a request for metrics{more}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match &self.socket {
            Socket::Tcp(listener) => Box::new(listener.accept().await?.0),
            Socket::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes a socket that nobody listens at, left by a process that was killed.
fn remove_dead_socket(path: &Path) {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
    if is_socket
        && let Err(error) = std::os::unix::net::UnixStream::connect(path)
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        let _ = fs::remove_file(path);
    }
}

/// Reads one request and answers it.
async fn answer(
    mut stream: Box<dyn Stream>,
    text: Arc<impl Fn() -> String + Send + Sync + 'static>,
) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        if request.len() > MAX_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = match verdict(&request) {
        "200 OK" => ("200 OK", tokio::task::spawn_blocking(move || text()).await?),
        other => (other, format!("{other}: GET /metrics\n")),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Returns the status of the answer to a request.
fn verdict(request: &[u8]) -> &'static str {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next();
    match (method, path) {
        (Some(b"GET"), Some(b"/metrics" | b"/")) => "200 OK",
        (Some(b"GET"), _) => "404 Not Found",
        _ => "405 Method Not Allowed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_get_of_the_metrics_is_answered_with_them() {
        for (request, status) in [
            (&b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"[..], "200"),
            (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200"),
            (b"GET / HTTP/1.1\r\n\r\n", "200"),
            (b"GET /etc HTTP/1.1\r\n\r\n", "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"\r\n\r\n", "405"),
            (b"\xff\xfe \x00\r\n\r\n", "405"),
        ] {
            assert!(verdict(request).starts_with(status), "{request:?}");
        }
    }
}
