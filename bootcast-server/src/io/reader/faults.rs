//! Source with faults, for tests.

use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, mpsc};

use bootcast_proto::Manifest;
use rustix::io::Errno;

use super::source::{PageSource, ReadError};
use crate::source::Version;

/// Faults of one or more sources. May change while they are read.
#[derive(Clone, Debug, Default)]
pub(in crate::io) struct Faults {
    /// Byte ranges that cannot be read: a read that touches one fails with EIO.
    pub(in crate::io) unreadable: Arc<Mutex<Vec<Range<u64>>>>,
    pub(in crate::io) hang: Arc<Hang>,
    /// Whether the page cache has the files, so that reads need not block.
    pub(in crate::io) are_cached: bool,
    /// Receives the name of each thread that closes a source.
    pub(in crate::io) closed: Option<mpsc::Sender<Option<String>>>,
}

/// Switch that makes reads hang.
#[derive(Debug, Default)]
pub(in crate::io) struct Hang {
    hangs: Mutex<bool>,
    changed: Condvar,
}

impl Hang {
    /// Makes reads hang from now on, or lets them go on.
    pub(in crate::io) fn set(&self, hangs: bool) {
        *self.hangs.lock().unwrap() = hangs;
        self.changed.notify_all();
    }
}

/// Source with faults.
#[derive(Debug)]
pub(in crate::io) struct FaultySource {
    pub(in crate::io) inner: Arc<dyn PageSource>,
    pub(in crate::io) faults: Faults,
}

impl PageSource for FaultySource {
    fn version(&self) -> Version {
        self.inner.version()
    }

    fn read(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), ReadError> {
        let Faults { unreadable, hang, .. } = &self.faults;
        let hangs = hang.hangs.lock().unwrap();
        drop(hang.changed.wait_while(hangs, |hangs| *hangs).unwrap());
        let len: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let overlaps = |range: &Range<u64>| range.start < offset + len && offset < range.end;
        if unreadable.lock().unwrap().iter().any(overlaps) {
            return Err(ReadError::Io(Errno::IO));
        }
        self.inner.read(buffers, offset)
    }

    fn read_cached(&self, buffers: &mut [IoSliceMut<'_>], offset: u64, _: bool) -> bool {
        self.faults.are_cached && self.inner.read(buffers, offset).is_ok()
    }

    fn check_version(&self) -> Result<(), ReadError> {
        self.inner.check_version()
    }

    fn manifest(&self) -> Option<Arc<Manifest>> {
        self.inner.manifest()
    }

    fn handle_other_bytes(&self, bytes: Range<u64>) {
        self.inner.handle_other_bytes(bytes);
    }

    fn will_need(&self, bytes: Range<u64>) {
        self.inner.will_need(bytes);
    }
}

impl Drop for FaultySource {
    fn drop(&mut self) {
        if let Some(closed) = &self.faults.closed {
            let thread = std::thread::current().name().map(str::to_owned);
            // The test may be over.
            let _ = closed.send(thread);
        }
    }
}
