//! Serves profiles. docs/PROTOCOL.md, "Profile".

use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use bootcast_proto::manifest::HEADER_CONTENT_ID;

use super::{ApiError, ApiState, remote_path};

/// Answers `GET /profile/`.
pub(super) async fn profile(State(state): State<ApiState>, uri: Uri) -> Result<Response, ApiError> {
    let path = remote_path(&uri, "/profile/")?;
    let open = super::open(&state, &path).await?;
    let id = state.manifests.content_id(open.version).await.ok_or(ApiError::NoProfile)?;
    let profile = state.profiles.get(id, open.version.size()).await;
    if profile.is_empty() {
        return Err(ApiError::NoProfile);
    }
    let headers = [
        (header::CONTENT_TYPE, "text/plain".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::ETAG, open.etag().to_header()),
    ];
    let id_header = [(HEADER_CONTENT_ID, id.to_string())];
    Ok((headers, id_header, profile.encode(&id)).into_response())
}
