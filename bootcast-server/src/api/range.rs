//! Selects the part of a file that a request gets. RFC 9110, sections 13 and 14.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use bootcast_proto::Etag;

/// Part of the file that answers a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// 304: the client already has this version.
    NotModified,
    /// 200: the whole file.
    Whole,
    /// 206: these bytes.
    Part(Range<u64>),
    /// 416: the range contains no byte of the file.
    Unsatisfiable,
}

/// Evaluates the conditions and the range of a request for a file of `size` bytes.
pub(super) fn select(
    headers: &HeaderMap,
    etag: &Etag,
    modified: SystemTime,
    size: u64,
) -> Selection {
    let modified = whole_seconds(modified);
    let not_modified = if headers.contains_key(header::IF_NONE_MATCH) {
        contains_etag(headers, etag)
    } else {
        // Evaluated only without If-None-Match (RFC 9110, 13.1.3).
        date(headers, header::IF_MODIFIED_SINCE).is_some_and(|since| modified <= since)
    };
    if not_modified {
        return Selection::NotModified;
    }
    // Several fields are several ranges.
    let mut ranges = headers.get_all(header::RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return Selection::Whole };
    let Ok(range) = range.to_str() else { return Selection::Whole };
    let unchanged = match headers.get(header::IF_RANGE) {
        None => true,
        Some(value) => is_etag(value, etag) || date(headers, header::IF_RANGE) == Some(modified),
    };
    if unchanged { select_range(range, size) } else { Selection::Whole }
}

/// Returns whether an `If-None-Match` header contains this version or is `*`.
pub(super) fn contains_etag(headers: &HeaderMap, etag: &Etag) -> bool {
    let lists = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|it| it.to_str().ok());
    // An `Etag` has no comma. The comparison is weak (RFC 9110, 13.1.2).
    lists.flat_map(|list| list.split(',')).map(str::trim).any(|one| {
        one == "*" || Etag::from_header(one.strip_prefix("W/").unwrap_or(one)).as_ref() == Ok(etag)
    })
}

/// Returns whether the value of an `If-Range` header is this version. The comparison is strong (RFC
/// 9110, 13.1.5).
fn is_etag(value: &HeaderValue, etag: &Etag) -> bool {
    value.to_str().is_ok_and(|value| Etag::from_header(value.trim()).as_ref() == Ok(etag))
}

/// Parses a range of bytes. Several ranges, another unit or a malformed range select the whole file
/// (RFC 9110, 14.2).
fn select_range(range: &str, size: u64) -> Selection {
    let Some((unit, spec)) = range.split_once('=') else { return Selection::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return Selection::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") || spec.contains(',') {
        return Selection::Whole;
    }
    let (first, last) = (parse_position(first), parse_position(last));
    match (first, last) {
        (Ok(Some(first)), Ok(Some(last))) if first > last => Selection::Whole,
        (Ok(Some(first)), Ok(_)) if first >= size => Selection::Unsatisfiable,
        (Ok(Some(first)), Ok(last)) => {
            let end = last.map_or(size, |last| last.saturating_add(1).min(size));
            Selection::Part(first..end)
        }
        (Ok(None), Ok(Some(0))) => Selection::Unsatisfiable,
        (Ok(None), Ok(Some(_))) if size == 0 => Selection::Unsatisfiable,
        (Ok(None), Ok(Some(suffix))) => Selection::Part(size.saturating_sub(suffix)..size),
        (Ok(None), Ok(None)) | (Err(()), _) | (_, Err(())) => Selection::Whole,
    }
}

/// Parses an optional number. One that does not fit 64 bits lies beyond the end of any file.
fn parse_position(text: &str) -> Result<Option<u64>, ()> {
    let text = text.trim();
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(());
    }
    Ok((!text.is_empty()).then(|| text.parse().unwrap_or(u64::MAX)))
}

