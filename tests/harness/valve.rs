//! A valve in the head's uplink. While it is closed, multicast waits there; HTTP passes.
//!
//! It replaces races by conditions. If all members must join before the first page, a test opens
//! the valve when the last one has joined, however slow the machine is. If something must happen in
//! the middle of a transfer, the test lets only the first bytes through until it has happened.

use std::net::UdpSocket;

use crate::host::Host;
use crate::link;

/// A closed valve. The server's sender blocks as at a full interface, and nothing is lost.
///
/// Clients receive no multicast meanwhile, so those with `unicast=auto` fetch over HTTP after a
/// second.
#[derive(Debug)]
#[must_use = "open the valve to release the queued packets"]
pub struct Valve<'lab> {
    head: &'lab Host,
}

impl<'lab> Valve<'lab> {
    /// Lets about this many bytes of multicast through from now on, and queues the rest.
    pub(crate) fn close_after(head: &'lab Host, bytes: u64) -> Self {
        link::hold_multicast(head.namespace(), bytes);
        Self { head }
    }

    /// Lets all multicast through, first the queued packets.
    pub fn open(self) {
        link::release_multicast(self.head.namespace());
        // The kernel checks the queue again only when another packet enters it.
        let kick = || UdpSocket::bind((self.head.address(), 0))?.send_to(b"", ("10.77.0.254", 9));
        self.head.enter(kick).expect("a datagram from the head");
    }
}
