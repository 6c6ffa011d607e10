//! Quantities with a unit: page sizes and bit rates.

use core::fmt;
use core::num::{NonZeroU32, NonZeroU64};
use core::ops::RangeInclusive;
use core::str::FromStr;
use core::time::Duration;

/// Size of a full page in bytes. At least 1; a page and its header fit in one UDP datagram over
/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(NonZeroU32);

/// A number that cannot be a page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a page is 1 to 65491 bytes, not {0}")]
pub struct PageSizeError(pub u64);

impl PageSize {
    /// Largest page: the largest UDP payload over IPv4 (65,507 bytes) minus the page header.
    pub const MAX: u32 = 65_507 - PAGE_HEADER;

    /// Creates a page size after checking its range.
    pub fn new(bytes: u64) -> Result<Self, PageSizeError> {
        u32::try_from(bytes)
            .ok()
            .filter(|&bytes| bytes <= Self::MAX)
            .and_then(NonZeroU32::new)
            .map(Self)
            .ok_or(PageSizeError(bytes))
    }

    /// Largest even page size whose datagram fits in an IPv4 packet of `mtu` bytes: 1456 for an MTU
    /// of 1500. `None` if not even a page of two bytes fits.
    pub fn for_mtu(mtu: u32) -> Option<Self> {
        let payload = mtu.min(65_535).checked_sub(PACKET_OVERHEAD)?;
        Self::new(u64::from(payload & !1)).ok()
    }

    /// Page size in bytes.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Bytes that a full page occupies on an Ethernet wire, headers included.
    pub fn wire_len(self) -> u64 {
        wire_len(self.get())
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// [`crate::wire::HEADER_LEN`] as a `u32`, the type of page sizes.
const PAGE_HEADER: u32 = 16;
const _: () = assert!(PAGE_HEADER as usize == crate::wire::HEADER_LEN);

/// Bytes of an IPv4 header without options and a UDP header.
const IPV4_UDP_OVERHEAD: u32 = 20 + 8;

/// Bytes of an IPv4 packet in front of its page: the headers of IPv4, UDP and the page.
pub const PACKET_OVERHEAD: u32 = IPV4_UDP_OVERHEAD + PAGE_HEADER;

/// Bytes of an Ethernet header and of the checksum behind the frame. A VLAN tag would add 4.
const ETHERNET_OVERHEAD: u32 = 14 + 4;

/// Bytes of the shortest Ethernet frame: shorter ones are padded.
const ETHERNET_MIN_FRAME: u32 = 64;

/// Bytes on the wire between two frames: preamble with start delimiter, and inter-frame gap.
const ETHERNET_SPACING: u32 = 8 + 12;

/// Bytes that a payload of `payload` bytes occupies on an Ethernet wire.
///
/// Counts the headers of page, UDP, IPv4 and Ethernet, the checksum, the preamble and the gap
/// between frames, as the nominal speed of an interface does. Traffic control and interface
/// counters count 24 bytes less for each frame.
pub fn wire_len(payload: u32) -> u64 {
    let frame = u64::from(payload) + u64::from(PACKET_OVERHEAD + ETHERNET_OVERHEAD);
    frame.max(ETHERNET_MIN_FRAME.into()) + u64::from(ETHERNET_SPACING)
}

/// Bits per second on the wire, Ethernet framing included. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitRate(NonZeroU64);

/// Reason why a text is not a bit rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitRateError {
    /// The text is not a number with a unit.
    #[error("not a rate: write a number and kbit, mbit or gbit, such as 900mbit")]
    Malformed,
    /// The text is a bare number, which could mean any unit.
    #[error("a rate needs a unit: kbit, mbit or gbit, such as 900mbit")]
    NoUnit,
    /// The rate is outside [`BitRate::CONFIGURABLE`].
    #[error("a rate is 100kbit to 10000gbit, such as 900mbit")]
    Range,
}

impl BitRate {
    /// Rates that can be configured, in bits per second. Others are most likely typing errors: at
    /// 100 kbit/s a page takes 0.1 s.
    pub const CONFIGURABLE: RangeInclusive<u64> = 100_000..=10_000_000_000_000;

    /// Creates a rate; `None` for 0.
    pub fn from_bits_per_second(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).map(Self)
    }

    /// The rate in bits per second.
    pub fn bits_per_second(self) -> u64 {
        self.0.get()
    }

