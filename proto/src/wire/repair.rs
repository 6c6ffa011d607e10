//! Datagrams of the repair channel, a second UDP port of the same group. docs/PROTOCOL.md, "Repair
//! channel".

use alloc::vec::Vec;
use core::ops::Range;

use super::leaf_list::LeafList;
use crate::blocks::{BlockIndex, BlockLayout, WindowIndex};
use crate::fec::{REPAIRS, RepairIndex};
use crate::ids::PageIndex;
use crate::share::Share;

/// Bytes of the header before every payload of the repair channel.
pub const REPAIR_HEADER_LEN: usize = 16;

/// Byte ranges of the header.
pub(super) mod field {
    use super::Range;
    pub(in super::super) const KIND: usize = 0;
    // Of a symbol.
    pub(super) const PROMISED: usize = 1;
    pub(super) const SYMBOL: Range<usize> = 2..4;
    pub(super) const BLOCK: Range<usize> = 4..8;
    // Of a leaf list.
    pub(in super::super) const COUNT: usize = 1;
    pub(in super::super) const FIRST: Range<usize> = 2..4;
    pub(in super::super) const SEGMENT: Range<usize> = 4..8;
    // 8..16 reserved for the tag
}

const KIND_SYMBOL: u8 = 1;
const KIND_BEACON: u8 = 2;
const KIND_END: u8 = 3;
pub(super) const KIND_LEAF_LIST: u8 = 4;

/// Numbers of repair symbols of a block: sent so far, and promised in all.
///
/// Symbols go out in the order of their numbers, so the counts also identify the symbols. Counts
/// continue beyond 128, where symbol numbers start again at 0; 255 stands for 255 or more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Symbols sent so far.
    pub sent: u8,
    /// Symbols promised in all, including those sent. Never below `sent`.
    pub promised: u8,
}

/// Content of a datagram of the repair channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairDatagram<'a> {
    /// A repair symbol.
    Symbol {
        /// Block that the symbol belongs to.
        block: BlockIndex,
        /// Number of the symbol in its block.
        symbol: RepairIndex,
        /// Symbols promised for the block in all; 255 stands for 255 or more.
        promised: u8,
        /// Bytes of the symbol, as many as a full page has.
        payload: &'a [u8],
    },
    /// State of the stream and of the promises.
    Beacon(Beacon),
    /// End of the cast: no more datagrams follow in this group.
    End {
        /// Number that the next beacon would have had; `None` if the server does not state it. An
        /// end whose number is not above that of a received beacon is outdated.
        next_beacon: Option<u32>,
    },
    /// Leaf values. Only members that asked for them have a use for these.
    LeafList(LeafList<'a>),
}

/// State of the stream and of the promises. Members derive from it what to report and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beacon {
    /// Number of the beacon, rising by one. Receivers drop a beacon that a newer one overtook.
    pub number: u32,
    /// Page that the stream sends next, counted from 0; the number of pages while the stream rests.
    pub position: PageIndex,
    /// Number of members, without those that only demand pages.
    pub members: u32,
    /// Share of the members that may report.
    pub permit: Share,
    /// Time over which members spread their reports, in milliseconds.
    pub spread_ms: u16,
    /// Rate of the cast, and the members that report counters.
    pub pace: Pace,
    /// Levels of all blocks of some windows, ascending by window.
    pub windows: Vec<(WindowIndex, Vec<Level>)>,
}

/// The part of a beacon that serves rate control. docs/PROTOCOL.md, "Rate".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Pages and symbols that the cast sent before this beacon, on both ports.
    pub sent: u64,
    /// Sending rate at present, in kbit/s on the wire.
    pub rate_kbps: u32,
    /// Share of the members that report counters regularly: the panel.
    pub panel: Share,
    /// Time between two reports of a panel member, in milliseconds; 0 if no member reports
    /// regularly.
    pub interval_ms: u16,
}

/// Reason why a datagram of the repair channel is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepairError {
    /// The datagram is shorter or longer than its kind and content require.
    #[error("the datagram has the wrong length")]
    Length,
    /// The kind is unknown. A later version of the protocol may define it.
    #[error("the kind of the datagram is unknown")]
    Kind,
    /// The file has no such block, window or leaf, or the code no such symbol.
    #[error("the file has no such block, window, symbol or leaf")]
    Index,
}

