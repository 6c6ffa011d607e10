//! Reads the bodies that members post: a path, a token, and JSON of bounded size.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::Request;
use bootcast_proto::{HEADER_TOKEN, RemotePath, Token};
use serde::de::DeserializeOwned;

use super::{ApiError, remote_path};

/// Time within which a body must be complete, so that a client that sends byte by byte cannot keep
/// a connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Requirements on a request's path and body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// Prefix of the path: the endpoint.
    pub(super) prefix: &'static str,
    /// Most bytes of a body.
    pub(super) max_bytes: usize,
    /// Example of a valid body, shown in error messages.
    pub(super) example: &'static str,
}

/// Splits a request into path, token and parsed body.
pub(super) async fn read<T: DeserializeOwned>(
    request: Request,
    expected: Expected,
) -> Result<(RemotePath, Token, T), ApiError> {
    let path = remote_path(request.uri(), expected.prefix)?;
    let token = request.headers().get(HEADER_TOKEN).ok_or(ApiError::NoToken)?;
    // A malformed token is treated like an unknown one.
    let token = token.to_str().ok().and_then(|text| Token::parse(text.trim()).ok());
    let token = token.ok_or(ApiError::UnknownToken)?;
    let body = to_bytes(request.into_body(), expected.max_bytes + 1);
    let cut_off = ApiError::NoBody(expected.example);
    let body = tokio::time::timeout(BODY_TIMEOUT, body).await.map_err(|_| cut_off)?;
    let too_large = ApiError::TooLarge(expected.max_bytes);
    // Exceeding the limit is the only body error that the client gets to see.
    let Ok(body) = body else { return Err(too_large) };
    if body.len() > expected.max_bytes {
        return Err(too_large);
    }
    let parsed = serde_json::from_slice(&body);
    Ok((path, token, parsed.map_err(|_| ApiError::NoBody(expected.example))?))
}
