//! Answers 500 where a handler panics. The panic hook logs the panic with its place.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

use super::ApiError;

/// Runs the handler of a request. What a handler leaves half changed when it panics lies behind
/// locks that expect it, or in the sender thread, which handlers only send commands to.
pub(super) async fn catch(request: Request, next: Next) -> Result<Response, ApiError> {
    let mut handler = pin!(next.run(request));
    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(ApiError::Panicked)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use axum::{Router, middleware};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::io::blocking_pool::BlockingPool;
    use crate::io::http;

    async fn panic_at_once() {
        panic!("intended by the test");
    }

    async fn panic_on_a_thread() -> Result<(), ApiError> {
        let pool = BlockingPool::new(1);
        let work = || panic!("intended by the test");
        pool.run(&bootcast_proto::RemotePath::root(), work).await?;
        Ok(())
    }

    #[tokio::test]
    async fn a_panic_in_a_handler_is_an_answer_and_the_connection_goes_on() {
        let router = Router::new()
            .route("/handler", get(panic_at_once))
            .route("/thread", get(panic_on_a_thread))
            .route("/fine", get(|| async { "fine" }))
            .layer(middleware::from_fn(catch));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(http::serve(listener, router, std::future::pending()));
        let mut client = TcpStream::connect(address).await.unwrap();
        let requests = "GET /handler HTTP/1.1\r\nhost: x\r\n\r\n\
                        GET /thread HTTP/1.1\r\nhost: x\r\n\r\n\
                        GET /fine HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        client.write_all(requests.as_bytes()).await.unwrap();
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        let statuses: Vec<_> = answers.lines().filter(|it| it.starts_with("HTTP/1.1 ")).collect();
        let failed = "HTTP/1.1 500 Internal Server Error";
        assert_eq!(statuses, [failed, failed, "HTTP/1.1 200 OK"], "{answers}");
        assert!(answers.contains("see the log"), "{answers}");
        server.abort();
    }
}
