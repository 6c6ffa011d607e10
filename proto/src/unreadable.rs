//! The header [`HEADER_UNREADABLE`], which names the parts of a file that the server cannot read.
//! docs/PROTOCOL.md, "Unreadable pages".

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::ops::Range;

use crate::ids::PageRange;

/// Response header that names unreadable pages (reports and wants) or bytes (`GET /file/`).
pub const HEADER_UNREADABLE: &str = "x-bootcast-unreadable";

/// Encodes each run as its first page, counted from 1, and its number of pages: `17+3,40+1`.
pub fn encode_pages(runs: &[PageRange]) -> String {
    let mut text = String::new();
    for &run in runs {
        let separator = if text.is_empty() { "" } else { "," };
        let (first, count) = run.into();
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}{first}+{count}");
    }
    text
}

/// Parses the output of [`encode_pages`]. Malformed runs are skipped.
pub fn decode_pages(text: &str) -> Vec<PageRange> {
    let run = |pair: &str| {
        let (first, count) = pair.trim().split_once('+')?;
        let start = first.parse::<u32>().ok()?.checked_sub(1)?;
        let end = start.checked_add(count.parse().ok()?)?;
        Some(PageRange::new(start, end)).filter(|run| !run.is_empty())
    };
    text.split(',').filter_map(run).collect()
}

/// Encodes a range as its first and its last byte: `4096-8191`. `None` for an empty range.
pub fn encode_bytes(bytes: &Range<u64>) -> Option<String> {
    let last = bytes.end.checked_sub(1).filter(|last| bytes.start <= *last)?;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(text, "{}-{last}", bytes.start);
    Some(text)
}

/// Parses the output of [`encode_bytes`]; `None` if it is malformed.
pub fn decode_bytes(text: &str) -> Option<Range<u64>> {
    let (first, last) = text.trim().split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    let end = last.checked_add(1)?;
    (first < end).then_some(first..end)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn pages_and_bytes_are_written_as_the_protocol_shows_them_and_read_back() {
        let runs = vec![PageRange::new(16, 19), PageRange::new(39, 40)];
        assert_eq!(encode_pages(&runs), "17+3,40+1");
        assert_eq!(decode_pages(" 17+3, 40+1 "), runs);
        assert_eq!(encode_bytes(&(4096..8192)).as_deref(), Some("4096-8191"));
        assert_eq!(decode_bytes("4096-8191"), Some(4096..8192));
        assert_eq!(encode_bytes(&(5..5)), None);
    }

    #[test]
    fn malformed_parts_are_skipped() {
        let malformed = "0+1,5+0,x,7,4294967295+9,+,-1+2,8+1";
        assert_eq!(decode_pages(malformed), [PageRange::new(7, 8)]);
        assert_eq!(decode_pages(""), []);
        for bytes in ["", "5", "8-7", "a-b", "0-18446744073709551615"] {
            assert_eq!(decode_bytes(bytes), None, "{bytes}");
        }
    }
}
