//! Objects of a cache on disk as its administrator sees them: what is there, whether it is right,
//! and removing it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bootcast_proto::{ContentId, RemotePath};
use rustix::fs::{AtFlags, CWD, FlockOperation, Timespec, Timestamps, UTIME_NOW};

use super::{Cache, ObjectKey, contents, open_data, paths, room, state};

/// Bytes of a block as `stat` counts them.
pub(super) const BLOCK: u64 = 512;

/// Extension of the directory of an object that is being removed.
const REMOVED: &str = "removed";

/// An object of the cache.
#[derive(Clone, Debug)]
pub struct Kept {
    dir: PathBuf,
    /// File whose bytes it has, and how many; `None` if its `state` is missing or damaged, so that
    /// nothing of it will be used.
    pub file: Option<KeptFile>,
    /// Bytes that it takes up on the disk.
    pub allocated: u64,
    /// Time of its last use.
    pub used: SystemTime,
}

/// File whose bytes an object has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptFile {
    /// Server as `host:port`.
    pub server: String,
    /// Path on the server.
    pub path: RemotePath,
    /// Hash of the content, if it is known.
    pub content: Option<ContentId>,
    /// Size of the file in bytes.
    pub size: u64,
    /// Number of pages of the file.
    pub pages: u32,
    /// Number of pages that were held at the last checkpoint.
    pub held: u32,
}

impl KeptFile {
    /// Whether all pages are held.
    pub fn is_complete(&self) -> bool {
        self.held == self.pages
    }
}

/// Result of checking the bytes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// All bytes are those of the content.
    Right,
    /// Some bytes are not.
    Damaged,
    /// It is not complete, or its content is not known.
    Unknown,
}

/// Returns the objects of the cache in `dir`, the least recently used first.
pub fn list(dir: &Path) -> io::Result<Vec<Kept>> {
    let mut kept = list_sizes(dir)?;
    for object in &mut kept {
        object.file = object.describe()?;
    }
    Ok(kept)
}

/// Like [`list`], without a look at the files that the objects have: that takes longer. What a use
/// or a removal that was cut off left comes first.
pub(super) fn list_sizes(dir: &Path) -> io::Result<Vec<Kept>> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(dir.join("objects"))? {
        let object = entry?.path();
        match Kept::of(object) {
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => kept.extend(found?),
        }
    }
    kept.sort_by_key(|object| (object.is_object(), object.used));
    Ok(kept)
}

impl Cache {
    /// Returns what the last checkpoint says of a version; `None` if nothing of it is kept on disk.
    /// Uses no lock and changes nothing. Waits for the disk.
    pub fn kept(&self, key: &ObjectKey) -> Option<KeptFile> {
        let (Some(dir), Some(etag)) = (self.dir(), &key.etag) else { return None };
        let same_content = || key.content.and_then(|content| contents::find(dir, content));
        let described = |object: PathBuf| state::describe(&object).ok().flatten();
        let object = dir.join("objects").join(key.id(etag));
        described(object).or_else(|| described(same_content()?))
    }
}

/// Records that an object is used now.
pub(super) fn record_use(object: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let now = Timestamps { last_access: now, last_modification: now };
    // Otherwise it counts as less recently used than it is.
    let _ = rustix::fs::utimensat(CWD, object, &now, AtFlags::empty());
}

