//! Serves manifests and what belongs to them. docs/PROTOCOL.md, "Manifest".

use std::ops::Range;

use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use bootcast_proto::manifest::{
    ContentId, ContentTree, HEADER_CONTENT_ID, MANIFEST_SEGMENTS_MAX, Value,
};
use bootcast_proto::{Etag, Manifest, QUERY_KNOWN, QUERY_ZEROS, RemotePath};

use super::page_hashes::{Wanted, page_hashes};
use super::{ApiError, ApiState, has_query, index_range, query_value, remote_path};
use crate::io::manifests::Known;
use crate::source::{OpenFile, SourceError};

/// Answers `GET /manifest/`: the values of all segments, those of the leaves of some segments, the
/// zero map, or the hashes of some pages.
pub(super) async fn manifest(
    State(state): State<ApiState>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let path = remote_path(&uri, "/manifest/")?;
    let (wanted, pages) = (segments(&uri)?, Wanted::parse(&uri)?);
    let open = super::open(&state, &path).await?;
    if let Some(pages) = pages {
        return page_hashes(&state, path, open, &pages).await;
    }
    let etag = open.etag();
    let segments = ContentTree::new(open.version.size()).segments();
    if wanted.as_ref().is_some_and(|wanted| wanted.start >= segments) {
        return Err(ApiError::NoSegment { segments });
    }
    if has_query(&uri, QUERY_ZEROS) {
        return zeros(&state, &path, open, &etag, has_query(&uri, QUERY_KNOWN)).await;
    }
    if !has_query(&uri, QUERY_KNOWN) {
        let manifest = state.manifests.get(&path, open).await?;
        return Ok(answer_values(&etag, Some(manifest.id()), values(&manifest, wanted)));
    }
    known(&state, &path, open, &etag, wanted).await
}

/// Answers with the values that are known so far.
async fn known(
    state: &ApiState,
    path: &RemotePath,
    open: OpenFile,
    etag: &Etag,
    wanted: Option<Range<u64>>,
) -> Result<Response, ApiError> {
    let again = open.try_clone().map_err(SourceError::from)?;
    let part = match state.manifests.known(path, open)? {
        Known::Whole(manifest) => {
            return Ok(answer_values(etag, Some(manifest.id()), values(&manifest, wanted)));
        }
        Known::Part(progress) => match wanted.clone() {
            None => progress.segments(),
            Some(wanted) => {
                let open = again.try_clone().map_err(SourceError::from)?;
                state.manifests.hash_first(path, open, &progress, wanted.clone()).await?;
                progress.leaves_of(wanted)
            }
        },
    };
    if let Some(part) = part {
        return Ok(answer_values(etag, None, &part));
    }
    // Everything is hashed: it takes a moment until the manifest is there.
    let manifest = state.manifests.get(path, again).await?;
    Ok(answer_values(etag, Some(manifest.id()), values(&manifest, wanted)))
}

/// Answers with the zero map. If `known`, answers at once, perhaps without it.
async fn zeros(
    state: &ApiState,
    path: &RemotePath,
    open: OpenFile,
    etag: &Etag,
    known: bool,
) -> Result<Response, ApiError> {
    let manifest = if known {
        match state.manifests.known(path, open)? {
            Known::Whole(manifest) => manifest,
            Known::Part(_) => return Ok(answer(etag, None, Vec::new())),
        }
    } else {
        state.manifests.get(path, open).await?
    };
    Ok(answer(etag, Some(manifest.id()), manifest.zeros().as_bytes().to_vec()))
}

/// Returns the values of all segments, or those of the leaves of some segments, the first of which
/// the file has.
fn values(manifest: &Manifest, wanted: Option<Range<u64>>) -> &[Value] {
    let Some(wanted) = wanted else { return manifest.segments() };
    let tree = manifest.tree();
    let last = wanted.end.min(tree.segments()).saturating_sub(1);
    let leaves = tree.leaves_of(wanted.start).start..tree.leaves_of(last).end;
    let index = |leaf| usize::try_from(leaf).expect("the values are in memory");
    &manifest.leaves()[index(leaves.start)..index(leaves.end)]
}

/// Composes an answer of values. `id` is the content id, if it is known.
fn answer_values(etag: &Etag, id: Option<ContentId>, values: &[Value]) -> Response {
    answer(etag, id, values.concat())
}

/// Composes an answer. `id` is the content id, if it is known.
fn answer(etag: &Etag, id: Option<ContentId>, body: Vec<u8>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::ETAG, etag.to_header()),
    ];
    let id = id.map(|id| [(HEADER_CONTENT_ID, id.to_string())]);
    match id {
        Some(id) => (headers, id, body).into_response(),
        None => (headers, body).into_response(),
    }
}

/// Reads the query `segments=FIRST-LAST`, counted from 0; `None` if there is none.
fn segments(uri: &Uri) -> Result<Option<Range<u64>>, ApiError> {
    let Some(value) = query_value(uri, "segments") else { return Ok(None) };
    let range = index_range(value).ok_or(ApiError::InvalidSegments)?;
    Ok(Some(range.start..range.end.min(range.start.saturating_add(MANIFEST_SEGMENTS_MAX))))
}
