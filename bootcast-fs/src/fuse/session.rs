//! Sessions of the FUSE library: on a new connection, and on one that another process served.
//!
//! The library waits for the kernel's INIT request, which comes once in the life of a connection.
//! For a resumed session it therefore gets one from a socket pair. Then the device takes the place
//! of the socket under the same descriptor.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use fuser::{Config, InitFlags, Session, SessionACL};

use super::{Adapter, sys};

/// Number of threads that take kernel requests. They also copy held pages from the cache, so this
/// many reads of a slow disk block all other requests.
const FUSE_THREADS: usize = 4;

/// Opcode of INIT in `linux/fuse.h`.
const INIT: u32 = 26;

/// Code of the notification `FUSE_NOTIFY_RESEND` in `linux/fuse.h`.
const NOTIFY_RESEND: i32 = 7;

/// Starts a session on a new connection. The FUSE handshake happens here.
pub fn begin(adapter: Adapter, device: OwnedFd, acl: SessionACL) -> io::Result<Session<Adapter>> {
    Session::from_fd(adapter, device, acl, config())
}

/// Starts a session on the connection of another process, which must have ended. The kernel sends
/// the requests again that the other process read and did not answer.
pub fn resume(adapter: Adapter, device: &OwnedFd, acl: SessionACL) -> io::Result<Session<Adapter>> {
    let (mut kernel, library) = UnixStream::pair()?;
    kernel.write_all(&init_request())?;
    let session = Session::from_fd(adapter, library.into(), acl, config())?;
    // The reply to the request that the kernel did not send.
    kernel.read_exact(&mut [0])?;
    sys::replace_descriptor(device, session.as_fd())?;
    let notification = [16u32.to_ne_bytes(), NOTIFY_RESEND.to_ne_bytes(), [0; 4], [0; 4]];
    rustix::io::write(device, notification.as_flattened())?;
    Ok(session)
}

/// Serves the kernel's requests until the connection ends, as by an unmount.
pub fn run(session: Session<Adapter>) -> io::Result<()> {
    end_of(session.run())
}

/// Returns how a session ended. The kernel answers ENODEV after an unmount, which the library takes
/// for the end, and ECONNABORTED to who was reading a request at that moment (`fuse_dev_do_read` in
/// Linux `fs/fuse/dev.c`).
fn end_of(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
        outcome => outcome,
    }
}

/// Returns the configuration of a session. All threads use one descriptor: when the last copy of a
/// descriptor is closed, the requests that were read from it fail. A process that was killed must
/// not close one that nobody else holds.
fn config() -> Config {
    let mut config = Config::default();
    config.n_threads = Some(FUSE_THREADS);
    config.clone_fd = false;
    config
}

/// Returns an INIT request of a kernel with all capabilities: `fuse_in_header` and `fuse_init_in`
/// of `linux/fuse.h`, in the byte order of this machine.
fn init_request() -> Vec<u8> {
    let flags = InitFlags::all().bits();
    let (low, high) = (flags & u64::from(u32::MAX), flags >> 32);
    let low = u32::try_from(low | InitFlags::FUSE_INIT_EXT.bits()).expect("the lower 32 bits");
    let high = u32::try_from(high).expect("the upper 32 bits");
    let (major, minor, max_readahead) = (7, 40, 128 << 10);
    let body = [&[major, minor, max_readahead, low, high][..], &[0; 11]].concat();
    let header_len = 40;
    let len = u32::try_from(header_len + body.len() * 4).expect("104 bytes");
    let unique_and_node = [1, 0, 0, 0];
    let caller = [0; 4];
    let words = [&[len, INIT][..], &unique_and_node, &caller, &body].concat();
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn an_unmount_while_a_request_is_read_is_the_end_and_no_error() {
        assert!(end_of(Err(Errno::CONNABORTED.into())).is_ok());
        assert!(end_of(Err(Errno::IO.into())).is_err());
    }

    #[test]
    fn the_init_request_has_the_length_that_it_states() {
        let request = init_request();
        assert_eq!(request.len(), 104);
        assert_eq!(request[..4], 104u32.to_ne_bytes());
        assert_eq!(request[4..8], INIT.to_ne_bytes());
    }
}
