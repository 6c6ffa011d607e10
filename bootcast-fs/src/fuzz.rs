//! Entry points for fuzzing: decoders of this crate that nobody outside of it needs.
//!
//! Each takes arbitrary bytes, as a server, a disk or a user might hand them over, and must not
//! panic. docs/TESTING.md, "Fuzzing".

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use bootcast_proto::RemotePath;
use bootcast_proto::bundle::BundleInfo;
use rustix::fs::MemfdFlags;

use crate::cache::{fuzz_names, fuzz_state};
use crate::fs::{fuzz_bundle_index, fuzz_listing};
use crate::io::fuzz_message_of_holder;
use crate::journal::Journal;
use crate::mount::{MountOptions, Source};
use crate::tool::fuzz_arguments;

/// Reads the file `state` of an object in the cache.
pub fn cache_state(bytes: &[u8]) {
    fuzz_state(bytes);
}

/// Reads a names file of the cache.
pub fn cache_names(bytes: &[u8]) {
    fuzz_names(bytes);
}

/// Reads a journal whose records are these lines. What it leads to is written and read again.
pub fn journal(bytes: &[u8]) {
    let Ok(file) = journal_file(bytes) else { return };
    let Ok((_, state)) = Journal::resume(file) else { return };
    let again = Journal::fuzz_rewritten(&state);
    assert!(again.as_ref() == Some(&state), "a rewritten journal has another state");
}

fn journal_file(records: &[u8]) -> io::Result<File> {
    let file = memory_file(&Journal::fuzz_header())?;
    file.write_all_at(records, Journal::fuzz_header().len() as u64)?;
    Ok(file)
}

/// Creates a file in memory.
pub(crate) fn memory_file(bytes: &[u8]) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC)?);
    file.write_all_at(bytes, 0)?;
    Ok(file)
}

/// Parses mount options on the first line, and a source on the second.
pub fn mount_options(bytes: &[u8]) {
    let (options, source) = split_line(bytes);
    let options = MountOptions::parse(&[OsStr::from_bytes(options)]);
    let port = options.as_ref().ok().and_then(|options| options.port);
    if let Ok(source) = Source::parse(OsStr::from_bytes(source), port) {
        let url = Source::parse(OsStr::new(&source.base_url()), None);
        // A host such as `a%b` is one of a mount, but not of a URL.
        if let Ok(url) = url {
            assert!((&url.host, url.port) == (&source.host, source.port), "another server");
        }
    }
    if let Ok(options) = options {
        let _ = (options.wait_limit(), options.retry_limit(), options.budget());
    }
}

/// Parses the output of `b3sum`.
pub fn pins(bytes: &[u8]) {
    let _ = crate::fs::Pins::parse(bytes, &RemotePath::root());
}

/// Parses the index of a bundle. The first line is what the server says of the bundle.
pub fn bundle_index(bytes: &[u8]) {
    let (info, index) = split_line(bytes);
    if let Ok(info) = serde_json::from_slice::<BundleInfo>(info) {
        fuzz_bundle_index(&info, index);
    }
}

/// Converts the answer to a request for a listing.
pub fn listing(bytes: &[u8]) {
    if let Ok(meta) = serde_json::from_slice(bytes) {
        fuzz_listing(meta);
    }
}

/// Parses messages, one a line, of the process that receives a file for this one.
pub fn holder(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        fuzz_message_of_holder(line);
    }
}

/// Parses times, sizes, ranges and log filters of the command line.
pub fn arguments(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let _ = (crate::durations::parse(text), crate::sizes::parse(text));
    let _ = crate::cache::Amount::parse(text);
    let _ = crate::mount::logging::parse_filter(text);
    fuzz_arguments(text);
}

fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    (&bytes[..end], bytes.get(end + 1..).unwrap_or_default())
}
