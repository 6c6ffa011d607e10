//! Replies with an error.

use fuser::{
    Errno, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyXattr,
};
use tracing::debug;

use crate::fs::FsError;

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
