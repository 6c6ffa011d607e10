//! Takes the reports of members. docs/PROTOCOL.md, "Report".

use axum::extract::{Request, State};
use axum::response::Response;

use bootcast_proto::limits::REPORT_BYTES;

use super::body::{self, Expected};
use super::{ApiError, ApiState, no_content};

const REPORT: Expected = Expected {
    prefix: "/report/",
    max_bytes: REPORT_BYTES,
    example: r#"{"needs":[[block,symbols]],"bulk":[[window,windows]]}"#,
};

/// Answers `POST /report/`.
pub(super) async fn report(
    State(state): State<ApiState>,
    request: Request,
) -> Result<Response, ApiError> {
    let (path, token, report) = body::read(request, REPORT).await?;
    let unreadable = state.sender.report(path, token, report).await?;
    Ok(no_content(&unreadable.ok_or(ApiError::UnknownToken)?))
}
