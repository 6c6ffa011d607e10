//! A valve in the head's uplink, closed for multicast: what a cast sends waits there, HTTP passes.
//!
//! It replaces a race by a condition. Members that must be in a cast before its first page can
//! start as slowly as the machine is: the valve opens when the last of them has joined. What must
//! happen in the middle of a transfer happens behind the valve's first bytes.

use std::net::UdpSocket;

use crate::host::Host;
use crate::link;

/// A closed valve. The server's sender is held back as by a full interface, and loses nothing.
///
/// Clients hear nothing meanwhile: after a second those with `unicast=auto` fetch over HTTP.
#[derive(Debug)]
#[must_use = "what is held must be released"]
pub struct Valve<'lab> {
    head: &'lab Host,
}

impl<'lab> Valve<'lab> {
    /// Lets about this many bytes of multicast through from now on and holds what follows.
    pub(crate) fn close_after(head: &'lab Host, bytes: u64) -> Self {
        link::hold_multicast(head.namespace(), bytes);
        Self { head }
    }

    /// Lets everything through, first what was held.
    pub fn open(self) {
        link::release_multicast(self.head.namespace());
        // The queue looks for what it may send when something else enters it.
        let kick = || UdpSocket::bind((self.head.address(), 0))?.send_to(b"", ("10.77.0.254", 9));
        self.head.enter(kick).expect("a datagram from the head");
    }
}
