//! Mount namespaces of tests.
//!
//! A mount lives for as long as any namespace has a copy of it, also after `umount`, and with it
//! its daemon. A program that runs beside the tests and has a mount namespace of its own would
//! therefore keep the daemons of all mounts that existed when it started. So the mounts of each
//! test are in a namespace that only the test and its programs see.

use std::cell::Cell;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};

/// Gives the calling thread, and the threads and programs that it starts from now on, a mount
/// namespace of their own. Does nothing if the thread has one.
pub(crate) fn isolate_mounts() {
    thread_local!(static IS_ISOLATED: Cell<bool> = const { Cell::new(false) });
    if !IS_ISOLATED.replace(true) {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        // Otherwise mounts appear in the namespace of the machine too.
        let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", flags).expect("mounts that are private to the namespace");
    }
}

/// Returns the mounts that the calling thread sees, as in `proc_pid_mountinfo(5)`.
pub(crate) fn mountinfo() -> String {
    std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default()
}
