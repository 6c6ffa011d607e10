//! Errors of file system calls, and their errno.

use crate::io::ControlError;
use crate::object::Unread;
use crate::receiver::Failure;

/// Why a file system call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// There is no such name, or no longer.
    #[error("no such file or directory")]
    NotFound,
    /// The name now leads to another version.
    #[error("the file changed on the server")]
    Stale,
    /// The server or this mount refuses access.
    #[error("permission denied")]
    Access,
    /// A directory was needed, but the path is something else.
    #[error("not a directory")]
    NotDirectory,
    /// A handle or inode number that we did not give out.
    #[error("bad file descriptor")]
    BadHandle,
    /// The caller was killed while it waited.
    #[error("interrupted")]
    Interrupted,
    /// Everything else: no answer in time, no room, an invalid answer of the server.
    #[error("{0}")]
    Io(String),
}

impl FsError {
    /// Maps an error to an errno. No other place does. docs/SEMANTICS.md, "Errors a reader sees".
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Stale => libc::ESTALE,
            Self::Access => libc::EACCES,
            Self::NotDirectory => libc::ENOTDIR,
            Self::BadHandle => libc::EBADF,
            Self::Interrupted => libc::EINTR,
            Self::Io(_) => libc::EIO,
        }
    }
}

impl From<ControlError> for FsError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Refused { status: 404, .. } => Self::NotFound,
            ControlError::Refused { status: 401 | 403, .. } => Self::Access,
            other => Self::Io(other.to_string()),
        }
    }
}

impl From<Failure> for FsError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Stale => Self::Stale,
            Failure::NotFound(_) => Self::NotFound,
            Failure::Refused(_) => Self::Access,
            Failure::Garbled(_) | Failure::Store(_) => Self::Io(failure.to_string()),
        }
    }
}

impl From<Unread> for FsError {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Failed(Failure::NotFound(_)) => Self::Stale,
            Unread::Failed(failure) => failure.into(),
            Unread::Interrupted => Self::Interrupted,
            Unread::Unreadable(_) | Unread::TimedOut | Unread::ShutDown | Unread::Store(_) => {
                Self::Io(unread.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests the table in docs/SEMANTICS.md, "Errors a reader sees".
    #[test]
    fn every_failure_of_a_cast_has_the_errno_of_its_cause() {
        let text = || String::from("because");
        for (failure, at_open, at_read) in [
            (Failure::Stale, libc::ESTALE, libc::ESTALE),
            (Failure::NotFound(text()), libc::ENOENT, libc::ESTALE),
            (Failure::Refused(text()), libc::EACCES, libc::EACCES),
            (Failure::Garbled(text()), libc::EIO, libc::EIO),
            (Failure::Store(text()), libc::EIO, libc::EIO),
        ] {
            let opened: FsError = failure.clone().into();
            let read: FsError = Unread::Failed(failure.clone()).into();
            assert_eq!((opened.errno(), read.errno()), (at_open, at_read), "{failure:?}");
        }
    }
}
