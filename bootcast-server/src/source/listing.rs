//! Reads attributes and directory listings in the form of `/meta/`. docs/PROTOCOL.md, "Meta".

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use bootcast_proto::Etag;
use bootcast_proto::api::{Attributes, Entry, Kind, Meta};
use bootcast_proto::path::encode_name;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::{Version, version::image_mount};

/// Reads the attributes of the file behind an `O_PATH` descriptor. The `etag` of a directory covers
/// its own attributes only: these change when names come or go, not with attributes of entries.
pub(super) fn own_attributes(
    located: BorrowedFd<'_>,
    announced: &dyn Fn(Version) -> Version,
) -> Result<Attributes, Errno> {
    let stat = rustix::fs::fstat(located)?;
    let mut version = Version::of_file(located)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        version = announced(version);
    }
    let mut attributes = attributes(&stat, version);
    match attributes.kind {
        Kind::Directory => attributes.etag = Some(Version::of_stat(&stat, None).etag()),
        Kind::Symlink => attributes.target = Some(target(located, "")?),
        Kind::File | Kind::Other => {}
    }
    Ok(attributes)
}

/// Reads the attributes of the directory behind an `O_PATH` descriptor, and of its entries. Its
/// `etag` covers both. `announced` returns the version that is announced for a file of this name
/// and present version.
pub(super) fn list(
    directory: BorrowedFd<'_>,
    announced: &dyn Fn(&[u8], Version) -> Version,
) -> Result<Meta, Errno> {
    let stat = rustix::fs::fstat(directory)?;
    let mut attributes = attributes(&stat, Version::of_stat(&stat, None));
    let mut entries = entries(directory, announced)?;
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    attributes.etag = Some(listing_etag(&stat, &entries));
    Ok(Meta { attributes, entries: Some(entries) })
}

/// Reads the entries of a directory. Omits those that vanish meanwhile or cannot be examined.
fn entries(
    directory: BorrowedFd<'_>,
    announced: &dyn Fn(&[u8], Version) -> Version,
) -> Result<Vec<Entry>, Errno> {
    let mount = image_mount(directory)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = rustix::fs::openat(directory, ".", flags, Mode::empty())?;
    let mut entries = Vec::new();
    for entry in Dir::read_from(&readable)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        if matches!(entry.file_type(), FileType::Directory | FileType::Unknown)
            && let Some(attributes) = mounted_attributes(&readable, name)
        {
            entries.push(Entry { name: encode_name(name.to_bytes()), attributes });
            continue;
        }
        let Ok(stat) = rustix::fs::statat(&readable, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let mut version = Version::of_stat(&stat, mount);
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            version = announced(name.to_bytes(), version);
        }
        let mut attributes = attributes(&stat, version);
        if attributes.kind == Kind::Symlink {
            let Ok(target) = target(directory, name) else { continue };
            attributes.target = Some(target);
        }
        entries.push(Entry { name: encode_name(name.to_bytes()), attributes });
    }
    Ok(entries)
}

/// Returns the attributes of a directory that another file system is mounted on, from the kernel's
/// cache; `None` if `name` is not such a mount point. The mounted file system is not queried,
/// because one that hangs would block the listing of the directory around it.
fn mounted_attributes(directory: &OwnedFd, name: &CStr) -> Option<Attributes> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS).ok()?;
    let kind = FileType::from_raw_mode(stat.stx_mode.into());
    let is_mounted = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    (is_mounted && kind == FileType::Directory).then(|| Attributes {
        kind: Kind::Directory,
        size: 0,
        mode: u32::from(stat.stx_mode) & 0o7777,
        mtime: stat.stx_mtime.tv_sec,
        mtime_ns: stat.stx_mtime.tv_nsec,
        etag: None,
        target: None,
        allocated: None,
    })
}

fn attributes(stat: &Stat, version: Version) -> Attributes {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    };
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let allocated = u64::try_from(stat.st_blocks).ok().and_then(|blocks| blocks.checked_mul(512));
    Attributes {
        kind,
        size: if matches!(kind, Kind::File | Kind::Symlink) { size } else { 0 },
        mode: stat.st_mode & 0o7777,
        mtime: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        etag: (kind == Kind::File).then(|| version.etag()),
        target: None,
        allocated: allocated.filter(|bytes| kind == Kind::File && *bytes < size),
    }
}

/// Reads the target of a symbolic link, percent-encoded. An empty name means the link `at` itself.
fn target<P: rustix::path::Arg>(at: BorrowedFd<'_>, name: P) -> Result<String, Errno> {
    let target = rustix::fs::readlinkat(at, name, Vec::new())?;
    Ok(encode_name(target.as_bytes()))
}

/// Derives the version of a listing. It changes whenever the listing does. `entries` must be sorted
/// by name.
fn listing_etag(directory: &Stat, entries: &[Entry]) -> Etag {
    let mut hasher = blake3::Hasher::new();
    let own = attributes(directory, Version::of_stat(directory, None));
    let mut line = |name: &str, attributes: &Attributes| {
        // Without `allocated`, which says nothing of the content.
        let Attributes { kind, size, mode, mtime, mtime_ns, etag, target, .. } = attributes;
        let etag = etag.as_ref().map_or("", Etag::as_str);
        let target = target.as_deref().unwrap_or("");
        let text = format!("{name} {kind:?} {size} {mode} {mtime} {mtime_ns} {etag} {target}\n");
        hasher.update(text.as_bytes());
    };
    line(".", &own);
    for entry in entries {
        line(&entry.name, &entry.attributes);
    }
    let hex = hasher.finalize().to_hex();
    Etag::new(&hex[..32]).expect("hex digits")
}
