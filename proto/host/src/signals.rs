//! The signals that end a program, unless they were ignored when it started.
//!
//! `nohup` ignores SIGHUP, and a shell without job control ignores SIGINT in its background jobs. A
//! program inherits that; installing a handler would undo it.

use std::fmt;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that ends a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndSignal {
    /// SIGHUP: the terminal was closed.
    Hangup,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: the usual kill.
    Terminate,
}

impl EndSignal {
    /// Returns the name, such as `SIGTERM`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    /// Returns the exit code that a shell reports for a death by this signal.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Hangup => 128 + 1,
            Self::Interrupt => 128 + 2,
            Self::Terminate => 128 + 15,
        }
    }
}

impl fmt::Display for EndSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangup => "hung up",
            Self::Interrupt => "interrupted",
            Self::Terminate => "terminated",
        })
    }
}

/// Handlers of the signals that end a program; `None` for those that the process ignores.
///
/// A program registers them first of all: until then a signal kills it on the spot.
#[derive(Debug)]
pub struct EndSignals {
    hangup: Option<Signal>,
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
}

impl EndSignals {
    /// Replaces the default action of the signals; an ignored signal stays ignored. Must be called
    /// within a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        let status = process_status();
        let listen = |kind| (!is_ignored(kind, &status)).then(|| signal(kind)).transpose();
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Runs `work`. If a signal arrives first, drops `work` and fails.
    pub async fn guard<T, E: From<EndSignal>>(
        &mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            biased;
            done = work => done,
            signal = self.recv() => Err(signal.into()),
        }
    }

    /// Waits for the next signal, also one that arrived since the last call.
    pub async fn recv(&mut self) -> EndSignal {
        tokio::select! {
            () = next(&mut self.hangup) => EndSignal::Hangup,
            () = next(&mut self.interrupt) => EndSignal::Interrupt,
            () = next(&mut self.terminate) => EndSignal::Terminate,
        }
    }
}

/// Resolves when the signal arrives. Never resolves if it is ignored.
async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Reads the status of this process, which names its ignored signals. Returns an empty string
/// without `/proc`, so that no signal counts as ignored.
fn process_status() -> String {
    std::fs::read_to_string("/proc/self/status").unwrap_or_default()
}

/// Returns whether the mask `SigIgn` of this status contains the signal. Bit 0 of the mask is
/// signal 1 (`proc_pid_status(5)`).
fn is_ignored(kind: SignalKind, status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let bit = u32::try_from(kind.as_raw_value() - 1).unwrap_or(u32::MAX);
    mask.checked_shr(bit).is_some_and(|rest| rest & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_mask_contains_the_ignored_signals() {
        let nohup = "Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(SignalKind::hangup(), nohup));
        assert!(is_ignored(SignalKind::pipe(), nohup));
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::alarm()] {
            assert!(!is_ignored(kind, nohup), "{kind:?}");
        }
    }

    #[test]
    fn no_signal_is_ignored_without_a_valid_mask() {
        for status in ["", "SigIgn:", "SigIgn:\tzz", "SigCgt:\t0000000000000001"] {
            assert!(!is_ignored(SignalKind::hangup(), status), "{status:?}");
        }
    }

    #[test]
    fn the_rust_runtime_ignores_sigpipe_but_not_sigterm() {
        let status = process_status();
        assert!(is_ignored(SignalKind::pipe(), &status));
        assert!(!is_ignored(SignalKind::terminate(), &status));
    }
}
