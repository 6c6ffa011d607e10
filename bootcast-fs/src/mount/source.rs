//! Source of a mount: `head:/images` and its other forms.

use std::ffi::OsStr;
use std::fmt;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStrExt;

use bootcast_proto::path::PathError;
use bootcast_proto::{DEFAULT_PORT, RemotePath};

/// Directory of a server, or file with `b3=`, as named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Name or address of the server; an IPv6 address has no brackets here.
    pub host: String,
    /// TCP port of the server's control plane.
    pub port: u16,
    /// Path of the directory or file, relative to the directory that the server serves.
    pub path: RemotePath,
}

/// Reason why a text is not a valid source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The text has none of the accepted forms.
    #[error(
        "{0:?} is not a source: expected HOST:/PATH, HOST:PORT:/PATH, [IPV6]:/PATH or \
         http://HOST[:PORT]/PATH"
    )]
    Form(String),
    /// The source is an HTTPS URL, but the control plane speaks plain HTTP.
    #[error("{0:?}: https is not supported, use http:// or HOST:/PATH")]
    Https(String),
    /// The port is empty, or not a number from 1 to 65535.
    #[error("{0:?} is not a port: expected 1 to 65535")]
    Port(String),
    /// Source and options name different ports.
    #[error("the source has port {in_source}, but -o port= has {in_options}: give only one")]
    ConflictingPorts {
        /// Port after the host in the source.
        in_source: u16,
        /// Value of `-o port=`.
        in_options: u16,
    },
    /// The path is malformed.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl Source {
    /// Parses any of the accepted forms. `port_option` is the value of `-o port=`.
    ///
    /// The path after `HOST:` is taken byte for byte; in a URL it is percent-encoded.
    pub fn parse(text: &OsStr, port_option: Option<u16>) -> Result<Self, SourceError> {
        let bytes = text.as_bytes();
        let malformed = || SourceError::Form(text.to_string_lossy().into_owned());
        if strip_scheme(bytes, "https://").is_some() {
            return Err(SourceError::Https(text.to_string_lossy().into_owned()));
        }
        let (authority, path) = match strip_scheme(bytes, "http://") {
            Some(rest) => split_url(rest).ok_or_else(malformed)?,
            None => split_mount_form(bytes).ok_or_else(malformed)?,
        };
        let (host, port_text) = split_authority(authority).ok_or_else(malformed)?;
        let in_source = port_text.map(parse_port).transpose()?;
        let path = match path {
            PathText::Raw(bytes) => parse_raw_path(bytes)?,
            PathText::Encoded(text) => RemotePath::decode(text)?,
        };
        Ok(Self { host: host.to_owned(), port: resolve_port(in_source, port_option)?, path })
    }

    /// Returns the base URL of the control plane, without a trailing slash.
    pub fn base_url(&self) -> String {
        format!("http://{}:{}", Bracketed(&self.host), self.port)
    }
}

impl fmt::Display for Source {
    /// Writes the shortest form, such as `head:/images`. Bytes that are not UTF-8 become
    /// `\u{fffd}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", Bracketed(&self.host))?;
        if self.port != DEFAULT_PORT {
            write!(f, "{}:", self.port)?;
        }
        write!(f, "/{}", String::from_utf8_lossy(self.path.as_bytes()))
    }
}

/// Host as written before a port: an IPv6 address gets brackets.
struct Bracketed<'a>(&'a str);

impl fmt::Display for Bracketed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(self.0) }
    }
}

/// Path of a source as typed.
enum PathText<'a> {
    /// Bytes of the path itself, from the form `HOST:/PATH`.
    Raw(&'a [u8]),
    /// Percent-encoded path of a URL.
    Encoded(&'a str),
}

/// Removes a URL scheme, in upper or lower case. Returns `None` if the text has another one.
fn strip_scheme<'a>(bytes: &'a [u8], scheme: &str) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(scheme.len())?;
    head.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
}

/// Splits the part after `http://` into authority and path.
fn split_url(rest: &[u8]) -> Option<(&str, PathText<'_>)> {
    let rest = str::from_utf8(rest).ok().filter(|rest| !rest.contains(['?', '#']))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    Some((authority, PathText::Encoded(path)))
}

/// Splits `HOST[:PORT]:/PATH` into authority and path.
fn split_mount_form(bytes: &[u8]) -> Option<(&str, PathText<'_>)> {
    let colon = bytes.windows(2).position(|pair| pair == b":/")?;
    let authority = str::from_utf8(&bytes[..colon]).ok()?;
    Some((authority, PathText::Raw(&bytes[colon + 1..])))
}

/// Splits `HOST[:PORT]` into the host, without brackets, and the text of the port.
fn split_authority(authority: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, tail) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        return match tail.strip_prefix(':') {
            Some(port) => Some((host, Some(port))),
            None => tail.is_empty().then_some((host, None)),
        };
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!host.is_empty() && host.bytes().all(is_host_byte)).then_some((host, port))
}

/// Parses a port: a decimal number from 1 to 65535, without a sign.
pub fn parse_port(text: &str) -> Result<u16, SourceError> {
    let port = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok());
    port.flatten().filter(|&port| port != 0).ok_or_else(|| SourceError::Port(text.to_owned()))
}

