//! Signals that end the program, unless they were ignored when it started.
//!
//! `nohup` ignores SIGHUP, and a shell without job control ignores SIGINT in its background jobs. A
//! program inherits that; installing a handler would undo it.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that ends the program; `None` if the process ignores the signal.
#[derive(Debug, Default)]
pub struct EndSignal(Option<Signal>);

impl EndSignal {
    /// Replaces the default action of the signal; an ignored signal stays ignored. Must be called
    /// within a tokio runtime.
    pub fn listen(kind: SignalKind) -> io::Result<Self> {
        if is_ignored(kind, &process_status()) {
            return Ok(Self(None));
        }
        signal(kind).map(|signal| Self(Some(signal)))
    }

    /// Resolves when the signal arrives. Never resolves if the signal is ignored.
    pub async fn recv(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
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
