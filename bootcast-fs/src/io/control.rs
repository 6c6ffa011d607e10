//! Requests to the server. docs/PROTOCOL.md, "Control" and "Extensions".

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use bootcast_proto::api::{Attributes, Meta, Report, Status, WantBody};
use bootcast_proto::unreadable::{HEADER_UNREADABLE, decode_bytes, decode_pages};
use bootcast_proto::{
    Etag, FILL_DEMAND, HEADER_EXTENSIONS, HEADER_FILL, HEADER_QUEUE, HEADER_RESUME, HEADER_TOKEN,
    JoinAnswer, PageRange, RemotePath, Token,
};
use reqwest::header::{
    CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE, RETRY_AFTER,
};
use reqwest::{Client, RequestBuilder, Response, StatusCode};

use crate::receiver::{FetchError, Fill, JoinError};

/// Timeout of the first attempt to connect. Where one of the first two packets of a connection got
/// lost, TCP sends it again only after a second (RFC 6298, section 2), which is longer than many
/// casts; a new connection comes sooner. Handshakes in a LAN take a few milliseconds.
const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_millis(200);
/// Timeout of the second attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a whole answer, except for listings and files.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// For the next piece of any answer, listings excepted.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// For the next piece of a listing. The server looks at every name before it begins to answer, so
/// that 100,000 names on a slow disk take minutes. Asking anew would only make that work twice.
const LISTING_TIMEOUT: Duration = Duration::from_secs(300);
/// Idle time after which a connection is probed, and then the time between two probes: a host that
/// died without a word is noticed, however long an answer may take.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Probes without an answer that end a connection.
const KEEPALIVE_PROBES: u32 = 3;
/// Timeout of the answer to a demand, which is repeated sooner than that.
const WANT_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest queue of the server that is believed.
const QUEUE_MAX: Duration = Duration::from_secs(2);
/// How long idle connections are kept: shorter than servers keep them, so that none is used while
/// it is being closed.
const POOL_IDLE: Duration = Duration::from_secs(10);
/// Attempts of a leave, and the first pause between them, which doubles.
const LEAVE_TRIES: u32 = 4;
const LEAVE_PAUSE: Duration = Duration::from_millis(100);
/// Most bytes read of an answer: of a listing, and of any other.
const LISTING_LIMIT: usize = 256 << 20;
const ANSWER_LIMIT: usize = 1 << 20;
/// Most bytes read of a refusal's text.
const MESSAGE_LEN: usize = 200;

/// Client of one server's control plane.
#[derive(Clone, Debug)]
pub struct Control {
    client: Client,
    /// Makes the second attempt to connect.
    patient: Client,
    /// Separate connections for demands, so that no other request delays a reader.
    wants: Client,
    /// With patience for answers that take their time.
    listings: Client,
    base: String,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No answer: trying again may help.
    #[error("cannot reach {base}: {reason}")]
    Unreachable {
        /// Base URL of the server.
        base: String,
        /// Innermost cause.
        reason: String,
        /// Whether a connection was made: then something listens there, and may answer later.
        is_connected: bool,
    },
    /// The server refused.
    #[error("{message}")]
    Refused {
        /// HTTP status code.
        status: u16,
        /// One line: the server's text, or that of the status.
        message: String,
        /// Pause that the server asks for, or zero.
        retry_after: Duration,
    },
    /// The server cannot read a part of the file. Its text.
    #[error("{message}")]
    Unreadable {
        /// Bytes that it cannot read.
        bytes: Range<u64>,
        /// One line: the server's text, or that of the status.
        message: String,
    },
    /// The answer does not follow the protocol.
    #[error("{base} does not answer as a bootcast server: {reason}")]
    Garbled {
        /// Base URL of the server.
        base: String,
        /// What is wrong.
        reason: String,
    },
}

impl ControlError {
    /// Whether the server said that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Whether the same request may succeed later: the server is away or overloaded.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
            Self::Garbled { .. } | Self::Unreadable { .. } => false,
        }
    }
}

impl Control {
    /// Creates a client for `base`, such as `http://head:8888`.
    pub fn new(base: &str) -> Result<Self, ControlError> {
        let client = |connect_timeout, read_timeout| {
            let builder = Client::builder()
                .connect_timeout(connect_timeout)
                .read_timeout(read_timeout)
                .tcp_keepalive(KEEPALIVE)
                .tcp_keepalive_interval(KEEPALIVE)
                .tcp_keepalive_retries(KEEPALIVE_PROBES)
                .pool_idle_timeout(POOL_IDLE)
                .tcp_nodelay(true)
                .no_proxy()
                .user_agent(concat!("bootcast/", env!("CARGO_PKG_VERSION")));
            builder.build().map_err(|error| ControlError::Unreachable {
                base: base.to_owned(),
                reason: innermost(&error),
                is_connected: false,
            })
        };
        Ok(Self {
            client: client(FIRST_CONNECT_TIMEOUT, READ_TIMEOUT)?,
            patient: client(CONNECT_TIMEOUT, READ_TIMEOUT)?,
            wants: client(FIRST_CONNECT_TIMEOUT, READ_TIMEOUT)?,
            listings: client(CONNECT_TIMEOUT, LISTING_TIMEOUT)?,
            base: base.trim_end_matches('/').to_owned(),
        })
    }

