//! Programs that read from a mount, each in its own way.

use std::fs::File;
use std::path::Path;

use harness::{Host, Lab, MountProc, Proc, ServerProc};

use crate::text;

/// Python program that copies a whole file through a shared mapping.
const MAP_AND_COPY: &str = "
import mmap, sys
with open(sys.argv[1], 'rb') as source, open(sys.argv[2], 'wb') as copy:
    copy.write(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ))
";

/// Python program that reads the last byte of a file through a shared mapping.
const MAP_LAST_BYTE: &str = "
import mmap, sys
with open(sys.argv[1], 'rb') as source:
    print(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)[-1])
";

/// Opens the served file `image` on the mounts of clients 1, 2, .. while multicast is held back.
/// When this returns, all clients are members, and at most one page was sent before that.
pub(crate) fn open_together(
    lab: &Lab,
    server: &ServerProc<'_>,
    mounts: &[MountProc<'_>],
) -> Vec<File> {
    let valve = lab.hold_multicast_after(0);
    let open = mounts.iter().map(|mount| File::open(mount.join("image")).unwrap()).collect();
    lab.wait_members(server, "image", 1..=mounts.len());
    valve.open();
    open
}

/// Copies a file with `cp`.
pub(crate) fn copy(host: &Host, from: &Path, to: &Path) -> Proc {
    host.spawn("cp", [from, to])
}

/// Copies a file with `dd`, in blocks of an odd size.
pub(crate) fn copy_with_dd(host: &Host, from: &Path, to: &Path) -> Proc {
    host.spawn("dd", [format!("if={}", text(from)), format!("of={}", text(to)), "bs=70001".into()])
}

/// Copies a file through a mapping of the whole file.
pub(crate) fn copy_with_mmap(host: &Host, from: &Path, to: &Path) -> Proc {
    host.spawn("python3", ["-c", MAP_AND_COPY, text(from), text(to)])
}

/// Maps a file and causes a page fault at its end.
pub(crate) fn fault_at_end(host: &Host, path: &Path) -> Proc {
    host.spawn("python3", ["-c", MAP_LAST_BYTE, text(path)])
}

/// Number of bytes that [`read_at`] reads. At [`CRAWL`](crate::CRAWL) they take two seconds even if
/// they are demanded.
pub(crate) const READ_LEN: u64 = 256 << 10;

/// Reads [`READ_LEN`] bytes at `offset`, a multiple of 4096.
pub(crate) fn read_at(host: &Host, path: &Path, offset: u64) -> Proc {
    dd_at(host, path, offset, "skip_bytes")
}

/// Like [`read_at`], but bypasses the page cache.
pub(crate) fn read_direct_at(host: &Host, path: &Path, offset: u64) -> Proc {
    dd_at(host, path, offset, "skip_bytes,direct")
}

fn dd_at(host: &Host, path: &Path, offset: u64, flags: &str) -> Proc {
    let (from, skip) = (format!("if={}", text(path)), format!("skip={offset}"));
    let (flags, bs) = (format!("iflag={flags}"), format!("bs={READ_LEN}"));
    host.spawn("dd", [from.as_str(), "of=/dev/null", &bs, "count=1", &skip, &flags])
}
