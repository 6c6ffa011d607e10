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

/// First second that RFC 3339 cannot represent: the year 10000.
const FIRST_UNWRITABLE_SECOND: u64 = 253_402_300_800;

/// Arguments of `bootcast ls`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[arg(
        help = "Directory or file: http://HOST[:PORT]/PATH, percent-encoded, or HOST:[PORT:]/PATH as it \
                  is; port 8888 unless named"
    )]
    url: OsString,

    /// Show mode, size in bytes, last modification and the targets of links
    #[arg(short, long)]
    long: bool,

    /// Print the server's answer, in which names and targets are percent-encoded
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

/// Asks for the listing. A listing may take minutes, but a name takes seconds: that a server hangs
/// is noticed when it is asked for the name.
async fn fetch(target: &Target) -> Result<Meta, ToolError> {
    let Target { control, path } = target;
    let answer = match control.attributes(path).await {
        Ok(_) => control.meta(path, None).await,
        Err(error) => Err(error),
    };
    let failed = |error| ToolError::from(error).about(path);
    match answer {
        Ok(Some(meta)) => Ok(meta),
        // Only possible if the request names a version, which this one does not.
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

/// Names and attributes, sorted by name: the entries of a directory, or the file itself.
fn entries(target: &Target, meta: &Meta) -> Result<Vec<(Vec<u8>, Attributes)>, ToolError> {
    let Some(entries) = &meta.entries else {
        let name = target.path.file_name().unwrap_or(b"/").to_vec();
        return Ok(vec![(name, meta.attributes.clone())]);
    };
    let decoded = entries.iter().map(|entry| {
        let name = decode_segment(&entry.name).map_err(|_| garbled(&entry.name))?;
        Ok((name, entry.attributes.clone()))
    });
    let mut entries = decoded.collect::<Result<Vec<_>, ToolError>>()?;
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(entries)
}

fn decode_target(text: &str) -> Result<Vec<u8>, ToolError> {
    decode_segment(text).map_err(|_| garbled(text))
}

fn garbled(name: &str) -> ToolError {
    ToolError::Refused(format!("the server sent a malformed name: {name:?}"))
}

/// Columns that `ls -l` puts before the name, without owners, which the protocol does not know.
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

/// Time in UTC as in RFC 3339, or seconds since 1970 if that cannot represent it.
fn time(mtime: i64) -> String {
    match u64::try_from(mtime) {
        Ok(seconds) if seconds < FIRST_UNWRITABLE_SECOND => {
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
        Attributes { kind, size: 4000, mode, mtime, mtime_ns: 0, etag: None, target: None }
    }

    fn target() -> Target {
        Target::parse("head:/images/a.img".as_ref()).unwrap()
    }

    #[test]
    fn names_come_decoded_and_sorted() {
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
    fn the_long_form_reads_as_that_of_ls() {
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
    fn no_time_is_too_strange_to_be_shown() {
        assert_eq!(time(-1), "@-1");
        assert_eq!(time(253_402_300_799), "9999-12-31T23:59:59Z");
        assert_eq!(time(253_402_300_800), "@253402300800");
        assert_eq!(time(i64::MIN), format!("@{}", i64::MIN));
        assert_eq!(time(i64::MAX), format!("@{}", i64::MAX));
    }
}
