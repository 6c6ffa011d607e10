//! File `state` of an object on disk, which identifies the content of `data` and lists its held
//! pages.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use bootcast_proto::{Etag, Geometry, PageSet, PageSize};
use serde::{Deserialize, Serialize};

use super::ObjectKey;
use crate::receiver::Assembly;

/// Format number, to be increased whenever an older program would misread the file.
const FORMAT: u32 = 1;

/// First line of the file. It repeats the key, so that an administrator can see what an object is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    format: u32,
    server: String,
    path: String,
    etag: Etag,
    size: u64,
    page_size: u32,
}

/// Replaces the state atomically. The caller must have synced `data` before.
pub(super) fn save(
    dir: &Path,
    key: &ObjectKey,
    etag: &Etag,
    snapshot: &HeldSnapshot,
) -> io::Result<()> {
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
        size: snapshot.geometry.size(),
        page_size: snapshot.geometry.page_size().get(),
    };
    let mut text = serde_json::to_vec(&header)?;
    text.push(b'\n');
    text.extend(snapshot.held.to_bytes());
    let new = dir.join("state.new");
    let mut file = File::create(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&new, dir.join("state"))?;
    File::open(dir)?.sync_all()
}

/// Deletes the state durably, because it does not describe the content of `data` any more.
pub(super) fn discard(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join("state")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) => Ok(()),
        Ok(()) => File::open(dir)?.sync_all(),
    }
}

/// Loads the state of this version; `None` if it is missing or invalid. An error means that the
/// state could not be read and may be valid.
pub(super) fn load(
    dir: &Path,
    key: &ObjectKey,
    etag: &Etag,
    data: &File,
) -> io::Result<Option<Assembly>> {
    match fs::read(dir.join("state")) {
        Ok(text) => Ok(parse(&text, key, etag, data.metadata()?.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Parses a state; `None` if it is damaged, of another object, or does not fit the size of `data`.
fn parse(text: &[u8], key: &ObjectKey, etag: &Etag, data_len: u64) -> Option<Assembly> {
    let line = text.iter().position(|&byte| byte == b'\n')?;
    let header: Header = serde_json::from_slice(&text[..line]).ok()?;
    let page_size = PageSize::new(header.page_size.into()).ok()?;
    let expected = Header {
        format: FORMAT,
        server: key.server.clone(),
        path: key.path.encode(),
        etag: etag.clone(),
        ..header
    };
    let is_valid = header == expected && data_len == header.size;
    let geometry = Geometry::new(header.size, page_size).ok().filter(|_| is_valid)?;
    let held = PageSet::from_bytes(geometry.pages(), &text[line + 1..])?;
    Some(Assembly::resume(geometry, held))
}

/// Snapshot of an object's held pages.
#[derive(Clone, Debug)]
pub struct HeldSnapshot {
    pub(super) geometry: Geometry,
    pub(super) held: PageSet,
}

impl HeldSnapshot {
    /// Takes a snapshot; `None` until the exact size of the file is known.
    pub fn of(assembly: &Assembly) -> Option<Self> {
        assembly.size()?;
        Some(Self { geometry: *assembly.geometry(), held: assembly.held().clone() })
    }

    /// Returns the number of held pages.
    pub fn held(&self) -> u32 {
        self.held.held()
    }
}
