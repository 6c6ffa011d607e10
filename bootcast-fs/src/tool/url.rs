//! The argument that names a file on a server, such as `http://head:8888/images/a.img`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bootcast_proto::RemotePath;

use super::error::ToolError;
use crate::io::Control;
use crate::mount::Source;

/// A path on a server.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Client of the server's control plane.
    pub(super) control: Control,
    /// Path below the served directory.
    pub(super) path: RemotePath,
}

impl Target {
    /// Parses a URL, or the form of a mount, `HOST:[PORT:]/PATH`.
    pub(super) fn parse(text: &OsStr) -> Result<Self, ToolError> {
        let source =
            Source::parse(text, None).map_err(|error| ToolError::Usage(error.to_string()))?;
        let control = Control::new(&source.base_url())
            .map_err(|error| ToolError::Usage(error.to_string()))?;
        Ok(Self { control, path: source.path })
    }

    /// Returns the last name of the path for display.
    pub(super) fn display_name(&self) -> String {
        printable(self.path.file_name().unwrap_or(b"/"))
    }
}

/// Returns the default name of a fetched file: the last name of its path.
pub(super) fn default_file_name(path: &RemotePath) -> Result<PathBuf, ToolError> {
    // A name in a `RemotePath` is never empty and has no slash.
    let name = path.file_name().ok_or_else(|| {
        ToolError::Usage("the URL has no file name: add a path, and -O FILE for the output".into())
    })?;
    Ok(OsStr::from_bytes(name).into())
}

/// Escapes control characters and bytes that are not UTF-8, so that a terminal can show the text.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
        }
        text.extend(chunk.invalid().escape_ascii().map(char::from));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(url: &str) -> Result<PathBuf, ToolError> {
        default_file_name(&Target::parse(OsStr::new(url))?.path)
    }

    #[test]
    fn a_file_is_named_after_the_last_name_of_its_path() {
        for (url, name) in [
            ("http://head/image", &b"image"[..]),
            ("http://head:8888/dir/my%20image.img", b"my image.img"),
            ("http://head/dir/%ff%0a", b"\xff\n"),
            ("head:/dir/100%", b"100%"),
            ("head:8888:/dir/image/", b"image"),
        ] {
            assert_eq!(name_of(url).unwrap().as_os_str().as_bytes(), name, "{url}");
        }
    }

    #[test]
    fn a_url_without_a_file_name_is_wrong_usage() {
        for url in ["http://head", "http://head/", "head:/", "http://head/a%2fb", "http://head/.."]
        {
            assert_eq!(name_of(url).unwrap_err().exit_code(), 1, "{url}");
        }
        assert!(name_of("http://head/").unwrap_err().to_string().contains("-O"));
    }

    #[test]
    fn https_is_refused_by_name() {
        let error = Target::parse(OsStr::new("https://head/x")).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("https is not supported"), "{error}");
    }

    #[test]
    fn the_port_is_8888_unless_the_url_names_one() {
        let server = |url| Target::parse(OsStr::new(url)).unwrap().control.server().to_owned();
        assert_eq!(server("http://head/x"), "head:8888");
        assert_eq!(server("http://head:99/x"), "head:99");
        assert_eq!(server("[::1]:99:/x"), "[::1]:99");
    }

    #[test]
    fn a_terminal_gets_no_control_characters() {
        assert_eq!(printable("caf\u{e9} 1".as_bytes()), "caf\u{e9} 1");
        assert_eq!(printable(b"\x1b[2J\n\xff"), "\\u{1b}[2J\\n\\xff");
    }
}
