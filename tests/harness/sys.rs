//! The only system call of the lab that has no safe wrapper in a library.
#![expect(unsafe_code, reason = "an ioctl of the tun driver")]

use std::fs::File;
use std::io;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Setter, ioctl, opcode};

/// `TUNSETIFF` of `linux/if_tun.h`. Its number encodes the size of an `int`, although the argument
/// is a `struct ifreq`.
const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);

/// `IFF_TAP | IFF_NO_PI`: whole Ethernet frames without a header of the driver's own.
const TAP_FLAGS: u16 = 0x0002 | 0x1000;

/// `struct ifreq`, with the fields that the driver reads.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    padding: [u8; 22],
}

/// Opens the tap interface of this name in the thread's network namespace, non-blocking. Each read
/// returns a frame that the interface sent; each write makes it receive one.
pub(crate) fn open_tap(name: &str) -> io::Result<File> {
    let tap = rustix::fs::open(
        "/dev/net/tun",
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut request = InterfaceRequest { name: [0; 16], flags: TAP_FLAGS, padding: [0; 22] };
    let bytes = name.as_bytes();
    let room = request.name.get_mut(..bytes.len()).filter(|room| room.len() < 16);
    room.ok_or(io::ErrorKind::InvalidFilename)?.copy_from_slice(bytes);
    // SAFETY: the driver reads a `struct ifreq`, which the request is, and keeps no pointer to it.
    unsafe { ioctl(&tap, Setter::<TUNSETIFF, InterfaceRequest>::new(request))? };
    Ok(tap.into())
}
