//! `kexec_file_load(2)`, which no safe library offers.
#![expect(unsafe_code, reason = "kexec_file_load has no safe wrapper")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// There is no initial RAM disk (`linux/kexec.h`).
const KEXEC_FILE_NO_INITRAMFS: libc::c_ulong = 4;

/// Loads a kernel that `reboot` can start. The running kernel copies the files.
pub(super) fn kexec_file_load(
    kernel: BorrowedFd<'_>,
    initrd: Option<BorrowedFd<'_>>,
    append: &CStr,
) -> io::Result<()> {
    let flags = if initrd.is_some() { 0 } else { KEXEC_FILE_NO_INITRAMFS };
    let initrd = initrd.map_or(-1, |initrd| initrd.as_raw_fd());
    let bytes = append.to_bytes_with_nul();
    // SAFETY: `append` lives until the call returns, and has this many bytes with its zero.
    let done = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            libc::c_long::from(kernel.as_raw_fd()),
            libc::c_long::from(initrd),
            bytes.len(),
            bytes.as_ptr(),
            flags,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
