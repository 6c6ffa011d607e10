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
//! one of a name counts. A line whose checksum is wrong is ignored. So neither a crash nor another
//! process that appends at the same time can damage more than one line.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bootcast_proto::api::{Attributes, Entry, Kind};
use bootcast_proto::path::{decode_segment, encode_name};
use bootcast_proto::{ContentId, RemotePath};
use serde::{Deserialize, Serialize};

use super::{Cache, ObjectKey, short_hash};
use crate::panics::lock;

/// Name of the line about the directory itself.
const DIRECTORY: &str = ".";

/// Number of lines from which on a file is tidied when it is first used: names whose content is
/// gone and lines that were replaced are left out.
const TIDY_LINES: usize = 256;

/// Names below the directories of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Names {
    cache: Cache,
    /// `CACHE_DIR/names`.
    dir: PathBuf,
    /// Server as `host:port`.
    server: String,
    written: Arc<Mutex<Written>>,
    /// The directory that was looked at last.
    latest: Arc<Mutex<Option<Latest>>>,
}

/// A file that was read, which serves for as long as nothing is appended to it.
#[derive(Debug)]
struct Latest {
    file: PathBuf,
    /// Bytes of the file.
    len: u64,
    lines: Arc<BTreeMap<String, Line>>,
}

/// Lines that are on disk already. They are not written again.
#[derive(Debug, Default)]
struct Written {
    /// Files that were read.
    files: HashSet<PathBuf>,
    /// Hashes of a file's name and a line of it.
    lines: HashSet<u64>,
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
        self.append(path, DIRECTORY.to_owned(), attributes, None)
    }

    /// Records the attributes of a path, unless they are on disk already. Waits for the disk.
    pub fn record(
        &self,
        path: &RemotePath,
        attributes: &Attributes,
        content: Option<ContentId>,
    ) -> io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        self.append(&parent, encode_name(name), attributes, content)
    }

    fn append(
        &self,
        dir: &RemotePath,
        name: String,
        attributes: &Attributes,
        content: Option<ContentId>,
    ) -> io::Result<()> {
        let entry = Entry { name, attributes: attributes.clone() };
        let line = Line { entry, b3: content }.text()?;
        let file = self.file(dir);
        let mut written = lock(&self.written);
        if !written.files.contains(&file) {
            for line in self.tidy(dir, &file)? {
                written.lines.insert(mark(&file, &line));
            }
            written.files.insert(file.clone());
        }
        if !written.lines.insert(mark(&file, &line)) {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        // After a crash the last line may lack its end.
        options.open(file)?.write_all(format!("\n{line}\n").as_bytes())
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
        let Ok(len) = fs::metadata(&file).map(|file| file.len()) else { return Arc::default() };
        let mut latest = lock(&self.latest);
        if let Some(known) = latest.as_ref()
            && (&known.file, known.len) == (&file, len)
        {
            return known.lines.clone();
        }
        let bytes = fs::read(&file).unwrap_or_default();
        let lines = Arc::new(parse(&bytes));
        *latest = Some(Latest { file, len: bytes.len() as u64, lines: lines.clone() });
        lines
    }

    /// Returns the lines of a file that count. Replaces a long file by these, without files whose
    /// content is gone.
    fn tidy(&self, dir: &RemotePath, file: &Path) -> io::Result<Vec<String>> {
        let bytes = match fs::read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            bytes => bytes?,
        };
        let mut lines = parse(&bytes);
        let is_long = bytes.split(|byte| *byte == b'\n').count() > TIDY_LINES;
        if is_long {
            lines.retain(|name, line| {
                let attributes = &line.entry.attributes;
                let path = decode_segment(name).ok().and_then(|name| dir.join(&name).ok());
                attributes.kind != Kind::File
                    || path
                        .is_some_and(|path| self.cache.has(&self.key(&path, attributes, line.b3)))
            });
        }
        let texts = lines.values().map(Line::text).collect::<io::Result<Vec<_>>>()?;
        if is_long {
            let temporary = file.with_extension(std::process::id().to_string());
            fs::write(&temporary, texts.join("\n") + "\n")?;
            fs::rename(&temporary, file)?;
        }
        Ok(texts)
    }
}

impl Line {
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

fn checksum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

/// Returns a short hash of a line of a file.
fn mark(file: &Path, line: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(file.as_os_str().as_encoded_bytes()).update(line.as_bytes());
    hasher.finalize().as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests;
