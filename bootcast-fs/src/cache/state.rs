//! File `state` of an object on disk: what `data` is, and which of its pages are held.
//!
//! ```text
//! {"format":3,"server":..,"path":..,"etag":..,"b3":..,"size":..,"page_size":..,"nonce":..}\n
//! zeros up to 32 bytes before the end of a block of 4096 bytes
//! BLAKE3 hash of everything before it, 32 bytes
//! blocks of 4096 bytes:
//!     held pages of a group of 32,512, the first one in the lowest bit of the first byte
//!     BLAKE3 hash of the nonce, the number of the block (8 bytes, little-endian), and the bits
//! ```
//!
//! A block of zeros, which may be a hole, has no held pages. Blocks are written in place, so that
//! saving a large file costs what changed. A page is a hole of `data` until it is held, and a hole
//! reads as zeros. So no page may count as held because of damage: a block that is not exactly as
//! it was saved, or belongs to an earlier file, counts as one without held pages. If the beginning
//! is damaged, the whole state counts as absent. `b3`, the content id, is left out until it is
//! known.
//!
//! The file is replaced atomically whenever its beginning changes.

mod earlier;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bootcast_proto::{
    ContentId, Etag, Geometry, PageIndex, PageRange, PageSet, PageSize, RemotePath,
};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{KeptFile, ObjectKey};
use crate::fuzz::memory_file;
use crate::io::seed;
use crate::log_limit;
use crate::receiver::{Assembly, GROUP_PAGES};

/// Format number, to be increased whenever an older program would misread the file.
const FORMAT: u32 = 3;

/// Bytes of a block.
const BLOCK: usize = 4096;
/// Bytes of a block with bits.
const BITS: usize = BLOCK - blake3::OUT_LEN;
const _: () = assert!(BITS * 8 == GROUP_PAGES as usize, "a block has the bits of a group");

/// Most bytes before the blocks. A path has at most 4096 bytes, each of which can take three.
const MAX_HEADER: usize = 64 << 10;

/// First line of the file. It repeats the key, so that an administrator can see what an object is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    format: u32,
    server: String,
    path: String,
    etag: Etag,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    b3: Option<ContentId>,
    size: u64,
    page_size: u32,
    /// Differs from file to file, so that a block of another one is not taken for one of this.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    nonce: String,
}

/// Reason why a state, or a part of it, counts as absent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Unusable {
    #[error("a checksum of `state` is wrong")]
    Checksum,
    #[error("an earlier version wrote `state`, without a checksum")]
    NoChecksum,
    #[error("`state` and `data` do not fit together")]
    Mismatch,
}

/// A state on disk, whose blocks can be written in place.
#[derive(Debug)]
pub(super) struct StateFile {
    file: File,
    header: Header,
    /// Bytes before the blocks.
    header_len: u64,
}

/// A state that was read.
#[derive(Debug)]
struct Parsed {
    header: Header,
    assembly: Assembly,
    /// Whether some blocks are damaged.
    is_damaged: bool,
    /// Bytes before the blocks; `None` in an earlier format.
    header_len: Option<u64>,
}

/// Saves a snapshot: the blocks in it alone if `open` is the state of the same file, else the whole
/// state. The caller must have synced `data` before.
pub(super) fn save(
    dir: &Path,
    key: &ObjectKey,
    etag: &Etag,
    snapshot: &HeldSnapshot,
    open: &mut Option<StateFile>,
) -> io::Result<()> {
    // If this fails, nobody knows what the file has.
    let before = open.take();
    let header = header(key, etag, snapshot);
    *open = Some(match before {
        Some(state) if state.is_of(&header) => {
            state.write_blocks(snapshot)?;
            state.file.sync_data()?;
            state
        }
        _ => replace(dir, header, snapshot)?,
    });
    Ok(())
}

fn header(key: &ObjectKey, etag: &Etag, snapshot: &HeldSnapshot) -> Header {
    Header {
        format: FORMAT,
        server: key.server.clone(),
        path: key.path.encode(),
        etag: etag.clone(),
        b3: snapshot.content,
        size: snapshot.geometry.size(),
        page_size: snapshot.geometry.page_size().get(),
        nonce: format!("{:016x}{:016x}", seed(), seed()),
    }
}

