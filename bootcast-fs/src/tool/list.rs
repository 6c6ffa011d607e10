//! `bootcast ls`: lists a directory.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::time::{Duration, UNIX_EPOCH};

use bootcast_proto::RemotePath;
use bootcast_proto::api::{Attributes, Kind, Meta};
use bootcast_proto::path::decode_segment;

use super::error::ToolError;
use super::stdout;
use super::url::{Target, printable};
use crate::proof::content_id;

/// First second that RFC 3339 cannot represent: the beginning of the year 10000.
const RFC_3339_END: u64 = 253_402_300_800;

/// Longest time without progress of a server that hashes a file.
const HASH_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments of `bootcast ls`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[arg(help = "Directory or file: http://HOST[:PORT]/PATH with a percent-encoded path, or \
                HOST:[PORT:]/PATH with the path as it is; port 8888 unless named")]
    url: OsString,

    /// Show mode, size in bytes, time of modification in UTC and the targets of symbolic links
    #[arg(short, long)]
    long: bool,

    /// Print the BLAKE3 hash of each file before its name, as b3sum does. The server reads each
    /// file once for it
    #[arg(long, conflicts_with_all = ["long", "json"])]
    b3: bool,

    /// Print the server's answer as JSON, with names and link targets percent-encoded
    #[arg(long, conflicts_with = "long")]
    json: bool,
}

/// Lists the directory.
pub(super) async fn run(args: Args) -> Result<(), ToolError> {
    let target = Target::parse(&args.url)?;
    let meta = fetch(&target).await?;
    if args.json {
        return stdout::print_json(&meta);
    }
    if args.b3 {
        return print_hashes(&target, &meta).await;
    }
    let mut text = Vec::new();
    for (name, attributes) in entries(&target, &meta)? {
        let mut line = if args.long { long_prefix(&attributes).into_bytes() } else { Vec::new() };
        line.extend_from_slice(&name);
        if let Some(link) = attributes.target.filter(|_| args.long) {
            line.extend_from_slice(b" -> ");
            line.extend(decode_target(&link)?);
        }
        text.extend(if io::stdout().is_terminal() { printable(&line).into_bytes() } else { line });
        text.push(b'\n');
    }
    stdout::print(&text)
}

/// Prints the hashes of all regular files in a listing, each as soon as it is known.
async fn print_hashes(target: &Target, meta: &Meta) -> Result<(), ToolError> {
    let is_directory = meta.entries.is_some();
    let entries = entries(target, meta)?;
    for (name, _) in entries.into_iter().filter(|(_, it)| it.kind == Kind::File) {
        let path = if is_directory { target.path.join(&name) } else { Ok(target.path.clone()) };
        let path = path.map_err(|_| malformed(&printable(&name)))?;
        let id = content_id(&target.control, &path, Some(HASH_TIMEOUT)).await;
        let (_, id) = id.map_err(|error| ToolError::from(error).with_path(&path))?;
        let mut line = format!("{id}  ").into_bytes();
        line.extend(if io::stdout().is_terminal() { printable(&name).into_bytes() } else { name });
        line.push(b'\n');
        stdout::print(&line)?;
    }
    Ok(())
}

/// Requests the listing, after the attributes of the path alone.
///
/// A listing may take minutes. The attributes have a short timeout, so that a server that hangs is
/// detected soon.
async fn fetch(target: &Target) -> Result<Meta, ToolError> {
    let Target { control, path } = target;
    let answer = match control.attributes(path).await {
        Ok(_) => control.meta(path, None).await,
        Err(error) => Err(error),
    };
    let failed = |error| ToolError::from(error).with_path(path);
    match answer {
        Ok(Some(meta)) => Ok(meta),
        // The server may answer so only if the request names a version, and this one does not.
        Ok(None) => Err(ToolError::Refused("the server sent no listing".into())),
        Err(error) if error.is_not_found() => match control.attributes(&RemotePath::root()).await {
            Err(error) if error.is_not_found() => Err(ToolError::Refused(format!(
                "{} is a plain server: it casts files but cannot list them",
                control.server()
            ))),
            _ => Err(failed(error)),
        },
        Err(error) => Err(failed(error)),
    }
}

