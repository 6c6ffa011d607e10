//! Daemon mode: a child process serves the mount, and the parent exits when the mount is ready.
//!
//! mount(8) waits for its helper to exit and passes the exit code on. So the parent waits for the
//! start-up status of the child.
//!
//! ```text
//! parent --fork--> child: mounts, answers the kernel's INIT
//!   |                |
//!   '<---status------'  over a pipe; the parent prints an error and exits with its code
//!                    '--> new session, no terminal, serves until unmounted
//! ```

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, WaitOptions};

use super::MountError;
use super::sys::{self, Forked};

/// Sends the start-up status of the child to the parent. Only the first status is sent.
#[derive(Clone)]
pub struct StartupReporter(Arc<Mutex<Option<PipeWriter>>>);

/// Forks and runs `serve` in the child. In the parent, returns once `serve` has called
/// [`StartupReporter::report_ready`] or failed; in the child, returns when `serve` ends.
///
/// Must be called before any thread is started. Until the mount is ready, the child stays in the
/// terminal's process group, so that Ctrl-C ends both processes.
pub fn run_in_background(
    serve: impl FnOnce(StartupReporter) -> Result<(), MountError>,
) -> ExitCode {
    let start = || io::Result::Ok((io::pipe()?, sys::fork()?));
    match start() {
        Err(error) => {
            fail(&MountError::failed(&format!("cannot start in the background: {error}")))
        }
        Ok(((reader, writer), Forked::Parent(child))) => {
            drop(writer);
            match read_status(reader, || exit_reason(child)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            }
        }
        Ok(((reader, writer), Forked::Child)) => {
            drop(reader);
            let reporter = StartupReporter::new(writer);
            match serve(reporter.clone()) {
                Ok(()) => {
                    reporter
                        .report_error(&MountError::failed(&"stopped before the mount was ready"));
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    if !reporter.report_error(&error) {
                        tracing::error!("{error}");
                    }
                    ExitCode::from(error.exit_code())
                }
            }
        }
    }
}

/// Prints an error as one line, as mount(8) expects of a helper, and returns its exit code.
pub fn fail(error: &MountError) -> ExitCode {
    eprintln!("bootcastfs: {error}");
    ExitCode::from(error.exit_code())
}

impl StartupReporter {
    fn new(writer: PipeWriter) -> Self {
        Self(Arc::new(Mutex::new(Some(writer))))
    }

    /// Detaches from the terminal, then lets the parent exit with success.
    pub fn report_ready(&self) {
        if let Some(mut writer) = self.take_writer() {
            if let Err(error) = leave_terminal() {
                tracing::warn!("cannot detach from the terminal: {error}");
            }
            if let Err(error) = writer.write_all(&[0]) {
                tracing::warn!("cannot report the mount to the parent process: {error}");
            }
        }
    }

    /// Lets the parent exit with `error`. Returns `false` if a status was sent before.
    fn report_error(&self, error: &MountError) -> bool {
        let Some(mut writer) = self.take_writer() else { return false };
        let status = [&[error.exit_code()], error.to_string().as_bytes()].concat();
        // Fails only if the parent is gone, and then nothing reads the status.
        let _ = writer.write_all(&status);
        true
    }

    /// Returns the pipe to the parent; `None` if a status was sent before.
    fn take_writer(&self) -> Option<PipeWriter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Waits for the start-up status: one byte with 0 or the exit code, and then the error message.
fn read_status(
    mut reader: PipeReader,
    exit_reason: impl FnOnce() -> String,
) -> Result<(), MountError> {
    let mut status = Vec::new();
    // Bytes that were read before an error are kept and evaluated.
    let _ = reader.read_to_end(&mut status);
    match status.split_first() {
        Some((0, _)) => Ok(()),
        Some((1, reason)) => Err(MountError::usage(&String::from_utf8_lossy(reason))),
        Some((_, reason)) => Err(MountError::failed(&String::from_utf8_lossy(reason))),
        None => {
            Err(MountError::failed(&format!("ended before the mount was ready: {}", exit_reason())))
        }
    }
}

/// Describes how a child ended that closed its end of the pipe without a status.
fn exit_reason(child: Pid) -> String {
    match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
        Ok(Some((_, status))) => match (status.terminating_signal(), status.exit_status()) {
            (Some(signal), _) => format!("killed by signal {signal}"),
            (None, Some(code)) => format!("exit code {code}"),
            (None, None) => "reason unknown".to_owned(),
        },
        Ok(None) => "reason unknown".to_owned(),
        Err(errno) => errno.to_string(),
    }
}

/// Detaches from the terminal: starts a new session, changes to `/`, and replaces standard input,
/// output and error by `/dev/null`.
pub fn leave_terminal() -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the status that the parent reads if `child` runs in the child process.
    fn status_of(child: impl FnOnce(StartupReporter)) -> Result<(), MountError> {
        let (reader, writer) = io::pipe().unwrap();
        child(StartupReporter::new(writer));
        read_status(reader, || "killed by signal 9".to_owned())
    }

    #[test]
    fn an_error_reaches_the_parent_with_its_message_and_exit_code() {
        for error in [MountError::usage(&"no such interface"), MountError::failed(&"no server")] {
            assert_eq!(
                status_of(|reporter| assert!(reporter.report_error(&error))),
                Err(error.clone())
            );
        }
    }

    #[test]
    fn a_child_that_ends_without_a_status_is_a_failed_mount() {
        let error = status_of(drop).unwrap_err();
        assert_eq!(error.exit_code(), 32);
        assert_eq!(error.to_string(), "ended before the mount was ready: killed by signal 9");
    }

    #[test]
    fn only_the_first_status_is_sent() {
        let error = MountError::failed(&"first");
        let outcome = status_of(|reporter| {
            assert!(reporter.report_error(&error));
            assert!(!reporter.clone().report_error(&MountError::failed(&"second")));
        });
        assert_eq!(outcome, Err(error));
    }

    #[test]
    fn a_process_with_threads_does_not_fork() {
        // The test harness has other threads.
        assert!(sys::fork().is_err());
    }
}
