//! Maps every error of the HTTP interface to a status. No other place does.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bootcast_proto::path::PathError;

use crate::io::listings::ListingError;
use crate::io::lookups::NotDone;
use crate::io::sender::{JoinError, NoAnswer};
use crate::source::SourceError;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The path is malformed.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The path leads to nothing that can be served.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The join was refused.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// There is no such endpoint.
    #[error(
        "no such endpoint: there are /join/, /leave/, /meta/, /file/, /report/, /want/ and /status"
    )]
    NoRoute,
    /// The endpoint does not support the method.
    #[error("method not allowed: use GET, or POST for /report/ and /want/")]
    Method,
    /// A report or a want has no token.
    #[error("no X-TOKEN header: send the TOKEN of the join answer")]
    NoToken,
    /// The token of a report or a want belongs to no member.
    #[error("unknown token: join again")]
    UnknownToken,
    /// The body is malformed. Carries an example of a valid one.
    #[error("the body is not what it should be: send {0}")]
    NoBody(&'static str),
    /// The body is larger than this many bytes.
    #[error("larger than {} KiB: send the rest later", .0 >> 10)]
    TooLarge(usize),
    /// The path's file system may hang.
    #[error(transparent)]
    NotDone(#[from] NotDone),
    /// The sender's thread did not answer.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
}

impl From<ListingError> for ApiError {
    fn from(error: ListingError) -> Self {
        match error {
            ListingError::Source(error) => error.into(),
            ListingError::NotDone(error) => error.into(),
        }
    }
}

impl ApiError {
    /// HTTP status of the error. docs/PROTOCOL.md, "Errors".
    fn status(&self) -> StatusCode {
        match self {
            Self::Path(_)
            | Self::NoToken
            | Self::NoBody(_)
            | Self::Source(SourceError::NotRegular)
            | Self::Join(JoinError::TooManyPages(_)) => StatusCode::BAD_REQUEST,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Source(SourceError::Forbidden) => StatusCode::FORBIDDEN,
            Self::NoRoute | Self::UnknownToken | Self::Source(SourceError::NotFound) => {
                StatusCode::NOT_FOUND
            }
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Source(SourceError::Io(_)) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoAnswer(_)
            | Self::NotDone(_)
            | Self::Source(SourceError::Busy)
            | Self::Join(JoinError::Refused(_) | JoinError::Outdated | JoinError::NoAnswer(_)) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }
}

/// Seconds after which a client should try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut headers = HeaderMap::new();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if status.is_server_error() {
            tracing::warn!(%status, error = %self, "request failed");
        }
        (status, headers, format!("{self}\n")).into_response()
    }
}
