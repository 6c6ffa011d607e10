//! Demands for single pages. docs/PROTOCOL.md, "Demand".

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bootcast_proto::HEADER_QUEUE;

use super::body::{self, Expected};
use super::{ApiError, Served, taken};

const WANT: Expected = Expected {
    prefix: "/want/",
    // Enough for some thousand runs of pages.
    max_bytes: 16 << 10,
    example: r#"{"now":[[page,pages]],"later":[[page,pages]]}"#,
};

pub(super) async fn want(
    State(served): State<Served>,
    request: Request,
) -> Result<Response, ApiError> {
    let (path, token, want) = body::read(request, WANT).await?;
    let wanted = served.sender.want(path, token, want).await?.ok_or(ApiError::UnknownToken)?;
    let queue = [(HEADER_QUEUE, wanted.queue.as_micros().to_string())];
    Ok((queue, taken(&wanted.unreadable)).into_response())
}
