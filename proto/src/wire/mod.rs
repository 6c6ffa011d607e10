//! Datagrams. One file a kind.
//!
//! Decoding never panics and trusts no length that it was sent: whatever does not fit is a
//! [`DataError`], which its receiver counts and forgets.

mod data;

pub use data::{DataError, HEADER_LEN, Layout, Page};