    /// Server as given: `host:port`.
    pub fn server(&self) -> &str {
        self.base.strip_prefix("http://").unwrap_or(&self.base)
    }

    fn url(&self, endpoint: &str, path: &RemotePath) -> String {
        format!("{}/{endpoint}/{}", self.base, path.encode())
    }

    fn get(&self, endpoint: &str, path: &RemotePath) -> RequestBuilder {
        self.client.get(self.url(endpoint, path))
    }

    /// Joins as a client that knows the extensions. Also returns the address at which the server
    /// was reached.
    pub async fn join(
        &self,
        path: &RemotePath,
        fill: Fill,
        resumes: bool,
    ) -> Result<(JoinAnswer, Option<SocketAddr>), JoinError> {
        let request = self.get("join", path).header(HEADER_EXTENSIONS, "1").timeout(ANSWER_TIMEOUT);
        let request = match fill {
            Fill::Full if resumes => request.header(HEADER_RESUME, "1"),
            Fill::Full => request,
            Fill::Demand => request.header(HEADER_FILL, FILL_DEMAND),
        };
        let joined = async {
            let response = self.send(request).await?;
            let address = response.remote_addr();
            let text = self.text(response, ANSWER_LIMIT).await?;
            let answer = JoinAnswer::parse(&text).map_err(|error| self.garbled(&error))?;
            Ok((answer, address))
        };
        joined.await.map_err(|error: ControlError| match error {
            ControlError::Unreachable { .. } => {
                JoinError::Retry { after: Duration::ZERO, reason: error.to_string() }
            }
            ControlError::Refused { retry_after, .. } if error.is_temporary() => {
                JoinError::Retry { after: retry_after, reason: error.to_string() }
            }
            ControlError::Refused { status: 404, message, .. } => JoinError::NotFound(message),
            ControlError::Refused { message, .. } | ControlError::Unreadable { message, .. } => {
                JoinError::Refused(message)
            }
            ControlError::Garbled { .. } => JoinError::Garbled(error.to_string()),
        })
    }

    /// Leaves. Tried a few times, because a leave that is not heard costs the server passes for
    /// nobody.
    pub async fn leave(&self, path: &RemotePath, token: &Token) -> Result<(), ControlError> {
        let mut pause = LEAVE_PAUSE;
        for _ in 1..LEAVE_TRIES {
            match self.leave_once(path, token).await {
                Err(error) if error.is_temporary() => tokio::time::sleep(pause).await,
                result => return result,
            }
            pause *= 2;
        }
        self.leave_once(path, token).await
    }

