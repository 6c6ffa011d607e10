//! The control plane: answers HTTP requests. docs/PROTOCOL.md, sections 1, 4 and 7.
//!
//! No handler touches a socket. Whatever may block on a disk runs on other threads.

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
use bootcast_proto::unreadable::{HEADER_UNREADABLE, encode_pages};
use bootcast_proto::{PageRange, RemotePath};

use crate::io::listings::{Listing, Listings};
use crate::io::lookups::Lookups;
use crate::io::sender::SenderHandle;
use crate::io::settle::settled;
use crate::source::{OpenFile, Source, SourceError};
pub use error::ApiError;

/// Threads that look at names and open files at the same time.
const LOOKUP_THREADS: usize = 256;

/// Threads that read files for `/file/` at the same time.
const READ_THREADS: usize = 128;

const JSON: &str = "application/json";

/// State that the handlers share.
#[derive(Clone, Debug)]
pub struct Served {
    source: Arc<Source>,
    sender: SenderHandle,
    lookups: Lookups,
    reads: Lookups,
    listings: Listings,
}

impl Served {
    /// Serves the files of `source` through the casts of `sender`.
    pub fn new(source: Arc<Source>, sender: SenderHandle) -> Self {
        let listed = Arc::clone(&source);
        let listings = Listings::new(move |path| list(&listed, path));
        let lookups = Lookups::new(LOOKUP_THREADS);
        Self { source, sender, lookups, reads: Lookups::new(READ_THREADS), listings }
    }

    /// Runs what may wait for the file system of this path.
    async fn look<T: Send + 'static>(
        &self,
        path: &RemotePath,
        work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, ApiError> {
        Ok(self.lookups.run(path, work).await??)
    }
}

/// Lists a directory in the form in which it goes out.
fn list(source: &Source, path: &RemotePath) -> Result<Listing, SourceError> {
    let meta = source.list(path)?;
    let json = serde_json::to_vec(&meta).map_err(std::io::Error::other)?.into();
    let entries = meta.entries.map_or(0, |entries| entries.len());
    Ok(Listing { etag: meta.attributes.etag, json, entries })
}

/// Routes of all endpoints. A prefix without a path behind it means the served directory itself.
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

/// Answers a wrong method. The router adds the `Allow` header.
async fn no_method() -> ApiError {
    ApiError::Method
}

/// Answers HEAD with an error: joins and leaves change something, HEAD must not.
async fn no_head() -> impl IntoResponse {
    ([(header::ALLOW, "GET")], ApiError::Method)
}

/// Extracts the path behind a route's prefix from the raw URI. Names may contain any bytes, which
/// the framework's decoded parameters refuse.
fn remote_path(uri: &Uri, prefix: &str) -> Result<RemotePath, ApiError> {
    let path = uri.path().strip_prefix(prefix).ok_or(ApiError::NoRoute)?;
    Ok(RemotePath::decode(path)?)
}

/// Opens a file and waits until its version identifies its bytes.
async fn open(served: &Served, path: &RemotePath) -> Result<OpenFile, ApiError> {
    let (source, name) = (Arc::clone(&served.source), path.clone());
    let open = served.look(path, move || source.open(&name)).await?;
    Ok(settled(open).await.map_err(SourceError::from)?)
}

/// Answers a report or a want that was taken. Names pages that cannot be read.
fn taken(unreadable: &[PageRange]) -> Response {
    let status = StatusCode::NO_CONTENT;
    if unreadable.is_empty() {
        return status.into_response();
    }
    (status, [(HEADER_UNREADABLE, encode_pages(unreadable))]).into_response()
}

fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => ([(header::CONTENT_TYPE, JSON)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer does not fit JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
