//! What members post: a path, a token, and JSON of a bounded size.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::Request;
use bootcast_proto::{HEADER_TOKEN, RemotePath, Token};
use serde::de::DeserializeOwned;

use super::{ApiError, remote_path};

/// A body must be complete within this: a client that sends byte by byte cannot keep a connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What is expected of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// In front of the path.
    pub(super) prefix: &'static str,
    /// Bytes at most.
    pub(super) max_bytes: usize,
    /// What it must look like.
    pub(super) example: &'static str,
}

/// Takes a request apart.
pub(super) async fn read<T: DeserializeOwned>(
    request: Request,
    expected: Expected,
) -> Result<(RemotePath, Token, T), ApiError> {
    let path = remote_path(request.uri(), expected.prefix)?;
    let token = request.headers().get(HEADER_TOKEN).ok_or(ApiError::NoToken)?;
    // What cannot be a token is an unknown one.
    let token = token.to_str().ok().and_then(|text| Token::parse(text.trim()).ok());
    let token = token.ok_or(ApiError::UnknownToken)?;
    let body = to_bytes(request.into_body(), expected.max_bytes + 1);
    let cut_off = ApiError::NoBody(expected.example);
    let body = tokio::time::timeout(BODY_TIMEOUT, body).await.map_err(|_| cut_off)?;
    let too_large = ApiError::TooLarge(expected.max_bytes);
    // The limit is the one error of a body that the client sees.
    let Ok(body) = body else { return Err(too_large) };
    if body.len() > expected.max_bytes {
        return Err(too_large);
    }
    let parsed = serde_json::from_slice(&body);
    Ok((path, token, parsed.map_err(|_| ApiError::NoBody(expected.example))?))
}
