//! What can go wrong with a file system call, and the errno that says so.

use crate::io::ControlError;
use crate::object::Unread;
use crate::receiver::Failure;

/// Why a file system call fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// No such name, or it is gone.
    #[error("no such file or directory")]
    NotFound,
    /// The name leads to another version now.
    #[error("the file changed on the server")]
    Stale,
    /// The server, or we, will not allow it.
    #[error("permission denied")]
    Access,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// A handle or inode that we did not give out.
    #[error("bad file descriptor")]
    BadHandle,
    /// The caller was killed while it waited.
    #[error("interrupted")]
    Interrupted,
    /// All the rest: no answer in time, no room, nonsense from the server.
    #[error("{0}")]
    Io(String),
}

impl FsError {
    /// The only place where an error becomes an errno; docs/SEMANTICS.md, "Errors a reader sees".
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
            Unread::TimedOut | Unread::ShutDown | Unread::Store(_) => Self::Io(unread.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/SEMANTICS.md, "Errors a reader sees".
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
