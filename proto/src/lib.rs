//! Formats and rules that both ends of bootcast share, and the few helpers that both need.
//!
//! | module | holds |
//! |---|---|
//! | [`ids`] | page indices, tokens, versions |
//! | [`units`] | bit rates and page sizes |
//! | [`geometry`] | division of a file into pages |
//! | [`blocks`] | pages -> windows and blocks of the repair code, and back |
//! | [`fec`] | the repair code |
//! | [`page_set`] | sets of pages, such as those that arrived |
//! | [`range_map`] | values for runs of pages |
//! | [`profile`] | the leaves of a content that readers want first after an open |
//! | [`path`] | paths and names, percent-encoded in URLs |
//! | [`share`] | shares of a cast's members |
//! | [`join`] | the answer to a join |
//! | [`tag`] | keyed hashes that authenticate datagrams |
//! | [`wire`] | datagram formats |
//! | [`manifest`] | content ids, and the hashes that prove parts of a file |
//! | [`unreadable`] | the header that names unreadable parts of a file |
//! | [`api`] | JSON bodies of the HTTP interface |
//! | [`bundle`] | runs of small files that are cast as one file |
//! | [`backoff`] | pauses between attempts that fail |
//! | [`limits`] | numbers that both ends rely on |
//! | [`log_limit`] | rate limit for log messages |
//!
//! The crate is `no_std`: a socket, a clock, a thread or a file cannot even be named here.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod api;
pub mod backoff;
pub mod blocks;
pub mod bundle;
pub mod fec;
pub mod geometry;
pub mod ids;
pub mod join;
pub mod limits;
pub mod log_limit;
pub mod manifest;
pub mod page_hash;
pub mod page_set;
pub mod path;
pub mod profile;
pub mod range_map;
pub mod share;
pub mod space;
pub mod tag;
pub mod units;
pub mod unreadable;
pub mod wire;
pub mod zero_map;

pub use backoff::Backoff;
pub use blocks::{BLOCK_PAGES, BlockIndex, BlockLayout, WindowIndex};
pub use geometry::Geometry;
pub use ids::{Etag, PageIndex, PageRange, Token};
pub use join::JoinAnswer;
pub use manifest::{ContentId, ContentTree, Manifest, PartialManifest};
pub use page_hash::PageHash;
pub use page_set::PageSet;
pub use path::RemotePath;
pub use profile::Profile;
pub use range_map::RangeMap;
pub use share::Share;
pub use tag::DatagramKey;
pub use units::{BitRate, PageSize};
pub use wire::Layout;
pub use zero_map::ZeroMap;

/// Default TCP port of the HTTP interface.
pub const DEFAULT_PORT: u16 = 8888;

/// Request header of a client that knows the extensions. Its value is their version, `1`.
pub const HEADER_EXTENSIONS: &str = "x-bootcast";

/// Request header that carries the [`Token`] of a member.
pub const HEADER_TOKEN: &str = "x-token";

/// Request header of a join: which pages the member wants without demanding them. Without it, all
/// pages; see [`FILL_DEMAND`].
pub const HEADER_FILL: &str = "x-bootcast-fill";

/// Response header of `POST /want/`: microseconds until the last page of `now` leaves the server.
pub const HEADER_QUEUE: &str = "x-bootcast-queue";

/// Request header of a join: `1` if the member holds a part of the file already. The server sends
/// nothing for this member before its first report.
pub const HEADER_RESUME: &str = "x-bootcast-resume";

/// Request header of a join: `1` asks for leaf lists in the cast. docs/PROTOCOL.md, "Leaf lists".
pub const HEADER_LEAVES: &str = "x-bootcast-leaves";

/// Request header of a join: `1` asks for the profile of the content ahead of everything but
/// demands, from a member that demands and holds nothing yet. docs/PROTOCOL.md, "Profile".
pub const HEADER_PROFILE: &str = "x-bootcast-profile";

/// Request header of `GET /file/`: `1` asks for a small file whose cast the client would otherwise
/// join. docs/PROTOCOL.md, "Small files".
pub const HEADER_SMALL: &str = "x-bootcast-small";

/// Query of `GET /manifest/` that asks for the values that are known so far. It may stand beside
/// `segments=`, separated by `&`. docs/PROTOCOL.md, "Manifest".
pub const QUERY_KNOWN: &str = "known=1";

/// Query of `GET /manifest/` that asks for the zero map. docs/PROTOCOL.md, "Manifest".
pub const QUERY_ZEROS: &str = "zeros=1";

/// Value of [`HEADER_FILL`] of a member that wants only the pages it demands.
pub const FILL_DEMAND: &str = "demand";