/// Returns the port of the source or of the options, or the default port.
fn resolve_port(in_source: Option<u16>, in_options: Option<u16>) -> Result<u16, SourceError> {
    match (in_source, in_options) {
        (Some(in_source), Some(in_options)) if in_source != in_options => {
            Err(SourceError::ConflictingPorts { in_source, in_options })
        }
        _ => Ok(in_source.or(in_options).unwrap_or(DEFAULT_PORT)),
    }
}

/// Parses a path that is not percent-encoded. Skips empty names and `.`; refuses `..`.
fn parse_raw_path(bytes: &[u8]) -> Result<RemotePath, PathError> {
    bytes
        .split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .try_fold(RemotePath::root(), |path, name| path.join(name))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Source, SourceError> {
        Source::parse(OsStr::new(text), None)
    }

    #[test]
    fn every_accepted_form_is_parsed() {
        for (text, host, port, path) in [
            ("head:/images", "head", 8888, "images"),
            ("head:/", "head", 8888, ""),
            ("head:9999:/images/", "head", 9999, "images"),
            ("192.0.2.1:/a/b", "192.0.2.1", 8888, "a/b"),
            ("[2001:db8::1]:/images", "2001:db8::1", 8888, "images"),
            ("[2001:db8::1]:9999:/images", "2001:db8::1", 9999, "images"),
            ("http://head:9999/images", "head", 9999, "images"),
            ("HTTP://head/a%20b", "head", 8888, "a b"),
            ("http://[::1]:9999", "::1", 9999, ""),
            ("head:/a:/b", "head", 8888, "a:/b"),
            ("head:/100%", "head", 8888, "100%"),
        ] {
            let source = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((source.host.as_str(), source.port), (host, port), "{text}");
            assert_eq!(source.path.as_bytes(), path.as_bytes(), "{text}");
        }
    }

    #[test]
    fn the_error_for_any_other_form_lists_the_accepted_ones() {
        for text in [
            "",
            "head",
            ":/x",
            "head:images",
            "/images",
            "a b:/x",
            "::1:/x",
            "[::1]x:/x",
            "[head]:/x",
            "user@head:/x",
            "http://",
            "http:///x",
            "http://head/x?y",
            "http://head/x#y",
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error, SourceError::Form(text.to_owned()));
            assert!(error.to_string().contains("HOST:/PATH"));
        }
    }

    #[test]
    fn https_has_an_error_of_its_own() {
        assert!(matches!(parse("https://head/x"), Err(SourceError::Https(_))));
    }

    #[test]
    fn a_port_is_a_number_from_1_to_65535() {
        for text in ["head:0:/", "head:65536:/", "head::/", "head:+80:/", "http://head:x/"] {
            assert!(matches!(parse(text), Err(SourceError::Port(_))), "{text}");
        }
    }

    #[test]
    fn a_path_with_dot_dot_is_refused() {
        assert_eq!(parse("head:/../x"), Err(SourceError::Path(PathError::DotDot)));
        assert_eq!(parse("http://head/%2e%2e"), Err(SourceError::Path(PathError::DotDot)));
    }

    #[test]
    fn ports_of_source_and_options_must_be_equal() {
        let parse = |text: &str, port| Source::parse(OsStr::new(text), Some(port));
        assert_eq!(parse("head:/", 9999).unwrap().port, 9999);
        assert_eq!(parse("head:9999:/", 9999).unwrap().port, 9999);
        let conflict = SourceError::ConflictingPorts { in_source: 9999, in_options: 8888 };
        assert_eq!(parse("head:9999:/", 8888), Err(conflict));
    }

    #[test]
    fn the_url_and_the_short_form_are_canonical() {
        let source = parse("http://[::1]:9999/a%20b").unwrap();
        assert_eq!(source.base_url(), "http://[::1]:9999");
        assert_eq!(source.to_string(), "[::1]:9999:/a b");
        assert_eq!(parse("head:8888:/images").unwrap().to_string(), "head:/images");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Source::parse(&OsString::from_vec(bytes), None);
        }

        #[test]
        fn texts_similar_to_a_source_do_not_panic(
            text in "(http://)?(\\[?[a-f0-9.:]{0,6}\\]?)?:?[0-9]{0,6}:?/?[%/.a\u{e9}]{0,8}"
        ) {
            let _ = parse(&text);
        }

        #[test]
        fn a_name_of_any_bytes_is_kept(name in proptest::collection::vec(1u8..=255, 1..40)) {
            prop_assume!(!name.contains(&b'/') && name != b"." && name != b"..");
            let text = OsString::from_vec([b"head:/", name.as_slice()].concat());
            let source = Source::parse(&text, None).unwrap();
            prop_assert_eq!(source.path.as_bytes(), name);
        }

        #[test]
        fn the_short_form_parses_to_the_same_source(
            host in "[a-z][a-z0-9.-]{0,9}",
            port in 1u16..,
            path in "[a-z:%/]{0,9}"
        ) {
            let source = parse(&format!("{host}:{port}:/{path}")).unwrap();
            prop_assert_eq!(parse(&source.to_string()).unwrap(), source);
        }
    }
}
