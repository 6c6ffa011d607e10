//! Attributes and listings. docs/PROTOCOL.md, "Meta".

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::range::names_version;
use super::{ApiError, Served, json, off_thread, remote_path};

pub(super) async fn meta(
    State(served): State<Served>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = remote_path(&uri, "/meta/")?;
    let source = Arc::clone(&served.source);
    // Held by the work, not by the request: a client that goes away does not end a listing.
    let permit = Arc::clone(&served.listings).acquire_owned().await;
    let list = move || {
        let _permit = permit;
        source.meta(&path)
    };
    let meta = off_thread(list).await?;
    let Some(etag) = &meta.attributes.etag else { return Ok(json(&meta)) };
    let header = [(header::ETAG, etag.to_header())];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| names_version(known, etag)) {
        return Ok((StatusCode::NOT_MODIFIED, header).into_response());
    }
    Ok((header, json(&meta)).into_response())
}
