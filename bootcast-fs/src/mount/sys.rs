//! The system call of the mount front that no library offers safely.
#![expect(unsafe_code, reason = "fork has no safe wrapper")]

use std::{fs, io};

use rustix::process::Pid;

/// Which of the two processes this is.
pub(super) enum Forked {
    /// With the id of the child.
    Parent(Pid),
    Child,
}

/// Forks. Refuses once there is a second thread: the child would have its locks but not itself.
pub(super) fn fork() -> io::Result<Forked> {
    // Without /proc nothing can be counted; main calls this first, as its page says.
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(io::Error::other("cannot fork with other threads running"));
    }
    // SAFETY: the only thread calls, so that the child may do all that the parent may.
    let pid = unsafe { libc::fork() };
    match Pid::from_raw(pid) {
        _ if pid < 0 => Err(io::Error::last_os_error()),
        Some(child) => Ok(Forked::Parent(child)),
        None => Ok(Forked::Child),
    }
}
