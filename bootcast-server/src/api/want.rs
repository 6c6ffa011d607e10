//! Takes demands for single pages. docs/PROTOCOL.md, "Demand".

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bootcast_proto::HEADER_QUEUE;
use bootcast_proto::limits::WANT_BYTES;

use super::body::{self, Expected};
use super::{ApiError, ApiState, no_content};

const WANT: Expected = Expected {
    prefix: "/want/",
    max_bytes: WANT_BYTES,
    example: r#"{"now":[[page,pages]],"later":[[page,pages]]}"#,
};

/// Answers `POST /want/`.
pub(super) async fn want(
    State(state): State<ApiState>,
    request: Request,
) -> Result<Response, ApiError> {
    let (path, token, want) = body::read(request, WANT).await?;
    let answer = state.sender.want(path, token, want).await?.ok_or(ApiError::UnknownToken)?;
    let queue = [(HEADER_QUEUE, answer.queue_time.as_micros().to_string())];
    Ok((queue, no_content(&answer.unreadable)).into_response())
}
