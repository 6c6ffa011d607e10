//! Attributes and listings. docs/PROTOCOL.md, "Meta".

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bootcast_proto::api::{Kind, Meta};

use super::range::names_version;
use super::{ApiError, Served, json, off_thread, remote_path};

pub(super) async fn meta(
    State(served): State<Served>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = remote_path(&uri, "/meta/")?;
    let (source, name) = (Arc::clone(&served.source), path.clone());
    let attributes = off_thread(move || source.attributes(&name)).await?;
    if attributes.kind != Kind::Directory || !wants_entries(&uri) {
        return Ok(answer(&headers, &Meta { attributes, entries: None }));
    }
    let source = Arc::clone(&served.source);
    // The work owns the permit, not the request: a listing goes on when its client disconnects.
    let permit = Arc::clone(&served.listings).acquire_owned().await;
    let list = move || {
        let _permit = permit;
        source.list(&path)
    };
    Ok(answer(&headers, &off_thread(list).await?))
}

/// Whether a listing is to be made, should the path be a directory.
fn wants_entries(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    !query.split('&').any(|pair| pair == "entries=0")
}

/// Answers 304 where the request names the present version.
fn answer(headers: &HeaderMap, meta: &Meta) -> Response {
    let Some(etag) = &meta.attributes.etag else { return json(meta) };
    let header = [(header::ETAG, etag.to_header())];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| names_version(known, etag)) {
        return (StatusCode::NOT_MODIFIED, header).into_response();
    }
    (header, json(meta)).into_response()
}
