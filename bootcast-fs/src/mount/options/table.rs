//! Table of all options: name, effect and, for the options of `bootcastfs`, the line in `--help`.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::mount::MountFlags;

use super::{CacheKind, MetricsAddress, MountOptions, Offline, Passthrough, Waiting};
use crate::cache::Amount;
use crate::durations;
use crate::mount::{logging, source};
use crate::receiver::{FillPolicy, UnicastMode, Verify};

/// Effect of an option.
pub(super) enum Effect {
    /// None, with or without a value. The option is meant for mount(8) or writable file systems.
    Ignored,
    /// Changes the flags of mount(2). Takes no value.
    Flags { set: MountFlags, clear: MountFlags },
    /// Sets a field of the options. Takes no value.
    Switch(fn(&mut MountOptions)),
    /// Parses the value into a field of the options. The error describes a valid value.
    Value(fn(&mut MountOptions, &OsStr) -> Result<(), &'static str>),
}

/// Returns the name in the table and the effect of an option; `None` if it is unknown.
pub(super) fn find(name: &[u8]) -> Option<(&'static str, &'static Effect)> {
    if name.starts_with(b"x-") || name.starts_with(b"X-") {
        return Some(("x-", &Effect::Ignored));
    }
    let own = OWN_OPTIONS.iter().map(|option| (option.name, &option.effect));
    let generic = GENERIC_OPTIONS.iter().map(|(name, effect)| (*name, effect));
    own.chain(generic).find(|(known, _)| known.as_bytes() == name)
}

/// Returns the options of `bootcastfs` as a text for `--help`, one line for each.
pub fn help() -> String {
    let mut text = String::new();
    for OwnOption { name, value, help, .. } in OWN_OPTIONS {
        let usage = format!("{name}{value}");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {usage:<20}  {help}");
    }
    text
}

/// Option that is specific to `bootcastfs`, or generic but listed in its `--help`.
struct OwnOption {
    name: &'static str,
    /// Form of the value in `--help`, such as `=TIME`; empty if the option takes none.
    value: &'static str,
    help: &'static str,
    effect: Effect,
}

const fn switch(name: &'static str, help: &'static str, set: fn(&mut MountOptions)) -> OwnOption {
    OwnOption { name, value: "", help, effect: Effect::Switch(set) }
}

const fn value(
    name: &'static str,
    value: &'static str,
    help: &'static str,
    set: fn(&mut MountOptions, &OsStr) -> Result<(), &'static str>,
) -> OwnOption {
    OwnOption { name, value, help, effect: Effect::Value(set) }
}

/// Options listed in `--help`, in this order.
const OWN_OPTIONS: &[OwnOption] = &[
    switch("ro", "read-only (always)", |options| options.wants_rw = false),
    switch("rw", "mount read-only all the same, with a warning", |options| options.wants_rw = true),
    switch("allow_other", "allow access by other users", |options| {
        options.allow_other = true;
    }),
    switch("default_permissions", "let the kernel check the mode bits", |options| {
        options.default_permissions = true;
    }),
    value("uid", "=N", "owner of all files [the mounting user]", |options, text| {
        options.uid = Some(parse_number(text, 0..=u32::MAX - 1).ok_or("a user id")?);
        Ok(())
    }),
    value("gid", "=N", "group of all files [the mounting user's]", |options, text| {
        options.gid = Some(parse_number(text, 0..=u32::MAX - 1).ok_or("a group id")?);
        Ok(())
    }),
    value("umask", "=OCTAL", "permission bits to remove [0]", |options, text| {
        options.umask = Some(parse_octal(text).ok_or("octal permission bits, 0 to 777")?);
        Ok(())
    }),
    value("port", "=N", "TCP port of the server [8888]", |options, text| {
        let port = text.to_str().and_then(|text| source::parse_port(text).ok());
        options.port = Some(port.ok_or("1 to 65535")?);
        Ok(())
    }),
    value("interface", "=NAME|ADDR", "interface to receive on [by route]", |options, text| {
        options.interface = Some(parse_nonempty(text).ok_or("a name such as eth0, or an address")?);
        Ok(())
    }),
    value("cache", "=disk|memory", "where to store pages [disk]", |options, text| {
        options.cache = match text.to_str() {
            Some("disk") => CacheKind::Disk,
            Some("memory") => CacheKind::Memory,
            _ => return Err("disk or memory"),
        };
        Ok(())
    }),
    value("cache_dir", "=DIR", "directory of the disk cache", |options, text| {
        options.cache_dir = Some((!text.is_empty()).then(|| text.into()).ok_or("a directory")?);
        Ok(())
    }),
    value(
        "cache_size",
        "=SIZE|N%",
        "most that the cache takes up [50%; memory: 25%]",
        |o, text| {
            o.cache_size = Some(parse_amount(text)?);
            Ok(())
        },
    ),
    value("cache_min_free", "=SIZE|N%", "least that it leaves free on its disk [2%]", |o, text| {
        o.cache_min_free = Some(parse_amount(text)?);
        Ok(())
    }),
    value(
        "unicast",
        "=auto|never|always",
        "fetch over HTTP; auto: if multicast fails [auto]",
        |options, text| {
            options.unicast = match text.to_str() {
                Some("auto") => UnicastMode::Auto,
                Some("never") => UnicastMode::Never,
                Some("always") => UnicastMode::Always,
                _ => return Err("auto, never or always"),
            };
            Ok(())
        },
    ),
    value(
        "fill",
        "=eager|full|demand",
        "receive all pages at open, once much is read, or never [eager]",
        |options, text| {
            options.fill = match text.to_str() {
                Some("full") => FillPolicy::AfterIntent,
                Some("eager") => FillPolicy::AtOpen,
                Some("demand") => FillPolicy::Never,
                _ => return Err("eager, full or demand"),
            };
            Ok(())
        },
    ),
    value(
        "passthrough",
        "=yes|no",
        "let the kernel read the cache itself [yes]",
        |options, text| {
            options.passthrough = match text.to_str() {
                Some("yes") => Passthrough::Allowed,
                Some("no") => Passthrough::Refused,
                _ => return Err("yes or no"),
            };
            Ok(())
        },
    ),
    value("verify", "=leaf|tag", "proof that bytes need: hash, or tag [leaf]", |options, text| {
        options.verify = match text.to_str() {
            Some("leaf") => Verify::Leaf,
            Some("tag") => Verify::Tag,
            _ => return Err("leaf or tag"),
        };
        Ok(())
    }),
    value("pins", "=FILE", "open only these contents; FILE as b3sum prints it", |options, text| {
        options.pins = Some((!text.is_empty()).then(|| text.into()).ok_or("a file")?);
        Ok(())
    }),
    value("b3", "=HASH", "mount one file alone, with this content only", |options, text| {
        let id = text.to_str().and_then(|text| text.parse().ok());
        options.b3 = Some(id.ok_or("64 hexadecimal digits, as b3sum prints them")?);
        Ok(())
    }),
    switch("file", "mount the one file that the source names, whatever its content", |options| {
        options.file = true;
    }),
    value("linger", "=TIME", "how long to receive after the last close [10s]", |options, text| {
        options.linger = parse_duration(text)?;
        Ok(())
    }),
    value("attr_ttl", "=TIME", "how long to cache names and attributes [1s]", |options, text| {
        options.attr_ttl = parse_duration(text)?;
        Ok(())
    }),
    value(
        "retry",
        "=MINUTES",
        "how long to ask a server that is away [2; bg: 10000]",
        |o, text| {
            let minutes = parse_number(text, 0..=u32::MAX).ok_or("a number of minutes")?;
            o.retry = Some(Duration::from_secs(60 * u64::from(minutes)));
            Ok(())
        },
    ),
    switch("bg", "go on asking in the background", |options| options.is_background = true),
    switch("fg", "ask in the foreground (default)", |options| options.is_background = false),
    value(
        "offline",
        "=yes|no",
        "mount what the cache holds if the server is away [yes]",
        |options, text| {
            options.offline = match text.to_str() {
                Some("yes") => Offline::Allowed,
                Some("no") => Offline::Refused,
                _ => return Err("yes or no"),
            };
            Ok(())
        },
    ),
    switch("hard", "calls wait without a time limit (default)", |options| {
        options.waiting = Waiting::Hard;
    }),
    switch("soft", "calls fail with an I/O error after timeo=", |options| {
        options.waiting = Waiting::Soft;
    }),
    value(
        "timeo",
        "=TIME",
        "time limit of soft; in seconds, unlike nfs(5) [30s]",
        |options, text| {
            let limit = parse_duration(text)?;
            options.timeo = Some((!limit.is_zero()).then_some(limit).ok_or("more than 0 seconds")?);
            Ok(())
        },
    ),
    value(
        "log",
        "=FILTER",
        "log filter, such as debug or \"info,bootcast_fs=trace\" [info]",
        |options, text| {
            let filter = parse_nonempty(text).filter(|filter| logging::is_filter(filter));
            options.log = Some(filter.ok_or("a level, or targets with levels")?);
            Ok(())
        },
    ),
    switch("root_fs", "serve a root file system: stay in memory, outlive signals", |options| {
        options.root_fs = true;
    }),
    switch("keeper", "go on in a new process when this one is killed", |options| {
        options.keeper = true;
    }),
    value("metrics", "=ADDR:PORT|PATH", "answer requests of Prometheus there", |options, text| {
        let address = match text.as_bytes() {
            [b'/', _, ..] => Some(MetricsAddress::Unix(text.into())),
            _ => text.to_str().and_then(|text| text.parse().ok()).map(MetricsAddress::Tcp),
        };
        let expected = "an address with a port, such as 127.0.0.1:9555, or an absolute path";
        options.metrics = Some(address.ok_or(expected)?);
        Ok(())
    }),
    value("fsname", "=TEXT", "source to show in /proc/mounts [as typed]", |options, text| {
        options.fsname = Some((!text.is_empty()).then(|| text.into()).ok_or("a text")?);
        Ok(())
    }),
    value(
        "max_read",
        "=BYTES",
        "largest read request of the kernel [kernel default]",
        |options, text| {
            options.max_read =
                Some(parse_number(text, 4096..=u32::MAX).ok_or("4096 or more bytes")?);
            Ok(())
        },
    ),
];

/// Generic options: those of mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS", and those that
/// mount.fuse(8) may add.
const GENERIC_OPTIONS: &[(&str, Effect)] = &[
    ("defaults", flags(NONE, NOEXEC)),
    // `suid` and `dev` have no effect: mount(8) passes them to FUSE helpers even if the user did
    // not give them. The mount stays `nosuid` and `nodev`, because the owners that it shows are not
    // the owners on the server.
    ("suid", flags(NONE, NONE)),
    ("nosuid", flags(NOSUID, NONE)),
    ("dev", flags(NONE, NONE)),
    ("nodev", flags(NODEV, NONE)),
    ("exec", flags(NONE, NOEXEC)),
    ("noexec", flags(NOEXEC, NONE)),
    ("symfollow", flags(NONE, MountFlags::NOSYMFOLLOW)),
    ("nosymfollow", flags(MountFlags::NOSYMFOLLOW, NONE)),
    ("atime", flags(NONE, MountFlags::NOATIME)),
    ("noatime", flags(MountFlags::NOATIME, RELATIME.union(STRICTATIME))),
    ("relatime", flags(RELATIME, MountFlags::NOATIME.union(STRICTATIME))),
    ("norelatime", flags(NONE, RELATIME)),
    ("strictatime", flags(STRICTATIME, MountFlags::NOATIME.union(RELATIME))),
    ("nostrictatime", flags(NONE, STRICTATIME)),
    ("diratime", flags(NONE, MountFlags::NODIRATIME)),
    ("nodiratime", flags(MountFlags::NODIRATIME, NONE)),
    ("dirsync", flags(MountFlags::DIRSYNC, NONE)),
    ("async", Effect::Ignored),
    ("sync", Effect::Ignored),
    ("lazytime", Effect::Ignored),
    ("nolazytime", Effect::Ignored),
    ("iversion", Effect::Ignored),
    ("noiversion", Effect::Ignored),
    ("mand", Effect::Ignored),
    ("nomand", Effect::Ignored),
    ("silent", Effect::Ignored),
    ("loud", Effect::Ignored),
    ("auto", Effect::Ignored),
    ("noauto", Effect::Ignored),
    ("user", Effect::Ignored),
    ("nouser", Effect::Ignored),
    ("users", Effect::Ignored),
    ("nousers", Effect::Ignored),
    ("owner", Effect::Ignored),
    ("noowner", Effect::Ignored),
    ("group", Effect::Ignored),
    ("nogroup", Effect::Ignored),
    ("_netdev", Effect::Ignored),
    ("nofail", Effect::Ignored),
    ("comment", Effect::Ignored),
    ("context", Effect::Ignored),
    ("fscontext", Effect::Ignored),
    ("defcontext", Effect::Ignored),
    ("rootcontext", Effect::Ignored),
    ("subtype", Effect::Ignored),
    ("nonempty", Effect::Ignored),
];

const NONE: MountFlags = MountFlags::empty();
const NOSUID: MountFlags = MountFlags::NOSUID;
const NODEV: MountFlags = MountFlags::NODEV;
const NOEXEC: MountFlags = MountFlags::NOEXEC;
const RELATIME: MountFlags = MountFlags::RELATIME;
const STRICTATIME: MountFlags = MountFlags::STRICTATIME;

const fn flags(set: MountFlags, clear: MountFlags) -> Effect {
    Effect::Flags { set, clear }
}

/// Parses a decimal number within `range`.
fn parse_number(text: &OsStr, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
    text.to_str()?.parse().ok().filter(|number| range.contains(number))
}

/// Parses permission bits: an octal number up to 777.
fn parse_octal(text: &OsStr) -> Option<u16> {
    u16::from_str_radix(text.to_str()?, 8).ok().filter(|&bits| bits <= 0o777)
}

/// Returns the value if it is UTF-8 and not empty.
fn parse_nonempty(text: &OsStr) -> Option<String> {
    text.to_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Parses a size or a share.
fn parse_amount(text: &OsStr) -> Result<Amount, &'static str> {
    Amount::parse(text.to_str().unwrap_or_default())
}

/// Parses a time, as seconds or with units.
fn parse_duration(text: &OsStr) -> Result<Duration, &'static str> {
    durations::parse(text.to_str().unwrap_or_default())
}
