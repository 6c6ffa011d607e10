//! Accepts the connections of the control plane, serves them, and limits what they can occupy.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::{Extension, Router};
use bootcast_proto::limits::SERVER_IDLE_TIMEOUT;
use bootcast_proto::log_limit::Limiter;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::setsockopt;
use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::peers::{Peer, Peers};

/// Maximum number of connections at a time; further ones wait in the kernel's backlog. Each takes a
/// descriptor and buffers.
const MAX_CONNECTIONS: usize = 4096;

/// Maximum number of connections from one host: large enough for many clients behind one address,
/// such as a proxy.
const MAX_HOST_CONNECTIONS: usize = MAX_CONNECTIONS / 4;

/// Maximum length of a request's header in bytes.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Idle time after which the kernel starts to probe whether the peer still exists.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);

/// Time after which a peer that accepts no bytes of its answer is disconnected, even if alive.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// Minimum TCP retransmission timeout, in microseconds. With the kernel's 200 ms, a client whose
/// join answer is lost misses thousands of pages. Answers are small, so early retransmissions cost
/// little.
const RTO_MIN_US: u32 = 20_000;

/// Pause after a failed accept, which usually means that descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time for open connections to finish their answers when the server stops.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// Serves requests until `stop` resolves. Then gives open connections half a second to finish.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let connections = GracefulShutdown::new();
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let peers = Peers::new(MAX_HOST_CONNECTIONS);
    let mut stop = std::pin::pin!(stop);
    let mut refused = Limiter::new();
    loop {
        let accepted = async {
            let permit = Arc::clone(&free).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(admitted) = peers.admit(peer.ip()) else {
                    tracing::debug!(%peer, "connection closed: too many from this host");
                    continue;
                };
                let connection = connections.watch(connection(stream, router.clone(), peer.ip()));
                tokio::spawn(async move {
                    // Errors are the client's fault: it disconnected or does not speak HTTP.
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "connection failed");
                    }
                    drop((permit, admitted));
                });
            }
            Err(error) => {
                if let Some(suppressed) = refused.allow(&error.to_string(), Instant::now()) {
                    tracing::warn!(%error, suppressed, "cannot accept a connection, trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Connections that are still busy after this time are cut.
    let _ = tokio::time::timeout(STOP_GRACE, connections.shutdown()).await;
}

/// Sets up the HTTP service of a connection.
fn connection(
    stream: TcpStream,
    router: Router,
    host: IpAddr,
) -> http1::Connection<TokioIo<TcpStream>, TowerToHyperService<Router>> {
    set_options(&stream);
    // A dual-stack listener shows IPv4 hosts as IPv4-mapped IPv6 addresses.
    let router = router.layer(Extension(Peer(host.to_canonical())));
    http1::Builder::new()
        .timer(TokioTimer::new())
        // Also the time for a request's header: a client that sends byte by byte cannot occupy a
        // connection for longer.
        .header_read_timeout(SERVER_IDLE_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
}

/// Sets socket options. Errors are ignored: without an option, answers are slower, or peers that
/// are dead or do not read are disconnected later.
fn set_options(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_TIME));
    let _ = socket.set_tcp_user_timeout(Some(SEND_TIMEOUT));
    let _ = setsockopt(stream, TcpRtoMin, &RTO_MIN_US);
}

/// Socket option `TCP_RTO_MIN_US` of linux/tcp.h, available since Linux 6.15.
const TCP_RTO_MIN_US: i32 = 45;

sockopt_impl!(
    /// Minimum retransmission timeout of a connection, in microseconds.
    TcpRtoMin,
    Both,
    libc::IPPROTO_TCP,
    TCP_RTO_MIN_US,
    u32
);

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::errno::Errno;
    use nix::sys::socket::getsockopt;

    use super::*;

    #[tokio::test]
    async fn connections_have_a_send_timeout_and_a_short_retransmission_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (stream, _) = accepted.unwrap();
        set_options(&stream);
        assert_eq!(SockRef::from(&stream).tcp_user_timeout().unwrap(), Some(SEND_TIMEOUT));
        match getsockopt(&stream, TcpRtoMin) {
            Ok(rto_min) => assert_eq!(rto_min, RTO_MIN_US),
            Err(Errno::ENOPROTOOPT) => report_skipped("the kernel is older than 6.15"),
            Err(errno) => panic!("{errno}"),
        }
    }

    /// Adds this test to the list that `tests/scripts/run-tests.sh` shows at the end.
    fn report_skipped(reason: &str) {
        let thread = std::thread::current();
        let line = format!("{}\t{reason}\n", thread.name().unwrap_or("test"));
        if let Some(list) = std::env::var_os("BOOTCAST_SKIPPED") {
            let list = std::fs::File::options().append(true).create(true).open(list);
            list.unwrap().write_all(line.as_bytes()).unwrap();
        }
    }
}
