//! Datagrams that leave the server at the same moment.

use std::ops::Range;

use bootcast_proto::units::wire_len;
use bootcast_proto::wire::HEADER_LEN;

/// Which of the two ports of a group a datagram goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    /// Pages.
    Data,
    /// Symbols and beacons.
    Repair,
}

/// A run of datagrams, encoded once for all receivers.
#[derive(Debug)]
pub(super) struct Burst {
    channel: Channel,
    bytes: Vec<u8>,
    places: Vec<Range<usize>>,
    wire: Vec<u64>,
}

impl Burst {
    /// Datagrams at most: what a [`super::link::Mask`] has bits for.
    pub(super) const MAX: usize = 64;

    /// No datagram yet; `bytes` is what all of them will have.
    pub(super) fn new(channel: Channel, bytes: usize) -> Self {
        Self { channel, bytes: Vec::with_capacity(bytes), places: Vec::new(), wire: Vec::new() }
    }

    /// Adds a datagram of a header and a payload that is all zeros.
    pub(super) fn push(&mut self, header: &[u8], payload: usize) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(header);
        self.bytes.resize(start + header.len() + payload, 0);
        self.places.push(start..self.bytes.len());
        let len = (header.len() + payload).saturating_sub(HEADER_LEN);
        self.wire.push(wire_len(u32::try_from(len).expect("a datagram has fewer than 64 KiB")));
    }

    /// Where it goes.
    pub(super) fn channel(&self) -> Channel {
        self.channel
    }

    /// Bytes on the wire of each.
    pub(super) fn wire(&self) -> &[u64] {
        &self.wire
    }

    /// One datagram.
    pub(super) fn datagram(&self, at: usize) -> &[u8] {
        &self.bytes[self.places[at].clone()]
    }
}
