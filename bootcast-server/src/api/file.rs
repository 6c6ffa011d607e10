//! Serves files over plain HTTP. docs/PROTOCOL.md, "File".

use std::fs::File;
use std::io;
use std::iter::once;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bootcast_proto::bundle::HEADER_BUNDLES;
use bootcast_proto::limits::SMALL_FILE;
use bootcast_proto::manifest::HEADER_CONTENT_ID;
use bootcast_proto::{ContentId, HEADER_SMALL, RemotePath};
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::range::{Selection, select};
use super::{ApiError, ApiState, remote_path};
use crate::io::peers::Peer;
use crate::io::reader::proof::{PartialLeaves, prove};
use crate::io::reader::source::FileSource;
use crate::source::{OpenFile, SourceError};

/// Length of a chunk in bytes. An answer holds one chunk in memory, and sends it before it reads
/// the next one.
const CHUNK_BYTES: u64 = 256 << 10;

/// Bytes per read in a chunk that cannot be read whole: a page of the kernel's cache.
const STEP_BYTES: u64 = 4096;

/// Maximum number of bytes that one answer names as unreadable. Each step of reading may take a
/// failing disk seconds.
const MAX_UNREADABLE_BYTES: u64 = 64 << 10;

/// Answers `GET` and `HEAD /file/`.
pub(super) async fn file(
    State(state): State<ApiState>,
    peer: Option<Extension<Peer>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = remote_path(&uri, "/file/")?;
    let open = super::open(&state, &path).await?;
    let (size, modified) = (open.version.size(), open.present.modified());
    if headers.get(HEADER_SMALL).is_some_and(|value| value == "1") {
        return small_file(state, path, open, peer.map(|Extension(peer)| peer)).await;
    }
    let common = [
        (header::ETAG, open.etag().to_header()),
        (header::LAST_MODIFIED, httpdate::fmt_http_date(modified)),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
    ];
    let (status, content_range, part) = match select(&headers, &open.etag(), modified, size) {
        Selection::NotModified => return Ok((StatusCode::NOT_MODIFIED, common).into_response()),
        Selection::Unsatisfiable => {
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(format!("bytes */{size}")), 0..0)
        }
        Selection::Whole => (StatusCode::OK, None, 0..size),
        Selection::Part(part) => {
            let range = format!("bytes {}-{}/{size}", part.start, part.end - 1);
            (StatusCode::PARTIAL_CONTENT, Some(range), part)
        }
    };
    let length = HeaderValue::from(part.end - part.start);
    let body = if method == Method::HEAD || part.is_empty() {
        Body::empty()
    } else {
        body(state, path, open, part).await?
    };
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    let mut response = (status, common, kind, body).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    if let Some(range) = content_range.and_then(|range| HeaderValue::try_from(range).ok()) {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    Ok(response)
}

/// Answers a client that would join the cast of a small file otherwise: with all of its bytes, and
/// the hash that proves them.
async fn small_file(
    state: ApiState,
    path: RemotePath,
    open: OpenFile,
    peer: Option<Peer>,
) -> Result<Response, ApiError> {
    let size = open.version.size();
    let is_admitted = peer.is_none_or(|Peer(host)| state.small_files.admits_now(&path, host));
    if size > SMALL_FILE || !is_admitted {
        return Err(ApiError::NotSmall);
    }
    let etag = [(header::ETAG, open.etag().to_header())];
    let source = FileSource::new(path.clone(), open, state.identity.clone());
    let mut reader = ChunkReader { state, path, source: Arc::new(source), rest: 0..size };
    let chunk = reader.next().await.map_err(SourceError::from)?;
    if let Some(bad) = chunk.unreadable {
        let ChunkReader { path, .. } = reader;
        return Err(ApiError::Unreadable { path, bytes: bad.range, error: bad.error });
    }
    let id = (size > 0).then(|| ContentId::of_content(&chunk.bytes));
    let id = id.map(|id| [(HEADER_CONTENT_ID, id.to_string())]);
    Ok((etag, [(HEADER_BUNDLES, "1")], id, chunk.bytes).into_response())
}

/// Reads the bytes of an answer from the open file, chunk by chunk.
struct ChunkReader {
    state: ApiState,
    path: RemotePath,
    source: Arc<FileSource>,
    /// Bytes of the answer that were not read yet.
    rest: Range<u64>,
}

