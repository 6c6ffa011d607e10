//! Reads the requests that members post: a path, a token, and a JSON body of bounded size.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::Request;
use bootcast_proto::{HEADER_TOKEN, RemotePath, Token};
use serde::de::DeserializeOwned;

use super::{ApiError, remote_path};

/// Time within which a body must be complete, so that a client that sends byte by byte cannot
/// occupy a connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Requirements on a request's path and body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// Endpoint: the prefix of the request's path, such as `/report/`.
    pub(super) prefix: &'static str,
    /// Maximum length of a body in bytes.
    pub(super) max_bytes: usize,
    /// Example of a valid body, shown in error messages.
    pub(super) example: &'static str,
}

/// Reads a request and splits it into path, token and parsed body.
pub(super) async fn read<T: DeserializeOwned>(
    request: Request,
    expected: Expected,
) -> Result<(RemotePath, Token, T), ApiError> {
    let path = remote_path(request.uri(), expected.prefix)?;
    let token = request.headers().get(HEADER_TOKEN).ok_or(ApiError::NoToken)?;
    // A malformed token counts as unknown.
    let token = token.to_str().ok().and_then(|text| Token::parse(text.trim()).ok());
    let token = token.ok_or(ApiError::UnknownToken)?;
    let body = to_bytes(request.into_body(), expected.max_bytes + 1);
    let timed_out = ApiError::InvalidBody(expected.example);
    let body = tokio::time::timeout(BODY_TIMEOUT, body).await.map_err(|_| timed_out)?;
    let too_large = ApiError::TooLarge(expected.max_bytes);
    // An error of the connection looks the same, but then the client receives no answer.
    let Ok(body) = body else { return Err(too_large) };
    if body.len() > expected.max_bytes {
        return Err(too_large);
    }
    let parsed = serde_json::from_slice(&body);
    Ok((path, token, parsed.map_err(|_| ApiError::InvalidBody(expected.example))?))
}
