//! Serves attributes and directory listings. docs/PROTOCOL.md, "Meta".

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bootcast_proto::Etag;
use bootcast_proto::api::{Kind, Meta};
use bootcast_proto::manifest::HEADER_CONTENT_ID;
use bootcast_proto::space::HEADER_SPACE;

use super::range::contains_etag;
use super::{ApiError, ApiState, JSON, json, remote_path};
use crate::io::identity::Located;

/// Answers `GET /meta/`.
pub(super) async fn meta(
    State(state): State<ApiState>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = remote_path(&uri, "/meta/")?;
    let (identity, name) = (state.identity.clone(), path.clone());
    let Located { mut attributes, mut version, space } =
        state.lookup(&path, move || identity.attributes(&name)).await?;
    if attributes.kind == Kind::File && state.identity.wait_verdict(&path).await {
        let (identity, name) = (state.identity.clone(), path.clone());
        Located { attributes, version, .. } =
            state.lookup(&path, move || identity.attributes(&name)).await?;
    }
    if attributes.kind != Kind::Directory || !wants_entries(&uri) {
        let etag = attributes.etag.clone();
        // Sent with 304, too: free space changes without a change of the directory's version.
        let space = space.map(|space| [(HEADER_SPACE, space.encode())]);
        // Only what is known at once: a `stat` does not wait for the state directory.
        let id = version.and_then(|version| state.manifests.content_id_now(version));
        let body = || {
            let id = id.map(|id| [(HEADER_CONTENT_ID, id.to_string())]);
            (id, json(&Meta { attributes, entries: None })).into_response()
        };
        let answer = answer(&headers, etag.as_ref(), body);
        return Ok((space, answer).into_response());
    }
    let listing = state.listings.get(&path).await?;
    let body = || ([(header::CONTENT_TYPE, JSON)], listing.json).into_response();
    Ok(answer(&headers, listing.etag.as_ref(), body))
}

/// Returns whether the request asks for the entries, if its path is a directory.
fn wants_entries(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    !query.split('&').any(|pair| pair == "entries=0")
}

/// Answers with the `ETag` and the body, or with 304 if the client has this version already.
fn answer(headers: &HeaderMap, etag: Option<&Etag>, body: impl FnOnce() -> Response) -> Response {
    let Some(etag) = etag else { return body() };
    let header = [(header::ETAG, etag.to_header())];
    if contains_etag(headers, etag) {
        return (StatusCode::NOT_MODIFIED, header).into_response();
    }
    (header, body()).into_response()
}
