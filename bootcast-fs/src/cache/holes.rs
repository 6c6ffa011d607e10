//! Zeros that need not be written, because the file has a hole there.

use std::fs::File;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::fs::{FallocateFlags, SeekFrom};

/// Minimum length of zeros between other bytes of a run for which the run is written in two parts.
/// It has whole blocks of a file system in it.
const MIN_ZEROS: usize = 16 << 10;
/// Blocks that can be freed are multiples of this, or of a part of it.
const BLOCK: u64 = 4096;

/// A part of a run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Number of slices.
    pub(super) slices: usize,
    /// Length in bytes.
    pub(super) len: usize,
    /// Whether all bytes are 0.
    pub(super) is_zeros: bool,
}

/// Returns the part that a run begins with: zeros up to the next other byte, or everything up to
/// the next zeros of at least [`MIN_ZEROS`]. Zeros to the end of the run may be shorter.
pub(super) fn first_part(run: &[IoSlice<'_>]) -> Part {
    let part = |slices: usize, is_zeros| {
        let len = run[..slices].iter().map(|slice| slice.len()).sum();
        Part { slices, len, is_zeros }
    };
    let zeros = run.iter().take_while(|slice| is_zeros(slice)).count();
    if zeros == run.len() || part(zeros, true).len >= MIN_ZEROS {
        return part(zeros, true);
    }
    let (mut start, mut len) = (0, 0);
    for (at, slice) in run.iter().enumerate() {
        if !is_zeros(slice) {
            (start, len) = (at + 1, 0);
            continue;
        }
        len += slice.len();
        if len >= MIN_ZEROS {
            return part(start, false);
        }
    }
    part(run.len(), false)
}

/// Whether the file has a hole of `len` bytes at `offset`, which reads as zeros.
pub(super) fn is_hole(file: &File, offset: u64, len: usize) -> bool {
    let end = offset + len as u64;
    let is_free_of_data = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data >= end,
        // There is no data behind. Other errors: the file system knows no holes.
        Err(errno) => errno == rustix::io::Errno::NXIO,
    };
    // Behind the end of the file nothing can be read.
    is_free_of_data && file.metadata().is_ok_and(|it| it.len() >= end)
}

/// Returns the first of these bytes that are in no hole; `None` if all are.
pub(super) fn first_data(file: &File, bytes: &Range<u64>) -> Option<Range<u64>> {
    if bytes.is_empty() {
        return None;
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(bytes.start)) {
        Ok(data) => data,
        Err(rustix::io::Errno::NXIO) => return None,
        // The file system knows no holes.
        Err(_) => return Some(bytes.clone()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(bytes.end);
    (start < bytes.end).then(|| start..end.clamp(start + 1, bytes.end))
}

/// Returns the first of these bytes that are in a hole; `None` if none are.
pub(super) fn first_hole(file: &File, bytes: &Range<u64>) -> Option<Range<u64>> {
    if bytes.is_empty() {
        return None;
    }
    let start = rustix::fs::seek(file, SeekFrom::Hole(bytes.start)).ok()?;
    let end = match rustix::fs::seek(file, SeekFrom::Data(start)) {
        Ok(data) => data.min(bytes.end),
        Err(rustix::io::Errno::NXIO) => bytes.end,
        Err(_) => start,
    };
    (start < end).then_some(start..end)
}

/// Frees the whole blocks among these bytes, so that they read as zeros. Returns the freed bytes:
/// none where the file system or the device cannot free blocks.
///
/// On a device the kernel frees blocks only if they certainly read as zeros afterwards
/// (block/fops.c, `blkdev_fallocate`).
pub(crate) fn free(file: impl AsFd, bytes: &Range<u64>) -> Range<u64> {
    let (start, end) = (bytes.start.next_multiple_of(BLOCK), bytes.end / BLOCK * BLOCK);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if start < end && rustix::fs::fallocate(file, punch, start, end - start).is_ok() {
        start..end
    } else {
        bytes.start..bytes.start
    }
}

pub(crate) fn is_zeros(bytes: &[u8]) -> bool {
    // Without a branch for each byte: the compiler makes few instructions of it.
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the parts of a run of slices of 4 KiB, of which these consist of zeros.
    fn parts(zeros: &[bool]) -> Vec<(usize, bool)> {
        let (zero, other) = (vec![0; 4096], [vec![0; 4095], vec![1]].concat());
        let slice = |is_zeros: &bool| IoSlice::new(if *is_zeros { &zero } else { &other });
        let run: Vec<_> = zeros.iter().map(slice).collect();
        let (mut rest, mut parts) = (&run[..], Vec::new());
        while !rest.is_empty() {
            let part = first_part(rest);
            assert_eq!(part.len, 4096 * part.slices);
            parts.push((part.slices, part.is_zeros));
            rest = &rest[part.slices..];
        }
        parts
    }

    #[test]
    fn only_long_zeros_divide_a_run() {
        let (z, x) = (true, false);
        assert_eq!(parts(&[z]), [(1, true)]);
        assert_eq!(parts(&[x, x]), [(2, false)]);
        assert_eq!(parts(&[z, x, z, z, z, x]), [(6, false)]);
        assert_eq!(parts(&[x, z, z, z, z, z, x]), [(1, false), (5, true), (1, false)]);
        assert_eq!(parts(&[z, z, z, z, x, z]), [(4, true), (2, false)]);
        assert_eq!(parts(&[z, x, z, z, z, z]), [(2, false), (4, true)]);
        assert_eq!(parts(&[]), []);
    }
}
