//! Files over plain HTTP. docs/PROTOCOL.md, "File".

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bootcast_proto::RemotePath;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::range::{Selection, select};
use super::{ApiError, Served, remote_path};
use crate::source::{OpenFile, SourceError, Version};

/// Bytes in memory for one answer. Each piece is read and sent before the next is read.
const PIECE_BYTES: u64 = 256 << 10;

/// Bytes that are read at a time where a piece cannot be read whole: the kernel's page.
const STEP_BYTES: u64 = 4096;

/// Most bytes that one answer calls unreadable: a disk may take seconds to say so of each step.
const BAD_BYTES: u64 = 64 << 10;

pub(super) async fn file(
    State(served): State<Served>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = remote_path(&uri, "/file/")?;
    let open = super::open(&served, &path).await?;
    let (size, modified) = (open.version.size(), open.version.modified());
    let common = [
        (header::ETAG, open.etag().to_header()),
        (header::LAST_MODIFIED, httpdate::fmt_http_date(modified)),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
    ];
    let (status, content_range, part) = match select(&headers, &open.etag(), modified, size) {
        Selection::NotModified => return Ok((StatusCode::NOT_MODIFIED, common).into_response()),
        Selection::Beyond => {
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
        body(served, path, open, part).await?
    };
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    let mut response = (status, common, kind, body).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    if let Some(range) = content_range.and_then(|range| HeaderValue::try_from(range).ok()) {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    Ok(response)
}

/// The open file of an answer, and the bytes that it still owes.
struct Pieces {
    served: Served,
    path: RemotePath,
    file: Arc<File>,
    version: Version,
    left: Range<u64>,
}

/// The beginning of the bytes that were asked for, up to where they cannot be read.
struct Piece {
    bytes: Bytes,
    bad: Option<BadBytes>,
}

/// Bytes that cannot be read.
#[derive(Debug)]
struct BadBytes {
    bytes: Range<u64>,
    error: io::Error,
}

/// Streams bytes of one version. If the file changes meanwhile, the stream fails and the connection
/// is cut: no answer mixes versions. So it does where bytes cannot be read, unless they are the
/// first ones: then there is no stream.
async fn body(
    served: Served,
    path: RemotePath,
    open: OpenFile,
    part: Range<u64>,
) -> Result<Body, ApiError> {
    let (file, version) = (Arc::new(open.file), open.version);
    let mut pieces = Pieces { served, path, file, version, left: part };
    let first = pieces.next().await.map_err(SourceError::from)?;
    if let (true, Some(bad)) = (first.bytes.is_empty(), first.bad) {
        let Pieces { path, .. } = pieces;
        return Err(ApiError::Unreadable { path, bytes: bad.bytes, error: bad.error });
    }
    let rest = stream::try_unfold(pieces, move |mut pieces| async move {
        if pieces.left.is_empty() {
            return Ok(None);
        }
        match pieces.next().await? {
            Piece { bytes, bad: Some(bad) } if bytes.is_empty() => {
                let Pieces { path, .. } = pieces;
                let error = ApiError::Unreadable { path, bytes: bad.bytes, error: bad.error };
                error.warn();
                Err(io::Error::other(error))
            }
            Piece { bytes, .. } => Ok(Some((bytes, pieces))),
        }
    });
    let first = stream::once(async { Ok(first.bytes) });
    Ok(Body::from_stream(first.chain(rest)))
}

impl Pieces {
    /// Reads the next piece.
    async fn next(&mut self) -> io::Result<Piece> {
        let piece = self.left.start..self.left.end.min(self.left.start + PIECE_BYTES);
        let (file, version) = (Arc::clone(&self.file), self.version);
        let read = move || read_piece(&file, version, &piece);
        let piece = self.served.reads.run(&self.path, read).await.map_err(io::Error::other)??;
        self.left.start += piece.bytes.len() as u64;
        Ok(piece)
    }
}

fn read_piece(file: &File, version: Version, piece: &Range<u64>) -> io::Result<Piece> {
    let len = usize::try_from(piece.end - piece.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    let mut bad = None;
    match file.read_exact_at(&mut bytes, piece.start) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(error),
        Err(_) => {
            bad = read_in_steps(file, &mut bytes, piece.start);
            let here = bad.as_ref().map_or(piece.end, |bad| bad.bytes.start);
            bytes.truncate(usize::try_from(here - piece.start).map_err(io::Error::other)?);
        }
    }
    if Version::of_file(file)? != version {
        return Err(io::Error::other("the file changed"));
    }
    Ok(Piece { bytes: bytes.into(), bad })
}

/// Reads step by step up to the first step that cannot be read. Returns that and the bad ones that
/// follow it.
fn read_in_steps(file: &File, bytes: &mut [u8], offset: u64) -> Option<BadBytes> {
    let mut bad: Option<BadBytes> = None;
    let mut at = offset;
    while !bytes[place(at, offset)..].is_empty() {
        let end = (at / STEP_BYTES + 1) * STEP_BYTES;
        let (from, to) = (place(at, offset), place(end, offset).min(bytes.len()));
        match (file.read_exact_at(&mut bytes[from..to], at), &mut bad) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => break,
            (Err(_), Some(bad)) => bad.bytes.end = offset + to as u64,
            (Err(error), None) => {
                bad = Some(BadBytes { bytes: at..offset + to as u64, error });
            }
        }
        if bad.as_ref().is_some_and(|bad| bad.bytes.end - bad.bytes.start >= BAD_BYTES) {
            break;
        }
        at = offset + to as u64;
    }
    bad
}

/// Place in a buffer that begins with the byte at `offset`.
fn place(at: u64, offset: u64) -> usize {
    usize::try_from(at - offset).unwrap_or(usize::MAX)
}
