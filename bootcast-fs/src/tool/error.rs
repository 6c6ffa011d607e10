//! Errors of a command, and their exit codes.

use std::io;
use std::path::Path;

use bootcast_host::signals::EndSignal;
use bootcast_proto::RemotePath;

use super::url::printable;
use crate::io::ControlError;
use crate::object::Unread;
use crate::proof::ProofError;
use crate::receiver::Failure;

/// The exit codes, as `--help` shows them.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0    done; a fetched file is on the disk
  1    wrong usage
  2    a local file or device cannot be read or written
  3    the server cannot be reached
  4    nothing new arrived for the time that --timeout allows
  5    the server has no such file
  6    the server refuses, or does not speak this protocol
  7    the file changes on the server while it is being fetched
  8    the content is not the one that --b3 names, or --decompress cannot expand it
  9    an error in this program; please report it
  129, 130, 143  ended by SIGHUP, SIGINT, SIGTERM
  141  the reader of standard output went away";

/// Exit codes of `ls`, `status` and `profile`, as `--help` shows them.
pub(super) const ANSWER_EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    wrong usage
  2    standard output cannot be written, or a mount does not tell its status
  3    the server cannot be reached
  4    the server has not hashed a file in time
  5    the server has no such file or directory, or no profile of it yet
  6    the server refuses, or does not speak this protocol
  9    an error in this program; please report it
  141  the reader of standard output went away";

/// Reason why a command failed. The text is shown to the user, in one line.
#[derive(Debug, thiserror::Error)]
pub(super) enum ToolError {
    /// The arguments are wrong.
    #[error("{0}")]
    Usage(String),
    /// A local file cannot be read or written.
    #[error("{0}")]
    Local(String),
    /// The cache cannot take the file.
    #[error("{0}")]
    Cache(String),
    /// The server cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// There was no progress within the timeout.
    #[error("{0}")]
    TimedOut(String),
    /// The server has no such file.
    #[error("{0}")]
    NotFound(String),
    /// The server refused or failed, or does not speak the protocol.
    #[error("{0}")]
    Refused(String),
    /// The file changed before any of it was written. Starting again can help.
    #[error("the file keeps changing on the server")]
    Changed,
    /// The file changed after this many bytes went to an output that cannot start again.
    #[error("the file changed on the server after {0} bytes of it were written")]
    ChangedMidway(u64),
    /// The content is not the expected one. The text says what was found.
    #[error("not the content that --b3 names: {0}")]
    Content(String),
    /// The file cannot be expanded, for this reason.
    #[error("--decompress cannot expand it: {0}")]
    Compressed(String),
    /// A thread panicked. The text describes the panic.
    #[error("{0}")]
    Panic(String),
    /// The reader of standard output is gone. The command ends without a message.
    #[error("the reader of standard output went away")]
    ReaderGone,
    /// A signal ended the command.
    #[error("{0}")]
    Signal(EndSignal),
}

impl From<EndSignal> for ToolError {
    fn from(signal: EndSignal) -> Self {
        Self::Signal(signal)
    }
}

impl ToolError {
    /// Returns the exit code of the error, as listed in [`EXIT_CODES`].
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 1,
            Self::Local(_) | Self::Cache(_) => 2,
            Self::Unreachable(_) => 3,
            Self::TimedOut(_) => 4,
            Self::NotFound(_) => 5,
            Self::Refused(_) => 6,
            Self::Changed | Self::ChangedMidway(_) => 7,
            Self::Content(_) | Self::Compressed(_) => 8,
            Self::Panic(_) => 9,
            Self::ReaderGone => 141,
            Self::Signal(signal) => signal.exit_code(),
        }
    }

    /// Makes the error one that another attempt can help against: the output is written again from
    /// its beginning.
    pub(super) fn before_another_attempt(self) -> Self {
        match self {
            Self::ChangedMidway(_) => Self::Changed,
            error => error,
        }
    }

    /// Adds the path to the server's message.
    pub(super) fn with_path(self, path: &RemotePath) -> Self {
        let path = || printable(path.as_bytes());
        match self {
            Self::NotFound(text) => Self::NotFound(format!("/{}: {text}", path())),
            Self::Refused(text) => Self::Refused(format!("/{}: {text}", path())),
            other => other,
        }
    }

    /// Creates an error about a local file.
    pub(super) fn local(path: &Path, error: &io::Error) -> Self {
        Self::Local(format!("{}: {error}", path.display()))
    }

    /// Creates an error about writing to `name`: a file, a device or standard output.
    pub(super) fn writing(name: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::Local(format!("cannot write {name}: {error}")),
        }
    }

    /// Creates an error about writing to standard output.
    pub(super) fn stdout(error: &io::Error) -> Self {
        Self::writing("standard output", error)
    }
}

