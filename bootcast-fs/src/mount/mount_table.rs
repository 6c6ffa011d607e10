//! Table of mounts of the kernel, which is read without a request to any of them.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Returns the minor device number of the file system that covers the mount point; `None` if it is
/// not of this type.
pub(super) fn top_minor(mountpoint: &Path, kind: &str) -> Option<u32> {
    let mountpoint = std::path::absolute(mountpoint).ok()?;
    // The last component cannot be looked at: it may be dead.
    let parent = mountpoint.parent().and_then(|parent| fs::canonicalize(parent).ok());
    let path = parent.zip(mountpoint.file_name()).map(|(parent, name)| parent.join(name))?;
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let (minor, top_kind) = top_mount(&table, &path)?;
    (top_kind == kind.as_bytes()).then_some(minor)
}

/// Minor device number and type of the file system that was mounted last at this path, by a table
/// in the form of proc(5), `mountinfo`.
fn top_mount<'a>(table: &'a [u8], path: &Path) -> Option<(u32, &'a [u8])> {
    let escaped = escape(path.as_os_str().as_bytes());
    table.split(|byte| *byte == b'\n').rev().find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2)?;
        if fields.nth(1)? != escaped {
            return None;
        }
        let minor = device.rsplit(|byte| *byte == b':').next()?;
        let minor = std::str::from_utf8(minor).ok()?.parse().ok()?;
        Some((minor, fields.skip_while(|field| *field != b"-").nth(1)?))
    })
}

/// Writes a path as the kernel's tables do: some bytes as a backslash and three octal digits.
fn escape(path: &[u8]) -> Vec<u8> {
    let escaped = path.iter().flat_map(|byte| match byte {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
        byte => vec![*byte],
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_and_type_of_a_mount_are_those_of_the_last_one_at_its_path() {
        let table = b"22 1 0:5 / /a\\040b rw,nosuid shared:7 - ext4 /dev/x rw\n\
            23 22 0:6 / /a\\040b ro - fuse.bootcastfs head:/ ro\n\
            24 1 0:7 / /a rw - tmpfs none rw\n";
        assert_eq!(top_mount(table, Path::new("/a b")), Some((6, &b"fuse.bootcastfs"[..])));
        assert_eq!(top_mount(table, Path::new("/a")), Some((7, &b"tmpfs"[..])));
        assert_eq!(top_mount(table, Path::new("/")), None);
    }
}