/// Replaces the state atomically.
fn replace(dir: &Path, header: Header, snapshot: &HeldSnapshot) -> io::Result<StateFile> {
    assert!(snapshot.is_whole, "pages would be missing in a new state");
    let new = dir.join("state.new");
    let bytes = render(&header)?;
    let header_len = bytes.len() as u64;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(&bytes)?;
    let blocks = u64::from(snapshot.geometry.pages().div_ceil(GROUP_PAGES));
    file.set_len(header_len + blocks * BLOCK as u64)?;
    let state = StateFile { file, header, header_len };
    state.write_blocks(snapshot)?;
    state.file.sync_all()?;
    fs::rename(&new, dir.join("state"))?;
    sync_dir(dir)?;
    Ok(state)
}

/// Returns everything before the blocks.
fn render(header: &Header) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(header)?;
    bytes.push(b'\n');
    let len = (bytes.len() + blake3::OUT_LEN).next_multiple_of(BLOCK);
    bytes.resize(len - blake3::OUT_LEN, 0);
    let checksum = blake3::hash(&bytes);
    bytes.extend(checksum.as_bytes());
    Ok(bytes)
}

impl StateFile {
    /// Whether it has this header, except for the nonce.
    fn is_of(&self, header: &Header) -> bool {
        let own = Header { nonce: String::new(), ..self.header.clone() };
        own == Header { nonce: String::new(), ..header.clone() }
    }

    /// Whether blocks of a file with this geometry and content id can be written in place.
    pub(super) fn fits(&self, geometry: &Geometry, content: Option<ContentId>) -> bool {
        let Header { b3, size, page_size, .. } = &self.header;
        (*b3, *size, *page_size) == (content, geometry.size(), geometry.page_size().get())
    }

    fn write_blocks(&self, snapshot: &HeldSnapshot) -> io::Result<()> {
        for (group, bits) in &snapshot.groups {
            let block = block(&self.header.nonce, *group, bits);
            self.file.write_all_at(&block, self.header_len + u64::from(*group) * BLOCK as u64)?;
        }
        Ok(())
    }
}

/// Returns the block of a group.
fn block(nonce: &str, group: u32, bits: &[u8]) -> Vec<u8> {
    let mut block = bits.to_vec();
    block.resize(BITS, 0);
    let checksum = checksum(nonce, group, &block);
    block.extend(checksum.as_bytes());
    block
}

fn checksum(nonce: &str, group: u32, bits: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(nonce.as_bytes());
    hasher.update(&u64::from(group).to_le_bytes());
    hasher.update(bits);
    hasher.finalize()
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

/// Opens the state; `None` if there is none.
fn open(dir: &Path, writes: bool) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.read(true).write(writes).custom_flags(libc::O_NOFOLLOW);
    match options.open(dir.join("state")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.map(Some),
    }
}

/// Loads the state of this version, and the file to save it in later; `None` if it is missing, or
/// damaged, which is logged. An error means that the state could not be read and may be valid.
pub(super) fn load(
    dir: &Path,
    key: &ObjectKey,
    etag: &Etag,
    data: &File,
) -> io::Result<Option<(Restored, Option<StateFile>)>> {
    let Some(file) = open(dir, true)? else { return Ok(None) };
    let parsed = parse(&file, key, etag, data.metadata()?.len())?;
    let is_damaged = parsed.as_ref().is_ok_and(|parsed| parsed.is_damaged);
    let reason = parsed.as_ref().err().or(is_damaged.then_some(&Unusable::Checksum));
    if let Some(reason) = reason
        && let Some(more) = log_limit::allow("cannot use the stored pages", reason)
    {
        warn!(path = %key.path, %reason, "cannot use the stored pages, fetching them again{more}");
    }
    Ok(parsed.ok().map(|Parsed { header, assembly, header_len, .. }| {
        let restored = Restored { assembly, content: header.b3 };
        (restored, header_len.map(|header_len| StateFile { file, header, header_len }))
    }))
}

/// Loads the state of an object that has all of this content, whatever its path and version; `None`
/// if it is not such an object.
pub(super) fn load_complete(
    dir: &Path,
    content: Option<ContentId>,
    data: &File,
) -> Option<Restored> {
    let Parsed { header, assembly, .. } = read(&open(dir, false).ok()??).ok()?.ok()?;
    let is_content =
        header.b3.is_some() && content.is_none_or(|content| header.b3 == Some(content));
    let has_size = data.metadata().ok()?.len() == header.size;
    (is_content && has_size && assembly.is_complete())
        .then_some(Restored { assembly, content: header.b3 })
}

