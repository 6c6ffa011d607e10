//! fork(2), for which no library has a safe wrapper.
#![expect(unsafe_code, reason = "fork has no safe wrapper")]

use std::{fs, io};

use rustix::process::Pid;

/// Process in which a fork returned.
pub(super) enum Forked {
    /// The parent, with the process id of the child.
    Parent(Pid),
    /// The child.
    Child,
}

/// Forks. Fails if other threads run: the child would inherit their locks, but not the threads that
/// release them.
pub(super) fn fork() -> io::Result<Forked> {
    // Without /proc the threads cannot be counted. `main` forks before it starts any, so one is
    // assumed.
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(io::Error::other("cannot fork with other threads running"));
    }
    // SAFETY: this is the only thread, so the child may do everything that the parent may do.
    let pid = unsafe { libc::fork() };
    match Pid::from_raw(pid) {
        _ if pid < 0 => Err(io::Error::last_os_error()),
        Some(child) => Ok(Forked::Parent(child)),
        None => Ok(Forked::Child),
    }
}
