//! What both ends of bootcast must agree on, and the little else that both need.
//!
//! | module | holds |
//! |---|---|
//! | [`ids`] | page indices, tokens, versions |
//! | [`units`] | bit rates and page sizes |
//! | [`geometry`] | file size -> pages, and back |
//! | [`blocks`] | pages -> windows and blocks of the repair code, and back |
//! | [`fec`] | the repair code |
//! | [`page_set`] | which pages are held, which are missing |
//! | [`range_map`] | values for runs of pages |
//! | [`path`] | names as the URL carries them |
//! | [`join`] | the answer to a join |
//! | [`tag`] | what vouches for a datagram |
//! | [`wire`] | datagrams |
//! | [`unreadable`] | the header that names what a server cannot read |
//! | [`api`] | the JSON of the HTTP interface |
//! | [`quiet`] | how often one cause may appear in the log |
//!
//! The crate is `no_std`: a socket, a clock, a thread or a file cannot even be named here.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod api;
pub mod blocks;
pub mod fec;
pub mod geometry;
pub mod ids;
pub mod join;
pub mod page_set;
pub mod path;
pub mod quiet;
pub mod range_map;
pub mod tag;
pub mod units;
pub mod unreadable;
pub mod wire;

pub use blocks::{BLOCK_PAGES, BlockIndex, BlockLayout, WindowIndex};
pub use geometry::Geometry;
pub use ids::{Etag, PageIndex, PageRange, Token};
pub use join::JoinAnswer;
pub use page_set::PageSet;
pub use path::RemotePath;
pub use range_map::RangeMap;
pub use tag::DatagramKey;
pub use units::{BitRate, PageSize};
pub use wire::Layout;

/// TCP port of the control plane when nobody names one.
pub const DEFAULT_PORT: u16 = 8888;

/// Request header that says "I know the extensions"; its value is the version, `1`.
pub const HEADER_EXTENSIONS: &str = "x-bootcast";

/// Request header that carries the [`Token`] of a member.
pub const HEADER_TOKEN: &str = "x-token";

/// Request header of a join: which pages the member wants without demanding them. See
/// [`FILL_DEMAND`].
pub const HEADER_FILL: &str = "x-bootcast-fill";

/// Response header of a want: microseconds until its last page leaves the server.
pub const HEADER_QUEUE: &str = "x-bootcast-queue";
/// Request header of a join: `1` from a member that has a part of the file already. Nothing is sent
/// for it before its first report says what it lacks.
pub const HEADER_RESUME: &str = "x-bootcast-resume";

/// Value of [`HEADER_FILL`] of a member that wants only the pages it demands.
pub const FILL_DEMAND: &str = "demand";