/// Describes the object of a valid state; `None` if there is none.
pub(super) fn describe(dir: &Path) -> io::Result<Option<KeptFile>> {
    let Some(file) = open(dir, false)? else { return Ok(None) };
    let Ok(Parsed { header, assembly, .. }) = read(&file)? else { return Ok(None) };
    let (pages, held) = (assembly.geometry().pages(), assembly.arrived().len());
    let Ok(path) = RemotePath::decode(&header.path) else { return Ok(None) };
    let Header { server, b3: content, size, .. } = header;
    Ok(Some(KeptFile { server, path, content, size, pages, held }))
}

/// Parses the state of an object whose `data` has `data_len` bytes.
fn parse(
    file: &File,
    key: &ObjectKey,
    etag: &Etag,
    data_len: u64,
) -> io::Result<Result<Parsed, Unusable>> {
    let is_expected = |header: &Header| {
        (&header.server, &header.path) == (&key.server, &key.path.encode())
            && (&header.etag, header.size) == (etag, data_len)
    };
    Ok(read(file)?.and_then(|parsed| {
        if is_expected(&parsed.header) { Ok(parsed) } else { Err(Unusable::Mismatch) }
    }))
}

/// Reads a state of any format.
fn read(file: &File) -> io::Result<Result<Parsed, Unusable>> {
    let len = file.metadata()?.len();
    let mut start = vec![0; usize::try_from(len).unwrap_or(MAX_HEADER).min(MAX_HEADER)];
    file.read_exact_at(&mut start, 0)?;
    let Some(line) = start.iter().position(|&byte| byte == b'\n') else {
        return Ok(Err(Unusable::Checksum));
    };
    let header_len = (line + 1 + blake3::OUT_LEN).next_multiple_of(BLOCK);
    let whole = start.get(..header_len).and_then(|it| it.split_last_chunk::<{ blake3::OUT_LEN }>());
    let is_right = whole.is_some_and(|(body, checksum)| blake3::hash(body) == *checksum);
    let Some(header) = Some(&start[..line]).filter(|_| is_right) else {
        return earlier::read(file, len);
    };
    match serde_json::from_slice::<Header>(header) {
        Ok(header) if header.format == FORMAT => {
            Ok(read_blocks(file, header, header_len as u64, len)?.ok_or(Unusable::Mismatch))
        }
        _ => Ok(Err(Unusable::Mismatch)),
    }
}

fn read_blocks(
    file: &File,
    header: Header,
    header_len: u64,
    len: u64,
) -> io::Result<Option<Parsed>> {
    let Some(geometry) = header.geometry() else { return Ok(None) };
    let groups = geometry.pages().div_ceil(GROUP_PAGES);
    // Otherwise a file of no size could claim any number of pages.
    if len != header_len + u64::from(groups) * BLOCK as u64 {
        return Ok(None);
    }
    let (mut held, mut is_damaged) = (PageSet::new(geometry.pages()), false);
    let mut block = [0; BLOCK];
    for group in 0..groups {
        file.read_exact_at(&mut block, header_len + u64::from(group) * BLOCK as u64)?;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (bits, own) = block.split_at(BITS);
        let start = PageIndex(group * GROUP_PAGES);
        if checksum(&header.nonce, group, bits).as_bytes() != own {
            is_damaged = true;
        } else if !held.insert_bytes(start, bits) {
            return Ok(None);
        }
    }
    let assembly = Assembly::resume(geometry, held);
    Ok(Some(Parsed { header, assembly, is_damaged, header_len: Some(header_len) }))
}

/// Reads a state for fuzzing: as it is, and with right checksums.
pub(crate) fn fuzz(bytes: &[u8]) {
    let read = |bytes: &[u8]| memory_file(bytes).map(|file| drop(read(&file)));
    // Fails if there is no memory.
    let _ = read(bytes);
    let line = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    let rest = &bytes[line.len()..];
    let earlier = [bytes, blake3::hash(bytes).as_bytes()].concat();
    let _ = read(&earlier);
    let len = (line.len() + blake3::OUT_LEN).next_multiple_of(BLOCK) - blake3::OUT_LEN;
    let mut state = [line, &vec![0; len - line.len()]].concat();
    state.extend_from_slice(blake3::hash(&state).as_bytes());
    let nonce = serde_json::from_slice(line).map_or(String::new(), |header: Header| header.nonce);
    for (group, bits) in (0..).zip(rest.chunks(BITS)) {
        let bits = [bits, &vec![0; BITS - bits.len()]].concat();
        state.extend_from_slice(&bits);
        state.extend_from_slice(checksum(&nonce, group, &bits).as_bytes());
    }
    let _ = read(&state);
}

