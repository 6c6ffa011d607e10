//! Bundles: runs of small files that are cast as one file. docs/PROTOCOL.md, "Bundles".

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::Etag;
use crate::manifest::ContentId;

/// Response header of `GET /file/` for a small file: `1` if the server has bundles.
pub const HEADER_BUNDLES: &str = "x-bootcast-bundles";

/// Beginning of the name of every bundle.
pub const BUNDLE_PREFIX: &str = ".bootcast-bundle-";

/// Answer to `GET /bundle/<path>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleInfo {
    /// Name of the bundle in the directory of the file.
    pub name: String,
    /// Version of the bundle.
    pub etag: Etag,
    /// Size of the bundle in bytes.
    pub size: u64,
    /// Length of the index at its beginning in bytes.
    pub index: u64,
    /// Percent-encoded name of the first file of the bundle that follows, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Index of a bundle. The bytes of the files follow it in the same order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleIndex {
    /// Files of the bundle.
    pub files: Vec<BundledFile>,
}

/// A file in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundledFile {
    /// Percent-encoded name.
    pub name: String,
    /// Version of the file.
    pub etag: Etag,
    /// Size of the file in bytes.
    pub size: u64,
    /// Content id; `None` for an empty file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub b3: Option<ContentId>,
}
