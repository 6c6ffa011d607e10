//! File `state` of an object on disk, which identifies the content of `data` and lists its held
//! pages.
//!
//! ```text
//! {"format":2,"server":..,"path":..,"etag":..,"b3":..,"size":..,"page_size":..}\n
//! bitmap of the held pages, page 0 in the lowest bit of the first byte
//! BLAKE3 hash of everything before it, 32 bytes
//! ```
//!
//! A page is a hole of `data` until it is held, and a hole reads as zeros. So no page may count as
//! held because of damage: a state that is not exactly as it was saved counts as absent. `b3`, the
//! content id, is left out until it is known.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use bootcast_proto::{ContentId, Etag, Geometry, PageSet, PageSize, RemotePath};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{KeptFile, ObjectKey};
use crate::log_limit;
use crate::receiver::Assembly;

/// Format number, to be increased whenever an older program would misread the file.
const FORMAT: u32 = 2;

/// Format of earlier versions, which had no checksum. It is not read: a bit that flipped in it
/// cannot be noticed, and saving it in the present format would give the damage a right checksum.
const FORMAT_WITHOUT_CHECKSUM: u32 = 1;

/// First line of the file. It repeats the key, so that an administrator can see what an object is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    format: u32,
    server: String,
    path: String,
    etag: Etag,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    b3: Option<ContentId>,
    size: u64,
    page_size: u32,
}

/// Reason why a state counts as absent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Unusable {
    #[error("the checksum of `state` is wrong")]
    Checksum,
    #[error("an earlier version wrote `state`, without a checksum")]
    NoChecksum,
    #[error("`state` and `data` do not fit together")]
    Mismatch,
}

/// Replaces the state atomically. The caller must have synced `data` before.
pub(super) fn save(
    dir: &Path,
    key: &ObjectKey,
    etag: &Etag,
    snapshot: &HeldSnapshot,
) -> io::Result<()> {
    let bytes = render(key, etag, snapshot)?;
    let new = dir.join("state.new");
    let mut file = File::create(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new, dir.join("state"))?;
    sync_dir(dir)
}

/// Returns the content of the file.
fn render(key: &ObjectKey, etag: &Etag, snapshot: &HeldSnapshot) -> io::Result<Vec<u8>> {
    // A later use would take pages of the bitmap for others.
    assert!(
        snapshot.held.pages() == snapshot.geometry.pages(),
        "a bitmap of {} pages for a file of {}",
        snapshot.held.pages(),
        snapshot.geometry.pages()
    );
    let header = Header {
        format: FORMAT,
        server: key.server.clone(),
        path: key.path.encode(),
        etag: etag.clone(),
        b3: snapshot.content,
        size: snapshot.geometry.size(),
        page_size: snapshot.geometry.page_size().get(),
    };
    let mut bytes = serde_json::to_vec(&header)?;
    bytes.push(b'\n');
    bytes.extend(snapshot.held.to_bytes());
    let checksum = blake3::hash(&bytes);
    bytes.extend(checksum.as_bytes());
    Ok(bytes)
}

/// Whether there is a state, valid or not.
pub(super) fn exists(dir: &Path) -> io::Result<bool> {
    dir.join("state").try_exists()
}

