//! Serves hashes of single pages. docs/PROTOCOL.md, "Manifest".

use std::iter::once;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use bootcast_proto::page_hash::{PageHash, QUERY_PAGES, QUERY_SIZE, pages_per_answer};
use bootcast_proto::{Geometry, PageIndex, PageRange, PageSize, RemotePath};

use super::{ApiError, ApiState, index_range, query_value};
use crate::io::reader::proof::{PartialLeaves, prove};
use crate::io::reader::source::FileSource;
use crate::source::{OpenFile, SourceError};

/// Pages whose hashes a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// First page, and the one after the last.
    pages: Range<u64>,
    size: PageSize,
}

impl Wanted {
    /// Reads the queries `pages=FIRST-LAST` and `size=BYTES`; `None` if there is none of pages.
    pub(super) fn parse(uri: &Uri) -> Result<Option<Self>, ApiError> {
        let Some(pages) = query_value(uri, QUERY_PAGES) else { return Ok(None) };
        let size = query_value(uri, QUERY_SIZE).and_then(|size| size.parse().ok());
        let size = size.and_then(|size| PageSize::new(size).ok());
        let wanted = index_range(pages).zip(size).map(|(pages, size)| Self { pages, size });
        wanted.map(Some).ok_or(ApiError::InvalidPages)
    }

    /// Returns those of the pages that one answer has.
    pub(super) fn of(&self, file_size: u64) -> Result<(Geometry, PageRange), ApiError> {
        let geometry = Geometry::new(file_size, self.size).map_err(|_| ApiError::InvalidPages)?;
        let no_page = ApiError::NoPage { pages: geometry.pages() };
        let first = u32::try_from(self.pages.start).ok();
        let Some(first) = first.filter(|first| *first < geometry.pages()) else {
            return Err(no_page);
        };
        let most = u64::from(pages_per_answer(self.size));
        let end = self.pages.end.min(geometry.pages().into()).min(u64::from(first) + most);
        let end = u32::try_from(end).expect("at most the number of pages");
        Ok((geometry, PageRange { start: PageIndex(first), end: PageIndex(end) }))
    }
}

/// Answers with the hashes of some pages of the file.
pub(super) async fn page_hashes(
    state: &ApiState,
    path: RemotePath,
    open: OpenFile,
    wanted: &Wanted,
) -> Result<Response, ApiError> {
    let (geometry, pages) = wanted.of(open.version.size())?;
    let etag = open.etag().to_header();
    let source = FileSource::new(path.clone(), open, state.identity.clone());
    let hash = move || hashes(&source, &geometry, pages);
    let hashes = state.reads.run(&path, hash).await?.map_err(SourceError::from)?;
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::ETAG, etag)];
    Ok((headers, hashes).into_response())
}

/// Reads pages and returns their hashes. Fails if the file is no longer this version.
fn hashes(source: &FileSource, geometry: &Geometry, pages: PageRange) -> std::io::Result<Vec<u8>> {
    let range = geometry.byte_range(pages);
    let len = usize::try_from(range.end - range.start).map_err(std::io::Error::other)?;
    let mut bytes = vec![0; len];
    source.file().read_exact_at(&mut bytes, range.start)?;
    prove(source, PartialLeaves::Skip, once((range, once(&bytes[..]))))
        .map_err(std::io::Error::other)?;
    let page_size = geometry.page_size().get() as usize;
    let hashes = bytes.chunks(page_size).map(|page| *PageHash::of(page).as_bytes());
    Ok(hashes.collect::<Vec<_>>().concat())
}
