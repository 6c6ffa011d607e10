//! Entry points for fuzzing: decoders of this crate that nobody outside of it needs.
//!
//! Each takes arbitrary bytes, as a client or a disk might hand them over, and must not panic.
//! docs/TESTING.md, "Fuzzing".

/// Selects a part of a file by the header of a request. The first line is the size of the file.
pub fn http_range(bytes: &[u8]) {
    crate::api::fuzz_range(bytes);
}

/// Reads the target of a request: its path behind the endpoint, and its query.
pub fn http_target(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        crate::api::fuzz_target(text);
    }
}

/// Reads files of the state directory.
pub fn state_dir(bytes: &[u8]) {
    crate::io::state_dir::fuzz(bytes);
}