/// Byte ranges of the fixed part of a beacon's payload. The windows follow, each with its number
/// (`u32`) and two bytes for each block.
mod beacon {
    use super::Range;
    pub(super) const NUMBER: Range<usize> = 0..4;
    pub(super) const POSITION: Range<usize> = 4..8;
    pub(super) const MEMBERS: Range<usize> = 8..12;
    pub(super) const PERMIT: Range<usize> = 12..14;
    pub(super) const SPREAD: Range<usize> = 14..16;
    pub(super) const SENT: Range<usize> = 16..24;
    pub(super) const RATE: Range<usize> = 24..28;
    pub(super) const PANEL: Range<usize> = 28..30;
    pub(super) const INTERVAL: Range<usize> = 30..32;
    pub(super) const LEN: usize = 32;
}

/// Encodes the header of a repair symbol. The symbol follows it.
pub fn symbol_header(
    block: BlockIndex,
    symbol: RepairIndex,
    promised: u8,
) -> [u8; REPAIR_HEADER_LEN] {
    let mut header = header(KIND_SYMBOL);
    header[field::PROMISED] = promised;
    let number = u16::try_from(symbol.get()).expect("below 128");
    header[field::SYMBOL].copy_from_slice(&number.to_be_bytes());
    header[field::BLOCK].copy_from_slice(&block.0.to_be_bytes());
    header
}

/// Encodes the datagram that announces the end of a cast. `next_beacon` is as in
/// [`RepairDatagram::End`].
pub fn end_datagram(next_beacon: Option<u32>) -> Vec<u8> {
    let mut bytes = header(KIND_END).to_vec();
    bytes.extend(next_beacon.iter().flat_map(|number| number.to_be_bytes()));
    bytes
}

pub(super) fn header(kind: u8) -> [u8; REPAIR_HEADER_LEN] {
    let mut header = [0; REPAIR_HEADER_LEN];
    header[field::KIND] = kind;
    header
}

impl Beacon {
    /// Length in bytes of a beacon datagram with `windows` windows, which have `blocks` blocks in
    /// all.
    pub fn datagram_len(windows: usize, blocks: usize) -> usize {
        REPAIR_HEADER_LEN + beacon::LEN + windows * 4 + blocks * 2
    }

    /// Encodes the datagram, header included.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = header(KIND_BEACON).to_vec();
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(self.position.0.to_be_bytes());
        bytes.extend(self.members.to_be_bytes());
        bytes.extend(self.permit.0.to_be_bytes());
        bytes.extend(self.spread_ms.to_be_bytes());
        bytes.extend(self.pace.sent.to_be_bytes());
        bytes.extend(self.pace.rate_kbps.to_be_bytes());
        bytes.extend(self.pace.panel.0.to_be_bytes());
        bytes.extend(self.pace.interval_ms.to_be_bytes());
        for (window, levels) in &self.windows {
            bytes.extend(window.0.to_be_bytes());
            bytes.extend(levels.iter().flat_map(|level| [level.sent, level.promised]));
        }
        bytes
    }

    fn decode(bytes: &[u8], layout: BlockLayout) -> Result<Self, RepairError> {
        let (fixed, mut rest) = bytes.split_at_checked(beacon::LEN).ok_or(RepairError::Length)?;
        let mut windows = Vec::new();
        while !rest.is_empty() {
            let (number, levels) = rest.split_at_checked(4).ok_or(RepairError::Length)?;
            let window = WindowIndex(be_u32(number));
            let blocks = layout.blocks_of(window);
            let len = (blocks.end - blocks.start) as usize * 2;
            if len == 0 {
                return Err(RepairError::Index);
            }
            let (levels, others) = levels.split_at_checked(len).ok_or(RepairError::Length)?;
            let level = |pair: &[u8]| Level { sent: pair[0], promised: pair[1].max(pair[0]) };
            windows.push((window, levels.chunks_exact(2).map(level).collect()));
            rest = others;
        }
        Ok(Self {
            number: be_u32(&fixed[beacon::NUMBER]),
            position: PageIndex(be_u32(&fixed[beacon::POSITION])),
            members: be_u32(&fixed[beacon::MEMBERS]),
            permit: Share(be_u16(&fixed[beacon::PERMIT])),
            spread_ms: be_u16(&fixed[beacon::SPREAD]),
            pace: Pace {
                sent: be_u64(&fixed[beacon::SENT]),
                rate_kbps: be_u32(&fixed[beacon::RATE]),
                panel: Share(be_u16(&fixed[beacon::PANEL])),
                interval_ms: be_u16(&fixed[beacon::INTERVAL]),
            },
            windows,
        })
    }
}

