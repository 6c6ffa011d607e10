//! Connections of the control plane.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections at a time; further ones wait in the kernel. Each may hold a descriptor and a buffer.
const MAX_CONNECTIONS: usize = 4096;

/// A request's header must be complete within this, and an idle connection is closed after it: a
/// client that sends byte by byte cannot keep a connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a request's header at most.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// After this without a sign of life the kernel asks a silent peer whether it still exists.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Pause after a failed accept, such as out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What open connections get to finish their answer when the server stops.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// Answers requests until `stop` resolves.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let connections = GracefulShutdown::new();
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut stop = std::pin::pin!(stop);
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
            Ok((stream, _)) => {
                let connection = connections.watch(connection(stream, router.clone()));
                tokio::spawn(async move {
                    // Errors are the client's: it went away, or does not speak HTTP.
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "connection failed");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Connections that are still busy then are cut.
    let _ = tokio::time::timeout(STOP_GRACE, connections.shutdown()).await;
}

fn connection(
    stream: TcpStream,
    router: Router,
) -> http1::Connection<TokioIo<TcpStream>, TowerToHyperService<Router>> {
    // Hints: without them answers are slower and dead peers are noticed later.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
}
