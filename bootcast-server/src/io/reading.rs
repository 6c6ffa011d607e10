//! Reads from served files. Tests make parts of a file unreadable here.

use std::fs::File;
use std::io::IoSliceMut;

use rustix::io::Errno;

use super::page_reader::ReadError;

/// Fills the buffers with the bytes of the file from `offset` on. A file that ends before has
/// changed.
pub(super) fn read_exact(
    file: &File,
    mut buffers: &mut [IoSliceMut<'_>],
    mut offset: u64,
) -> Result<(), ReadError> {
    #[cfg(test)]
    faults::check(offset, buffers.iter().map(|buffer| buffer.len() as u64).sum())?;
    // A row without pages is an empty buffer: it reads nothing, which is not the end of the file.
    IoSliceMut::advance_slices(&mut buffers, 0);
    while !buffers.is_empty() {
        match rustix::io::preadv(file, buffers, offset) {
            Ok(0) => return Err(ReadError::Changed),
            Ok(read) => {
                offset += read as u64;
                IoSliceMut::advance_slices(&mut buffers, read);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(ReadError::Io(errno)),
        }
    }
    Ok(())
}

/// Whether the error is about the bytes that were asked for. Others are about the whole file, such
/// as that of an NFS server that forgot it.
pub(super) fn is_about_bytes(errno: Errno) -> bool {
    !matches!(
        errno,
        Errno::STALE
            | Errno::NODEV
            | Errno::NXIO
            | Errno::BADF
            | Errno::NOTCONN
            | Errno::ACCESS
            | Errno::PERM
            | Errno::ISDIR
            | Errno::INVAL
    )
}

/// Unreadable parts of files, for the tests of this thread.
#[cfg(test)]
pub(super) mod faults {
    use std::cell::RefCell;
    use std::ops::Range;

    use super::*;

    thread_local!(static BAD: RefCell<Vec<Range<u64>>> = const { RefCell::new(Vec::new()) });

    /// Makes these bytes of every file unreadable for this thread.
    pub(in crate::io) fn set(bad: &[Range<u64>]) {
        BAD.with_borrow_mut(|all| *all = bad.to_vec());
    }

    pub(super) fn check(offset: u64, len: u64) -> Result<(), ReadError> {
        let is_bad = |bad: &Range<u64>| bad.start < offset + len && offset < bad.end;
        let fails = BAD.with_borrow(|all| all.iter().any(is_bad));
        if fails { Err(ReadError::Io(Errno::IO)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn empty_buffers_are_filled_wherever_they_stand() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        for sizes in [&[][..], &[0], &[0, 3], &[0, 1, 0, 2, 0]] {
            let mut bytes: Vec<_> = sizes.iter().map(|size| vec![0; *size]).collect();
            let mut buffers: Vec<_> = bytes.iter_mut().map(|it| IoSliceMut::new(it)).collect();
            assert!(read_exact(&file, &mut buffers, 0).is_ok(), "{sizes:?}");
            assert!(b"abc".starts_with(&bytes.concat()));
        }
        let mut beyond = [0; 4];
        let read = read_exact(&file, &mut [IoSliceMut::new(&mut beyond)], 0);
        assert!(matches!(read, Err(ReadError::Changed)));
    }
}
