//! The answer to a join: `KEY=value` lines, first those of the base protocol, then the extensions.

use alloc::string::{String, ToString};
use core::fmt::Write;
use core::net::{IpAddr, SocketAddrV4};
use core::str::FromStr;
use core::time::Duration;

use crate::blocks::{BlockLayout, MAX_INTERLEAVE};
use crate::geometry::Geometry;
use crate::ids::{Etag, Token};
use crate::limits::LEASE_MAX;
use crate::manifest::ContentId;
use crate::tag::DatagramKey;
use crate::units::{BitRate, PageSize};

/// Content of a join answer. docs/PROTOCOL.md, "Join".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinAnswer {
    /// Multicast group and UDP port of the pages.
    pub connect: SocketAddrV4,
    /// Identifies this membership in later requests.
    pub token: Token,
    /// Announced number of pages. The reference layout may announce one page that never comes.
    pub pages: u32,
    /// Bytes of a full page.
    pub page_size: PageSize,
    /// Lines that a plain server does not send and a plain client ignores.
    pub extensions: Extensions,
}

/// Lines beyond the base protocol. Each is optional.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// Bytes in the file.
    pub size: Option<u64>,
    /// Version of the file.
    pub etag: Option<Etag>,
    /// Sending rate at present.
    pub rate: Option<BitRate>,
    /// Address that the datagrams come from.
    pub source: Option<IpAddr>,
    /// Key of the datagrams' tags.
    pub key: Option<DatagramKey>,
    /// UDP port of the repair channel, in the same group.
    pub repair: Option<u16>,
    /// Blocks in a window of the repair code `cauchy8-128`.
    pub interleave: Option<u32>,
    /// Time after which the server forgets a member that sends no request.
    pub lease: Option<Duration>,
    /// Hash of the file, once the server knows it.
    pub content_id: Option<ContentId>,
    /// Bytes in a leaf of the manifest, if the server has manifests.
    pub leaf_bytes: Option<u64>,
    /// Members of the cast, this one included.
    pub members: Option<u64>,
}

/// Name of the repair code in the line `FEC=`. A slash and the interleave follow it.
const CODE: &str = "cauchy8-128";

