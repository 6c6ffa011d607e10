//! Errors of file system calls, and their errno.

use crate::io::ControlError;
use crate::object::Unread;
use crate::proof::ProofError;
use crate::receiver::Failure;

/// Reason why a file system call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// The name does not exist on the server.
    #[error("no such file or directory")]
    NotFound,
    /// The version is gone from the server, the path has another type now, or the inode is unknown.
    #[error("the file changed on the server")]
    Stale,
    /// The server refuses access, or the call does not fit the type of the file.
    #[error("permission denied")]
    Access,
    /// There is no such extended attribute.
    #[error("no such extended attribute")]
    NoAttribute,
    /// `lseek` found neither data nor a hole: the position is behind the end, or no data follows.
    #[error("no data behind this position")]
    NoData,
    /// The call needs a directory, but the path is none.
    #[error("not a directory")]
    NotDirectory,
    /// The handle is unknown, or its object is gone.
    #[error("bad file descriptor")]
    BadHandle,
    /// The caller was killed while it waited.
    #[error("interrupted")]
    Interrupted,
    /// Any other error: no answer in time, a full cache, an invalid answer of the server.
    #[error("{0}")]
    Io(String),
}

impl FsError {
    /// Returns the errno of this error. No other code maps errors of a reader to an errno.
    /// docs/SEMANTICS.md has the table, "Errors a reader sees".
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Stale => libc::ESTALE,
            Self::Access => libc::EACCES,
            Self::NoAttribute => libc::ENODATA,
            Self::NoData => libc::ENXIO,
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

impl From<ProofError> for FsError {
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::Changed => Self::Stale,
            ProofError::Control(error) => error.into(),
            ProofError::Content(_) | ProofError::TimedOut(_) | ProofError::Refused(_) => {
                Self::Io(error.to_string())
            }
        }
    }
}

impl From<Unread> for FsError {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Failed(Failure::NotFound(_)) => Self::Stale,
            Unread::Failed(failure) => failure.into(),
            Unread::Interrupted => Self::Interrupted,
            Unread::Unreadable(_)
            | Unread::TimedOut
            | Unread::ShutDown
            | Unread::Unproven(_)
            | Unread::Store(_) => Self::Io(unread.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests the table of docs/SEMANTICS.md, "Errors a reader sees".
    #[test]
    fn every_failure_has_its_errno_at_open_and_at_read() {
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