/// Removes the state, because it does not describe the content of `data` any more. A crash may
/// bring it back until [`sync_dir`] has succeeded.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join("state")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Waits until names that were changed in the directory are on disk.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Loads the state of this version; `None` if it is missing, or damaged, which is logged. An error
/// means that the state could not be read and may be valid.
pub(super) fn load(
    dir: &Path,
    key: &ObjectKey,
    etag: &Etag,
    data: &File,
) -> io::Result<Option<Restored>> {
    let bytes = match fs::read(dir.join("state")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let parsed = parse(&bytes, key, etag, data.metadata()?.len());
    if let Err(reason) = &parsed
        && let Some(more) = log_limit::allow("cannot use the stored pages", reason)
    {
        warn!(path = %key.path, %reason, "cannot use the stored pages, fetching them again{more}");
    }
    Ok(parsed.ok())
}

/// Loads the state of an object that has all of this content, whatever its path and version; `None`
/// if it is not such an object.
pub(super) fn load_complete(
    dir: &Path,
    content: Option<ContentId>,
    data: &File,
) -> Option<Restored> {
    let bytes = fs::read(dir.join("state")).ok()?;
    let (header, bitmap) = split(checked(&bytes).ok()?)?;
    let is_content =
        header.b3.is_some() && content.is_none_or(|content| header.b3 == Some(content));
    let has_size = data.metadata().ok()?.len() == header.size && header.format == FORMAT;
    let assembly = held_pages(&header, bitmap)?;
    (is_content && has_size && assembly.is_complete())
        .then_some(Restored { assembly, content: header.b3 })
}

/// Describes the object of a valid state; `None` if there is none.
pub(super) fn describe(dir: &Path) -> io::Result<Option<KeptFile>> {
    let bytes = match fs::read(dir.join("state")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let described = || {
        let (header, bitmap) = split(checked(&bytes).ok()?)?;
        let assembly = held_pages(&header, bitmap)?;
        let (pages, held) = (assembly.geometry().pages(), assembly.arrived().len());
        let path = RemotePath::decode(&header.path).ok()?;
        let Header { server, b3: content, size, .. } = header;
        Some(KeptFile { server, path, content, size, pages, held })
    };
    Ok(described())
}

/// Parses the state of an object whose `data` has `data_len` bytes.
fn parse(bytes: &[u8], key: &ObjectKey, etag: &Etag, data_len: u64) -> Result<Restored, Unusable> {
    let body = checked(bytes)?;
    let (header, bitmap) = split(body).ok_or(Unusable::Mismatch)?;
    let expected = Header {
        format: FORMAT,
        server: key.server.clone(),
        path: key.path.encode(),
        etag: etag.clone(),
        b3: header.b3,
        size: data_len,
        page_size: header.page_size,
    };
    if header != expected {
        return Err(Unusable::Mismatch);
    }
    let assembly = held_pages(&header, bitmap).ok_or(Unusable::Mismatch)?;
    Ok(Restored { assembly, content: header.b3 })
}

/// Returns what the checksum covers, if the checksum is right.
fn checked(bytes: &[u8]) -> Result<&[u8], Unusable> {
    if let Some((body, checksum)) = bytes.split_last_chunk::<{ blake3::OUT_LEN }>()
        && blake3::hash(body) == *checksum
    {
        return Ok(body);
    }
    let format = split(bytes).map(|(header, _)| header.format);
    let is_earlier = format == Some(FORMAT_WITHOUT_CHECKSUM);
    Err(if is_earlier { Unusable::NoChecksum } else { Unusable::Checksum })
}

/// Splits the header from the bytes after it.
fn split(bytes: &[u8]) -> Option<(Header, &[u8])> {
    let line = bytes.iter().position(|&byte| byte == b'\n')?;
    Some((serde_json::from_slice(&bytes[..line]).ok()?, &bytes[line + 1..]))
}

fn held_pages(header: &Header, bitmap: &[u8]) -> Option<Assembly> {
    let page_size = PageSize::new(header.page_size.into()).ok()?;
    let geometry = Geometry::new(header.size, page_size).ok()?;
    let held = PageSet::from_bytes(geometry.pages(), bitmap)?;
    Some(Assembly::resume(geometry, held))
}

/// State of an object at the last checkpoint of an earlier use.
#[derive(Debug)]
pub struct Restored {
    /// Held pages.
    pub assembly: Assembly,
    /// Hash of the whole file, if it was known.
    pub content: Option<ContentId>,
}

/// Snapshot of an object's held pages.
#[derive(Clone, Debug)]
pub struct HeldSnapshot {
    pub(super) geometry: Geometry,
    pub(super) held: PageSet,
    pub(super) content: Option<ContentId>,
    /// Whether all bytes were found to be those of the content.
    pub(super) is_verified: bool,
}

impl HeldSnapshot {
    /// Takes a snapshot; `None` until the exact size of the file is known. `content` is the hash of
    /// the whole file, if it is known; `is_verified` if all bytes were found to be those of it. Bytes
    /// of `left_out` are not in the cache.
    pub fn of(
        assembly: &Assembly,
        content: Option<ContentId>,
        is_verified: bool,
        left_out: &[Range<u64>],
    ) -> Option<Self> {
        assembly.size()?;
        let (geometry, mut held) = (*assembly.geometry(), assembly.arrived().clone());
        for bytes in left_out {
            held.remove_range(geometry.pages_covering(bytes.clone()));
        }
        Some(Self { geometry, held, content, is_verified })
    }

    /// Returns the content if all of its bytes are here.
    pub(super) fn complete_content(&self) -> Option<ContentId> {
        self.content.filter(|_| self.held.is_full() && self.is_verified)
    }

    /// Returns the number of held pages.
    pub fn held(&self) -> u32 {
        self.held.len()
    }
}

#[cfg(test)]
mod tests;