    /// Time that `bytes` bytes occupy the wire, rounded up to the next nanosecond. `Duration::MAX`
    /// if it exceeds 584 years.
    pub fn time_to_send(self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * 8 * 1_000_000_000).div_ceil(u128::from(self.0.get()));
        u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
    }

    /// Whole bytes that the wire carries in `time`.
    pub fn bytes_in(self, time: Duration) -> u64 {
        let bytes = u128::from(self.0.get()).saturating_mul(time.as_nanos()) / 8_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl FromStr for BitRate {
    type Err = BitRateError;

    /// Parses `900mbit`, `1.5gbit` or `640 kbit`. Units are powers of 1000, as in traffic control.
    fn from_str(text: &str) -> Result<Self, BitRateError> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number = number.parse::<f64>().map_err(|_| BitRateError::Malformed)?;
        let scale = match unit.trim().to_ascii_lowercase().as_str() {
            "" => return Err(BitRateError::NoUnit),
            "bit" => 1.0,
            "k" | "kbit" => 1e3,
            "m" | "mbit" => 1e6,
            "g" | "gbit" => 1e9,
            _ => return Err(BitRateError::Malformed),
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a saturated value is out of range below"
        )]
        let bits = (number * scale) as u64;
        let rate = Self::from_bits_per_second(bits).filter(|_| Self::CONFIGURABLE.contains(&bits));
        rate.ok_or(BitRateError::Range)
    }
}

impl fmt::Display for BitRate {
    /// Writes the rate in the largest unit without a fraction: `900mbit`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.get();
        for (scale, unit) in [(1_000_000_000, "gbit"), (1_000_000, "mbit"), (1_000, "kbit")] {
            if bits.is_multiple_of(scale) {
                return write!(f, "{}{unit}", bits / scale);
            }
        }
        write!(f, "{bits}bit")
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_page_at_an_mtu_of_1500_is_1456_bytes_and_1538_on_the_wire() {
        let page = PageSize::for_mtu(1500).unwrap();
        assert_eq!(page.get(), 1456);
        assert_eq!(page.wire_len(), 1538);
    }

    #[test]
    fn a_short_frame_is_padded() {
        assert_eq!((wire_len(0), wire_len(2), wire_len(3)), (84, 84, 85));
    }

    #[test]
    fn a_page_size_is_even_and_fits_the_mtu() {
        for mtu in [68, 576, 1280, 1499, 1501, 9000, 65_535, u32::MAX] {
            let page = PageSize::for_mtu(mtu).unwrap().get();
            assert_eq!(page % 2, 0);
            assert!(page + 44 <= mtu && page <= PageSize::MAX, "{mtu}: {page}");
        }
        assert_eq!(PageSize::for_mtu(44), None);
        assert_eq!(PageSize::new(0), Err(PageSizeError(0)));
        assert_eq!(PageSize::new(65_492), Err(PageSizeError(65_492)));
    }

    #[test]
    fn rates_read_as_traffic_control_writes_them() {
        for (text, bits) in [
            ("900mbit", 900_000_000),
            ("1.5gbit", 1_500_000_000),
            ("640 Kbit", 640_000),
            ("100000bit", 100_000),
            ("10000gbit", 10_000_000_000_000),
        ] {
            assert_eq!(text.parse::<BitRate>().map(BitRate::bits_per_second), Ok(bits), "{text}");
        }
        for (bad, error) in [
            ("", BitRateError::Malformed),
            ("mbit", BitRateError::Malformed),
            ("-1mbit", BitRateError::Malformed),
            ("1mbps", BitRateError::Malformed),
            ("1e9gbit", BitRateError::Malformed),
            ("nan", BitRateError::Malformed),
            ("1.2.3mbit", BitRateError::Malformed),
            ("5", BitRateError::NoUnit),
            ("900000000", BitRateError::NoUnit),
            ("0mbit", BitRateError::Range),
            ("5bit", BitRateError::Range),
            ("99kbit", BitRateError::Range),
            ("10001gbit", BitRateError::Range),
        ] {
            assert_eq!(bad.parse::<BitRate>(), Err(error), "{bad}");
        }
        let infinite = std::format!("{}gbit", "9".repeat(400));
        assert_eq!(infinite.parse::<BitRate>(), Err(BitRateError::Range));
        assert_eq!("1500mbit".parse::<BitRate>().unwrap().to_string(), "1500mbit");
    }

    #[test]
    fn time_and_bytes_at_a_rate_agree() {
        let rate: BitRate = "200mbit".parse().unwrap();
        assert_eq!(rate.time_to_send(25_000), Duration::from_millis(1));
        assert_eq!(rate.bytes_in(Duration::from_millis(1)), 25_000);
        assert_eq!(rate.bytes_in(Duration::MAX), u64::MAX);
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_yields_configurable_rates(
            text in "\\PC*", number in "[0-9.]*", unit in "[kmgbit]*",
        ) {
            for text in [text, number + &unit] {
                if let Ok(rate) = text.parse::<BitRate>() {
                    prop_assert!(BitRate::CONFIGURABLE.contains(&rate.bits_per_second()));
                }
            }
        }

        #[test]
        fn no_rate_panics_in_display_or_arithmetic(bits in 1u64.., bytes: u64, nanos: u64) {
            let rate = BitRate::from_bits_per_second(bits).unwrap();
            prop_assert!(!rate.to_string().is_empty());
            rate.time_to_send(bytes);
            rate.bytes_in(Duration::from_nanos(nanos));
        }
    }
}