    async fn leave_once(&self, path: &RemotePath, token: &Token) -> Result<(), ControlError> {
        let request = self.get("leave", path).header(HEADER_TOKEN, token.as_str());
        self.send(request.timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// Tells what this member lacks. Returns pages that the server cannot read.
    pub async fn report(
        &self,
        path: &RemotePath,
        token: &Token,
        report: &Report,
    ) -> Result<Vec<PageRange>, ControlError> {
        let request = self.client.post(self.url("report", path)).timeout(ANSWER_TIMEOUT);
        let response = self.tell(request, token, report).await?;
        Ok(unreadable_pages(&response))
    }

    /// Demands pages that readers wait for.
    pub async fn want(
        &self,
        path: &RemotePath,
        token: &Token,
        want: &WantBody,
    ) -> Result<Wanted, ControlError> {
        let request = self.wants.post(self.url("want", path)).timeout(WANT_TIMEOUT);
        let response = self.tell(request, token, want).await?;
        let queue = response.headers().get(HEADER_QUEUE).and_then(|value| value.to_str().ok());
        let queue = queue.and_then(|text| text.parse().ok()).map(Duration::from_micros);
        let queue = queue.unwrap_or_default().min(QUEUE_MAX);
        Ok(Wanted { queue, unreadable: unreadable_pages(&response) })
    }

    async fn tell<T: serde::Serialize>(
        &self,
        request: RequestBuilder,
        token: &Token,
        body: &T,
    ) -> Result<Response, ControlError> {
        let body = serde_json::to_vec(body).map_err(|error| self.garbled(&error))?;
        let request = request
            .body(body)
            .header(CONTENT_TYPE, "application/json")
            .header(HEADER_TOKEN, token.as_str());
        self.send(request).await
    }

    /// Asks for the attributes of a name, of a directory without its entries.
    pub async fn attributes(&self, path: &RemotePath) -> Result<Attributes, ControlError> {
        let answer = self.attributes_unless(path, None).await?;
        answer.ok_or_else(|| ControlError::Garbled {
            base: self.base.clone(),
            reason: "304 to a request without a condition".into(),
        })
    }

    /// As [`Self::attributes`]; `None` where they are still those of `known`.
    pub async fn attributes_unless(
        &self,
        path: &RemotePath,
        known: Option<&Etag>,
    ) -> Result<Option<Attributes>, ControlError> {
        // A server that does not know the query answers with the entries, which are ignored.
        let url = format!("{}?entries=0", self.url("meta", path));
        self.ask_meta(self.client.get(url), known).await
    }

    /// Asks for attributes, and for those of all names in a directory; `None` where they are still
    /// those of `known`.
    pub async fn meta(
        &self,
        path: &RemotePath,
        known: Option<&Etag>,
    ) -> Result<Option<Meta>, ControlError> {
        self.ask_meta(self.listings.get(self.url("meta", path)), known).await
    }

    async fn ask_meta<T: serde::de::DeserializeOwned>(
        &self,
        mut request: RequestBuilder,
        known: Option<&Etag>,
    ) -> Result<Option<T>, ControlError> {
        if let Some(etag) = known {
            request = request.header(IF_NONE_MATCH, etag.to_header());
        }
        let response = self.send(request).await?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let text = self.text(response, LISTING_LIMIT).await?;
        serde_json::from_str(&text).map(Some).map_err(|error| self.garbled(&error))
    }

    /// Fetches the state of the server.
    pub async fn status(&self) -> Result<Status, ControlError> {
        let request = self.client.get(format!("{}/status", self.base)).timeout(ANSWER_TIMEOUT);
        let response = self.send(request).await?;
        let text = self.text(response, LISTING_LIMIT).await?;
        serde_json::from_str(&text).map_err(|error| self.garbled(&error))
    }

    /// The file over plain HTTP from `offset` on, as long as it is the version `etag`; the body is
    /// the answer's to give.
    pub async fn file(
        &self,
        path: &RemotePath,
        offset: u64,
        etag: Option<&Etag>,
    ) -> Result<FileAnswer, ControlError> {
        let mut request = self.get("file", path);
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        if let Some(etag) = etag {
            request = request.header(IF_RANGE, etag.to_header());
        }
        let response = self.send(request).await?;
        let etag = header(&response, ETAG).and_then(|value| Etag::from_header(&value).ok());
        let offset = if response.status() == StatusCode::PARTIAL_CONTENT { offset } else { 0 };
        let size = response.content_length().map(|length| length + offset);
        Ok(FileAnswer { response, offset, size, etag })
    }

    /// These bytes of the version `etag`, as its body; another version, or another part, is an
    /// error.
    pub async fn part(
        &self,
        path: &RemotePath,
        bytes: &Range<u64>,
        etag: &Etag,
    ) -> Result<Response, FetchError> {
        let range = format!("bytes={}-{}", bytes.start, bytes.end.saturating_sub(1));
        let request = self.get("file", path).header(RANGE, &range);
        let sent = self.send(request.header(IF_RANGE, etag.to_header())).await;
        let response = sent.map_err(|error| match error {
            ControlError::Unreachable { .. } => FetchError::Retry { after: Duration::ZERO },
            ControlError::Refused { retry_after, .. } if error.is_temporary() => {
                FetchError::Retry { after: retry_after }
            }
            // 416: the file ends before these bytes.
            ControlError::Refused { status: 404 | 410 | 412 | 416, .. } => FetchError::Changed,
            ControlError::Refused { message, .. } => FetchError::Refused(message),
            ControlError::Unreadable { bytes, .. } => FetchError::Unreadable(bytes),
            ControlError::Garbled { .. } => FetchError::Garbled(error.to_string()),
        })?;
        let answered = header(&response, ETAG).and_then(|value| Etag::from_header(&value).ok());
        if answered.as_ref() != Some(etag) {
            return Err(FetchError::Changed);
        }
        let begins_here = header(&response, CONTENT_RANGE)
            .is_some_and(|value| value.starts_with(&format!("bytes {}-", bytes.start)));
        let is_whole = response.status() == StatusCode::OK && bytes.start == 0;
        if is_whole || (response.status() == StatusCode::PARTIAL_CONTENT && begins_here) {
            Ok(response)
        } else {
            let reason = format!("asked for {range}, answered {}", response.status());
            Err(FetchError::Garbled(reason))
        }
    }

    /// Sends a request. Any status except 2xx and 304 is a refusal.
    async fn send(&self, request: RequestBuilder) -> Result<Response, ControlError> {
        let response = self.connect_and_send(request).await;
        let response = response.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let retry_after = header(&response, RETRY_AFTER).and_then(|value| value.parse().ok());
        let bytes = unreadable(&response).and_then(|text| decode_bytes(&text));
        let text = self.text(response, ANSWER_LIMIT).await.unwrap_or_default();
        let line = text.lines().next().unwrap_or_default().trim();
        let message = if line.is_empty() || line.starts_with('<') {
            status.to_string()
        } else {
            line.chars().take(MESSAGE_LEN).collect()
        };
        if let Some(bytes) = bytes {
            return Err(ControlError::Unreadable { bytes, message });
        }
        Err(ControlError::Refused {
            status: status.as_u16(),
            message,
            retry_after: Duration::from_secs(retry_after.unwrap_or(0)),
        })
    }

    /// Sends a request, and once more over another connection where no connection came about soon.
    async fn connect_and_send(&self, request: RequestBuilder) -> reqwest::Result<Response> {
        let again = request.try_clone();
        match (request.send().await, again) {
            (Err(error), Some(again)) if error.is_connect() && error.is_timeout() => {
                self.patient.execute(again.build()?).await
            }
            (result, _) => result,
        }
    }

    /// Reads a body of less than `limit` bytes.
    async fn text(&self, mut response: Response, limit: usize) -> Result<String, ControlError> {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if body.len() + piece.len() > limit {
                let reason = format!("an answer of more than {limit} bytes");
                return Err(ControlError::Garbled { base: self.base.clone(), reason });
            }
            body.extend_from_slice(&piece);
        }
        String::from_utf8(body).map_err(|error| self.garbled(&error))
    }

    /// Describes a request that failed on the way.
    pub fn unreachable(&self, error: &reqwest::Error) -> ControlError {
        ControlError::Unreachable {
            base: self.base.clone(),
            reason: innermost(error),
            is_connected: !error.is_connect(),
        }
    }

    /// The error of a request that nobody waits for any longer.
    pub fn unanswered(&self) -> ControlError {
        ControlError::Unreachable {
            base: self.base.clone(),
            reason: "no answer in time".into(),
            is_connected: false,
        }
    }

    fn garbled(&self, error: &dyn std::error::Error) -> ControlError {
        ControlError::Garbled { base: self.base.clone(), reason: error.to_string() }
    }
}

/// Answer to a want.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How long it takes until the pages have left the server; zero where an older server does not
    /// say.
    pub queue: Duration,
    /// Pages that the server cannot read.
    pub unreadable: Vec<PageRange>,
}

