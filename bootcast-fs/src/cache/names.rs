//! Names that were opened in a cache on disk, with their attributes, so that a mount can show what
//! it holds while its server does not answer.
//!
//! `CACHE_DIR/names/<id>` has one line for each name of one directory of a server:
//!
//! ```text
//! <first 8 bytes of the BLAKE3 hash of the rest, in hexadecimal> {"name":..,"kind":..,..}
//! ```
//!
//! The JSON is an entry of the server's listings (docs/PROTOCOL.md, "Meta") with the content id, if
//! that is known. The name `.` stands for the directory itself. Lines are appended, and the last
//! one of a name counts. A line whose checksum is wrong is ignored, so a crash can damage no more
//! than one. Whoever appends, or replaces a long file by a shorter one, locks it.

mod file;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};

use bootcast_proto::api::{Attributes, Entry, Kind};
use bootcast_proto::path::{decode_segment, encode_name};
use bootcast_proto::{ContentId, RemotePath};
use serde::{Deserialize, Serialize};

use super::{Cache, ObjectKey, paths, short_hash};
use crate::panics::lock;
use file::{Locked, Stamp};

/// Name of the line about the directory itself.
const DIRECTORY: &str = ".";

/// A file is tidied at its first use if it has more lines than this, and later if it has this many
/// more than two for each name. Tidying drops names whose content is gone, and replaced lines.
const TIDY_LINES: usize = 256;

/// Names below the directories of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Names {
    cache: Cache,
    /// `CACHE_DIR/names`.
    dir: PathBuf,
    /// Server as `host:port`.
    server: String,
    /// Names files that lines were recorded in.
    written: Arc<Mutex<HashMap<PathBuf, Written>>>,
    /// The directory that was looked at last.
    latest: Arc<Mutex<Option<Latest>>>,
}

/// Content of the names file that was parsed last, as long as the file has this stamp.
#[derive(Debug)]
struct Latest {
    file: PathBuf,
    stamp: Stamp,
    lines: Arc<BTreeMap<String, Line>>,
}

/// Content of a names file on disk, as long as the file has this stamp.
#[derive(Debug)]
struct Written {
    stamp: Stamp,
    /// Number of lines, also of those that were replaced.
    lines: usize,
    /// Hash of the newest line of each name, by the hash of the name.
    newest: HashMap<u64, u64>,
}

/// A name as it was when it was last opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    entry: Entry,
    /// Hash of the content of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    b3: Option<ContentId>,
}

/// Attributes of a name that is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Latest known attributes.
    pub attributes: Attributes,
    /// Hash of the content of a file, if it was known.
    pub content: Option<ContentId>,
}

impl Names {
    /// Returns the names of a server in a cache; `None` for a cache in memory. Creates their
    /// directory if it is missing.
    pub fn of(cache: &Cache, server: &str) -> io::Result<Option<Self>> {
        let Some(dir) = cache.dir().map(|dir| dir.join("names")) else { return Ok(None) };
        super::create_private_dir(&dir)?;
        let (cache, server) = (cache.clone(), server.to_owned());
        let (written, latest) = Default::default();
        Ok(Some(Self { cache, dir, server, written, latest }))
    }

    /// Records the attributes of a directory that is mounted. Waits for the disk.
    pub fn record_root(&self, path: &RemotePath, attributes: &Attributes) -> io::Result<()> {
        self.append(path, DIRECTORY, attributes, None)
    }

