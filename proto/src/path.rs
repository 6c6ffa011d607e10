//! Paths below the served directory. Names may have any bytes; URLs carry them percent-encoded.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// ASCII characters that are encoded in a path segment: all but the unreserved ones of RFC 3986,
/// section 2.3.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Longest decoded path in bytes: the kernel's `PATH_MAX`.
const MAX_LEN: usize = 4096;

/// Path of a file or directory, relative to the served directory.
///
/// A list of names of any bytes but `/` and NUL; the empty list is the served directory itself. No
/// name is empty, `.` or `..`, so only a symbolic link on the way can lead out of the served
/// directory; the server must refuse those.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemotePath {
    /// Names joined by `/`, no slash at either end.
    bytes: Vec<u8>,
}

/// Reason why a text is not a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A `%` is not followed by two hex digits.
    #[error("malformed path: '%' must be followed by two hex digits")]
    Escape,
    /// A name is `..`.
    #[error("malformed path: '..' is not allowed")]
    DotDot,
    /// A name is empty or `.`, or contains an encoded `/` or NUL.
    #[error("malformed path: a name cannot contain '/' or NUL")]
    Separator,
    /// The decoded path is longer than the kernel's `PATH_MAX`.
    #[error("malformed path: longer than {MAX_LEN} bytes")]
    TooLong,
}

impl RemotePath {
    /// Path of the served directory itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Parses a URL path such as `a/b%20c`. Empty names and `.` are skipped.
    pub fn decode(text: &str) -> Result<Self, PathError> {
        let mut path = Self::root();
        for segment in text.split('/') {
            let name = decode_segment(segment)?;
            if !name.is_empty() && name != b"." {
                path.push(&name)?;
            }
        }
        Ok(path)
    }

    /// Percent-encoded form for URLs, without a leading slash.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        for name in self.names() {
            if !text.is_empty() {
                text.push('/');
            }
            text.push_str(&encode_name(name));
        }
        text
    }

    /// Path of the entry `name` in this directory.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        let mut path = self.clone();
        path.push(name)?;
        Ok(path)
    }

    fn push(&mut self, name: &[u8]) -> Result<(), PathError> {
        if name == b".." {
            return Err(PathError::DotDot);
        }
        if name.is_empty() || name == b"." || name.iter().any(|&byte| byte == b'/' || byte == 0) {
            return Err(PathError::Separator);
        }
        let slash = usize::from(!self.is_root());
        if self.bytes.len() + slash + name.len() > MAX_LEN {
            return Err(PathError::TooLong);
        }
        self.bytes.extend_from_slice(&b"/"[..slash]);
        self.bytes.extend_from_slice(name);
        Ok(())
    }

    /// Whether this is the served directory itself.
    pub fn is_root(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Names of the path, outermost first.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
    }

    /// Last name of the path; `None` for the served directory.
    pub fn file_name(&self) -> Option<&[u8]> {
        self.names().last()
    }

    /// Path of the parent directory; `None` for the served directory.
    pub fn parent(&self) -> Option<Self> {
        let (last, bytes) = (self.file_name()?.len(), &self.bytes);
        let len = (bytes.len() - last).saturating_sub(1);
        Some(Self { bytes: bytes[..len].into() })
    }

    /// Decoded names joined by `/`, as `openat2` takes them. Empty for the served directory.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Display for RemotePath {
    /// Writes the URL form with a leading slash.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.encode())
    }
}

/// Percent-encodes one name, for URLs and JSON.
pub fn encode_name(name: &[u8]) -> String {
    alloc::string::ToString::to_string(&percent_encode(name, ENCODED))
}

/// Decodes one percent-encoded name.
pub fn decode_segment(segment: &str) -> Result<Vec<u8>, PathError> {
    let bytes = segment.as_bytes();
    for (at, _) in segment.match_indices('%') {
        let digits = bytes.get(at + 1..at + 3).ok_or(PathError::Escape)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(PathError::Escape);
        }
    }
    Ok(percent_decode_str(segment).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_that_would_leave_the_directory_is_refused() {
        for bad in ["..", "a/../b", "%2e%2e/etc", "a/%2E%2e"] {
            assert_eq!(RemotePath::decode(bad), Err(PathError::DotDot), "{bad}");
        }
        for bad in ["%2fetc/passwd", "a%2F..%2fb", "a%00b"] {
            assert_eq!(RemotePath::decode(bad), Err(PathError::Separator), "{bad}");
        }
    }

    #[test]
    fn a_broken_escape_is_refused() {
        for bad in ["%", "%4", "%zz", "a%", "%\u{e9}1"] {
            assert_eq!(RemotePath::decode(bad), Err(PathError::Escape), "{bad}");
        }
    }

    #[test]
    fn empty_names_and_single_dots_are_skipped() {
        let path = RemotePath::decode("//a/./b%20c//").unwrap();
        assert_eq!(path.as_bytes(), b"a/b c");
        assert_eq!(path.encode(), "a/b%20c");
        assert_eq!(path.file_name(), Some(&b"b c"[..]));
        assert!(RemotePath::decode("/").unwrap().is_root());
        assert_eq!(RemotePath::root().parent(), None);
    }

    #[test]
    fn a_path_longer_than_path_max_is_refused() {
        let deep = RemotePath::decode(&"a/".repeat(MAX_LEN / 2)).unwrap();
        assert_eq!(deep.as_bytes().len(), MAX_LEN - 1);
        assert_eq!(deep.join(b"b"), Err(PathError::TooLong));
        assert_eq!(RemotePath::decode(&"a/".repeat(MAX_LEN)), Err(PathError::TooLong));
        let encoded = "%61".repeat(MAX_LEN);
        assert!(RemotePath::decode(&encoded).is_ok());
        assert_eq!(RemotePath::decode(&(encoded + "a")), Err(PathError::TooLong));
    }

    proptest! {
        #[test]
        fn any_name_reads_back_from_its_url(name in proptest::collection::vec(1u8..=255, 1..40)) {
            prop_assume!(!name.contains(&b'/') && name != b"." && name != b"..");
            let path = RemotePath::root().join(b"dir").unwrap().join(&name).unwrap();
            prop_assert_eq!(path.parent(), Some(RemotePath::decode("dir").unwrap()));
            prop_assert_eq!(path.parent().unwrap().parent(), Some(RemotePath::root()));
            prop_assert_eq!(RemotePath::decode(&path.encode()).unwrap(), path);
        }

        #[test]
        fn no_text_panics_or_keeps_a_dot_name(text in "\\PC{0,40}") {
            if let Ok(path) = RemotePath::decode(&text) {
                prop_assert!(path.names().all(|name| name != b".." && name != b"."));
            }
        }
    }
}
