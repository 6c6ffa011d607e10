//! Files over plain HTTP. docs/PROTOCOL.md, "File".

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
use futures_util::{Stream, stream};

use super::range::{Selection, select};
use super::{ApiError, Served, remote_path};
use crate::source::{OpenFile, Version};

/// Bytes in memory for one answer. Each piece is read and sent before the next is read.
const PIECE_BYTES: u64 = 256 << 10;

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
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        Body::from_stream(pieces(served, path, open, part))
    };
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    let mut response = (status, common, kind, body).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    if let Some(range) = content_range.and_then(|range| HeaderValue::try_from(range).ok()) {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    Ok(response)
}

/// Streams bytes of one version. If the file changes meanwhile, the stream fails and the connection
/// is cut: no answer mixes versions.
fn pieces(
    served: Served,
    path: RemotePath,
    open: OpenFile,
    part: Range<u64>,
) -> impl Stream<Item = io::Result<Bytes>> {
    let file = Arc::new(open.file);
    let version = open.version;
    let state = (served, path, part);
    stream::try_unfold(state, move |(served, path, left)| {
        let file = Arc::clone(&file);
        async move {
            if left.is_empty() {
                return Ok(None);
            }
            let end = left.end.min(left.start + PIECE_BYTES);
            let piece = left.start..end;
            let read = move || read_piece(&file, version, &piece);
            let bytes = served.reads.run(&path, read).await.map_err(io::Error::other)??;
            Ok(Some((bytes, (served, path, end..left.end))))
        }
    })
}

fn read_piece(file: &std::fs::File, version: Version, piece: &Range<u64>) -> io::Result<Bytes> {
    let len = usize::try_from(piece.end - piece.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, piece.start)?;
    if Version::of_file(file)? != version {
        return Err(io::Error::other("the file changed"));
    }
    Ok(bytes.into())
}
