//! HTTP requests to the server. Their meaning is in docs/PROTOCOL.md, "Control" and "Extensions".

mod answers;
mod error;
mod exchange;
mod ids;
mod profiles;
mod reachability;
mod space;

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bootcast_proto::api::{Attributes, Meta, Report, Status, WantBody};
use bootcast_proto::bundle::BundleInfo;
use bootcast_proto::limits::SMALL_FILE;
use bootcast_proto::page_hash::{QUERY_PAGES, QUERY_SIZE};
use bootcast_proto::{
    ContentId, Etag, FILL_DEMAND, HEADER_EXTENSIONS, HEADER_FILL, HEADER_LEAVES, HEADER_PROFILE,
    HEADER_QUEUE, HEADER_RESUME, HEADER_SMALL, HEADER_TOKEN, JoinAnswer, PageHash, PageRange,
    QUERY_KNOWN, QUERY_ZEROS, RemotePath, Token, ZeroMap,
};
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE};
use reqwest::{Client, RequestBuilder, Response, StatusCode};

use super::stated_ids::StatedIds;
use crate::cache::SmallFile;
use crate::receiver::{FetchError, Fill, HashRequest, JoinError, JoinOptions, REQUEST_BACKOFF};
use answers::{content_id, header, unreadable_pages};
use exchange::{
    ANSWER_LIMIT, CONNECT_TIMEOUT, FIRST_CONNECT_TIMEOUT, LISTING_TIMEOUT, READ_TIMEOUT, client,
};

use reachability::Reachability;
use space::LatestSpace;

pub(super) use answers::{DemandAnswer, KnownValues, ValueList};
pub use answers::{FileAnswer, SegmentRange};
pub use error::ControlError;

/// Timeout of a request until its whole answer is here, except for listings and files.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a demand. Missing pages are demanded again before it ends.
const WANT_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of a request for a small file. If it ends, a join is tried, which waits for as long as
/// it takes.
const SMALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Upper bound of the queueing delay that the answer to a demand may state.
const QUEUE_MAX: Duration = Duration::from_secs(2);
/// Number of attempts to leave a cast.
const LEAVE_ATTEMPTS: u32 = 4;
/// Largest listing or status that is read, in bytes.
const LISTING_LIMIT: usize = 256 << 20;
/// Largest manifest that is read, in bytes: the segment values of 8 TiB.
const MANIFEST_LIMIT: usize = 64 << 20;

/// Answer to a request for a small file.
#[derive(Clone, Debug)]
pub enum SmallAnswer {
    /// The file, as the server has it at present.
    File(SmallFile),
    /// The file, as a bundle has it.
    Bundled(SmallFile),
    /// Several hosts want it, so that it is cast.
    Wanted,
}

/// Client of one server's control plane.
#[derive(Clone, Debug)]
pub struct Control {
    client: Client,
    /// Client for the second attempt to connect, with a longer timeout.
    patient: Client,
    /// Client for demands. Its separate connections keep other requests from delaying a reader.
    wants: Client,
    /// Client for listings, with a longer read timeout.
    listings: Client,
    /// Base URL of the server, such as `http://head:8888`.
    base: String,
    /// Content ids from the answers so far.
    stated_ids: StatedIds,
    reachability: Reachability,
    space: LatestSpace,
    /// Whether the server has said that it has bundles.
    has_bundles: Arc<AtomicBool>,
}

impl Control {
    /// Creates a client for `base`, such as `http://head:8888`.
    pub fn new(base: &str) -> Result<Self, ControlError> {
        let client = |connect_timeout, read_timeout| client(base, connect_timeout, read_timeout);
        Ok(Self {
            client: client(FIRST_CONNECT_TIMEOUT, READ_TIMEOUT)?,
            patient: client(CONNECT_TIMEOUT, READ_TIMEOUT)?,
            wants: client(FIRST_CONNECT_TIMEOUT, READ_TIMEOUT)?,
            listings: client(CONNECT_TIMEOUT, LISTING_TIMEOUT)?,
            base: base.trim_end_matches('/').to_owned(),
            stated_ids: StatedIds::default(),
            reachability: Reachability::default(),
            space: LatestSpace::default(),
            has_bundles: Arc::default(),
        })
    }