/// Selects a part of a file, for fuzzing. The lines are the size of the file, and headers.
pub(crate) fn fuzz(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let size =
        lines.next().and_then(|line| str::from_utf8(line).ok()?.parse().ok()).unwrap_or(1000);
    let names = [
        header::RANGE,
        header::IF_RANGE,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::RANGE,
    ];
    let fields = names.into_iter().zip(lines).filter(|(_, value)| !value.is_empty());
    let fields =
        fields.filter_map(|(name, value)| Some((name, HeaderValue::from_bytes(value).ok()?)));
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(name, value);
    }
    let Ok(etag) = Etag::new("v1") else { return };
    if let Selection::Part(part) = select(&headers, &etag, UNIX_EPOCH, size) {
        assert!(part.start < part.end && part.end <= size, "{part:?} of {size} bytes");
    }
}

/// Parses the date of a header; `None` if it is absent or malformed.
fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

/// Truncates a time to the precision of an HTTP date.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1000;

    fn selected(headers: &[(HeaderName, &str)]) -> Selection {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect();
        let modified = UNIX_EPOCH + Duration::new(784_111_777, 5);
        select(&headers, &Etag::new("v1").unwrap(), modified, SIZE)
    }

    /// Modification time of the file in these tests, without its nanoseconds.
    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    #[test]
    fn one_range_of_bytes_selects_a_part() {
        for (range, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=0-", 0..1000),
            ("bytes=999-", 999..1000),
            ("Bytes= 10 - 19", 10..20),
            ("bytes=10-99999999999999999999999", 10..1000),
            ("bytes=-1", 999..1000),
            ("bytes=-5000", 0..1000),
        ] {
            assert_eq!(selected(&[(header::RANGE, range)]), Selection::Part(part), "{range}");
        }
    }

    #[test]
    fn a_range_beyond_the_end_is_unsatisfiable() {
        for range in ["bytes=1000-", "bytes=1000-2000", "bytes=-0", "bytes=18446744073709551616-"] {
            assert_eq!(selected(&[(header::RANGE, range)]), Selection::Unsatisfiable, "{range}");
        }
        let mut empty = HeaderMap::new();
        empty.insert(header::RANGE, HeaderValue::from_static("bytes=-5"));
        let selection = select(&empty, &Etag::new("v1").unwrap(), UNIX_EPOCH, 0);
        assert_eq!(selection, Selection::Unsatisfiable);
    }

    #[test]
    fn a_malformed_or_unsupported_range_selects_the_whole_file() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-4",
            "bytes=0-1,5-6",
            "lines=0-1",
        ] {
            assert_eq!(selected(&[(header::RANGE, range)]), Selection::Whole, "{range:?}");
        }
        let fields = [(header::RANGE, "bytes=0-1"), (header::RANGE, "bytes=5-6")];
        assert_eq!(selected(&fields), Selection::Whole);
    }

    #[test]
    fn if_range_keeps_the_range_of_the_same_version_only() {
        for (condition, same) in [
            ("\"v1\"", true),
            ("\"v0\"", false),
            ("W/\"v1\"", false),
            (MODIFIED, true),
            (BEFORE, false),
        ] {
            let headers = [(header::RANGE, "bytes=0-9"), (header::IF_RANGE, condition)];
            let wanted = if same { Selection::Part(0..10) } else { Selection::Whole };
            assert_eq!(selected(&headers), wanted, "{condition}");
        }
    }

    #[test]
    fn a_version_that_the_client_has_is_not_modified() {
        for (name, value, has) in [
            (header::IF_NONE_MATCH, "\"v0\", \"v1\"", true),
            (header::IF_NONE_MATCH, "W/\"v1\"", true),
            (header::IF_NONE_MATCH, "*", true),
            (header::IF_NONE_MATCH, "\"v0\"", false),
            (header::IF_MODIFIED_SINCE, MODIFIED, true),
            (header::IF_MODIFIED_SINCE, BEFORE, false),
            (header::IF_MODIFIED_SINCE, "yesterday", false),
        ] {
            let wanted = if has { Selection::NotModified } else { Selection::Whole };
            assert_eq!(selected(&[(name.clone(), value)]), wanted, "{name}: {value}");
        }
        let fields = [(header::IF_NONE_MATCH, "\"v0\""), (header::IF_NONE_MATCH, "\"v1\"")];
        assert_eq!(selected(&fields), Selection::NotModified);
        let both = [(header::IF_NONE_MATCH, "\"v0\""), (header::IF_MODIFIED_SINCE, MODIFIED)];
        assert_eq!(selected(&both), Selection::Whole);
    }
}
