//! The control plane: answers HTTP requests. docs/PROTOCOL.md, sections 1, 4 and 7.
//!
//! Handlers touch no socket. Work that may block on a disk runs on a [`BlockingPool`].

mod body;
mod bundle;
mod error;
mod file;
mod limits;
mod manifest;
mod membership;
mod meta;
mod origin;
mod page_hashes;
mod panics;
mod profile;
mod range;
mod report;
mod want;

use std::ops::Range;

use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Router, middleware};
use bootcast_proto::unreadable::{HEADER_UNREADABLE, encode_pages};
use bootcast_proto::{PageRange, RemotePath};

use crate::io::blocking_pool::BlockingPool;
use crate::io::bundles::Bundles;
use crate::io::identity::Identity;
use crate::io::listings::{Listing, Listings};
use crate::io::manifests::Manifests;
use crate::io::profiles::Profiles;
use crate::io::request_limits::RequestLimits;
use crate::io::sender::SenderHandle;
use crate::io::small_files::SmallFiles;
use crate::io::stable_version::await_stable_version;
use crate::source::{OpenFile, SourceError};
pub use error::ApiError;
pub use origin::Names;
pub(crate) use range::fuzz as fuzz_range;

/// Maximum number of threads that look up paths and open files.
const LOOKUP_THREADS: usize = 256;

/// Maximum number of threads that read files for `/file/`.
const READ_THREADS: usize = 128;

/// Content type of JSON bodies.
const JSON: &str = "application/json";

/// State that all handlers share.
#[derive(Clone, Debug)]
pub struct ApiState {
    identity: Identity,
    sender: SenderHandle,
    /// Threads that look up paths and open files.
    lookups: BlockingPool,
    /// Threads that read files for `/file/`.
    reads: BlockingPool,
    listings: Listings,
    manifests: Manifests,
    profiles: Profiles,
    small_files: SmallFiles,
    bundles: Bundles,
    limits: RequestLimits,
}

impl ApiState {
    /// Serves the files that `identity` announces, through the casts of `sender`.
    pub fn new(identity: Identity, sender: SenderHandle, profiles: Profiles) -> Self {
        let listed = identity.clone();
        let manifests = identity.manifests().clone();
        let listings = Listings::new(move |path| list(&listed, path));
        let lookups = BlockingPool::new(LOOKUP_THREADS);
        let reads = BlockingPool::new(READ_THREADS);
        let bundles = Bundles::new(identity.clone());
        Self {
            identity,
            sender,
            lookups,
            reads,
            listings,
            manifests,
            profiles,
            small_files: SmallFiles::default(),
            bundles,
            limits: RequestLimits::default(),
        }
    }

    /// Runs a lookup, which may wait for the file system of this path, on a thread of its own.
    async fn lookup<T: Send + 'static>(
        &self,
        path: &RemotePath,
        work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, ApiError> {
        Ok(self.lookups.run(path, work).await??)
    }
}

/// Lists a directory and encodes the listing as JSON.
fn list(identity: &Identity, path: &RemotePath) -> Result<Listing, SourceError> {
    let meta = identity.list(path)?;
    let json = serde_json::to_vec(&meta).map_err(std::io::Error::other)?.into();
    let entries = meta.entries.map_or(0, |entries| entries.len());
    Ok(Listing { etag: meta.attributes.etag, json, entries })
}

/// Creates the routes of all endpoints. A prefix without a path names the served directory itself.
/// Only requests for one of these `names` are answered.
pub fn router(state: ApiState, names: Names) -> Router {
    Router::new()
        .route("/join/", get(membership::join).post(membership::join).head(no_head))
        .route("/join/{*path}", get(membership::join).post(membership::join).head(no_head))
        .route("/leave/", get(membership::leave).post(membership::leave).head(no_head))
        .route("/leave/{*path}", get(membership::leave).post(membership::leave).head(no_head))
        .route("/meta/", get(meta::meta))
        .route("/meta/{*path}", get(meta::meta))
        .route("/file/", get(file::file))
        .route("/file/{*path}", get(file::file))
        .route("/bundle/{*path}", get(bundle::bundle))
        .route("/manifest/", get(manifest::manifest))
        .route("/manifest/{*path}", get(manifest::manifest))
        .route("/profile/", get(profile::profile))
        .route("/profile/{*path}", get(profile::profile))
        .route("/report/", post(report::report))
        .route("/report/{*path}", post(report::report))
        .route("/want/", post(want::want))
        .route("/want/{*path}", post(want::want))
        .route("/status", get(status))
        .fallback(any(no_route))
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(names, origin::guard))
        .layer(middleware::from_fn_with_state(state.limits.clone(), limits::guard))
        .layer(middleware::from_fn(panics::catch))
        .with_state(state)
}

