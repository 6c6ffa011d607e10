//! All options: name, meaning and, for our own, the line in `--help`.

use std::ffi::OsStr;
use std::fmt::Write;
use std::time::Duration;

use rustix::mount::MountFlags;

use super::{CacheKind, MountOptions, Waiting};
use crate::durations;
use crate::mount::{logging, source};
use crate::receiver::{Fill, UnicastMode};

/// Effect of an option.
pub(super) enum Meaning {
    /// No effect, with or without a value: meant for mount(8) or for writable file systems.
    Ignored,
    /// Changes the flags for mount(2).
    Flags { set: MountFlags, clear: MountFlags },
    /// Sets a field. Takes no value.
    Switch(fn(&mut MountOptions)),
    /// Sets a field to a value. The error describes a valid value.
    Value(fn(&mut MountOptions, &OsStr) -> Result<(), &'static str>),
}

/// Finds an option; returns its name in the table and its meaning. `None` for unknown names.
pub(super) fn find(name: &[u8]) -> Option<(&'static str, &'static Meaning)> {
    if name.starts_with(b"x-") || name.starts_with(b"X-") {
        return Some(("x-", &Meaning::Ignored));
    }
    let ours = OURS.iter().map(|option| (option.name, &option.meaning));
    let generic = GENERIC.iter().map(|(name, meaning)| (*name, meaning));
    ours.chain(generic).find(|(known, _)| known.as_bytes() == name)
}

/// Text of our options for `--help`, one on each line.
pub fn help() -> String {
    let mut text = String::new();
    for Ours { name, value, help, .. } in OURS {
        let typed = format!("{name}{value}");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {typed:<20}  {help}");
    }
    text
}

/// An option of this file system, or one that it handles itself.
struct Ours {
    name: &'static str,
    /// Form of the value, such as `=SOMETHING`; empty for none.
    value: &'static str,
    help: &'static str,
    meaning: Meaning,
}

const fn switch(name: &'static str, help: &'static str, switch: fn(&mut MountOptions)) -> Ours {
    Ours { name, value: "", help, meaning: Meaning::Switch(switch) }
}

const fn value(
    name: &'static str,
    value: &'static str,
    help: &'static str,
    set: fn(&mut MountOptions, &OsStr) -> Result<(), &'static str>,
) -> Ours {
    Ours { name, value, help, meaning: Meaning::Value(set) }
}

const OURS: &[Ours] = &[
    switch("ro", "read-only (always)", |options| options.wants_rw = false),
    switch("rw", "read-only all the same, with a warning", |options| options.wants_rw = true),
    switch("allow_other", "let users other than the mounting one in", |options| {
        options.allow_other = true;
    }),
    switch("default_permissions", "let the kernel check the mode bits", |options| {
        options.default_permissions = true;
    }),
    value("uid", "=N", "owner of everything [the mounting user]", |options, text| {
        options.uid = Some(number(text, 0..=u32::MAX - 1).ok_or("a user id")?);
        Ok(())
    }),
    value("gid", "=N", "group of everything [the mounting user's]", |options, text| {
        options.gid = Some(number(text, 0..=u32::MAX - 1).ok_or("a group id")?);
        Ok(())
    }),
    value("umask", "=OCTAL", "permission bits to take away [0]", |options, text| {
        options.umask = Some(octal(text).ok_or("octal permission bits, 0 to 777")?);
        Ok(())
    }),
    value("port", "=N", "TCP port of the server [8888]", |options, text| {
        let port = text.to_str().and_then(|text| source::parse_port(text).ok());
        options.port = Some(port.ok_or("1 to 65535")?);
        Ok(())
    }),
    value("interface", "=NAME|ADDR", "interface that listens [by route]", |options, text| {
        options.interface = Some(nonempty(text).ok_or("a name such as eth0, or an address")?);
        Ok(())
    }),
    value("cache", "=disk|memory", "where pages are kept [disk]", |options, text| {
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
        "unicast",
        "=auto|never|always",
        "fetch over HTTP: without multicast [auto]",
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
        "=full|demand",
        "which pages arrive: all, or those that are read [full]",
        |options, text| {
            options.fill = match text.to_str() {
                Some("full") => Fill::Full,
                Some("demand") => Fill::Demand,
                _ => return Err("full or demand"),
            };
            Ok(())
        },
    ),
    value("linger", "=TIME", "go on receiving after the last close [10s]", |options, text| {
        options.linger = duration(text)?;
        Ok(())
    }),
    value(
        "attr_ttl",
        "=TIME",
        "believe names and attributes for this long [1s]",
        |options, text| {
            options.attr_ttl = duration(text)?;
            Ok(())
        },
    ),
    switch("hard", "readers wait until the page is there (default)", |options| {
        options.waiting = Waiting::Hard;
    }),
    switch("soft", "readers get an I/O error after timeo=", |options| {
        options.waiting = Waiting::Soft;
    }),
    value("timeo", "=TIME", "for soft, in seconds unlike nfs(5) [30s]", |options, text| {
        let limit = duration(text)?;
        options.timeo = Some((!limit.is_zero()).then_some(limit).ok_or("more than 0 seconds")?);
        Ok(())
    }),
    value(
        "log",
        "=FILTER",
        "such as debug, or \"info,bootcast_fs=trace\" [info]",
        |options, text| {
            let filter = nonempty(text).filter(|filter| logging::is_filter(filter));
            options.log = Some(filter.ok_or("a level, or targets with levels")?);
            Ok(())
        },
    ),
    value("fsname", "=TEXT", "source to show in /proc/mounts [as typed]", |options, text| {
        options.fsname = Some((!text.is_empty()).then(|| text.into()).ok_or("a text")?);
        Ok(())
    }),
    value("max_read", "=BYTES", "largest request of the kernel [its own]", |options, text| {
        options.max_read = Some(number(text, 4096..=u32::MAX).ok_or("4096 or more bytes")?);
        Ok(())
    }),
];

/// Generic options of mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS", and those that
/// mount.fuse(8) may add.
const GENERIC: &[(&str, Meaning)] = &[
    ("defaults", flags(NONE, NOEXEC)),
    // mount(8) hands `dev,suid` to the helpers of FUSE unless somebody asked for the contrary, so
    // that they say nothing about what was wanted. Owners here are invented: nothing may take
    // rights from them.
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
    ("async", Meaning::Ignored),
    ("sync", Meaning::Ignored),
    ("lazytime", Meaning::Ignored),
    ("nolazytime", Meaning::Ignored),
    ("iversion", Meaning::Ignored),
    ("noiversion", Meaning::Ignored),
    ("mand", Meaning::Ignored),
    ("nomand", Meaning::Ignored),
    ("silent", Meaning::Ignored),
    ("loud", Meaning::Ignored),
    ("auto", Meaning::Ignored),
    ("noauto", Meaning::Ignored),
    ("user", Meaning::Ignored),
    ("nouser", Meaning::Ignored),
    ("users", Meaning::Ignored),
    ("nousers", Meaning::Ignored),
    ("owner", Meaning::Ignored),
    ("noowner", Meaning::Ignored),
    ("group", Meaning::Ignored),
    ("nogroup", Meaning::Ignored),
    ("_netdev", Meaning::Ignored),
    ("nofail", Meaning::Ignored),
    ("comment", Meaning::Ignored),
    ("context", Meaning::Ignored),
    ("fscontext", Meaning::Ignored),
    ("defcontext", Meaning::Ignored),
    ("rootcontext", Meaning::Ignored),
    ("subtype", Meaning::Ignored),
    ("nonempty", Meaning::Ignored),
];

const NONE: MountFlags = MountFlags::empty();
const NOSUID: MountFlags = MountFlags::NOSUID;
const NODEV: MountFlags = MountFlags::NODEV;
const NOEXEC: MountFlags = MountFlags::NOEXEC;
const RELATIME: MountFlags = MountFlags::RELATIME;
const STRICTATIME: MountFlags = MountFlags::STRICTATIME;

const fn flags(set: MountFlags, clear: MountFlags) -> Meaning {
    Meaning::Flags { set, clear }
}

fn number(text: &OsStr, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
    text.to_str()?.parse().ok().filter(|number| range.contains(number))
}

fn octal(text: &OsStr) -> Option<u16> {
    u16::from_str_radix(text.to_str()?, 8).ok().filter(|&bits| bits <= 0o777)
}

fn nonempty(text: &OsStr) -> Option<String> {
    text.to_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn duration(text: &OsStr) -> Result<Duration, &'static str> {
    durations::parse(text.to_str().unwrap_or_default())
}
