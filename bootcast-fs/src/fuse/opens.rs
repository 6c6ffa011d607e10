//! Open files: the mode in which the kernel reads each, also those of the previous process.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use fuser::{FileHandle, FopenFlags, INodeNo, ReplyOpen, RequestId};

use super::backing::Backing;
use super::modes::OpenModes;
use super::{Adapter, sys};
use crate::fs::{Fs, OpenFile, RestoredOpen};
use crate::journal::Mode;
use crate::panics::lock;

/// Bit in the number of a request that the kernel sends again: `FUSE_UNIQUE_RESEND` of
/// `linux/fuse.h`.
const RESENT: u64 = 1 << 63;

/// Returns the number that a request has at its first and at each later time.
pub(super) fn number(request: RequestId) -> u64 {
    request.0 & !RESENT
}

impl Adapter {
    /// Takes over the modes in which the kernel reads the open files of the previous process.
    #[must_use]
    pub fn with_restored(self, opens: &[RestoredOpen]) -> Self {
        for RestoredOpen { handle, ino, mode, request, object } in opens {
            lock(&self.unanswered).insert(*request, (*ino, *handle));
            let object = object.as_ref().map(|object| object.id());
            let restore = |id| Backing::restore(&self.device, id);
            lock(&self.opens).restore(*ino, *handle, object, *mode, restore);
        }
        self
    }

    /// Ends the open that the previous process made for this request, if it did not answer: the
    /// kernel sends the request again, and never learns that handle.
    pub(super) fn end_unanswered_open(&self, request: RequestId) {
        if request.0 & RESENT == 0 {
            return;
        }
        let unanswered = lock(&self.unanswered).remove(&number(request));
        if let Some((ino, handle)) = unanswered {
            self.end_open(ino, handle);
        }
    }

    /// Ends an open.
    pub(super) fn end_open(&self, ino: u64, handle: u64) {
        let mut opens = lock(&self.opens);
        // Comes first: the next process must not use a backing file that is closed.
        self.fs.release(handle);
        opens.release(ino, handle);
    }
}

/// Replies to an open with the mode in which the kernel must read the inode at present.
pub(super) fn reply(
    fs: &Fs,
    passthrough: Option<&Arc<OwnedFd>>,
    opens: &Mutex<OpenModes<Backing>>,
    (request, ino): (u64, INodeNo),
    file: &OpenFile,
    reply: ReplyOpen,
) {
    let handle = FileHandle(file.handle);
    let register_backing = || {
        let device = passthrough.filter(|_| file.is_durable)?;
        Backing::register(device, file.object.store()).ok()
    };
    // Locked until the reply is sent, so that the kernel gets the replies in the order in which the
    // modes were chosen.
    let mut opens = lock(opens);
    let mode = opens.open(ino.0, file.handle, file.object.id(), register_backing);
    fs.record_open(file.handle, ino.0, mode.map(|backing| backing.id()), request);
    let flags = FopenFlags::FOPEN_NOFLUSH;
    match mode {
        // Without KEEP_CACHE, an open makes the kernel drop the inode's page cache and wait for
        // pages that a parked read has locked.
        Mode::Cached => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE | flags),
        Mode::Passthrough(backing) => sys::reply_with_backing(reply, handle, flags, backing.id()),
        Mode::Direct => reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO | flags),
    }
}
