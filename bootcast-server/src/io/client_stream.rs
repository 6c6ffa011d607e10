//! TCP connection of a client, which is watched: does the client read its answers, is it still
//! there?

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::sys::unacknowledged_bytes;

/// Minimum number of bytes that a client must accept in each [`SLOW_INTERVAL`] while its answer
/// waits for it. Without a minimum, clients that take a byte now and then could occupy all
/// connections. A modem line carries six times as much.
const MIN_BYTES: u64 = 64 << 10;

/// Interval over which [`MIN_BYTES`] are counted.
const SLOW_INTERVAL: Duration = Duration::from_secs(60);

/// Time between two looks whether a client that waits for an answer has closed its connection.
const CLOSED_INTERVAL: Duration = Duration::from_millis(250);

/// The stream of one connection. Reads and writes as the TCP stream does, and counts.
#[derive(Debug)]
pub struct ClientStream(Arc<Shared>);

/// Looks at a stream that HTTP reads and writes.
#[derive(Clone, Debug)]
pub struct StreamWatch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stream: TcpStream,
    /// Bytes that the kernel took for the client.
    written: AtomicU64,
    /// Whether bytes wait because the kernel's buffer for the client is full.
    is_full: AtomicBool,
}

impl ClientStream {
    /// Takes over a stream.
    pub fn new(stream: TcpStream) -> Self {
        let (written, is_full) = (AtomicU64::new(0), AtomicBool::new(false));
        Self(Arc::new(Shared { stream, written, is_full }))
    }

    /// Returns a watch of this stream.
    pub fn watch(&self) -> StreamWatch {
        StreamWatch(Arc::clone(&self.0))
    }

    /// Writes as soon as the kernel's buffer has room.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let Shared { stream, written, is_full } = &*self.0;
        loop {
            let ready = stream.poll_write_ready(cx);
            is_full.store(ready.is_pending(), Ordering::Relaxed);
            ready!(ready)?;
            match write(stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    let bytes = result.as_ref().map_or(0, |&bytes| bytes as u64);
                    written.fetch_add(bytes, Ordering::Relaxed);
                    return Poll::Ready(result);
                }
            }
        }
    }
}

impl StreamWatch {
    /// Resolves when the client has been too slow to read its answers.
    pub async fn too_slow(&self) {
        self.too_slow_by(SLOW_INTERVAL).await;
    }

    async fn too_slow_by(&self, interval: Duration) {
        // Accepted bytes at the last look; `None` unless an answer waited then.
        let mut before = None;
        loop {
            tokio::time::sleep(interval).await;
            let now = self.0.is_full.load(Ordering::Relaxed).then(|| self.accepted());
            if let (Some(before), Some(now)) = (before, now)
                && now < before + MIN_BYTES
            {
                return;
            }
            before = now;
        }
    }

    /// Returns the number of bytes that the client's host has acknowledged.
    ///
    /// The number of those written would not do: a full buffer takes more only when a third of it
    /// is free, which may be a megabyte.
    fn accepted(&self) -> u64 {
        let Shared { stream, written, .. } = &*self.0;
        // Fails for no TCP socket. Then what was written counts.
        let waiting = unacknowledged_bytes(stream.as_fd()).unwrap_or(0);
        written.load(Ordering::Relaxed).saturating_sub(waiting)
    }

    /// Resolves when the client has closed its connection, or its sending half of it.
    pub async fn closed(&self) {
        while !self.is_closed() {
            tokio::time::sleep(CLOSED_INTERVAL).await;
        }
    }

    fn is_closed(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(&self.0.stream, &mut [0_u8; 1], flags) {
            Ok((_, len)) => len == 0,
            Err(errno) => !matches!(errno, Errno::AGAIN | Errno::INTR),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = &self.0.stream;
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(buf.initialize_unfilled()) {
                Ok(len) => {
                    buf.advance(len);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing: the kernel sends what was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = rustix::net::shutdown(&self.0.stream, rustix::net::Shutdown::Write);
        Poll::Ready(shut.map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// Interval of these tests, in which a client that reads can accept [`MIN_BYTES`].
    const INTERVAL: Duration = Duration::from_millis(300);

    /// Connects a client with a small buffer, and returns both ends.
    async fn pair() -> (TcpStream, ClientStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpSocket::new_v4().unwrap();
        client.set_recv_buffer_size(4096).unwrap();
        let client = client.connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        (client.unwrap(), ClientStream::new(accepted.unwrap().0))
    }

    /// Sends without end.
    async fn send(mut stream: ClientStream) {
        while stream.write_all(&[7; 4096]).await.is_ok() {}
    }

    #[tokio::test]
    async fn a_client_that_takes_a_byte_now_and_then_is_too_slow() {
        let (mut client, stream) = pair().await;
        let watch = stream.watch();
        let take_bytes = async {
            loop {
                client.read_u8().await.unwrap();
                tokio::time::sleep(INTERVAL / 50).await;
            }
        };
        tokio::select! {
            () = watch.too_slow_by(INTERVAL) => {}
            () = send(stream) => panic!("the client takes everything"),
            () = take_bytes => {}
        }
    }

    #[tokio::test]
    async fn a_client_that_reads_or_has_nothing_to_read_is_not_too_slow() {
        let (mut client, stream) = pair().await;
        let watch = stream.watch();
        let mut buffer = vec![0; 1 << 16];
        let take_much = async {
            // Long enough for several looks.
            let end = tokio::time::Instant::now() + 4 * INTERVAL;
            while tokio::time::Instant::now() < end {
                client.read_exact(&mut buffer).await.unwrap();
                tokio::time::sleep(INTERVAL / 50).await;
            }
        };
        tokio::select! {
            () = watch.too_slow_by(INTERVAL) => panic!("too slow"),
            () = send(stream) => panic!("the client takes everything"),
            () = take_much => {}
        }
        let (_client, stream) = pair().await;
        let watch = stream.watch();
        let slow = tokio::time::timeout(4 * INTERVAL, watch.too_slow_by(INTERVAL));
        assert!(slow.await.is_err());
    }

    #[tokio::test]
    async fn a_client_that_closed_is_noticed_but_not_one_that_sends_more() {
        let (mut client, stream) = pair().await;
        let watch = stream.watch();
        assert!(!watch.is_closed());
        client.write_all(b"GET").await.unwrap();
        stream.0.stream.readable().await.unwrap();
        assert!(!watch.is_closed());
        let mut stream = stream;
        stream.read_exact(&mut [0; 3]).await.unwrap();
        drop(client);
        watch.closed().await;
    }
}
