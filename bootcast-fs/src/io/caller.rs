//! Detects that the thread that made a kernel request is being killed.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

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
        match read_status(self.0) {
            Ok(status) => shows_dying(&status),
            // /proc mounted with `hidepid=` hides the processes of other users, such as PID 1. A
            // missing entry then proves nothing.
            Err(error) => error.kind() == io::ErrorKind::NotFound && read_status(1).is_ok(),
        }
    }

    /// Opens `/proc` now, and finds callers in it from then on. The server of a root file system
    /// stays in the root directory of the initramfs, where `/proc` is empty after the switch.
    pub fn keep_proc_open() {
        let _ = &*PROC;
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

/// `/proc`, opened at the first look.
static PROC: LazyLock<io::Result<OwnedFd>> = LazyLock::new(|| {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/proc", flags, Mode::empty())?)
});

/// Reads `/proc/PID/status`.
fn read_status(pid: u32) -> io::Result<String> {
    let Ok(proc) = &*PROC else { return Err(io::ErrorKind::Unsupported.into()) };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, format!("{pid}/status"), flags, Mode::empty())?;
    io::read_to_string(File::from(file))
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
