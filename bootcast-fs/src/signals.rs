//! Signals that end a program, except those that were ignored when it started.
//!
//! `nohup` starts a program with SIGHUP ignored. A shell without job control starts background
//! programs with SIGINT ignored. Installing a handler would undo both.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that ends the program; `None` if it is ignored.
#[derive(Debug, Default)]
pub(crate) struct EndSignal(Option<Signal>);

impl EndSignal {
    /// Replaces the default action of the signal, unless it is ignored. Needs the tokio runtime.
    pub(crate) fn listen(kind: SignalKind) -> io::Result<Self> {
        if is_ignored(kind, &ignored_signals()) {
            return Ok(Self(None));
        }
        signal(kind).map(|signal| Self(Some(signal)))
    }

    /// Waits for the signal. Never resolves if the signal is ignored.
    pub(crate) async fn recv(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}

/// Returns `/proc/self/status`, which has the mask of ignored signals. Without `/proc` it returns
/// an empty text, and no signal counts as ignored.
fn ignored_signals() -> String {
    std::fs::read_to_string("/proc/self/status").unwrap_or_default()
}

/// Returns whether the mask `SigIgn` of a `/proc/PID/status` contains the signal. Bit 0 of the mask
/// is signal 1 (`proc_pid_status(5)`).
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
    fn the_mask_names_the_ignored_signals() {
        let nohup = "Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(SignalKind::hangup(), nohup));
        assert!(is_ignored(SignalKind::pipe(), nohup));
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::alarm()] {
            assert!(!is_ignored(kind, nohup), "{kind:?}");
        }
    }

    #[test]
    fn without_a_mask_nothing_is_ignored() {
        for status in ["", "SigIgn:", "SigIgn:\tzz", "SigCgt:\t0000000000000001"] {
            assert!(!is_ignored(SignalKind::hangup(), status), "{status:?}");
        }
    }

    #[test]
    fn the_runtime_ignores_broken_pipes_only() {
        let status = ignored_signals();
        assert!(is_ignored(SignalKind::pipe(), &status));
        assert!(!is_ignored(SignalKind::terminate(), &status));
    }
}
