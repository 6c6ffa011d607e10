//! Identifiers of pages, memberships and versions of a file.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

/// Position of a page in its file, counted from 0. (Datagrams count pages from 1.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u32);

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Run of consecutive pages, from `start` to the page before `end`.
///
/// In a message it is a pair: its first page, counted from 1, and its number of pages. Pages that
/// cannot exist, 0 and those above [`u32::MAX`], are left out when a pair is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct PageRange {
    /// First page.
    pub start: PageIndex,
    /// Page after the last one.
    pub end: PageIndex,
}

impl PageRange {
    /// Creates the range `start..end`; empty if `end` is not above `start`.
    pub fn new(start: u32, end: u32) -> Self {
        Self { start: PageIndex(start), end: PageIndex(end.max(start)) }
    }

    /// Range of one page.
    pub fn single(page: PageIndex) -> Self {
        Self::new(page.0, page.0.saturating_add(1))
    }

    /// Number of pages.
    pub fn len(self) -> u32 {
        self.end.0 - self.start.0
    }

    /// Whether the range has no page.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether `page` lies in the range.
    pub fn contains(self, page: PageIndex) -> bool {
        self.start <= page && page < self.end
    }

    /// Iterates over the pages, ascending.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = PageIndex> + ExactSizeIterator {
        (self.start.0..self.end.0).map(PageIndex)
    }
}

impl From<(u32, u32)> for PageRange {
    fn from((first, count): (u32, u32)) -> Self {
        let end = (u64::from(first) + u64::from(count)).saturating_sub(1);
        Self::new(first.saturating_sub(1), u32::try_from(end).unwrap_or(u32::MAX))
    }
}

impl From<PageRange> for (u32, u32) {
    fn from(run: PageRange) -> Self {
        (run.start.0.saturating_add(1), run.len())
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Identifies one membership of one client in one cast. Opaque to clients: 1 to 128 visible ASCII
/// characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(String);

/// Error: the text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token is 1 to 128 visible ASCII characters")]
pub struct TokenError;

impl Token {
    /// Creates a token from 128 random bits, written in hex. Servers use this.
    pub fn from_random(bits: u128) -> Self {
        Self(alloc::format!("{bits:032x}"))
    }

    /// Parses a token that the other end sent.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if visible && (1..=128).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(TokenError)
        }
    }

    /// Text of the token, as in the join answer and the header `X-TOKEN`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Version of a file. It changes whenever the content may have changed.
///
/// 1 to 128 characters of `[0-9A-Za-z._-]`, without the quotes of the HTTP header.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Etag(String);

/// Error: the text is not a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a version is 1 to 128 characters of 0-9 A-Z a-z . _ -")]
pub struct EtagError;

impl Etag {
    /// Creates a version after checking its characters and length.
    pub fn new(text: &str) -> Result<Self, EtagError> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=128).contains(&text.len()) && text.bytes().all(known) {
            Ok(Self(text.to_owned()))
        } else {
            Err(EtagError)
        }
    }

    /// Parses the HTTP form, `"version"` (RFC 9110, 8.8.3). Refuses weak validators: they do not
    /// promise equal bytes.
    pub fn from_header(value: &str) -> Result<Self, EtagError> {
        let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        Self::new(inner.ok_or(EtagError)?)
    }

    /// HTTP form of the version, in quotes.
    pub fn to_header(&self) -> String {
        alloc::format!("\"{}\"", self.0)
    }

    /// Text of the version, without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Etag {
    type Error = EtagError;

    fn try_from(text: String) -> Result<Self, EtagError> {
        Self::new(&text)
    }
}

impl From<Etag> for String {
    fn from(etag: Etag) -> Self {
        etag.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_32_hex_digits_and_reads_back() {
        let token = Token::from_random(0xdead_beef);
        assert_eq!(token.as_str(), "000000000000000000000000deadbeef");
        assert_eq!(Token::parse(token.as_str()), Ok(token));
    }

    #[test]
    fn a_token_with_a_line_break_or_a_space_is_refused() {
        for bad in ["", "a b", "a\nb", "\u{e9}"] {
            assert_eq!(Token::parse(bad), Err(TokenError), "{bad:?}");
        }
    }

    #[test]
    fn an_etag_reads_back_from_its_header_form() {
        let etag = Etag::new("1a-2b.3c_4").unwrap();
        assert_eq!(Etag::from_header(&etag.to_header()), Ok(etag));
        assert_eq!(Etag::from_header("W/\"1a\""), Err(EtagError));
        assert_eq!(Etag::from_header("1a"), Err(EtagError));
    }

    #[test]
    fn a_pair_of_a_message_is_the_run_of_the_pages_that_can_exist() {
        for (pair, start, end) in [
            ((1, 1), 0, 1),
            ((17, 3), 16, 19),
            ((17, 0), 16, 16),
            ((u32::MAX, 1), u32::MAX - 1, u32::MAX),
        ] {
            let run = PageRange::new(start, end);
            assert_eq!((PageRange::from(pair), <(u32, u32)>::from(run)), (run, pair));
        }
        // There is no page 0.
        assert_eq!(PageRange::from((0, 3)), PageRange::new(0, 2));
        assert!(PageRange::from((0, 0)).is_empty() && PageRange::from((0, 1)).is_empty());
        let beyond = PageRange::from((u32::MAX, u32::MAX));
        assert_eq!(beyond, PageRange::new(u32::MAX - 1, u32::MAX));
    }

    #[test]
    fn a_reversed_page_range_is_empty() {
        assert!(PageRange::new(5, 3).is_empty());
        assert_eq!(
            PageRange::new(3, 5).iter().collect::<std::vec::Vec<_>>(),
            [PageIndex(3), PageIndex(4)]
        );
    }
}
