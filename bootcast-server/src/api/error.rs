//! Maps every error of the HTTP interface to a status. No other module does.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bootcast_proto::RemotePath;
use bootcast_proto::bundle::HEADER_BUNDLES;
use bootcast_proto::limits::RETRY_AFTER_MAX;
use bootcast_proto::log_limit::Limiter;
use bootcast_proto::path::PathError;
use bootcast_proto::unreadable::{HEADER_UNREADABLE, encode_bytes};
use tokio::time::Instant;

use crate::cast::JoinRefusal;
use crate::io::blocking_pool::PoolError;
use crate::io::listings::ListingError;
use crate::io::manifests::ManifestError;
use crate::io::request_limits::RequestKind;
use crate::io::sender::{JoinError, NoAnswer};
use crate::source::{HashError, SourceError};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The path is malformed.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The path leads to no file that can be served.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The join was refused.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// There is no such endpoint.
    #[error(
        "no such endpoint: there are /join/, /leave/, /meta/, /file/, /manifest/, /profile/, \
         /report/, /want/ and /status"
    )]
    NoRoute,
    /// The endpoint does not support the method.
    #[error("method not allowed: use GET, or POST for /join/, /leave/, /report/ and /want/")]
    Method,
    /// A web page asks for a change.
    #[error("refused because a browser sent it, perhaps for a web page: use another client")]
    OfPage,
    /// The request is for a name that is not permitted.
    #[error("no such host here: use the address of the server, or a name that --host permits")]
    WrongHost,
    /// The host sent more requests of this kind than it may.
    #[error("too many {} from this host: at most {} a second", .0.noun(), .0.per_second())]
    TooManyRequests(RequestKind),
    /// A report or a demand has no token.
    #[error("no X-TOKEN header: send the TOKEN of the join answer")]
    NoToken,
    /// The token of a report or a demand belongs to no member that may send it.
    #[error("unknown token: join again")]
    UnknownToken,
    /// The body is malformed or incomplete. Carries an example of a valid one.
    #[error("the body is malformed or incomplete: send {0}")]
    InvalidBody(&'static str),
    /// The body is larger than this many bytes.
    #[error("the body is larger than {} KiB: send the rest later", .0 >> 10)]
    TooLarge(usize),
    /// Bytes of the file cannot be read.
    #[error("cannot read bytes {}-{} of {}: {}", .bytes.start, .bytes.end.saturating_sub(1),
        .path.to_string().trim_start_matches('/'), describe(.error))]
    Unreadable {
        /// Path of the file.
        path: RemotePath,
        /// Unreadable bytes, at least one.
        bytes: Range<u64>,
        /// Error that the file system returned.
        error: io::Error,
    },
    /// A file that was asked for as a small one is not small, or several hosts ask for it.
    #[error("not sent as a small file: join its cast")]
    NotSmall,
    /// The manifest cannot be computed, or not yet.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Nothing was learned about the content of the file.
    #[error(
        "no profile yet: it is learned when mounts with fill=demand and an empty cache read the \
         file"
    )]
    NoProfile,
    /// The query of a manifest is malformed.
    #[error("malformed segments: send ?segments=FIRST-LAST, counted from 0")]
    InvalidSegments,
    /// The file has no such segment.
    #[error("no such segment: the file has {segments} of them, counted from 0")]
    NoSegment {
        /// Number of segments in the file.
        segments: u64,
    },
    /// The query of page hashes is malformed.
    #[error("malformed pages: send ?pages=FIRST-LAST&size=BYTES, counted from 0")]
    InvalidPages,
    /// The file has no such page.
    #[error("no such page: the file has {pages} of this size, counted from 0")]
    NoPage {
        /// Number of pages in the file.
        pages: u32,
    },
    /// No thread was available for the work: the path's file system may hang.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The client closed its connection before its join was answered. Nobody reads this answer.
    #[error("the client closed its connection")]
    Closed,
    /// The handler of the request panicked.
    #[error("error in this program: see the log of the server")]
    Panicked,
    /// The listings that are being sent take all the memory that listings may take.
    #[error("clients read too many listings at the same time: try again later")]
    ManyListings,
    /// The sender thread did not answer.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
}

impl From<ListingError> for ApiError {
    fn from(error: ListingError) -> Self {
        match error {
            ListingError::Source(error) => error.into(),
            ListingError::Pool(error) => error.into(),
            ListingError::NoMemory => Self::ManyListings,
        }
    }
}

