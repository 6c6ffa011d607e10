//! One request and its answer: connections, timeouts, refusals, and limits of what is read.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bootcast_proto::bundle::HEADER_BUNDLES;
use bootcast_proto::limits::{CLIENT_IDLE_TIMEOUT, RETRY_AFTER_MAX};
use bootcast_proto::unreadable::decode_bytes;
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, RequestBuilder, Response, StatusCode};

use super::answers::{header, unreadable_header};
use super::{Control, ControlError};
use crate::io::now;

/// Timeout of the first attempt to connect. TCP sends a lost SYN or SYN-ACK again only after a
/// second (RFC 6298, section 2), which is longer than many casts. A new connection is faster.
/// Handshakes in a LAN take a few milliseconds.
pub(super) const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_millis(200);
/// Timeout of the second attempt to connect.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the next bytes of an answer, except for listings.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the next bytes of a listing. The server reads the attributes of every name
/// before it begins to answer, and 100,000 names on a slow disk take minutes. A second request
/// would only repeat that work.
pub(super) const LISTING_TIMEOUT: Duration = Duration::from_secs(300);
/// Idle time before the first TCP keepalive probe, and time between two probes. They detect a host
/// that went away while a slow answer is awaited.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Number of unanswered keepalive probes that close a connection.
const KEEPALIVE_PROBES: u32 = 3;
/// Largest answer that is read, in bytes, except for listings, manifests and files.
pub(super) const ANSWER_LIMIT: usize = 1 << 20;
/// Most characters of a refusal's text that are shown.
const MAX_MESSAGE_CHARS: usize = 200;

/// Creates a client for requests to `base`.
pub(super) fn client(
    base: &str,
    connect_timeout: Duration,
    read_timeout: Duration,
) -> Result<Client, ControlError> {
    let builder = Client::builder()
        .connect_timeout(connect_timeout)
        .read_timeout(read_timeout)
        .tcp_keepalive(KEEPALIVE)
        .tcp_keepalive_interval(KEEPALIVE)
        .tcp_keepalive_retries(KEEPALIVE_PROBES)
        .pool_idle_timeout(CLIENT_IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .no_proxy()
        .user_agent(concat!("bootcast/", env!("CARGO_PKG_VERSION")));
    builder.build().map_err(|error| ControlError::Unreachable {
        base: base.to_owned(),
        reason: innermost(&error),
        is_connected: false,
    })
}

impl Control {
    /// Sends a request. Any status except 2xx and 304 is an error.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, ControlError> {
        let response = self.connect_and_send(request).await;
        match &response {
            Ok(_) => self.reachability.record_answer(now()),
            Err(_) => self.reachability.record_no_answer(now()),
        }
        let response = response.map_err(|error| self.unreachable(&error))?;
        if response.headers().contains_key(HEADER_BUNDLES) {
            self.has_bundles.store(true, Ordering::Relaxed);
        }
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let retry_after = header(&response, RETRY_AFTER).and_then(|value| value.parse().ok());
        let bytes = unreadable_header(&response).and_then(|text| decode_bytes(&text));
        let text = self.text(response, ANSWER_LIMIT).await.unwrap_or_default();
        let line = text.lines().next().unwrap_or_default().trim();
        let message = if line.is_empty() || line.starts_with('<') {
            status.to_string()
        } else {
            line.chars().take(MAX_MESSAGE_CHARS).collect()
        };
        if let Some(bytes) = bytes {
            return Err(ControlError::Unreadable { bytes, message });
        }
        Err(ControlError::Refused {
            status: status.as_u16(),
            message,
            retry_after: Duration::from_secs(retry_after.unwrap_or(0)).min(RETRY_AFTER_MAX),
        })
    }

    /// Sends a request. If no connection is established in time, tries once more with a longer
    /// timeout.
    async fn connect_and_send(&self, request: RequestBuilder) -> reqwest::Result<Response> {
        let again = request.try_clone();
        match (request.send().await, again) {
            (Err(error), Some(again)) if error.is_connect() && error.is_timeout() => {
                self.patient.execute(again.build()?).await
            }
            (result, _) => result,
        }
    }

    /// Reads a body of at most `limit` bytes.
    pub(super) async fn text(
        &self,
        response: Response,
        limit: usize,
    ) -> Result<String, ControlError> {
        let body = self.body(response, limit).await?;
        String::from_utf8(body).map_err(|error| self.garbled(&error))
    }

    /// Reads a body of at most `limit` bytes.
    pub(super) async fn body(
        &self,
        mut response: Response,
        limit: usize,
    ) -> Result<Vec<u8>, ControlError> {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if body.len() + piece.len() > limit {
                let reason = format!("an answer of more than {limit} bytes");
                return Err(ControlError::Garbled { base: self.base.clone(), reason });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// Creates the error of a request or an answer that was cut off.
    pub fn unreachable(&self, error: &reqwest::Error) -> ControlError {
        ControlError::Unreachable {
            base: self.base.clone(),
            reason: innermost(error),
            is_connected: !error.is_connect(),
        }
    }

    /// Creates the error of a request whose answer took too long.
    pub fn unanswered(&self) -> ControlError {
        self.reachability.record_no_answer(now());
        ControlError::Unreachable {
            base: self.base.clone(),
            reason: "no answer in time".into(),
            is_connected: false,
        }
    }

    pub(super) fn garbled(&self, error: &dyn std::error::Error) -> ControlError {
        ControlError::Garbled { base: self.base.clone(), reason: error.to_string() }
    }
}

/// Returns the innermost cause of an error, which is the most specific: "Connection refused" and
/// not "error sending request".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
