//! Number and size of the datagrams that casts hand out.

use bootcast_proto::units::wire_len;
use bootcast_proto::wire::{Beacon, REPAIR_HEADER_LEN};
use bootcast_proto::{Geometry, PageIndex, PageRange};

use super::super::Sending;

/// Payload length of the datagram that announces the end of a cast, in bytes: the header is not
/// counted.
pub(super) const END_LEN: u32 = 4;

/// Returns the number of pages and symbols, which beacons state. Other datagrams do not count.
pub(super) fn datagrams(content: &Sending) -> u64 {
    match content {
        Sending::Pages(pages) => pages.len().into(),
        Sending::Symbols(symbols) => symbols.len() as u64,
        Sending::Beacon(_) | Sending::LeafList(_) | Sending::End(_) => 0,
    }
}

/// Returns the number of bytes that the datagrams occupy on the wire.
pub(super) fn wire_bytes(geometry: &Geometry, content: &Sending) -> u64 {
    match content {
        Sending::Pages(pages) => pages_wire_bytes(geometry, *pages),
        Sending::Symbols(symbols) => symbols.len() as u64 * geometry.page_size().wire_len(),
        Sending::Beacon(beacon) => {
            let blocks = beacon.windows.iter().map(|(_, levels)| levels.len()).sum();
            let len = Beacon::datagram_len(beacon.windows.len(), blocks) - REPAIR_HEADER_LEN;
            wire_len(u32::try_from(len).unwrap_or(u32::MAX))
        }
        Sending::LeafList(list) => wire_len(u32::try_from(list.payload_len()).unwrap_or(u32::MAX)),
        Sending::End(_) => wire_len(END_LEN),
    }
}

fn pages_wire_bytes(geometry: &Geometry, pages: PageRange) -> u64 {
    let Some(last) = pages.end.0.checked_sub(1) else { return 0 };
    let full = u64::from(pages.len()).saturating_sub(1) * geometry.page_size().wire_len();
    full + wire_len(geometry.page_len(PageIndex(last)).unwrap_or(0))
}