impl From<ControlError> for ToolError {
    fn from(error: ControlError) -> Self {
        let text = error.to_string();
        match error {
            ControlError::Unreachable { .. } => Self::Unreachable(text),
            ControlError::Refused { status: 404, .. } => Self::NotFound(text),
            ControlError::Refused { .. }
            | ControlError::Unreadable { .. }
            | ControlError::Garbled { .. } => Self::Refused(text),
        }
    }
}

impl From<ProofError> for ToolError {
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::Changed => Self::Changed,
            ProofError::Content(text) => Self::Content(text),
            ProofError::TimedOut(_) => Self::TimedOut(error.to_string()),
            ProofError::Refused(text) => Self::Refused(text),
            ProofError::Control(error) => error.into(),
        }
    }
}

impl From<Unread> for ToolError {
    fn from(unread: Unread) -> Self {
        let text = unread.to_string();
        match unread {
            Unread::Failed(failure) => failure.into(),
            Unread::Store(text) => {
                Self::Local(format!("cannot spool in $TMPDIR or memory: {text}"))
            }
            Unread::Unreadable(_) | Unread::Unproven(_) => Self::Refused(text),
            Unread::TimedOut | Unread::Interrupted | Unread::ShutDown => Self::TimedOut(text),
        }
    }
}

impl From<Failure> for ToolError {
    fn from(failure: Failure) -> Self {
        let text = failure.to_string();
        match failure {
            Failure::Stale => Self::Changed,
            Failure::NotFound(_) => Self::NotFound(text),
            Failure::Refused(_) | Failure::Garbled(_) => Self::Refused(text),
            Failure::Store(_) => Self::Local(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors() -> Vec<ToolError> {
        let text = || "text".to_owned();
        vec![
            ToolError::Usage(text()),
            ToolError::Local(text()),
            ToolError::Unreachable(text()),
            ToolError::TimedOut(text()),
            ToolError::NotFound(text()),
            ToolError::Refused(text()),
            ToolError::Changed,
            ToolError::ChangedMidway(1),
            ToolError::Content(text()),
            ToolError::ReaderGone,
            ToolError::Signal(EndSignal::Hangup),
            ToolError::Signal(EndSignal::Interrupt),
            ToolError::Signal(EndSignal::Terminate),
        ]
    }

    #[test]
    fn the_help_has_every_exit_code() {
        let listed: Vec<u8> = EXIT_CODES
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|word| word.parse().ok())
            .collect();
        for error in errors() {
            assert!(listed.contains(&error.exit_code()), "{error:?}");
        }
    }

    #[test]
    fn the_readme_has_every_exit_code() {
        let page = include_str!("../../../README.md");
        let table = page.split("| exit code | meaning |").nth(1).unwrap();
        let table = table.split("\n\n").next().unwrap();
        let codes = table.lines().filter_map(|row| row.split('|').nth(1)).flat_map(|cell| {
            cell.split(',').filter_map(|code| code.trim().parse::<u8>().ok()).collect::<Vec<_>>()
        });
        let listed: Vec<_> = codes.collect();
        for error in errors() {
            assert!(listed.contains(&error.exit_code()), "{error:?}");
        }
    }

    #[test]
    fn the_servers_status_decides_the_exit_code() {
        let refused = |status| ControlError::Refused {
            status,
            message: "no".into(),
            retry_after: std::time::Duration::ZERO,
        };
        for (status, code) in [(404, 5), (403, 6), (400, 6), (503, 6)] {
            assert_eq!(ToolError::from(refused(status)).exit_code(), code, "{status}");
        }
        let away = ControlError::Unreachable {
            base: "http://head".into(),
            reason: "refused".into(),
            is_connected: false,
        };
        assert_eq!(ToolError::from(away).exit_code(), 3);
    }

    #[test]
    fn a_failed_object_has_the_exit_code_of_its_cause() {
        for (failure, code) in [
            (Failure::Stale, 7),
            (Failure::NotFound("no".into()), 5),
            (Failure::Refused("no".into()), 6),
            (Failure::Store("disk full".into()), 2),
        ] {
            assert_eq!(ToolError::from(failure.clone()).exit_code(), code, "{failure:?}");
        }
    }

    #[test]
    fn a_closed_pipe_is_not_a_file_error() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(ToolError::stdout(&closed).exit_code(), 141);
        assert_eq!(ToolError::stdout(&io::ErrorKind::StorageFull.into()).exit_code(), 2);
    }
}