    /// Records the attributes of a path, unless they are on disk already. Waits for the disk.
    pub fn record(
        &self,
        path: &RemotePath,
        attributes: &Attributes,
        content: Option<ContentId>,
    ) -> io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        self.append(&parent, &encode_name(name), attributes, content)
    }

    /// Whether [`Self::record_root`] has nothing to write. Does not wait: false if that is not
    /// known at present.
    pub fn is_root_recorded(&self, path: &RemotePath, attributes: &Attributes) -> bool {
        self.is_written(path, DIRECTORY, attributes, None)
    }

    /// Whether [`Self::record`] has nothing to write. Waits for no other process, and false if that
    /// is not known at present.
    pub fn is_recorded(
        &self,
        path: &RemotePath,
        attributes: &Attributes,
        content: Option<ContentId>,
    ) -> bool {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return true };
        self.is_written(&parent, &encode_name(name), attributes, content)
    }

    fn is_written(
        &self,
        dir: &RemotePath,
        name: &str,
        attributes: &Attributes,
        content: Option<ContentId>,
    ) -> bool {
        let path = self.file(dir);
        let Ok(line) = Line::new(name, attributes, content).text() else { return false };
        let stamp = match self.written.try_lock() {
            Ok(written) => stamp_with(written.get(&path), name, &line).cloned(),
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => None,
        };
        stamp.is_some_and(|stamp| Stamp::of(&path).is_ok_and(|present| present == stamp))
    }

    fn append(
        &self,
        dir: &RemotePath,
        name: &str,
        attributes: &Attributes,
        content: Option<ContentId>,
    ) -> io::Result<()> {
        let line = Line::new(name, attributes, content).text()?;
        let path = self.file(dir);
        let mut written = lock(&self.written);
        let stamp = stamp_with(written.get(&path), name, &line);
        if stamp.is_some_and(|stamp| Stamp::of(&path).is_ok_and(|present| present == *stamp)) {
            return Ok(());
        }
        let mut file = Locked::open(&path)?;
        let mut known = self.update(dir, &mut file, written.remove(&path))?;
        if known.newest.get(&mark(name)) != Some(&mark(&line)) {
            file.append(&line)?;
            known.insert(name, &line);
            known.stamp = file.stamp()?;
        }
        written.insert(path, known);
        Ok(())
    }

    /// Returns what a file has on disk, of which `known` was there before. Tidies a long file.
    fn update(
        &self,
        dir: &RemotePath,
        file: &mut Locked,
        known: Option<Written>,
    ) -> io::Result<Written> {
        let stamp = file.stamp()?;
        let is_first_use = known.is_none();
        let known = known.and_then(|known| Some((stamp.end_of(&known.stamp)?, known)));
        let (start, mut known) = known.unwrap_or_else(|| (0, Written::new(stamp.clone())));
        if start < stamp.len() {
            known.read(&file.read(start)?)?;
        }
        known.stamp = stamp;
        let usual = if is_first_use { 0 } else { 2 * known.newest.len() };
        if known.lines > usual + TIDY_LINES {
            let lines = self.tidy(dir, &file.read(0)?);
            let texts = lines.values().map(Line::text).collect::<io::Result<Vec<_>>>()?;
            file.replace(&texts)?;
            known = Written::new(file.stamp()?);
            for (name, text) in lines.keys().zip(&texts) {
                known.insert(name, text);
            }
        }
        Ok(known)
    }

    /// Returns the attributes of a directory that was mounted.
    pub fn root(&self, path: &RemotePath) -> Option<Attributes> {
        let line = self.lines(path).get(DIRECTORY)?.clone();
        let attributes = line.entry.attributes;
        (attributes.kind == Kind::Directory).then_some(attributes)
    }

    /// Returns what is known of a path: of a file only if all of its content is in the cache.
    pub fn find(&self, path: &RemotePath) -> Option<Remembered> {
        let (parent, name) = (path.parent()?, encode_name(path.file_name()?));
        self.usable(path, self.lines(&parent).get(&name)?)
    }

    /// Returns the names in a directory of which [`Self::find`] knows something.
    pub fn list(&self, dir: &RemotePath) -> Vec<(RemotePath, Remembered)> {
        let lines = self.lines(dir);
        let known = lines.iter().filter_map(|(name, line)| {
            let path = dir.join(&decode_segment(name).ok()?).ok()?;
            let remembered = self.usable(&path, line)?;
            Some((path, remembered))
        });
        known.collect()
    }

    fn usable(&self, path: &RemotePath, line: &Line) -> Option<Remembered> {
        let Line { entry: Entry { attributes, .. }, b3: content } = line.clone();
        let is_usable = match attributes.kind {
            Kind::File => self
                .cache
                .kept(&self.key(path, &attributes, content))
                .is_some_and(|kept| kept.is_complete() && kept.size == attributes.size),
            Kind::Directory | Kind::Symlink => true,
            Kind::Other => false,
        };
        is_usable.then_some(Remembered { attributes, content })
    }

    fn key(
        &self,
        path: &RemotePath,
        attributes: &Attributes,
        content: Option<ContentId>,
    ) -> ObjectKey {
        let (server, path) = (self.server.clone(), path.clone());
        ObjectKey { server, path, etag: attributes.etag.clone(), content }
    }

    fn file(&self, dir: &RemotePath) -> PathBuf {
        self.dir.join(short_hash(&[self.server.as_bytes(), dir.as_bytes()]))
    }

    /// Returns the newest line of each name in a directory.
    fn lines(&self, dir: &RemotePath) -> Arc<BTreeMap<String, Line>> {
        let file = self.file(dir);
        let Ok(stamp) = Stamp::of(&file) else { return Arc::default() };
        let mut latest = lock(&self.latest);
        if let Some(known) = latest.as_ref()
            && (&known.file, &known.stamp) == (&file, &stamp)
        {
            return known.lines.clone();
        }
        let lines = Arc::new(parse(&fs::read(&file).unwrap_or_default()));
        *latest = Some(Latest { file, stamp, lines: lines.clone() });
        lines
    }

    /// Returns the lines of a file that count, without those of files whose content is gone.
    fn tidy(&self, dir: &RemotePath, bytes: &[u8]) -> BTreeMap<String, Line> {
        let mut lines = parse(bytes);
        lines.retain(|name, line| {
            let attributes = &line.entry.attributes;
            let path = decode_segment(name).ok().and_then(|name| dir.join(&name).ok());
            // An object that still arrives counts: it may be complete when the name is looked up.
            attributes.kind != Kind::File
                || path.is_some_and(|path| {
                    self.cache.has_object(&self.key(&path, attributes, line.b3))
                })
        });
        lines
    }
}

