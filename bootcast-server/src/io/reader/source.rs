//! Reads ranges of one version of a file, and classifies read errors.

use std::fmt;
use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bootcast_proto::{Manifest, RemotePath};
use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};

use crate::io::identity::Identity;
use crate::source::{LeadStream, OpenFile, Version};

/// Why a read from the file of a cast failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file is no longer the announced version.
    #[error("the file changed")]
    Changed,
    /// A system call failed.
    #[error("cannot read the file: {0}")]
    Io(Errno),
}

impl ReadError {
    /// Whether the error concerns only the bytes that were read: the medium cannot read them (EIO,
    /// ENODATA, EREMOTEIO, EILSEQ; Linux block/blk-core.c), or their checksum is wrong (EBADMSG and
    /// EUCLEAN of ext4 and XFS). Other errors concern the whole file or the moment, such as ESTALE
    /// from an NFS server that no longer knows the file, or ENOMEM.
    pub fn is_local_to_bytes(&self) -> bool {
        match self {
            Self::Changed => false,
            Self::Io(errno) => matches!(
                *errno,
                Errno::IO
                    | Errno::NODATA
                    | Errno::REMOTEIO
                    | Errno::ILSEQ
                    | Errno::BADMSG
                    | Errno::UCLEAN
            ),
        }
    }
}

/// One version of a file, as casts read it. A method may block for any time unless it says
/// otherwise.
pub trait PageSource: fmt::Debug + Send + Sync {
    /// Returns the version that was opened. Does not block.
    fn version(&self) -> Version;

    /// Fills the buffers with the bytes from `offset` on. Fails with [`ReadError::Changed`] if
    /// there are fewer.
    fn read(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), ReadError>;

    /// Like [`Self::read`], for the stream of a cast. May take bytes that were just hashed.
    fn read_stream(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), ReadError> {
        self.read(buffers, offset)
    }

    /// Fills the buffers with the bytes from `offset` on if all of them are in memory, and returns
    /// whether they are. Does not block. `of_stream`: the stream of a cast reads them.
    fn read_cached(&self, _buffers: &mut [IoSliceMut<'_>], _offset: u64, _of_stream: bool) -> bool {
        false
    }

    /// Fails if the file has no longer the attributes with which it was opened. After a read it
    /// proves that the bytes belong to the version.
    fn check_version(&self) -> Result<(), ReadError>;

    /// Returns the manifest of the version, if it is known. Does not block.
    fn manifest(&self) -> Option<Arc<Manifest>> {
        None
    }

    /// Handles that the file has other bytes here than the version.
    fn handle_other_bytes(&self, _bytes: Range<u64>) {}

    /// Hints that these bytes are read soon.
    fn will_need(&self, bytes: Range<u64>);
}

/// An open file of the served directory.
#[derive(Debug)]
pub struct FileSource {
    open: OpenFile,
    /// Path of the file, and what is announced for it; `None` outside of a served directory.
    announced: Option<(RemotePath, Identity)>,
    /// Manifest of the version, once it was found.
    manifest: OnceLock<Arc<Manifest>>,
    /// Lead of the hasher over this stream, once it was found.
    lead: OnceLock<LeadStream>,
}

impl FileSource {
    /// Reads a file that `identity` announces.
    pub fn new(path: RemotePath, open: OpenFile, identity: Identity) -> Self {
        Self { announced: Some((path, identity)), ..Self::from(open) }
    }

    /// Returns the open file.
    pub fn file(&self) -> &File {
        &self.open.file
    }

    /// Returns the lead of the hasher, if the file is being hashed near its stream.
    fn lead(&self) -> Option<&LeadStream> {
        if self.lead.get().is_none() && self.manifest.get().is_none() {
            let (_, identity) = self.announced.as_ref()?;
            let lead = identity.manifests().lead(&self.open)?;
            return Some(self.lead.get_or_init(|| LeadStream::new(lead)));
        }
        self.lead.get()
    }
}

impl From<OpenFile> for FileSource {
    fn from(open: OpenFile) -> Self {
        // A hint to the kernel; without it reads are only slower.
        let _ = rustix::fs::fadvise(&open.file, 0, None, Advice::Sequential);
        Self { open, announced: None, manifest: OnceLock::new(), lead: OnceLock::new() }
    }
}

impl PageSource for FileSource {
    fn version(&self) -> Version {
        self.open.version
    }

