//! fork(2) and mallopt(3), for which no library has safe wrappers.
#![expect(unsafe_code, reason = "fork and mallopt have no safe wrappers")]

use std::{fs, io};

use rustix::process::Pid;

/// Heaps ("arenas") of the memory allocator that all threads of the process share.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Lets all threads allocate from a few heaps. By default each of the first threads gets one of its
/// own, and memory that one thread freed is of no use to others: some 10 MiB each after random
/// reads of a file of 200 GiB.
pub(crate) fn limit_arenas() {
    // A value that the allocator refuses changes nothing.
    // SAFETY: mallopt only takes numbers, and may be called at any time.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

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
