//! Refuses what web pages send, and requests for other names than the server's.
//!
//! A page in a browser can send requests to any host that the browser reaches. It need not read an
//! answer to make the head send a file: `<img src="http://head:8888/join/image">` would do. With a
//! name of its own that it lets point to the head (DNS rebinding), it could also read files.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use super::ApiError;

/// Endpoints that make the server send, or stop sending.
const CHANGING: [&str; 4] = ["/join/", "/leave/", "/report/", "/want/"];

/// Headers that pages cannot keep a browser from sending in some cases, and that no client of casts
/// sends. Over plain HTTP, a browser sends none of them with an image of another site that asks for
/// no referrer.
const OF_PAGES: [HeaderName; 3] =
    [header::ORIGIN, header::REFERER, HeaderName::from_static("sec-fetch-mode")];

/// Begin of the user agent of every browser, which pages cannot change for images and forms.
const BROWSER: &[u8] = b"Mozilla/";

/// Names by which clients may call the server.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<[String]>);

impl Names {
    /// Permits these names; all names if there are none.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().collect())
    }

    /// Whether a request for this host, with or without a port, may be answered. Addresses always
    /// may: a page needs a name to be taken for one of its own site.
    pub(super) fn permit(&self, host: &str) -> bool {
        let name = name_of(host);
        self.0.is_empty()
            || name.eq_ignore_ascii_case("localhost")
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || self.0.iter().any(|permitted| permitted.eq_ignore_ascii_case(name))
    }
}

/// Returns the host without its port and the dot of the DNS root.
fn name_of(host: &str) -> &str {
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) && !name.ends_with(':') => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

/// Answers a request, or refuses it. docs/PROTOCOL.md, "Web pages".
pub(super) async fn guard(
    State(names): State<Names>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if !host_of(request.uri(), request.headers()).is_none_or(|host| names.permit(host)) {
        return Err(ApiError::WrongHost);
    }
    let path = request.uri().path();
    let changes = CHANGING.iter().any(|prefix| path.starts_with(prefix));
    if changes && is_of_page(request.headers()) {
        return Err(ApiError::OfPage);
    }
    Ok(next.run(request).await)
}

/// Returns the host that a request names. HTTP/1.0 need not name any.
fn host_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    // `?` stands for a header that is not text. No name that is permitted equals it.
    let header = || headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
    uri.authority().map(Authority::as_str).or_else(header)
}

fn is_of_page(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT);
    OF_PAGES.iter().any(|name| headers.contains_key(name))
        || agent.is_some_and(|agent| agent.as_bytes().starts_with(BROWSER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_names_only_these_and_addresses_are_permitted() {
        let names = Names::new(["head".to_owned(), "head.example".to_owned()]);
        for host in ["head", "HEAD:8888", "head.example.:80", "10.0.0.1:8888", "[::1]:8888", "::1"]
        {
            assert!(names.permit(host), "{host}");
        }
        for host in ["", "evil.example:8888", "head.evil.example", "xhead", "head:x", "?"] {
            assert!(!names.permit(host), "{host}");
        }
        assert!(Names::default().permit("evil.example"));
    }
}
