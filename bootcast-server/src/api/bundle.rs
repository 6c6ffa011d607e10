//! Names the bundle that has a small file. docs/PROTOCOL.md, "Bundles".

use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};

use super::{ApiError, ApiState, json, remote_path};
use crate::source::SourceError;

/// Answers `GET /bundle/`.
pub(super) async fn bundle(State(state): State<ApiState>, uri: Uri) -> Result<Response, ApiError> {
    let path = remote_path(&uri, "/bundle/")?;
    let is_shared = path.parent().is_some_and(|it| state.small_files.is_shared(&it));
    let info = state.bundles.get(&path, is_shared).await?.ok_or(SourceError::NotFound)?;
    Ok(([(header::CACHE_CONTROL, "no-store")], json(&info)).into_response())
}
