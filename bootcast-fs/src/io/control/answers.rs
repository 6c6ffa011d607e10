//! Answers of the server, and their headers.

use std::time::Duration;

use bootcast_proto::manifest::{ContentId, HEADER_CONTENT_ID, Value};
use bootcast_proto::unreadable::{HEADER_UNREADABLE, decode_pages};
use bootcast_proto::{Etag, PageRange};
use reqwest::Response;
use reqwest::header::HeaderName;

/// Hashes of a file that the server knows by now.
#[derive(Clone, Debug)]
pub struct KnownValues {
    /// Version of the file.
    pub etag: Etag,
    /// Hash of the file; `None` while the server hashes it.
    pub id: Option<ContentId>,
    /// Values of segments or leaves, in order.
    pub values: Vec<Value>,
}

/// Answer to a demand.
#[derive(Clone, Debug)]
pub struct DemandAnswer {
    /// Time until the server will have sent the pages; zero from a server that does not state it.
    pub queue: Duration,
    /// Pages that the server cannot read.
    pub unreadable: Vec<PageRange>,
}

/// Consecutive segments of a file, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRange {
    /// First segment.
    pub first: u64,
    /// Last segment.
    pub last: u64,
}

/// Part of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueList {
    /// Version of the file.
    pub etag: Etag,
    /// Hash of the file, as the server states it.
    pub id: ContentId,
    /// Values of segments or leaves, in order.
    pub values: Vec<Value>,
}

/// Start of a file over plain HTTP.
#[derive(Debug)]
pub struct FileAnswer {
    /// Response whose body is the file from `offset` on.
    pub response: Response,
    /// Offset of the body in the file: as requested, or 0 if the whole file is sent.
    pub offset: u64,
    /// Size of the whole file.
    pub size: Option<u64>,
    /// Version of the file.
    pub etag: Option<Etag>,
}

/// Returns the content id that an answer names.
pub(super) fn content_id(response: &Response) -> Option<ContentId> {
    let name = HeaderName::from_static(HEADER_CONTENT_ID);
    header(response, name).and_then(|value| value.parse().ok())
}

/// Returns the pages of the file that the server cannot read.
pub(super) fn unreadable_pages(response: &Response) -> Vec<PageRange> {
    unreadable_header(response).map(|text| decode_pages(&text)).unwrap_or_default()
}

/// Returns the header that lists the parts of the file that the server cannot read.
pub(super) fn unreadable_header(response: &Response) -> Option<String> {
    header(response, HeaderName::from_static(HEADER_UNREADABLE))
}

/// Returns a header of an answer, if it is text.
pub(super) fn header(response: &Response, name: HeaderName) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}