/// Answers `GET /status`.
async fn status(
    axum::extract::State(state): axum::extract::State<ApiState>,
) -> Result<Response, ApiError> {
    let mut status = state.sender.status().await?;
    status.budgets.requests = state.limits.refused();
    Ok(json(&status))
}

/// Answers a request for an unknown endpoint.
async fn no_route() -> ApiError {
    ApiError::NoRoute
}

/// Answers a wrong method. The router adds the `Allow` header.
async fn no_method() -> ApiError {
    ApiError::Method
}

/// Refuses HEAD for joins and leaves: they change something, which HEAD must not.
async fn no_head() -> impl IntoResponse {
    ([(header::ALLOW, "GET,POST")], ApiError::Method)
}

/// Extracts the path behind an endpoint's prefix from the raw URI. Names may contain any bytes, but
/// the framework's decoded parameters must be UTF-8.
fn remote_path(uri: &Uri, prefix: &str) -> Result<RemotePath, ApiError> {
    let path = uri.path().strip_prefix(prefix).ok_or(ApiError::NoRoute)?;
    Ok(RemotePath::decode(path)?)
}

/// Reads the target of a request, for fuzzing.
pub(crate) fn fuzz_target(text: &str) {
    let Ok(mut uri) = text.parse::<Uri>() else { return };
    crate::io::http::skip_empty_names(&mut uri);
    let names = Names::new(["head".to_owned()]);
    names.permit(uri.authority().map_or(text, |it| it.as_str()));
    if let Ok(path) = remote_path(&uri, "/file/") {
        let again = RemotePath::decode(&path.encode());
        assert_eq!(again.as_ref(), Ok(&path), "the path that is encoded is another one");
    }
    let _ = (has_query(&uri, "known=1"), query_value(&uri, "segments").and_then(index_range));
    if let Ok(Some(wanted)) = page_hashes::Wanted::parse(&uri) {
        let _ = (wanted.of(0), wanted.of(5000), wanted.of(u64::MAX));
    }
}

/// Whether the query of a request has this pair, such as `known=1`.
fn has_query(uri: &Uri, pair: &str) -> bool {
    uri.query().unwrap_or_default().split('&').any(|it| it == pair)
}

/// Returns the value of a query `NAME=VALUE`.
fn query_value<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let mut pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(found, _)| *found == name).map(|(_, value)| value)
}

/// Reads `FIRST-LAST`, both counted from 0.
fn index_range(text: &str) -> Option<Range<u64>> {
    let (first, last) = text.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..last.saturating_add(1))
}

/// Opens a file and waits until its version is stable. If the file has other attributes than
/// before, waits for a moment until it is known whether its content is another one.
async fn open(state: &ApiState, path: &RemotePath) -> Result<OpenFile, ApiError> {
    let (identity, name) = (state.identity.clone(), path.clone());
    let open = state.lookup(path, move || identity.open(&name)).await?;
    let open = await_stable_version(open).await.map_err(SourceError::from)?;
    let open = announce(state, path, open).await?;
    if !open.is_suspect {
        return Ok(open);
    }
    state.identity.wait_verdict(path).await;
    announce(state, path, open).await
}

async fn announce(
    state: &ApiState,
    path: &RemotePath,
    open: OpenFile,
) -> Result<OpenFile, ApiError> {
    let (identity, name) = (state.identity.clone(), path.clone());
    state.lookup(path, move || Ok(identity.announce(&name, open))).await
}

/// Answers an accepted report or demand with 204. A header names pages that cannot be read.
fn no_content(unreadable: &[PageRange]) -> Response {
    let status = StatusCode::NO_CONTENT;
    if unreadable.is_empty() {
        return status.into_response();
    }
    (status, [(HEADER_UNREADABLE, encode_pages(unreadable))]).into_response()
}

/// Encodes an answer as JSON.
fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => ([(header::CONTENT_TYPE, JSON)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot encode an answer as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
