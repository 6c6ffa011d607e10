//! What a member lacks. docs/PROTOCOL.md, "Report".

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use bootcast_proto::api::Report;
use bootcast_proto::{HEADER_TOKEN, Token};

use super::{ApiError, Served, remote_path};

/// Bytes of a report at most: some thirty thousand blocks.
const MAX_BYTES: usize = 256 << 10;

/// A report must be complete within this: a client that sends byte by byte cannot keep a connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn report(
    State(served): State<Served>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let path = remote_path(request.uri(), "/report/")?;
    let token = request.headers().get(HEADER_TOKEN).ok_or(ApiError::NoToken)?;
    // What cannot be a token is an unknown one.
    let token = token.to_str().ok().and_then(|text| Token::parse(text.trim()).ok());
    let token = token.ok_or(ApiError::UnknownToken)?;
    let report = read(request).await?;
    if served.sender.report(path, token, report).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::UnknownToken)
    }
}

async fn read(request: Request) -> Result<Report, ApiError> {
    let body = to_bytes(request.into_body(), MAX_BYTES + 1);
    let body = tokio::time::timeout(BODY_TIMEOUT, body).await.map_err(|_| ApiError::NoReport)?;
    // The limit is the one error of a body that the client sees.
    let body = body.map_err(|_| ApiError::TooLarge)?;
    if body.len() > MAX_BYTES {
        return Err(ApiError::TooLarge);
    }
    serde_json::from_slice(&body).map_err(|_| ApiError::NoReport)
}
