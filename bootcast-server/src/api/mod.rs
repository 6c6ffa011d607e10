//! The control plane: requests over HTTP to answers. docs/PROTOCOL.md, sections 1, 4 and 7.
//!
//! No handler touches a socket; what blocks on a disk runs off the async threads.

mod body;
mod error;
mod file;
mod membership;
mod meta;
mod range;
mod report;
mod want;

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use bootcast_proto::RemotePath;
use tokio::sync::Semaphore;

use crate::io::sender::{NoAnswer, SenderHandle};
use crate::io::settle::settled;
use crate::source::{OpenFile, Source, SourceError};
pub use error::ApiError;

/// Directories that are listed at the same time: each listing holds a thread, and memory for all its
/// entries, that joins and files need too.
const MAX_LISTINGS: usize = 8;

/// What the handlers work on.
#[derive(Clone, Debug)]
pub struct Served {
    source: Arc<Source>,
    sender: SenderHandle,
    listings: Arc<Semaphore>,
}

impl Served {
    /// The files of `source`, by the casts of `sender`.
    pub fn new(source: Arc<Source>, sender: SenderHandle) -> Self {
        Self { source, sender, listings: Arc::new(Semaphore::new(MAX_LISTINGS)) }
    }
}

/// Every route. A path without a name behind its prefix means the served directory itself.
pub fn router(served: Served) -> Router {
    Router::new()
        .route("/join/", get(membership::join).head(no_head))
        .route("/join/{*path}", get(membership::join).head(no_head))
        .route("/leave/", get(membership::leave).head(no_head))
        .route("/leave/{*path}", get(membership::leave).head(no_head))
        .route("/meta/", get(meta::meta))
        .route("/meta/{*path}", get(meta::meta))
        .route("/file/", get(file::file))
        .route("/file/{*path}", get(file::file))
        .route("/report/", post(report::report))
        .route("/report/{*path}", post(report::report))
        .route("/want/", post(want::want))
        .route("/want/{*path}", post(want::want))
        .route("/status", get(status))
        .fallback(any(no_route))
        .method_not_allowed_fallback(no_method)
        .with_state(served)
}

async fn status(
    axum::extract::State(served): axum::extract::State<Served>,
) -> Result<Response, ApiError> {
    Ok(json(&served.sender.status().await?))
}

async fn no_route() -> ApiError {
    ApiError::NoRoute
}

/// The route list adds `Allow`.
async fn no_method() -> ApiError {
    ApiError::Method
}

/// A join or a leave changes something, a HEAD must not.
async fn no_head() -> impl IntoResponse {
    ([(header::ALLOW, "GET")], ApiError::Method)
}

/// The path behind a route's prefix, from the request as it came: a name may be of any bytes, which
/// the framework's decoded parameters refuse.
fn remote_path(uri: &Uri, prefix: &str) -> Result<RemotePath, ApiError> {
    let path = uri.path().strip_prefix(prefix).ok_or(ApiError::NoRoute)?;
    Ok(RemotePath::decode(path)?)
}

/// Opens a file whose version stands for its bytes.
async fn open(served: &Served, path: &RemotePath) -> Result<OpenFile, ApiError> {
    let (source, path) = (Arc::clone(&served.source), path.clone());
    let open = off_thread(move || source.open(&path)).await?;
    Ok(settled(open).await.map_err(SourceError::Io)?)
}

/// Runs what may wait for a disk.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        // The runtime stops, or the work panicked and said so.
        Err(_) => Err(NoAnswer::Stopped.into()),
    }
}

fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer does not fit JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
