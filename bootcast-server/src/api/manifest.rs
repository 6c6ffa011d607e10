//! Serves manifests. docs/PROTOCOL.md, "Manifest".

use std::ops::Range;

use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use bootcast_proto::manifest::{HEADER_CONTENT_ID, MANIFEST_SEGMENTS_MAX, Value};

use super::{ApiError, ApiState, remote_path};

/// Answers `GET /manifest/`: the values of all segments, or those of the leaves of some segments.
pub(super) async fn manifest(
    State(state): State<ApiState>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let path = remote_path(&uri, "/manifest/")?;
    let wanted = segments(&uri)?;
    let open = super::open(&state, &path).await?;
    let etag = open.etag();
    let manifest = state.manifests.get(&path, open).await?;
    let values = match wanted {
        None => manifest.segments(),
        Some(wanted) => {
            let segments = manifest.tree().segments();
            if wanted.start >= segments {
                return Err(ApiError::NoSegment { segments });
            }
            let end = wanted.end.min(segments);
            let leaves = manifest.tree().leaves_of(wanted.start).start
                ..manifest.tree().leaves_of(end - 1).end;
            let index = |leaf| usize::try_from(leaf).expect("the values are in memory");
            &manifest.leaves()[index(leaves.start)..index(leaves.end)]
        }
    };
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::ETAG, etag.to_header()),
    ];
    let id = [(HEADER_CONTENT_ID, manifest.id().to_string())];
    Ok((headers, id, body(values)).into_response())
}

/// Concatenates values to the body of an answer.
fn body(values: &[Value]) -> Vec<u8> {
    values.concat()
}

/// Reads the query `segments=FIRST-LAST`, counted from 0; `None` if there is none.
fn segments(uri: &Uri) -> Result<Option<Range<u64>>, ApiError> {
    let query = uri.query().unwrap_or_default();
    let Some(value) = query.split('&').find_map(|pair| pair.strip_prefix("segments=")) else {
        return Ok(None);
    };
    let range = value.split_once('-').and_then(|(first, last)| {
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some(first..last.saturating_add(1))
    });
    let range = range.ok_or(ApiError::InvalidSegments)?;
    Ok(Some(range.start..range.end.min(range.start.saturating_add(MANIFEST_SEGMENTS_MAX))))
}
