//! Detects that the thread that made a kernel request is being killed.

use std::fs;
use std::time::Duration;

/// Time between two checks of the caller while a call waits.
const CHECK_PERIOD: Duration = Duration::from_millis(250);

/// Thread that made a kernel request, by its id in this process's PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(pub u32);

impl Caller {
    /// Returns whether the caller can no longer take an answer: its thread is gone, or a fatal
    /// signal is pending.
    ///
    /// The kernel turns every fatal signal into a pending SIGKILL (`complete_signal`,
    /// kernel/signal.c). So the SIGKILL bit is enough, and signals with handlers do not count.
    pub fn is_dying(self) -> bool {
        // 0 means that the thread is in another PID namespace, where it cannot be checked.
        if self.0 == 0 {
            return false;
        }
        match fs::read_to_string(format!("/proc/{}/status", self.0)) {
            Ok(status) => shows_dying(&status),
            // /proc mounted with `hidepid=` hides the processes of other users, such as PID 1. A
            // missing entry then proves nothing.
            Err(error) => {
                error.kind() == std::io::ErrorKind::NotFound
                    && fs::exists("/proc/1/status").unwrap_or(false)
            }
        }
    }

    /// Resolves once the caller is dying.
    pub async fn dies(self) {
        loop {
            tokio::time::sleep(CHECK_PERIOD).await;
            if self.is_dying() {
                return;
            }
        }
    }
}

/// Returns whether a `/proc/PID/status` shows a dead thread or a pending SIGKILL.
fn shows_dying(status: &str) -> bool {
    const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let pending = |key| field(key).and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    let dead = field("State:").is_some_and(|state| state.starts_with(['Z', 'X']));
    dead || (pending("SigPnd:") | pending("ShdPnd:")) & SIGKILL_BIT != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_sigkill_or_a_dead_thread_is_dying_and_other_signals_are_not() {
        let status = |state: &str, own: &str, shared: &str| {
            format!("Name:\tcat\nState:\t{state}\nSigPnd:\t{own}\nShdPnd:\t{shared}\n")
        };
        let none = "0000000000000000";
        assert!(!shows_dying(&status("S (sleeping)", none, none)));
        assert!(!shows_dying(&status("S (sleeping)", "0000000000400000", none))); // SIGURG
        assert!(shows_dying(&status("D (disk sleep)", "0000000000000100", none)));
        assert!(shows_dying(&status("D (disk sleep)", none, "0000000000000100")));
        assert!(shows_dying(&status("Z (zombie)", none, none)));
    }

    #[test]
    fn this_thread_is_alive_and_a_reaped_child_is_not() {
        assert!(!Caller(std::process::id()).is_dying());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(Caller(child.id()).is_dying());
    }
}