    fn read(&self, mut buffers: &mut [IoSliceMut<'_>], mut offset: u64) -> Result<(), ReadError> {
        // Skips empty buffers (rows without pages): a read of 0 bytes would look like the end of
        // file.
        IoSliceMut::advance_slices(&mut buffers, 0);
        while !buffers.is_empty() {
            match rustix::io::preadv(&self.open.file, buffers, offset) {
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

    fn read_stream(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), ReadError> {
        let Some(lead) = self.lead() else { return self.read(buffers, offset) };
        let end = buffers.iter().fold(offset, |end, buffer| end + buffer.len() as u64);
        let (taken, rest) = lead.take(buffers, offset);
        let read = self.read(rest, offset + taken);
        lead.advance(end);
        read
    }

    fn read_cached(
        &self,
        mut buffers: &mut [IoSliceMut<'_>],
        mut offset: u64,
        of_stream: bool,
    ) -> bool {
        // The hasher waits until the stream has taken what it keeps.
        if of_stream && self.lead().is_some_and(|lead| lead.is_open()) {
            return false;
        }
        IoSliceMut::advance_slices(&mut buffers, 0);
        while !buffers.is_empty() {
            // File systems on a network or in a process (NFS, FUSE) refuse the flag.
            match rustix::io::preadv2(&self.open.file, buffers, offset, ReadWriteFlags::NOWAIT) {
                Ok(read) if read > 0 => {
                    offset += read as u64;
                    IoSliceMut::advance_slices(&mut buffers, read);
                }
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return false,
            }
        }
        true
    }

    fn check_version(&self) -> Result<(), ReadError> {
        let present = Version::of_file(&self.open.file).map_err(ReadError::Io)?;
        let is_unchanged = present == self.open.present && !self.open.is_suspect;
        if is_unchanged { Ok(()) } else { Err(ReadError::Changed) }
    }

    fn manifest(&self) -> Option<Arc<Manifest>> {
        let (_, identity) = self.announced.as_ref()?;
        if let Some(manifest) = self.manifest.get() {
            return Some(Arc::clone(manifest));
        }
        let manifest = identity.manifests().in_memory(&self.open.version)?;
        Some(Arc::clone(self.manifest.get_or_init(|| manifest)))
    }

    fn handle_other_bytes(&self, bytes: Range<u64>) {
        let Some((path, identity)) = &self.announced else { return };
        if let Ok(present) = Version::of_file(&self.open.file) {
            identity.handle_other_bytes(path, self.open.version, present, bytes);
        }
    }

    fn will_need(&self, bytes: Range<u64>) {
        let len = NonZeroU64::new(bytes.end.saturating_sub(bytes.start));
        // Without the hint reads are only slower. Length 0 would mean the rest of the file.
        if len.is_some() {
            let _ = rustix::fs::fadvise(&self.open.file, bytes.start, len, Advice::WillNeed);
        }
    }
}

/// Reads consecutive ranges of the content. Nothing proves yet that they belong to the version: see
/// [`super::proof`].
pub(super) fn read_ranges<'a, 'b: 'a>(
    source: &dyn PageSource,
    ranges: impl Iterator<Item = (u64, &'a mut [IoSliceMut<'b>])>,
) -> Result<(), ReadError> {
    for (offset, buffers) in ranges {
        source.read(buffers, offset)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn empty_buffers_at_any_position_do_not_end_the_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let source = FileSource::from(OpenFile::new(file).unwrap());
        for sizes in [&[][..], &[0], &[0, 3], &[0, 1, 0, 2, 0]] {
            let mut bytes: Vec<_> = sizes.iter().map(|size| vec![0; *size]).collect();
            let mut buffers: Vec<_> = bytes.iter_mut().map(|it| IoSliceMut::new(it)).collect();
            assert!(source.read(&mut buffers, 0).is_ok(), "{sizes:?}");
            assert!(b"abc".starts_with(&bytes.concat()));
        }
        let mut beyond = [0; 4];
        let read = source.read(&mut [IoSliceMut::new(&mut beyond)], 0);
        assert!(matches!(read, Err(ReadError::Changed)));
    }
}