impl<'a> RepairDatagram<'a> {
    /// Decodes a datagram of a cast with this block layout and page size.
    pub fn decode(
        bytes: &'a [u8],
        layout: BlockLayout,
        page_size: u32,
    ) -> Result<Self, RepairError> {
        let (header, payload) =
            bytes.split_first_chunk::<REPAIR_HEADER_LEN>().ok_or(RepairError::Length)?;
        match header[field::KIND] {
            KIND_SYMBOL => {
                let block = BlockIndex(be_u32(&header[field::BLOCK]));
                let symbol = RepairIndex::new(be_u16(&header[field::SYMBOL]).into());
                let symbol =
                    symbol.filter(|_| block.0 < layout.blocks()).ok_or(RepairError::Index)?;
                if payload.len() != page_size as usize {
                    return Err(RepairError::Length);
                }
                Ok(Self::Symbol { block, symbol, promised: header[field::PROMISED], payload })
            }
            KIND_BEACON => Beacon::decode(payload, layout).map(Self::Beacon),
            KIND_END => {
                let next_beacon = payload.first_chunk::<4>().map(|number| be_u32(number));
                Ok(Self::End { next_beacon })
            }
            KIND_LEAF_LIST => LeafList::decode(bytes).map(Self::LeafList),
            _ => Err(RepairError::Kind),
        }
    }
}

/// Number of the symbol that a block gets after `sent` symbols.
pub fn symbol_number(sent: u32) -> RepairIndex {
    RepairIndex::new(sent as usize % REPAIRS).expect("a remainder by 128")
}

/// Decodes 8 bytes in network byte order.
fn be_u64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Decodes 4 bytes in network byte order.
pub(super) fn be_u32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

/// Decodes 2 bytes in network byte order.
pub(super) fn be_u16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u16::from(byte))
}

#[cfg(test)]
pub(super) mod tests {
    use std::format;
    use std::string::String;

    use proptest::prelude::*;

    use super::*;
    use crate::fec::{Engine, encode};

    const PAGE: u32 = 8;

    fn layout() -> BlockLayout {
        BlockLayout::new(1000, 4).unwrap()
    }

