//! Accepts the connections of the control plane, serves them, and limits what they can occupy.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use bootcast_proto::limits::SERVER_IDLE_TIMEOUT;
use bootcast_proto::log_limit::Limiter;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::setsockopt;
use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::client_stream::{ClientStream, StreamWatch};
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
                let (connection, watch) = connection(stream, router.clone(), peer.ip());
                let connection = connections.watch(connection);
                tokio::spawn(async move {
                    tokio::select! {
                        // Errors are the client's fault: it disconnected or does not speak HTTP.
                        result = connection => if let Err(error) = result {
                            tracing::debug!(%peer, %error, "connection failed");
                        },
                        () = watch.too_slow() => {
                            tracing::debug!(%peer, "connection closed: reads too slowly");
                        }
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
) -> (impl GracefulConnection<Error = hyper::Error>, StreamWatch) {
    set_options(&stream);
    let stream = ClientStream::new(stream);
    let watch = stream.watch();
    // A dual-stack listener shows IPv4 hosts as IPv4-mapped IPv6 addresses.
    let peer = Peer(host.to_canonical());
    let (router, client) = (TowerToHyperService::new(router), watch.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(client.clone());
        skip_empty_names(request.uri_mut());
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Also the time for a request's header: a client that sends byte by byte cannot occupy a
        // connection for longer.
        .header_read_timeout(SERVER_IDLE_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        // Some clients shut down their sending half after the request, as `nc -N` does.
        .half_close(true)
        // Some boot firmware looks for `Content-Length` without regard for other spellings.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    (connection, watch)
}

/// Removes empty names and `.` before the endpoint, as in `//file/image`. Those behind it are
/// skipped with the path.
pub(crate) fn skip_empty_names(uri: &mut Uri) {
    let Some(target) = uri.path_and_query().map(PathAndQuery::as_str) else { return };
    let mut rest = target;
    while let Some(shorter) = rest.strip_prefix("/.").or_else(|| rest.strip_prefix('/'))
        && shorter.starts_with('/')
    {
        rest = shorter;
    }
    if rest.len() == target.len() {
        return;
    }
    let Ok(path) = rest.parse() else { return };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path);
    // Without its beginning a target is still one.
    if let Ok(shorter) = Uri::from_parts(parts) {
        *uri = shorter;
    }
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

    #[test]
    fn empty_names_before_the_endpoint_are_skipped() {
        for (target, expected) in [
            ("/file/a", "/file/a"),
            ("//file//a", "/file//a"),
            ("/.///./file/./a?b=//c", "/file/./a?b=//c"),
            ("http://head:8888//file/a", "http://head:8888/file/a"),
            ("/../file/a", "/../file/a"),
            ("/.file/a", "/.file/a"),
            ("//", "/"),
            ("/", "/"),
            ("*", "*"),
        ] {
            let mut uri: Uri = target.parse().unwrap();
            skip_empty_names(&mut uri);
            assert_eq!(uri.to_string(), expected, "{target}");
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