/// Reason why a join answer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinAnswerError {
    /// A line of the base protocol is missing.
    #[error("the join answer has no line {0}=")]
    Missing(&'static str),
    /// A line of the base protocol has a malformed value.
    #[error("the join answer has an invalid line {0}={1:?}")]
    Malformed(&'static str, String),
    /// `SIZE` does not fit `PAGES` and `PAGESIZE`.
    #[error("the join answer contradicts itself: {size} bytes in {pages} pages of {page_size}")]
    Contradiction {
        /// Announced size of the file in bytes.
        size: u64,
        /// Announced number of pages.
        pages: u32,
        /// Announced page size.
        page_size: PageSize,
    },
}

impl JoinAnswer {
    /// Writes the answer as text, with the empty line at its end.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn core::fmt::Display| {
            writeln!(text, "{key}={value}").expect("a String takes all that memory can hold");
        };
        line("CONNECT", &self.connect);
        line("TOKEN", &self.token);
        line("PAGES", &self.pages);
        line("PAGESIZE", &self.page_size);
        let Extensions {
            size,
            etag,
            rate,
            source,
            key,
            repair,
            interleave,
            lease,
            content_id,
            leaf_bytes,
            members,
        } = &self.extensions;
        if let Some(size) = size {
            line("SIZE", size);
        }
        if let Some(etag) = etag {
            line("ETAG", etag);
        }
        if let Some(rate) = rate {
            line("RATE", &rate.bits_per_second());
        }
        if let Some(source) = source {
            line("SOURCE", source);
        }
        if let Some(key) = key {
            line("KEY", &key.to_hex());
        }
        if let Some(repair) = repair {
            line("REPAIR", repair);
        }
        if let Some(interleave) = interleave {
            line("FEC", &format_args!("{CODE}/{interleave}"));
        }
        if let Some(lease) = lease {
            line("LEASE", &lease.as_secs());
        }
        if let Some(content_id) = content_id {
            line("B3", content_id);
        }
        if let Some(leaf_bytes) = leaf_bytes {
            line("LEAF", leaf_bytes);
        }
        if let Some(members) = members {
            line("MEMBERS", members);
        }
        text.push('\n');
        text
    }

    /// Parses an answer. Lines may come in any order; unknown lines and carriage returns are
    /// ignored. A malformed extension counts as absent, because another server may use the same
    /// name for something else.
    pub fn parse(text: &str) -> Result<Self, JoinAnswerError> {
        let answer = Self {
            connect: required(text, "CONNECT", |value| {
                value.parse().ok().filter(|connect: &SocketAddrV4| {
                    connect.ip().is_multicast() && connect.port() != 0
                })
            })?,
            token: required(text, "TOKEN", |value| Token::parse(value).ok())?,
            pages: required(text, "PAGES", |value| value.parse().ok())?,
            page_size: required(text, "PAGESIZE", |value| PageSize::new(value.parse().ok()?).ok())?,
            extensions: Extensions {
                size: optional(text, "SIZE"),
                etag: line(text, "ETAG").and_then(|value| Etag::new(value).ok()),
                rate: optional(text, "RATE").and_then(BitRate::from_bits_per_second),
                source: optional(text, "SOURCE"),
                key: optional(text, "KEY"),
                repair: optional(text, "REPAIR").filter(|port| *port != 0),
                interleave: line(text, "FEC").and_then(interleave),
                lease: optional(text, "LEASE")
                    .map(|lease| Duration::from_secs(lease).min(LEASE_MAX)),
                content_id: optional(text, "B3"),
                leaf_bytes: optional(text, "LEAF"),
                members: optional(text, "MEMBERS"),
            },
        };
        answer.check_size()?;
        Ok(answer)
    }

    /// Geometry of the file, if the answer states the exact size.
    pub fn geometry(&self) -> Option<Geometry> {
        Geometry::new(self.extensions.size?, self.page_size).ok()
    }

    /// Layout of the repair blocks, if the answer names a repair port, the size and a known code.
    pub fn block_layout(&self) -> Option<BlockLayout> {
        self.extensions.repair?;
        BlockLayout::new(self.geometry()?.pages(), self.extensions.interleave?)
    }

    /// Checks that `SIZE` fits `PAGES`, with or without the phantom page of the reference layout.
    fn check_size(&self) -> Result<(), JoinAnswerError> {
        let Some(size) = self.extensions.size else { return Ok(()) };
        let (pages, page_size) = (self.pages, self.page_size);
        let full = u64::from(page_size.get());
        let is_exact = size.div_ceil(full) == u64::from(pages);
        let has_phantom = size / full + 1 == u64::from(pages);
        if is_exact || has_phantom {
            Ok(())
        } else {
            Err(JoinAnswerError::Contradiction { size, pages, page_size })
        }
    }
}

/// Parses `cauchy8-128/<interleave>`; `None` for any other code.
fn interleave(value: &str) -> Option<u32> {
    let (code, interleave) = value.split_once('/')?;
    let interleave = interleave.parse().ok().filter(|it| (1..=MAX_INTERLEAVE).contains(it));
    interleave.filter(|_| code == CODE)
}

/// Value of the first line with this key.
fn line<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))
}

/// Value of an extension line; `None` if the line is absent or malformed.
fn optional<T: FromStr>(text: &str, key: &str) -> Option<T> {
    line(text, key)?.parse().ok()
}

