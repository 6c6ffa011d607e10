//! System calls that no safe library offers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

/// Target of `ioprio_set`: a process or thread (linux/ioprio.h).
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
/// The idle class of `ioprio_set`, in the position of the class (linux/ioprio.h).
const IOPRIO_IDLE: libc::c_int = 3 << 13;

/// `struct sched_param` of the kernel (linux/sched/types.h).
#[repr(C)]
struct SchedParam {
    priority: libc::c_int,
}

/// Lets this thread run only while no other thread wants the CPU (`SCHED_IDLE`), and read only
/// while no other one uses the disk, where the disk's scheduler knows priorities.
pub(super) fn become_idle() -> io::Result<()> {
    const THIS_THREAD: libc::c_int = 0;
    let param = SchedParam { priority: 0 };
    // SAFETY: the kernel reads a `sched_param`, which lives here.
    let set = unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, THIS_THREAD, libc::SCHED_IDLE, &raw const param)
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes three numbers.
    let set = unsafe {
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, THIS_THREAD, IOPRIO_IDLE)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the number of bytes that were written to a TCP socket and that the other end has not
/// acknowledged yet (`SIOCOUTQ`, tcp(7)).
pub(super) fn unacknowledged_bytes(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes an int, which lives here.
    let got = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_becomes_idle_and_others_do_not() {
        let policy = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // proc(5): the policy is field 41, and the second field ends with a parenthesis.
            let fields = stat.rsplit_once(')').unwrap().1;
            fields.split_whitespace().nth(41 - 3).unwrap().parse::<libc::c_int>().unwrap()
        };
        let before = policy();
        let idle = std::thread::spawn(move || {
            become_idle().unwrap();
            policy()
        });
        assert_eq!(idle.join().unwrap(), libc::SCHED_IDLE);
        assert_eq!(policy(), before);
    }
}