/// Start of a file over plain HTTP.
#[derive(Debug)]
pub struct FileAnswer {
    /// Response whose body is the file from `offset` on.
    pub response: Response,
    /// Offset of the body: as requested, or 0 if the version is another one.
    pub offset: u64,
    /// Size of the whole file.
    pub size: Option<u64>,
    /// Version of the file.
    pub etag: Option<Etag>,
}

fn unreadable_pages(response: &Response) -> Vec<PageRange> {
    unreadable(response).map(|text| decode_pages(&text)).unwrap_or_default()
}

/// What the answer says of parts of the file that the server cannot read.
fn unreadable(response: &Response) -> Option<String> {
    header(response, reqwest::header::HeaderName::from_static(HEADER_UNREADABLE))
}

fn header(response: &Response, name: reqwest::header::HeaderName) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// Innermost cause of an error, which says most: `Connection refused` rather than "error sending
/// request".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with `body`, and returns its first line.
    async fn serve_once(listener: &TcpListener, body: &str) -> String {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut lines = BufReader::new(&mut connection).lines();
        let first = lines.next_line().await.unwrap().unwrap();
        while lines.next_line().await.unwrap().is_some_and(|line| !line.is_empty()) {}
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        connection.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        first
    }

    #[tokio::test]
    async fn a_name_is_asked_for_without_entries_and_a_server_may_send_them_all_the_same() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let control = Control::new(&base).unwrap();
        let path = RemotePath::decode("a%20b").unwrap();
        let body = r#"{"kind":"directory","size":0,"mode":493,"mtime":5,"etag":"1-2",
            "entries":[{"name":"x","kind":"file","size":1,"mode":420,"mtime":5,"etag":"3"}]}"#;
        let (request, attributes) =
            tokio::join!(serve_once(&listener, body), control.attributes(&path));
        assert_eq!(request, "GET /meta/a%20b?entries=0 HTTP/1.1");
        assert_eq!(attributes.unwrap().kind, bootcast_proto::api::Kind::Directory);
        let (request, meta) = tokio::join!(serve_once(&listener, body), control.meta(&path, None));
        assert_eq!(request, "GET /meta/a%20b HTTP/1.1");
        assert_eq!(meta.unwrap().unwrap().entries.unwrap().len(), 1);
    }
}