impl Header {
    fn geometry(&self) -> Option<Geometry> {
        let page_size = PageSize::new(self.page_size.into()).ok()?;
        Geometry::new(self.size, page_size).ok()
    }
}

/// State of an object at the last checkpoint of an earlier use.
#[derive(Debug)]
pub struct Restored {
    /// Held pages.
    pub assembly: Assembly,
    /// Hash of the whole file, if it was known.
    pub content: Option<ContentId>,
}

/// Snapshot of an object's held pages, as far as a checkpoint needs it.
#[derive(Clone, Debug)]
pub struct HeldSnapshot {
    pub(super) geometry: Geometry,
    pub(super) content: Option<ContentId>,
    /// Whether all bytes were found to be those of the content.
    pub(super) is_verified: bool,
    /// Whether every page is held.
    pub(super) is_full: bool,
    /// Whether `groups` has all groups with held pages.
    pub(super) is_whole: bool,
    /// Bits of the held pages of groups of [`GROUP_PAGES`].
    pub(super) groups: Vec<(u32, Vec<u8>)>,
}

impl HeldSnapshot {
    /// Takes a snapshot; `None` until the exact size of the file is known. `content` is the hash of
    /// the whole file, if it is known; `is_verified` if all bytes were found to be those of it.
    /// Bytes of `left_out` are not in the cache. With `changed` it has these groups only.
    pub fn of(
        assembly: &Assembly,
        content: Option<ContentId>,
        is_verified: bool,
        left_out: &[Range<u64>],
        changed: Option<&BTreeSet<u32>>,
    ) -> Option<Self> {
        assembly.size()?;
        let geometry = *assembly.geometry();
        let left_out = left_out.iter().map(|bytes| geometry.pages_covering(bytes.clone()));
        let left_out: Vec<_> = left_out.collect();
        let mut snapshot = Self::of_pages(geometry, assembly.arrived(), &left_out, changed);
        (snapshot.content, snapshot.is_verified) = (content, is_verified);
        Some(snapshot)
    }

    /// Takes a snapshot of these pages.
    pub(super) fn of_pages(
        geometry: Geometry,
        held: &PageSet,
        left_out: &[PageRange],
        changed: Option<&BTreeSet<u32>>,
    ) -> Self {
        // A later use would take pages of the bits for others.
        assert!(
            held.pages() == geometry.pages(),
            "bits of {} pages for a file of {}",
            held.pages(),
            geometry.pages()
        );
        let all = 0..geometry.pages().div_ceil(GROUP_PAGES);
        let groups = all.filter(|group| changed.is_none_or(|changed| changed.contains(group)));
        let groups = groups.map(|group| (group, bits_of(group, held, left_out)));
        // In a new state, what is left out has no pages.
        let is_of_use = |(_, bits): &(u32, Vec<u8>)| changed.is_some() || !is_zeros(bits);
        Self {
            geometry,
            content: None,
            is_verified: false,
            is_full: held.is_full() && left_out.is_empty(),
            is_whole: changed.is_none(),
            groups: groups.filter(is_of_use).collect(),
        }
    }

    /// Returns the content if all of its bytes are here.
    pub(super) fn complete_content(&self) -> Option<ContentId> {
        self.content.filter(|_| self.is_full && self.is_verified)
    }

    /// Returns the bytes that saving it writes, at most.
    pub(super) fn len(&self) -> u64 {
        (self.groups.len() * BLOCK + MAX_HEADER) as u64
    }
}

/// Returns the bits of the held pages of a group.
fn bits_of(group: u32, held: &PageSet, left_out: &[PageRange]) -> Vec<u8> {
    let start = group * GROUP_PAGES;
    let pages = PageRange::new(start, start.saturating_add(GROUP_PAGES));
    let mut bits = held.bytes_of(pages);
    for run in left_out {
        let start = run.start.0.max(pages.start.0);
        for page in start..run.end.0.min(pages.end.0) {
            let bit = page - pages.start.0;
            if let Some(byte) = bits.get_mut((bit / 8) as usize) {
                *byte &= !(1 << (bit % 8));
            }
        }
    }
    bits
}

fn is_zeros(bits: &[u8]) -> bool {
    bits.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests;