    fn decode(bytes: &[u8]) -> Result<RepairDatagram<'_>, RepairError> {
        RepairDatagram::decode(bytes, layout(), PAGE)
    }

    fn symbol(block: u32, number: usize, payload: &[u8]) -> Vec<u8> {
        let number = RepairIndex::new(number).unwrap();
        [&symbol_header(BlockIndex(block), number, 9)[..], payload].concat()
    }

    /// Whether section 5 of docs/PROTOCOL.md contains a hex dump of these bytes.
    pub(in super::super) fn is_quoted(bytes: &[u8]) -> bool {
        let protocol = include_str!("../../../docs/PROTOCOL.md");
        let section =
            protocol.split("\n## ").find(|section| section.starts_with("5 Repair")).unwrap();
        let hex = |group: &[u8]| {
            group.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
        };
        let line = |(at, bytes): (usize, &[u8])| {
            let groups: Vec<String> = bytes.chunks(4).map(hex).collect();
            format!("    {:04x}  {}", at * 16, groups.join("  "))
        };
        let dump: Vec<String> = bytes.chunks(16).enumerate().map(line).collect();
        let lines: Vec<&str> = section.lines().collect();
        let is_dump =
            |lines: &[&str]| lines.iter().zip(&dump).all(|(line, dump)| line.starts_with(dump));
        lines.windows(dump.len()).any(is_dump)
    }

    #[test]
    fn the_worked_beacon_of_the_protocol_states_two_windows_at_rest() {
        let level = |count| Level { sent: count, promised: count };
        let beacon = Beacon {
            number: 41,
            position: PageIndex(400),
            members: 2,
            permit: Share::ALL,
            spread_ms: 2,
            pace: Pace { sent: 405, rate_kbps: 900_000, panel: Share::ALL, interval_ms: 250 },
            windows: alloc::vec![
                (WindowIndex(0), alloc::vec![level(2), level(1)]),
                (WindowIndex(1), alloc::vec![level(1), level(1)]),
            ],
        };
        assert!(is_quoted(&beacon.encode()), "{:02x?}", beacon.encode());
        assert!(is_quoted(&end_datagram(None)));
        assert!(is_quoted(&end_datagram(Some(42))));
    }

    #[test]
    fn the_worked_symbol_of_the_protocol_is_the_second_one_of_block_3() {
        let layout = BlockLayout::new(400, 2).unwrap();
        let mut file: Vec<u8> = (0..19_190_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
        file.resize(400 * 48, 0);
        let pages: Vec<&[u8]> = file.chunks(48).collect();
        let (block, number) = (BlockIndex(3), RepairIndex::new(1).unwrap());
        let sources = layout.pages_in(block).map(|(at, page)| (at, pages[page.0 as usize]));
        let mut symbol = [0; 48];
        encode(Engine::best(), number, sources, &mut symbol);
        let datagram = [&symbol_header(block, number, 3)[..], &symbol].concat();
        assert!(is_quoted(&datagram), "{datagram:02x?}");
    }

    #[test]
    fn unused_header_bytes_are_ignored_and_bytes_after_a_beacon_are_an_error() {
        let mut end = end_datagram(None);
        end[1..].fill(0xee);
        end.push(0xee);
        assert_eq!(decode(&end), Ok(RepairDatagram::End { next_beacon: None }));
        let mut beacon = Beacon {
            number: 1,
            position: PageIndex(0),
            members: 1,
            permit: Share(1),
            spread_ms: 1,
            pace: Pace::default(),
            windows: Vec::new(),
        }
        .encode();
        beacon[1..8].fill(0xee);
        assert!(decode(&beacon).is_ok(), "a beacon without windows is valid");
        beacon.push(0);
        assert_eq!(decode(&beacon), Err(RepairError::Length));
    }

    #[test]
    fn a_promise_below_sent_counts_as_sent() {
        let windows = alloc::vec![(WindowIndex(1), alloc::vec![Level { sent: 7, promised: 3 }; 4])];
        let beacon = Beacon {
            number: 1,
            position: PageIndex(0),
            members: 1,
            permit: Share(1),
            spread_ms: 1,
            pace: Pace::default(),
            windows,
        };
        let bytes = beacon.encode();
        let Ok(RepairDatagram::Beacon(read)) = decode(&bytes) else { panic!("{bytes:02x?}") };
        assert_eq!(read.windows[0].1[0], Level { sent: 7, promised: 7 });
    }

    #[test]
    fn a_repair_symbol_reads_back() {
        let bytes = symbol(7, 127, &[1; 8]);
        assert_eq!(
            decode(&bytes),
            Ok(RepairDatagram::Symbol {
                block: BlockIndex(7),
                symbol: RepairIndex::new(127).unwrap(),
                promised: 9,
                payload: &[1; 8],
            })
        );
    }

    #[test]
    fn each_defect_of_a_datagram_has_its_own_error() {
        assert_eq!(decode(&symbol(8, 0, &[1; 8])), Err(RepairError::Index));
        assert_eq!(decode(&symbol(7, 0, &[1; 7])), Err(RepairError::Length));
        assert_eq!(decode(&[0; 16]), Err(RepairError::Kind));
        assert_eq!(decode(&[3; 15]), Err(RepairError::Length));
        for next_beacon in [None, Some(0x0102_0304)] {
            let end = RepairDatagram::End { next_beacon };
            assert_eq!(decode(&end_datagram(next_beacon)), Ok(end));
        }
        let mut beyond = symbol(7, 0, &[1; 8]);
        beyond[3] = 128;
        assert_eq!(decode(&beyond), Err(RepairError::Index));
    }

    #[test]
    fn a_beacon_with_a_window_that_the_file_lacks_is_refused() {
        let beacon = |window: u32, blocks: usize| Beacon {
            number: 1,
            position: PageIndex(0),
            members: 1,
            permit: Share(1),
            spread_ms: 1,
            pace: Pace::default(),
            windows: alloc::vec![(WindowIndex(window), alloc::vec![Level::default(); blocks])],
        };
        assert!(decode(&beacon(1, 4).encode()).is_ok());
        assert_eq!(decode(&beacon(2, 4).encode()), Err(RepairError::Index));
        assert_eq!(decode(&beacon(1, 3).encode()), Err(RepairError::Length));
    }

    proptest! {
        #[test]
        fn every_beacon_reads_back(
            number: u32, position: u32, members: u32, permit: u16, spread_ms: u16,
            levels in proptest::collection::vec((any::<u8>(), any::<u8>()), 8), windows in 0u32..=2,
            pace: (u64, u32, u16, u16),
        ) {
            let (sent, rate_kbps, panel, interval_ms) = pace;
            let levels: Vec<_> = levels
                .into_iter()
                .map(|(one, other)| Level { sent: one.min(other), promised: one.max(other) })
                .collect();
            let window = |(levels, at): (&[Level], u32)| (WindowIndex(at), levels.to_vec());
            let beacon = Beacon {
                number, position: PageIndex(position), members, permit: Share(permit), spread_ms,
                pace: Pace { sent, rate_kbps, panel: Share(panel), interval_ms },
                windows: levels.chunks(4).zip(0..windows).map(window).collect(),
            };
            let bytes = beacon.encode();
            let blocks = windows as usize * 4;
            prop_assert_eq!(bytes.len(), Beacon::datagram_len(windows as usize, blocks));
            prop_assert_eq!(decode(&bytes), Ok(RepairDatagram::Beacon(beacon)));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), kind in 0u8..6) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            let _ = decode(&bytes);
        }
    }
}
