//! Reads byte ranges of served files, and classifies read errors. Tests inject read errors here.

use std::fs::File;
use std::io::IoSliceMut;

use rustix::io::Errno;

use super::page_reader::ReadError;

/// Fills the buffers with the bytes of the file from `offset` on. If the file ends before that, it
/// is no longer the announced version.
pub(super) fn read_exact(
    file: &File,
    mut buffers: &mut [IoSliceMut<'_>],
    mut offset: u64,
) -> Result<(), ReadError> {
    #[cfg(test)]
    faults::check(offset, buffers.iter().map(|buffer| buffer.len() as u64).sum())?;
    // Skips empty buffers (rows without pages): a read of 0 bytes would look like the end of file.
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

/// Returns whether the error concerns only the bytes that were read: the medium cannot read them
/// (EIO, ENODATA, EREMOTEIO, EILSEQ; Linux block/blk-core.c), or their checksum is wrong (EBADMSG
/// and EUCLEAN of ext4 and XFS). Other errors concern the whole file or the moment, such as ESTALE
/// from an NFS server that no longer knows the file, or ENOMEM.
pub(super) fn is_local_to_bytes(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::IO | Errno::NODATA | Errno::REMOTEIO | Errno::ILSEQ | Errno::BADMSG | Errno::UCLEAN
    )
}

/// Read errors that tests inject into the reads of their own thread.
#[cfg(test)]
pub(super) mod faults {
    use std::cell::RefCell;
    use std::ops::Range;

    use super::*;

    thread_local!(static UNREADABLE: RefCell<Vec<Range<u64>>> = const { RefCell::new(Vec::new()) });

    /// Makes these bytes of every file unreadable for this thread.
    pub(in crate::io) fn set_unreadable(ranges: &[Range<u64>]) {
        UNREADABLE.with_borrow_mut(|all| *all = ranges.to_vec());
    }

    /// Fails with EIO if the read touches an unreadable byte.
    pub(super) fn check(offset: u64, len: u64) -> Result<(), ReadError> {
        let overlaps = |range: &Range<u64>| range.start < offset + len && offset < range.end;
        let fails = UNREADABLE.with_borrow(|all| all.iter().any(overlaps));
        if fails { Err(ReadError::Io(Errno::IO)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn empty_buffers_at_any_position_do_not_end_the_read() {
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