impl ApiError {
    /// Returns the HTTP status of the error. docs/PROTOCOL.md, "Errors".
    fn status(&self) -> StatusCode {
        match self {
            Self::Path(_)
            | Self::Closed
            | Self::NoToken
            | Self::InvalidBody(_)
            | Self::InvalidSegments
            | Self::InvalidPages
            | Self::Source(SourceError::NotRegular)
            | Self::Join(JoinError::TooManyPages(_)) => StatusCode::BAD_REQUEST,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Source(SourceError::Forbidden)
            | Self::OfPage
            | Self::Join(JoinError::Refused(JoinRefusal::PlainDenied)) => StatusCode::FORBIDDEN,
            Self::WrongHost => StatusCode::MISDIRECTED_REQUEST,
            Self::NoRoute
            | Self::UnknownToken
            | Self::NoProfile
            | Self::NoSegment { .. }
            | Self::NoPage { .. }
            | Self::Source(SourceError::NotFound) => StatusCode::NOT_FOUND,
            Self::NotSmall => StatusCode::CONFLICT,
            Self::TooManyRequests(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Panicked
            | Self::Pool(PoolError::Panicked)
            | Self::Unreadable { .. }
            | Self::Source(SourceError::Io(_)) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Manifest(ManifestError::Hash(error)) => match **error {
                HashError::Changed => StatusCode::SERVICE_UNAVAILABLE,
                HashError::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
            Self::NoAnswer(_)
            | Self::ManyListings
            | Self::Pool(_)
            | Self::Manifest(_)
            | Self::Source(SourceError::Busy)
            | Self::Join(
                JoinError::Refused(_) | JoinError::Outdated { .. } | JoinError::NoAnswer(_),
            ) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Default of the `Retry-After` header, in seconds.
const RETRY_AFTER_S: u64 = 1;

/// Limits the warnings of failed requests to one a minute for each text.
static WARNINGS: Mutex<Limiter<String, Instant>> = Mutex::new(Limiter::new());

impl ApiError {
    /// Returns the time after which a client should try again, in seconds.
    fn retry_after_s(&self) -> u64 {
        match self {
            Self::Join(JoinError::Refused(
                JoinRefusal::Backoff { after, .. } | JoinRefusal::BudgetUsedUp { after },
            )) => {
                let after = (*after).min(RETRY_AFTER_MAX).as_millis();
                after.div_ceil(1000).try_into().unwrap_or(RETRY_AFTER_S)
            }
            _ => RETRY_AFTER_S,
        }
    }

    /// Logs a request that failed through no fault of the client, once a minute for each error
    /// text: a thousand clients may try again and again.
    pub(super) fn warn(&self) {
        // Nothing failed, and the text changes all the time.
        let is_unfinished = matches!(self, Self::Manifest(ManifestError::Unfinished { .. }));
        // The panic is in the log already, with its place.
        let is_panic = matches!(self, Self::Panicked | Self::Pool(PoolError::Panicked));
        if is_unfinished || is_panic {
            return;
        }
        let (error, status) = (self.to_string(), self.status());
        let mut warnings = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = warnings.allow(&error, Instant::now()) {
            tracing::warn!(%status, error, suppressed, "request failed");
        }
    }
}

/// Returns the text of the error without its number, ` (os error 5)`.
fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut headers = HeaderMap::new();
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, self.retry_after_s().into());
        }
        if let Self::Unreadable { bytes, .. } = &self
            && let Some(bytes) = encode_bytes(bytes).and_then(|it| HeaderValue::try_from(it).ok())
        {
            headers.insert(HEADER_UNREADABLE, bytes);
        }
        if matches!(self, Self::NotSmall) {
            headers.insert(HEADER_BUNDLES, HeaderValue::from_static("1"));
        }
        if status.is_server_error() {
            self.warn();
        }
        (status, headers, format!("{self}\n")).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cast::EndReason;

    #[test]
    fn retry_after_is_rounded_up_to_whole_seconds() {
        let (reason, after) = (EndReason::FileChanged, Duration::from_millis(7001));
        let seconds = |refusal: JoinRefusal| {
            let response = ApiError::from(JoinError::from(refusal)).into_response();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            response.headers()[header::RETRY_AFTER].to_str().unwrap().to_owned()
        };
        assert_eq!(seconds(JoinRefusal::Backoff { reason, after }), "8");
        assert_eq!(seconds(JoinRefusal::NoGroup), "1");
    }
}