/// Value of a line of the base protocol, parsed by `parse`.
fn required<T>(
    text: &str,
    key: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, JoinAnswerError> {
    let value = line(text, key).ok_or(JoinAnswerError::Missing(key))?;
    parse(value).ok_or_else(|| JoinAnswerError::Malformed(key, value.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The worked example of docs/PROTOCOL.md, "Join".
    const EXAMPLE: &str = "CONNECT=239.255.0.1:9000\n\
        TOKEN=6f1ed002ab5595859014ebf0951522d9\n\
        PAGES=3\n\
        PAGESIZE=1456\n\
        SIZE=4000\n\
        ETAG=2a-fa0-18c2f0a1\n\
        RATE=900000000\n\
        SOURCE=192.0.2.1\n\
        KEY=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n\
        REPAIR=9001\n\
        FEC=cauchy8-128/16\n\
        LEASE=60\n\
        B3=6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85\n\
        LEAF=16384\n\
        MEMBERS=2\n\n";

    #[test]
    fn a_lease_that_would_overflow_a_clock_is_shortened_to_a_day() {
        let text = EXAMPLE.replace("LEASE=60", "LEASE=18446744073709551615");
        let lease = JoinAnswer::parse(&text).unwrap().extensions.lease;
        assert_eq!(lease, Some(LEASE_MAX));
    }

    #[test]
    fn the_worked_example_reads_and_writes_back() {
        let answer = JoinAnswer::parse(EXAMPLE).unwrap();
        assert_eq!(answer.geometry().unwrap().pages(), 3);
        assert_eq!(answer.block_layout(), BlockLayout::new(3, 16));
        assert_eq!(answer.encode(), EXAMPLE);
    }

    #[test]
    fn the_answer_of_a_plain_server_is_enough() {
        let plain = "CONNECT=224.3.29.71:12000\r\nTOKEN=abc\r\nPAGES=7\r\nPAGESIZE=1450\r\n\
            MOOD=good\r\n\r\n";
        let answer = JoinAnswer::parse(plain).unwrap();
        assert_eq!(answer.pages, 7);
        assert_eq!(answer.extensions, Extensions::default());
        assert_eq!(answer.geometry(), None);
    }

    #[test]
    fn the_error_names_the_missing_or_invalid_line() {
        let parse = |text: &str| JoinAnswer::parse(text).unwrap_err();
        assert_eq!(parse(""), JoinAnswerError::Missing("CONNECT"));
        let unicast = EXAMPLE.replace("239.255", "192.168");
        assert!(matches!(parse(&unicast), JoinAnswerError::Malformed("CONNECT", _)));
        let huge = EXAMPLE.replace("PAGESIZE=1456", "PAGESIZE=70000");
        assert!(matches!(parse(&huge), JoinAnswerError::Malformed("PAGESIZE", _)));
        let longer = EXAMPLE.replace("SIZE=4000\n", "SIZE=9999\n");
        assert!(matches!(parse(&longer), JoinAnswerError::Contradiction { .. }));
    }

    #[test]
    fn the_phantom_page_of_the_reference_layout_is_no_contradiction() {
        let exact = EXAMPLE.replace("SIZE=4000\n", "SIZE=2912\n");
        assert_eq!(JoinAnswer::parse(&exact).unwrap().geometry().unwrap().pages(), 2);
    }

    #[test]
    fn a_malformed_extension_counts_as_absent() {
        let odd = EXAMPLE.replace("RATE=900000000", "RATE=fast").replace("ETAG=2a", "ETAG=\"2a");
        let odd = odd.replace("KEY=00", "KEY=");
        let extensions = JoinAnswer::parse(&odd).unwrap().extensions;
        assert_eq!((extensions.rate, extensions.etag, extensions.key), (None, None, None));
        assert_eq!(extensions.size, Some(4000));
        for code in ["raptor/16", "cauchy8-128", "cauchy8-128/0", "cauchy8-128/x"] {
            let unknown = EXAMPLE.replace("cauchy8-128/16", code);
            assert_eq!(JoinAnswer::parse(&unknown).unwrap().block_layout(), None, "{code}");
        }
    }

    proptest! {
        #[test]
        fn every_answer_reads_back(
            host in 0u32..0x0fff_ffff, port in 1u16.., token: u128, size in 0u64..1 << 40,
            page_size in 512u64..=9000, extended: bool, rate in 1u64.., key: Option<[u8; 32]>,
        ) {
            let page_size = PageSize::new(page_size).unwrap();
            let geometry = Geometry::new(size, page_size).unwrap();
            let answer = JoinAnswer {
                connect: SocketAddrV4::new((0xe000_0000 | host).into(), port),
                token: Token::from_random(token),
                pages: geometry.pages(),
                page_size,
                extensions: if extended {
                    Extensions {
                        size: Some(size),
                        etag: Some(Etag::new("v1").unwrap()),
                        rate: BitRate::from_bits_per_second(rate),
                        source: Some([10, 0, 0, 1].into()),
                        key: key.map(DatagramKey::from_random),
                        repair: Some(port),
                        interleave: Some(1 + host % MAX_INTERLEAVE),
                        lease: Some(Duration::from_secs(rate % 1000)),
                        content_id: key.map(ContentId::from_bytes),
                        leaf_bytes: key.map(|_| rate),
                        members: Some(rate),
                    }
                } else {
                    Extensions::default()
                },
            };
            prop_assert_eq!(JoinAnswer::parse(&answer.encode()), Ok(answer));
        }

        #[test]
        fn no_text_panics(text in "(CONNECT|TOKEN|PAGES|PAGESIZE|SIZE|\\PC|=|\n|[0-9:.]){0,60}") {
            let _ = JoinAnswer::parse(&text);
        }
    }
}
