//! Reports of what members lack. docs/PROTOCOL.md, "Report".

use axum::extract::{Request, State};
use axum::response::Response;

use super::body::{self, Expected};
use super::{ApiError, Served, taken};

const REPORT: Expected = Expected {
    prefix: "/report/",
    // Enough for some thirty thousand blocks.
    max_bytes: 256 << 10,
    example: r#"{"needs":[[block,symbols]],"bulk":[[window,windows]]}"#,
};

pub(super) async fn report(
    State(served): State<Served>,
    request: Request,
) -> Result<Response, ApiError> {
    let (path, token, report) = body::read(request, REPORT).await?;
    let unreadable = served.sender.report(path, token, report).await?;
    Ok(taken(&unreadable.ok_or(ApiError::UnknownToken)?))
}
