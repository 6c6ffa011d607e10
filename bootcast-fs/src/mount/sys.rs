//! System calls of mounting that no library offers safely.
#![expect(unsafe_code, reason = "fork has no safe wrapper")]

use std::{fs, io};

use rustix::process::Pid;

/// Tells the two processes after a fork apart.
pub(super) enum Forked {
    /// The parent, with the process id of the child.
    Parent(Pid),
    Child,
}

/// Forks. Fails if there is a second thread: the child would have its locks but not the thread.
pub(super) fn fork() -> io::Result<Forked> {
    // Without /proc nothing can be counted. `main` forks before it starts threads.
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(io::Error::other("cannot fork with other threads running"));
    }
    // SAFETY: this is the only thread, so the child may do everything that the parent may.
    let pid = unsafe { libc::fork() };
    match Pid::from_raw(pid) {
        _ if pid < 0 => Err(io::Error::last_os_error()),
        Some(child) => Ok(Forked::Parent(child)),
        None => Ok(Forked::Child),
    }
}
