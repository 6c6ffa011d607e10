//! Source in memory, for tests.

use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bootcast_proto::Manifest;
use rustix::io::Errno;

use super::source::{PageSource, ReadError};
use crate::source::{OpenFile, Version};

/// Bytes in memory, with the manifest of the bytes that they were at first.
#[derive(Debug)]
pub(super) struct Memory {
    version: Version,
    pub(super) bytes: Vec<u8>,
    manifest: Arc<Manifest>,
    pub(super) unreadable: Range<u64>,
    /// Bytes that can be read without blocking.
    pub(super) cached: Range<u64>,
    /// Whether the attributes have changed.
    pub(super) is_changed: AtomicBool,
    other: Mutex<Option<Range<u64>>>,
}

impl Memory {
    pub(super) fn new(size: u64) -> Self {
        let bytes: Vec<u8> = (0..size).map(|at| (at ^ (at >> 8)).to_le_bytes()[0]).collect();
        Self {
            version: OpenFile::new(tempfile::tempfile().unwrap()).unwrap().version,
            manifest: Arc::new(Manifest::of_content(&bytes)),
            bytes,
            unreadable: 0..0,
            cached: 0..0,
            is_changed: AtomicBool::new(false),
            other: Mutex::new(None),
        }
    }

    /// Returns the bytes that were found to be those of another content, if any.
    pub(super) fn other(&self) -> Option<Range<u64>> {
        self.other.lock().unwrap().take()
    }
}

impl PageSource for Memory {
    fn version(&self) -> Version {
        self.version
    }

    fn read(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), ReadError> {
        let mut at = usize::try_from(offset).unwrap();
        for buffer in buffers {
            let range = at as u64..(at + buffer.len()) as u64;
            if range.start < self.unreadable.end && self.unreadable.start < range.end {
                return Err(ReadError::Io(Errno::IO));
            }
            let bytes = self.bytes.get(at..at + buffer.len()).ok_or(ReadError::Changed)?;
            buffer.copy_from_slice(bytes);
            at += buffer.len();
        }
        Ok(())
    }

    fn read_cached(&self, buffers: &mut [IoSliceMut<'_>], offset: u64, _: bool) -> bool {
        let len: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let is_cached = self.cached.start <= offset && offset + len <= self.cached.end;
        is_cached && self.read(buffers, offset).is_ok()
    }

    fn check_version(&self) -> Result<(), ReadError> {
        let is_changed = self.is_changed.load(Ordering::Relaxed);
        if is_changed { Err(ReadError::Changed) } else { Ok(()) }
    }

    fn manifest(&self) -> Option<Arc<Manifest>> {
        Some(Arc::clone(&self.manifest))
    }

    fn handle_other_bytes(&self, bytes: Range<u64>) {
        *self.other.lock().unwrap() = Some(bytes);
    }

    fn will_need(&self, _: Range<u64>) {}
}