/// Bytes of a chunk that precede the first unreadable one.
struct Chunk {
    bytes: Bytes,
    /// Unreadable bytes that follow `bytes`, if any.
    unreadable: Option<UnreadableBytes>,
}

/// A range of the file that cannot be read.
#[derive(Debug)]
struct UnreadableBytes {
    range: Range<u64>,
    error: io::Error,
}

/// Streams bytes of one version. If the file changes meanwhile, or if bytes cannot be read, the
/// stream fails and the connection is cut, so that no answer mixes versions. If the first byte
/// cannot be read, fails before the answer begins.
async fn body(
    state: ApiState,
    path: RemotePath,
    open: OpenFile,
    part: Range<u64>,
) -> Result<Body, ApiError> {
    let source = FileSource::new(path.clone(), open, state.identity.clone());
    let mut reader = ChunkReader { state, path, source: Arc::new(source), rest: part };
    let first = reader.next().await.map_err(SourceError::from)?;
    if let (true, Some(bad)) = (first.bytes.is_empty(), first.unreadable) {
        let ChunkReader { path, .. } = reader;
        return Err(ApiError::Unreadable { path, bytes: bad.range, error: bad.error });
    }
    let rest = stream::try_unfold(reader, move |mut reader| async move {
        if reader.rest.is_empty() {
            return Ok(None);
        }
        match reader.next().await? {
            Chunk { bytes, unreadable: Some(bad) } if bytes.is_empty() => {
                let ChunkReader { path, .. } = reader;
                let error = ApiError::Unreadable { path, bytes: bad.range, error: bad.error };
                error.warn();
                Err(io::Error::other(error))
            }
            Chunk { bytes, .. } => Ok(Some((bytes, reader))),
        }
    });
    let first = stream::once(async { Ok(first.bytes) });
    Ok(Body::from_stream(first.chain(rest)))
}

impl ChunkReader {
    /// Reads the next chunk.
    async fn next(&mut self) -> io::Result<Chunk> {
        let range = self.rest.start..self.rest.end.min(self.rest.start + CHUNK_BYTES);
        let source = Arc::clone(&self.source);
        let read = move || read_chunk(&source, &range);
        let chunk = self.state.reads.run(&self.path, read).await.map_err(io::Error::other)??;
        self.rest.start += chunk.bytes.len() as u64;
        Ok(chunk)
    }
}

/// Reads a chunk, up to its first unreadable byte. Fails if the file is no longer this version.
fn read_chunk(source: &FileSource, range: &Range<u64>) -> io::Result<Chunk> {
    let file = source.file();
    let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    let mut unreadable = None;
    match file.read_exact_at(&mut bytes, range.start) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(error),
        Err(_) => {
            unreadable = read_in_steps(file, &mut bytes, range.start);
            let end = unreadable.as_ref().map_or(range.end, |bad| bad.range.start);
            bytes.truncate(usize::try_from(end - range.start).map_err(io::Error::other)?);
        }
    }
    let read = range.start..range.start + bytes.len() as u64;
    prove(source, PartialLeaves::Complete, once((read, once(&bytes[..]))))
        .map_err(io::Error::other)?;
    Ok(Chunk { bytes: bytes.into(), unreadable })
}

/// Reads from `offset` in steps of [`STEP_BYTES`] until one fails. Returns the range of the failed
/// step and those after it that fail too.
fn read_in_steps(file: &File, bytes: &mut [u8], offset: u64) -> Option<UnreadableBytes> {
    let mut unreadable: Option<UnreadableBytes> = None;
    let mut at = offset;
    while !bytes[index(at, offset)..].is_empty() {
        let end = (at / STEP_BYTES + 1) * STEP_BYTES;
        let (from, to) = (index(at, offset), index(end, offset).min(bytes.len()));
        match (file.read_exact_at(&mut bytes[from..to], at), &mut unreadable) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => break,
            (Err(_), Some(bad)) => bad.range.end = offset + to as u64,
            (Err(error), None) => {
                unreadable = Some(UnreadableBytes { range: at..offset + to as u64, error });
            }
        }
        let len = unreadable.as_ref().map_or(0, |bad| bad.range.end - bad.range.start);
        if len >= MAX_UNREADABLE_BYTES {
            break;
        }
        at = offset + to as u64;
    }
    unreadable
}

/// Converts a position in the file to an index in a buffer that begins at `offset`.
fn index(at: u64, offset: u64) -> usize {
    usize::try_from(at - offset).unwrap_or(usize::MAX)
}
