//! Calls of the FUSE device and library that have no safe form.
#![expect(unsafe_code, reason = "ioctl(2), and what the FUSE library does not offer")]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use fuser::{FileHandle, FopenFlags, ReplyOpen};
use rustix::io::DupFlags;
use rustix::ioctl::{Setter, ioctl, opcode};

/// `FUSE_DEV_IOC_BACKING_CLOSE` of `linux/fuse.h`.
const BACKING_CLOSE: rustix::ioctl::Opcode = opcode::write::<u32>(229, 2);

/// Ends the kernel's reference to a backing file.
pub(super) fn close_backing(device: &OwnedFd, id: u32) -> io::Result<()> {
    // SAFETY: the kernel reads a `u32` from the argument (fuse_dev_ioctl in fs/fuse/dev.c).
    unsafe { ioctl(device, Setter::<BACKING_CLOSE, u32>::new(id))? };
    Ok(())
}

/// Replies to an open: the kernel reads the backing file `id` itself. The caller still owns `id`.
pub(super) fn reply_with_backing(reply: ReplyOpen, handle: FileHandle, flags: FopenFlags, id: u32) {
    // SAFETY: the id is given back below, before anything else could close it.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(handle, flags, &backing);
    let _ = backing.into_raw();
}

/// Makes the descriptor `target` refer to the open file of `source`. Its own file is closed.
pub(super) fn replace_descriptor(source: &OwnedFd, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `target` is open while it is borrowed, and `ManuallyDrop` leaves it open. Its owner
    // uses it only through its number, under which the other file is found from now on.
    let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(target.as_raw_fd()) });
    rustix::io::dup3(source, &mut target, DupFlags::CLOEXEC)?;
    Ok(())
}
