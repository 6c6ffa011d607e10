//! Reply objects: errors, reads that wait, and requests that are left to the next process.

use std::sync::Arc;

use fuser::{
    Errno, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyXattr,
};
use tracing::debug;

use crate::fs::{Fs, FsError};
use crate::io::Caller;
use crate::object::{Unread, Waiter};

/// Reply object that can carry an errno.
pub(super) trait ErrorReply {
    /// Replies with the errno of `error`.
    fn send_error(self, error: &FsError);
}

macro_rules! impl_error_reply {
    ($($reply:ty),*) => {$(
        impl ErrorReply for $reply {
            fn send_error(self, error: &FsError) {
                debug!(%error, "request failed");
                self.error(Errno::from_i32(error.errno()));
            }
        }
    )*};
}
impl_error_reply!(
    ReplyAttr,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyXattr
);

/// Leaves a request to the next process, to which the kernel sends it again. A reply object that is
/// dropped would answer with EIO.
pub(super) fn leave_unanswered<R>(reply: R) {
    std::mem::forget(reply);
}

/// Kernel read that may wait for its pages.
pub(super) struct ReadWaiter {
    pub(super) reply: ReplyData,
    pub(super) caller: Caller,
    pub(super) fs: Arc<Fs>,
}

impl Waiter for ReadWaiter {
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>) {
        match outcome {
            // Shorter than requested only at the end of the file: the kernel takes a short reply
            // for the end.
            Ok(bytes) => self.reply.data(bytes),
            Err(_) if self.fs.is_handing_over() => leave_unanswered(self.reply),
            Err(error) => self.reply.send_error(&error.into()),
        }
    }

    fn is_abandoned(&self) -> bool {
        self.caller.is_dying()
    }
}
