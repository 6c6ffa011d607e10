//! Life in the background: mount(8) waits for our exit and passes our code on, so the process that
//! was started stays until the one that serves the mount has said how it went.
//!
//! ```text
//! parent --fork--> child: mounts, answers the kernel's INIT
//!   |                |
//!   '<---verdict-----'  over a pipe; the parent prints a failure and exits with its code
//!                    '--> new session, no terminal, serves until unmounted
//! ```

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, WaitOptions};

use super::MountError;
use super::sys::{self, Forked};

/// Reports that the mount is ready. Only the first report counts.
#[derive(Clone)]
pub struct Ready(Arc<Mutex<Option<PipeWriter>>>);

/// Runs `serve` in a child process and returns, in the parent, when it has called
/// [`Ready::announce`] or failed; in the child, when `serve` ends.
///
/// Must be called before any thread is started. Until it is ready the child stays in the terminal's
/// process group, so that Ctrl-C ends both.
pub fn run_in_background(serve: impl FnOnce(Ready) -> Result<(), MountError>) -> ExitCode {
    let start = || io::Result::Ok((io::pipe()?, sys::fork()?));
    match start() {
        Err(error) => {
            fail(&MountError::failed(&format!("cannot start in the background: {error}")))
        }
        Ok(((reader, writer), Forked::Parent(child))) => {
            drop(writer);
            match read_verdict(reader, || cause_of_death(child)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            }
        }
        Ok(((reader, writer), Forked::Child)) => {
            drop(reader);
            let ready = Ready::new(writer);
            match serve(ready.clone()) {
                Ok(()) => {
                    ready.refuse(&MountError::failed(&"stopped before the mount was ready"));
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    if !ready.refuse(&error) {
                        tracing::error!("{error}");
                    }
                    ExitCode::from(error.exit_code())
                }
            }
        }
    }
}

/// Prints an error in one line, as a mount helper should, and returns its exit code.
pub fn fail(error: &MountError) -> ExitCode {
    eprintln!("bootcastfs: {error}");
    ExitCode::from(error.exit_code())
}

impl Ready {
    fn new(writer: PipeWriter) -> Self {
        Self(Arc::new(Mutex::new(Some(writer))))
    }

    /// Lets the parent exit with success, then detaches from the terminal.
    pub fn announce(&self) {
        if let Some(mut writer) = self.take_writer() {
            if let Err(error) = leave_terminal() {
                tracing::warn!("still attached to the terminal: {error}");
            }
            if let Err(error) = writer.write_all(&[0]) {
                tracing::warn!("nobody waits for the mount any more: {error}");
            }
        }
    }

    /// Lets the parent exit with this error. Returns `false` if the parent already has a verdict.
    fn refuse(&self, error: &MountError) -> bool {
        let Some(mut writer) = self.take_writer() else { return false };
        let verdict = [&[error.exit_code()], error.to_string().as_bytes()].concat();
        // If this fails, no parent is left to read it.
        let _ = writer.write_all(&verdict);
        true
    }

    fn take_writer(&self) -> Option<PipeWriter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Waits for the verdict: one byte, 0 or the exit code; the reason follows the exit code.
fn read_verdict(
    mut reader: PipeReader,
    cause_of_death: impl FnOnce() -> String,
) -> Result<(), MountError> {
    let mut verdict = Vec::new();
    // Whatever was read before an error still counts.
    let _ = reader.read_to_end(&mut verdict);
    match verdict.split_first() {
        Some((0, _)) => Ok(()),
        Some((1, reason)) => Err(MountError::usage(&String::from_utf8_lossy(reason))),
        Some((_, reason)) => Err(MountError::failed(&String::from_utf8_lossy(reason))),
        None => Err(MountError::failed(&format!("died before it was ready: {}", cause_of_death()))),
    }
}

/// Explains why the child closed its end of the pipe without a verdict.
fn cause_of_death(child: Pid) -> String {
    match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
        Ok(Some((_, status))) => match (status.terminating_signal(), status.exit_status()) {
            (Some(signal), _) => format!("killed by signal {signal}"),
            (None, Some(code)) => format!("exit code {code}"),
            (None, None) => "for an unknown reason".to_owned(),
        },
        Ok(None) => "for an unknown reason".to_owned(),
        Err(errno) => errno.to_string(),
    }
}

/// Detaches: new session, `/` as working directory, `/dev/null` as standard input, output and
/// error.
fn leave_terminal() -> io::Result<()> {
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

    /// Verdict that the parent gets from this child.
    fn verdict(child: impl FnOnce(Ready)) -> Result<(), MountError> {
        let (reader, writer) = io::pipe().unwrap();
        child(Ready::new(writer));
        read_verdict(reader, || "killed by signal 9".to_owned())
    }

    #[test]
    fn a_failure_reaches_the_parent_with_its_line_and_code() {
        for error in [MountError::usage(&"no such interface"), MountError::failed(&"no server")] {
            assert_eq!(verdict(|ready| assert!(ready.refuse(&error))), Err(error.clone()));
        }
    }

    #[test]
    fn a_child_that_dies_silently_is_a_failed_mount() {
        let error = verdict(drop).unwrap_err();
        assert_eq!(error.exit_code(), 32);
        assert_eq!(error.to_string(), "died before it was ready: killed by signal 9");
    }

    #[test]
    fn only_the_first_verdict_counts() {
        let error = MountError::failed(&"first");
        let outcome = verdict(|ready| {
            assert!(ready.refuse(&error));
            assert!(!ready.clone().refuse(&MountError::failed(&"second")));
        });
        assert_eq!(outcome, Err(error));
    }

    #[test]
    fn a_process_with_threads_does_not_fork() {
        // The test harness itself is the other thread.
        assert!(sys::fork().is_err());
    }
}