/// Whether `data` is the file that the object has at present. It is not if the object was removed
/// between opening and locking it.
pub(super) fn is_present(object: &Path, data: &File) -> io::Result<bool> {
    let locked = data.metadata()?;
    match fs::symlink_metadata(object.join("data")) {
        Ok(present) => Ok((present.dev(), present.ino()) == (locked.dev(), locked.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Kept {
    fn of(dir: PathBuf) -> io::Result<Option<Self>> {
        let metadata = fs::symlink_metadata(&dir)?;
        if !metadata.is_dir() {
            return Ok(None);
        }
        let mut allocated = metadata.blocks() * BLOCK;
        for entry in fs::read_dir(&dir)? {
            // A file of a checkpoint may be gone.
            allocated += entry?.metadata().map_or(0, |file| file.blocks() * BLOCK);
        }
        Ok(Some(Self { file: None, allocated, used: metadata.modified()?, dir }))
    }

    /// Returns its directory.
    #[cfg(test)]
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether it is an object. Anything else belongs to a use that shares nothing, or was left by
    /// a use or a removal that was cut off.
    fn is_object(&self) -> bool {
        self.dir.file_name().is_some_and(|name| paths::is_name(&name.to_string_lossy()))
    }

    fn describe(&self) -> io::Result<Option<KeptFile>> {
        if self.is_object() { state::describe(&self.dir) } else { Ok(None) }
    }

    /// Checks all bytes of a complete object. Waits for the disk.
    pub fn check(&self) -> io::Result<Checked> {
        let Some(KeptFile { content: Some(content), .. }) =
            self.file.as_ref().filter(|file| file.is_complete())
        else {
            return Ok(Checked::Unknown);
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(open_data(&self.dir, false)?)?;
        let is_right = hasher.finalize().as_bytes() == content.as_bytes();
        Ok(if is_right { Checked::Right } else { Checked::Damaged })
    }

    /// Removes the object, unless a mount uses it or fills it. Returns whether it is gone.
    pub fn remove(&self) -> io::Result<bool> {
        let cache_dir = self.dir.parent().and_then(Path::parent).unwrap_or(&self.dir);
        let taken = room::while_nobody_opens(cache_dir, || self.take_away())?;
        let Some(removed) = taken else { return Ok(false) };
        match fs::remove_dir_all(&removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            result => result.map(|()| true),
        }
    }

    /// Whether nobody uses the object or fills it.
    pub(super) fn is_unused(&self) -> bool {
        self.lock().is_ok_and(|locked| locked.is_some())
    }

    /// Renames the object, unless a mount uses it or fills it, so that nobody finds it any more.
    /// Returns the directory to delete.
    pub(super) fn take_away(&self) -> io::Result<Option<PathBuf>> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let Some(_locked) = self.lock()? else { return Ok(None) };
        if self.dir.extension().is_some_and(|extension| extension == REMOVED) {
            return Ok(Some(self.dir.clone()));
        }
        self.forget_links();
        // Under its name an object is never there in part.
        let last = LAST.fetch_add(1, Ordering::Relaxed);
        let mut name = self.dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}-{last}.{REMOVED}", std::process::id()));
        let removed = self.dir.with_file_name(name);
        match fs::rename(&self.dir, &removed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(Some(removed)),
        }
    }

    /// Locks the object; `None` if somebody uses it. The lock holds until the result is dropped.
    fn lock(&self) -> io::Result<Option<Locked>> {
        let data = match open_data(&self.dir, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Locked(None))),
            data => data?,
        };
        match rustix::fs::flock(&data, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let locked = Locked(Some(data));
                let is_present = locked.0.as_ref().map(|data| is_present(&self.dir, data));
                Ok(is_present.transpose()?.unwrap_or(true).then_some(locked))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the names under which the object is found.
    fn forget_links(&self) {
        let (Ok(Some(file)), Some(cache_dir)) =
            (self.describe(), self.dir.parent().and_then(Path::parent))
        else {
            return;
        };
        if let Some(content) = file.content {
            contents::forget(cache_dir, content, &self.dir);
        }
        let KeptFile { server, path, .. } = file;
        paths::forget(&self.dir, &ObjectKey { server, path, etag: None, content: None });
    }
}

/// Lock of an object's bytes; `None` if it has none.
#[derive(Debug)]
struct Locked(Option<File>);

impl Drop for Locked {
    fn drop(&mut self) {
        if let Some(data) = &self.0 {
            // A child that was just forked may have a copy of the descriptor.
            let _ = rustix::fs::flock(data, FlockOperation::Unlock);
        }
    }
}

#[cfg(test)]
mod tests;