    /// Returns the server as `host:port`.
    pub fn server(&self) -> &str {
        self.base.strip_prefix("http://").unwrap_or(&self.base)
    }

    /// Returns the time since the server last answered, if a request after that had no answer.
    pub fn away_for(&self, now: Instant) -> Option<Duration> {
        self.reachability.away_for(now)
    }

    /// Returns the URL of a file, as `bootcast get` takes it.
    pub fn file_url(&self, path: &RemotePath) -> String {
        format!("{}/{}", self.base, path.encode())
    }

    fn url(&self, endpoint: &str, path: &RemotePath) -> String {
        format!("{}/{endpoint}/{}", self.base, path.encode())
    }

    fn get(&self, endpoint: &str, path: &RemotePath) -> RequestBuilder {
        self.client.get(self.url(endpoint, path))
    }

    /// Joins the cast of a file as an extended client. Also returns the address at which the server
    /// was reached.
    pub async fn join(
        &self,
        path: &RemotePath,
        options: JoinOptions,
    ) -> Result<(JoinAnswer, Option<SocketAddr>), JoinError> {
        let JoinOptions { fill, resumes, wants_leaf_lists, wants_profile } = options;
        let request = self.get("join", path).header(HEADER_EXTENSIONS, "1").timeout(ANSWER_TIMEOUT);
        let request = match fill {
            Fill::Full if resumes => request.header(HEADER_RESUME, "1"),
            Fill::Full => request,
            Fill::Demand => request.header(HEADER_FILL, FILL_DEMAND),
        };
        let request = if wants_leaf_lists { request.header(HEADER_LEAVES, "1") } else { request };
        let request = if wants_profile { request.header(HEADER_PROFILE, "1") } else { request };
        let joined = async {
            let response = self.send(request).await?;
            let address = response.remote_addr();
            let text = self.text(response, ANSWER_LIMIT).await?;
            let answer = JoinAnswer::parse(&text).map_err(|error| self.garbled(&error))?;
            if let Some(etag) = &answer.extensions.etag {
                self.stated_ids.forget_others(path, etag);
                let stated = answer.extensions.content_id;
                stated.inspect(|id| self.stated_ids.remember(path, etag, *id));
            }
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

    /// Leaves the cast of a file. Tries a few times: without the leave the server would go on
    /// sending for this member until its lease ends.
    pub async fn leave(&self, path: &RemotePath, token: &Token) -> Result<(), ControlError> {
        for earlier in 0..LEAVE_ATTEMPTS - 1 {
            match self.leave_once(path, token).await {
                Err(error) if error.is_temporary() => {
                    let pause = REQUEST_BACKOFF.pause(earlier).max(error.retry_after());
                    tokio::time::sleep(pause).await;
                }
                result => return result,
            }
        }
        self.leave_once(path, token).await
    }

    async fn leave_once(&self, path: &RemotePath, token: &Token) -> Result<(), ControlError> {
        let request = self.get("leave", path).header(HEADER_TOKEN, token.as_str());
        self.send(request.timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// Sends a report. Returns the pages that the server cannot read.
    pub async fn report(
        &self,
        path: &RemotePath,
        token: &Token,
        report: &Report,
    ) -> Result<Vec<PageRange>, ControlError> {
        let request = self.client.post(self.url("report", path)).timeout(ANSWER_TIMEOUT);
        let response = self.send_json(request, token, report).await?;
        Ok(unreadable_pages(&response))
    }

    /// Demands pages that readers wait for.
    pub async fn want(
        &self,
        path: &RemotePath,
        token: &Token,
        want: &WantBody,
    ) -> Result<DemandAnswer, ControlError> {
        let request = self.wants.post(self.url("want", path)).timeout(WANT_TIMEOUT);
        let response = self.send_json(request, token, want).await?;
        let queue = response.headers().get(HEADER_QUEUE).and_then(|value| value.to_str().ok());
        let queue = queue.and_then(|text| text.parse().ok()).map(Duration::from_micros);
        let queue = queue.unwrap_or_default().min(QUEUE_MAX);
        Ok(DemandAnswer { queue, unreadable: unreadable_pages(&response) })
    }

    /// Sends a member's request with `body` as JSON.
    async fn send_json<T: serde::Serialize>(
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

    /// Requests the attributes of a path. A directory's entries are not requested.
    pub async fn attributes(&self, path: &RemotePath) -> Result<Attributes, ControlError> {
        let answer = self.attributes_unless(path, None).await?;
        answer.ok_or_else(|| ControlError::Garbled {
            base: self.base.clone(),
            reason: "304 to a request without a condition".into(),
        })
    }

    /// Requests the attributes of a path. Returns `None` if its version is still `known`.
    pub async fn attributes_unless(
        &self,
        path: &RemotePath,
        known: Option<&Etag>,
    ) -> Result<Option<Attributes>, ControlError> {
        // A server that does not know this query sends the entries as well. They are ignored.
        let url = format!("{}?entries=0", self.url("meta", path));
        let meta: Option<(Attributes, Option<ContentId>)> =
            self.request_meta(path, self.client.get(url), known).await?;
        let Some((attributes, id)) = meta else { return Ok(None) };
        if let (Some(etag), Some(id)) = (&attributes.etag, id) {
            self.stated_ids.remember(path, etag, id);
        }
        Ok(Some(attributes))
    }

    /// Requests the attributes of a path and, for a directory, of all its entries. Returns `None`
    /// if the version is still `known`.
    pub async fn meta(
        &self,
        path: &RemotePath,
        known: Option<&Etag>,
    ) -> Result<Option<Meta>, ControlError> {
        let meta =
            self.request_meta(path, self.listings.get(self.url("meta", path)), known).await?;
        Ok(meta.map(|(meta, _)| meta))
    }

    /// Requests `/meta/` and parses the answer. Also returns the content id of a file, if the
    /// server knows it. Returns `None` if the version is still `known`.
    async fn request_meta<T: serde::de::DeserializeOwned>(
        &self,
        path: &RemotePath,
        mut request: RequestBuilder,
        known: Option<&Etag>,
    ) -> Result<Option<(T, Option<ContentId>)>, ControlError> {
        if let Some(etag) = known {
            request = request.header(IF_NONE_MATCH, etag.to_header());
        }
        let response = self.send(request).await?;
        self.space.record(path, &response);
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let id = content_id(&response);
        let text = self.text(response, LISTING_LIMIT).await?;
        let meta = serde_json::from_str(&text).map_err(|error| self.garbled(&error))?;
        Ok(Some((meta, id)))
    }

    /// Fetches the state of the server.
    pub async fn status(&self) -> Result<Status, ControlError> {
        let request = self.client.get(format!("{}/status", self.base)).timeout(ANSWER_TIMEOUT);
        let response = self.send(request).await?;
        let text = self.text(response, LISTING_LIMIT).await?;
        serde_json::from_str(&text).map_err(|error| self.garbled(&error))
    }

    /// Requests a file over plain HTTP from `offset` on. If the file is no longer the version
    /// `etag`, the answer has another version and begins at 0. The caller reads the body.
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

    /// Fetches a small file instead of joining its cast. Returns `None` if the client should join:
    /// the server has another version, does not know such requests, or does not answer.
    pub async fn small_file(
        &self,
        path: &RemotePath,
        etag: &Etag,
        size: u64,
    ) -> Option<SmallAnswer> {
        let request = self.get("file", path).header(HEADER_SMALL, "1").timeout(SMALL_TIMEOUT);
        let response = match self.send(request).await {
            Err(ControlError::Refused { status: 409, .. }) => return Some(SmallAnswer::Wanted),
            response => response.ok()?,
        };
        let version = header(&response, ETAG).and_then(|value| Etag::from_header(&value).ok());
        let id = content_id(&response);
        let limit = usize::try_from(SMALL_FILE).ok()?;
        if version.as_ref() != Some(etag) || response.content_length() != Some(size) {
            return None;
        }
        let bytes = self.body(response, limit).await.ok()?;
        let file = SmallFile::new(bytes, size, id)?;
        id.inspect(|id| self.stated_ids.remember(path, etag, *id));
        Some(SmallAnswer::File(file))
    }

    /// Whether the server has said that it has bundles.
    pub fn has_bundles(&self) -> bool {
        self.has_bundles.load(Ordering::Relaxed)
    }

    /// Asks for the bundle that has a small file. Returns `None` if there is none, or no answer.
    pub async fn bundle(&self, path: &RemotePath) -> Option<BundleInfo> {
        let response = self.send(self.get("bundle", path).timeout(SMALL_TIMEOUT)).await.ok()?;
        let text = self.text(response, ANSWER_LIMIT).await.ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Requests these bytes of the version `etag`. Returns a response whose body is that part;
    /// another version or another part is an error.
    pub async fn file_range(
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
        let version = header(&response, ETAG).and_then(|value| Etag::from_header(&value).ok());
        if version.as_ref() != Some(etag) {
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

    /// Fetches the values of all segments of a file, or those of the leaves of some segments. Fails
    /// with 503 while the server hashes the file.
    pub async fn manifest(
        &self,
        path: &RemotePath,
        segments: Option<SegmentRange>,
    ) -> Result<ValueList, ControlError> {
        let query = segments.map(|it| format!("?segments={}-{}", it.first, it.last));
        let KnownValues { etag, id, values } =
            self.values(path, &query.unwrap_or_default()).await?;
        let Some(id) = id else { return Err(self.no_manifest("it has no content id")) };
        Ok(ValueList { etag, id, values })
    }

    /// Fetches as much of a manifest as the server knows by now: the values of segments, or those
    /// of the leaves of some segments.
    pub async fn known_manifest(
        &self,
        path: &RemotePath,
        segments: Option<SegmentRange>,
    ) -> Result<KnownValues, ControlError> {
        let segments = segments.map(|it| format!("&segments={}-{}", it.first, it.last));
        self.values(path, &format!("?known=1{}", segments.unwrap_or_default())).await
    }

    async fn values(&self, path: &RemotePath, query: &str) -> Result<KnownValues, ControlError> {
        let url = format!("{}{query}", self.url("manifest", path));
        let response = self.send(self.client.get(url).timeout(ANSWER_TIMEOUT)).await?;
        let etag = header(&response, ETAG).and_then(|value| Etag::from_header(&value).ok());
        let id = content_id(&response);
        let body = self.body(response, MANIFEST_LIMIT).await?;
        match (etag, body.as_chunks()) {
            (Some(etag), (values, [])) => {
                id.inspect(|id| self.stated_ids.remember(path, &etag, *id));
                Ok(KnownValues { etag, id, values: values.to_vec() })
            }
            (None, _) => Err(self.no_manifest("it names no version")),
            (Some(_), _) => Err(self.no_manifest("it ends within a value")),
        }
    }

    /// Fetches the zero map of the version `etag`, which has this many leaves. Fails while the
    /// server hashes the file.
    pub async fn zero_map(
        &self,
        path: &RemotePath,
        etag: &Etag,
        leaves: u64,
    ) -> Result<ZeroMap, ControlError> {
        let url = format!("{}?{QUERY_ZEROS}&{QUERY_KNOWN}", self.url("manifest", path));
        let response = self.send(self.client.get(url).timeout(ANSWER_TIMEOUT)).await?;
        let version = header(&response, ETAG).and_then(|value| Etag::from_header(&value).ok());
        if version.as_ref() != Some(etag) {
            return Err(self.no_manifest("it is of another version"));
        }
        let limit = usize::try_from(leaves.div_ceil(8)).unwrap_or(usize::MAX);
        let body = self.body(response, limit.min(MANIFEST_LIMIT)).await?;
        ZeroMap::from_bytes(leaves, &body)
            .ok_or_else(|| self.no_manifest("it is not a zero map of this file"))
    }

    /// Fetches the hashes of pages of the version `etag`.
    pub async fn page_hashes(
        &self,
        path: &RemotePath,
        etag: &Etag,
        HashRequest { pages, size }: &HashRequest,
    ) -> Result<Vec<PageHash>, ControlError> {
        let (first, last) = (pages.start, pages.end.0.saturating_sub(1));
        let manifest = self.url("manifest", path);
        let url = format!("{manifest}?{QUERY_PAGES}={first}-{last}&{QUERY_SIZE}={size}");
        let response = self.send(self.client.get(url).timeout(ANSWER_TIMEOUT)).await?;
        let version = header(&response, ETAG).and_then(|value| Etag::from_header(&value).ok());
        if version.as_ref() != Some(etag) {
            return Err(self.no_manifest("it is of another version"));
        }
        let limit = pages.len() as usize * PageHash::LEN;
        let body = self.body(response, limit).await?;
        PageHash::divide(&body).ok_or_else(|| self.no_manifest("it ends within a hash"))
    }

    fn no_manifest(&self, why: &str) -> ControlError {
        ControlError::Garbled { base: self.base.clone(), reason: format!("not a manifest: {why}") }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with `body`, and returns its first line.
    async fn serve_once(listener: &TcpListener, body: &str) -> String {
        serve_head(listener, "200 OK\r\nETag: \"v1\"", body).await
    }

    async fn serve_head(listener: &TcpListener, head: &str, body: &str) -> String {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut lines = BufReader::new(&mut connection).lines();
        let first = lines.next_line().await.unwrap().unwrap();
        while lines.next_line().await.unwrap().is_some_and(|line| !line.is_empty()) {}
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len());
        connection.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        first
    }

    #[tokio::test]
    async fn attributes_are_requested_without_entries_and_entries_that_come_are_ignored() {
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

    #[tokio::test]
    async fn a_pause_that_a_server_asks_for_is_limited() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control = Control::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let path = RemotePath::decode("image").unwrap();
        for (text, seconds) in [
            ("7", 7),
            ("31", 30),
            ("18446744073709551615", 30),
            ("18446744073709551616", 0),
            ("-1", 0),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 0),
        ] {
            let head = format!("503 Service Unavailable\r\nRetry-After: {text}");
            let (_, answer) =
                tokio::join!(serve_head(&listener, &head, "busy\n"), control.attributes(&path));
            let Err(ControlError::Refused { retry_after, .. }) = answer else { panic!("{text}") };
            assert_eq!(retry_after, Duration::from_secs(seconds), "{text}");
        }
    }

    #[tokio::test]
    async fn a_zero_map_of_another_version_or_length_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let control = Control::new(&base).unwrap();
        let path = RemotePath::decode("image").unwrap();
        for (etag, body, is_good) in
            [("v1", "ab", true), ("v2", "ab", false), ("v1", "", false), ("v1", "abc", false)]
        {
            let etag = Etag::new(etag).unwrap();
            let asked = control.zero_map(&path, &etag, 15);
            let (request, map) = tokio::join!(serve_once(&listener, body), asked);
            assert_eq!(request, "GET /manifest/image?zeros=1&known=1 HTTP/1.1");
            assert_eq!(map.is_ok(), is_good, "{etag:?} {body} {map:?}");
        }
    }
}