/// Returns names and attributes, sorted by name: the entries of a directory, or the file itself.
fn entries(target: &Target, meta: &Meta) -> Result<Vec<(Vec<u8>, Attributes)>, ToolError> {
    let Some(entries) = &meta.entries else {
        let name = target.path.file_name().unwrap_or(b"/").to_vec();
        return Ok(vec![(name, meta.attributes.clone())]);
    };
    let decoded = entries.iter().map(|entry| {
        let name = decode_segment(&entry.name).map_err(|_| malformed(&entry.name))?;
        Ok((name, entry.attributes.clone()))
    });
    let mut entries = decoded.collect::<Result<Vec<_>, ToolError>>()?;
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(entries)
}

fn decode_target(text: &str) -> Result<Vec<u8>, ToolError> {
    decode_segment(text).map_err(|_| malformed(text))
}

fn malformed(name: &str) -> ToolError {
    ToolError::Refused(format!("the server sent a malformed name: {name:?}"))
}

/// Formats the columns that `ls -l` shows before the name. Owners are not in the protocol.
fn long_prefix(attributes: &Attributes) -> String {
    let Attributes { kind, mode, size, mtime, .. } = attributes;
    format!("{}{} {size:>14} {:>20} ", letter(*kind), permissions(*mode), time(*mtime))
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::Other => '?',
    }
}

fn permissions(mode: u32) -> String {
    let special = [(0o4000, 0o100, 's'), (0o2000, 0o010, 's'), (0o1000, 0o001, 't')];
    let mut text: Vec<char> = (0..9)
        .map(|bit| if mode & (0o400 >> bit) == 0 { '-' } else { ['r', 'w', 'x'][bit % 3] })
        .collect();
    for (at, (bit, execute, sign)) in [2, 5, 8].into_iter().zip(special) {
        if mode & bit != 0 {
            text[at] = if mode & execute == 0 { sign.to_ascii_uppercase() } else { sign };
        }
    }
    text.into_iter().collect()
}

/// Formats a time as RFC 3339 in UTC, or as seconds since 1970 if RFC 3339 cannot represent it.
fn time(mtime: i64) -> String {
    match u64::try_from(mtime) {
        Ok(seconds) if seconds < RFC_3339_END => {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            humantime::format_rfc3339_seconds(time).to_string()
        }
        _ => format!("@{mtime}"),
    }
}

#[cfg(test)]
mod tests {
    use bootcast_proto::api::Entry;
    use proptest::prelude::*;

    use super::*;

    fn attributes(kind: Kind, mode: u32, mtime: i64) -> Attributes {
        let (etag, target, allocated) = (None, None, None);
        Attributes { kind, size: 4000, mode, mtime, mtime_ns: 0, etag, target, allocated }
    }

    fn target() -> Target {
        Target::parse("head:/images/a.img".as_ref()).unwrap()
    }

    #[test]
    fn names_are_decoded_and_sorted() {
        let entry =
            |name: &str| Entry { name: name.into(), attributes: attributes(Kind::File, 0o644, 0) };
        let meta = Meta {
            attributes: attributes(Kind::Directory, 0o755, 0),
            entries: Some(vec![entry("b"), entry("a%20%ff"), entry("B")]),
        };
        let names: Vec<_> =
            entries(&target(), &meta).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [&b"B"[..], b"a \xff", b"b"]);
    }

    #[test]
    fn a_file_lists_itself() {
        let meta = Meta { attributes: attributes(Kind::File, 0o644, 0), entries: None };
        assert_eq!(entries(&target(), &meta).unwrap()[0].0, b"a.img");
    }

    #[test]
    fn the_long_form_looks_like_that_of_ls() {
        assert_eq!(
            long_prefix(&attributes(Kind::File, 0o644, 1_700_000_000)),
            "-rw-r--r--           4000 2023-11-14T22:13:20Z "
        );
        assert_eq!(permissions(0o7777), "rwsrwsrwt");
        assert_eq!(permissions(0o7000), "--S--S--T");
    }

    proptest! {
        #[test]
        fn every_time_is_shown(seconds: i64) {
            prop_assert!(!time(seconds).is_empty());
        }
    }

    #[test]
    fn times_beyond_rfc_3339_are_shown_in_seconds() {
        assert_eq!(time(-1), "@-1");
        assert_eq!(time(253_402_300_799), "9999-12-31T23:59:59Z");
        assert_eq!(time(253_402_300_800), "@253402300800");
        assert_eq!(time(i64::MIN), format!("@{}", i64::MIN));
        assert_eq!(time(i64::MAX), format!("@{}", i64::MAX));
    }
}