impl Written {
    fn new(stamp: Stamp) -> Self {
        Self { stamp, lines: 0, newest: HashMap::new() }
    }

    fn insert(&mut self, name: &str, line: &str) {
        self.lines += 1;
        self.newest.insert(mark(name), mark(line));
    }

    /// Adds the lines of a part of a file.
    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let before = self.lines;
        for (name, line) in parse(bytes) {
            self.insert(&name, &line.text()?);
        }
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        self.lines = before + lines.count();
        Ok(())
    }
}

/// Removes all names of the cache in `cache_dir`. Mounts that run record those that are opened from
/// then on.
pub fn forget_names(cache_dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(cache_dir.join("names")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let file = if paths::is_name(&entry.file_name().to_string_lossy()) {
            Some(Locked::open(&entry.path())?)
        } else {
            // It was left by a process that was cut off, or is about to become a names file.
            Locked::open_left(&entry.path())?
        };
        file.map_or(Ok(()), Locked::remove)?;
    }
    Ok(())
}

impl Line {
    fn new(name: &str, attributes: &Attributes, content: Option<ContentId>) -> Self {
        let (name, attributes) = (name.to_owned(), attributes.clone());
        Self { entry: Entry { name, attributes }, b3: content }
    }

    fn text(&self) -> io::Result<String> {
        let json = serde_json::to_string(self)?;
        Ok(format!("{} {json}", checksum(json.as_bytes())))
    }
}

/// Returns the newest line of each name.
fn parse(bytes: &[u8]) -> BTreeMap<String, Line> {
    let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| {
        let (sum, json) = str::from_utf8(line).ok()?.split_once(' ')?;
        let line: Line = serde_json::from_str(json).ok()?;
        (sum == checksum(json.as_bytes())).then(|| (line.entry.name.clone(), line))
    });
    lines.collect()
}

/// Parses a names file for fuzzing: as it is, and with right checksums.
pub(crate) fn fuzz(bytes: &[u8]) {
    parse(bytes);
    let lines = bytes.split(|byte| *byte == b'\n');
    let lines = lines.map(|json| [checksum(json).as_bytes(), b" ", json, b"\n"].concat());
    for (name, line) in parse(&lines.collect::<Vec<_>>().concat()) {
        let again = line.text().map(|text| parse(text.as_bytes()));
        let again = again.ok().and_then(|lines| lines.get(&name).cloned());
        assert!(again == Some(line), "a line that is written again differs");
    }
}

fn checksum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

/// Returns the state of a file in which this is the newest line of a name, if that is known.
fn stamp_with<'a>(known: Option<&'a Written>, name: &str, line: &str) -> Option<&'a Stamp> {
    let known = known?;
    (known.newest.get(&mark(name)) == Some(&mark(line))).then_some(&known.stamp)
}

/// Returns a short hash of a name or a line.
fn mark(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests;
