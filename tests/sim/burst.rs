//! Datagrams that leave the server at the same time.

use std::net::SocketAddr;
use std::ops::Range;

use bootcast_proto::DatagramKey;
use bootcast_proto::units::wire_len;
use bootcast_proto::wire::HEADER_LEN;

use super::server::ADDRESS;

/// UDP port of the group that a datagram goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    /// The data port, for pages.
    Data,
    /// The repair channel, for symbols and beacons.
    Repair,
}

/// Consecutive datagrams, encoded once for all receivers.
#[derive(Debug)]
pub(super) struct Burst {
    channel: Channel,
    /// Bytes of all datagrams.
    bytes: Vec<u8>,
    /// Byte range of each datagram in `bytes`.
    ranges: Vec<Range<usize>>,
    /// Size of each datagram on the wire, in bytes.
    wire_lens: Vec<u64>,
    /// Address and port that they come from.
    sender: SocketAddr,
}

impl Burst {
    /// Largest number of datagrams in a burst: the number of bits in a [`super::link::Mask`].
    pub(super) const MAX: usize = 64;

    /// Creates an empty burst with room for `bytes` bytes in all.
    pub(super) fn new(channel: Channel, bytes: usize) -> Self {
        let bytes = Vec::with_capacity(bytes);
        Self { channel, bytes, ranges: Vec::new(), wire_lens: Vec::new(), sender: ADDRESS }
    }

    /// Sets where the burst comes from: the server, by default.
    #[must_use]
    pub(super) fn with_sender(self, sender: SocketAddr) -> Self {
        Self { sender, ..self }
    }

    /// Writes the tags of all datagrams.
    #[must_use]
    pub(super) fn sealed(mut self, key: Option<DatagramKey>) -> Self {
        if let Some(key) = key {
            self.ranges.iter().for_each(|range| key.seal(&mut self.bytes[range.clone()]));
        }
        self
    }

    /// Address and port that the burst comes from.
    pub(super) fn sender(&self) -> SocketAddr {
        self.sender
    }

    /// Adds a datagram with a header and a payload of zeros.
    pub(super) fn push(&mut self, header: &[u8], payload: usize) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(header);
        self.bytes.resize(start + header.len() + payload, 0);
        self.ranges.push(start..self.bytes.len());
        let len = (header.len() + payload).saturating_sub(HEADER_LEN);
        let len = u32::try_from(len).expect("a datagram has fewer than 64 KiB");
        self.wire_lens.push(wire_len(len));
    }

    /// Channel that the burst goes to.
    pub(super) fn channel(&self) -> Channel {
        self.channel
    }

    /// Size of each datagram on the wire, in bytes.
    pub(super) fn wire_lens(&self) -> &[u64] {
        &self.wire_lens
    }

    /// Bytes of the datagram at position `at`.
    pub(super) fn datagram(&self, at: usize) -> &[u8] {
        &self.bytes[self.ranges[at].clone()]
    }
}
