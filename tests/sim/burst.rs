//! Datagrams that leave the server at the same time.

use std::ops::Range;

use bootcast_proto::units::wire_len;
use bootcast_proto::wire::HEADER_LEN;

/// Port of a group that a datagram goes to.
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
    /// Most datagrams in a burst: the number of bits in a [`super::link::Mask`].
    pub(super) const MAX: usize = 64;

    /// Creates an empty burst with room for `bytes` bytes in all.
    pub(super) fn new(channel: Channel, bytes: usize) -> Self {
        Self { channel, bytes: Vec::with_capacity(bytes), places: Vec::new(), wire: Vec::new() }
    }

    /// Adds a datagram with a header and a payload of zeros.
    pub(super) fn push(&mut self, header: &[u8], payload: usize) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(header);
        self.bytes.resize(start + header.len() + payload, 0);
        self.places.push(start..self.bytes.len());
        let len = (header.len() + payload).saturating_sub(HEADER_LEN);
        self.wire.push(wire_len(u32::try_from(len).expect("a datagram has fewer than 64 KiB")));
    }

    /// Port that the burst goes to.
    pub(super) fn channel(&self) -> Channel {
        self.channel
    }

    /// Size of each datagram on the wire, in bytes.
    pub(super) fn wire(&self) -> &[u64] {
        &self.wire
    }

    /// Bytes of one datagram.
    pub(super) fn datagram(&self, at: usize) -> &[u8] {
        &self.bytes[self.places[at].clone()]
    }
}
