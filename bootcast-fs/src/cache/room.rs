//! Room for bytes that are about to be stored: the budget of a cache, shared out in grants.
//!
//! The use of a cache on disk is the allocated size of its objects, and of the links and lists that
//! lead to them (`contents`, `paths`). Names of directories (`names`) and the files here do not
//! count. All processes with the same directory share one budget:
//!
//! ```text
//! CACHE_DIR/lock         locked alone while room is made, and shared while an object is opened
//! CACHE_DIR/grants/<..>  as long as what one process may still store; locked while that runs
//! ```
//!
//! A process takes a grant of some MiB at a time, and stores up to it without a look at the
//! directory. When half of it is used up, a thread takes the next one: it adds up what all objects
//! take up, and removes those that were not used for longest until the grant fits. An object that
//! somebody uses is locked, and stays.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tempfile::NamedTempFile;
use tracing::{info, warn};

use super::budget::{Amount, Budget, FileSystem};
use super::kept::{self, BLOCK, Kept};
use crate::io::now;
use crate::log_limit;
use crate::panics::lock;

/// 1 / this is the share of the budget that one grant has.
const GRANT_DIVISOR: u64 = 64;
/// Least and most bytes of a grant.
const GRANT_BYTES: (u64, u64) = (256 << 10, 64 << 20);
/// Pause after a grant that was refused. Until then nothing is added up again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Bytes that a file system allocates at a time, as most do.
const UNIT: u64 = 4096;

/// Room of a cache.
#[derive(Debug)]
pub(super) struct Room {
    place: Place,
    /// Bytes of a grant.
    grant_bytes: u64,
    /// Bytes that may be stored before the next grant.
    granted: AtomicU64,
    /// Serialises those who look for room, and delete what goes for it.
    looking: Mutex<()>,
    /// Time of the last grant that was refused; `None` after one that was not.
    refused: Mutex<Option<Instant>>,
    /// Shared by those who store what they took, so that what the cache takes up is not added up
    /// between the two. Locked after `looking`.
    storing: RwLock<()>,
    /// Whether a thread takes the next grant.
    is_refilling: AtomicBool,
}

#[derive(Debug)]
enum Place {
    /// Directory of a cache on disk.
    Disk { dir: PathBuf, budget: Budget, lock: File, grant: NamedTempFile },
    /// Memory; the limit in bytes.
    Memory { limit: u64, stores: Mutex<Vec<Weak<File>>> },
}

/// Outcome of a look for room.
struct Found {
    /// Bytes that may be stored.
    bytes: u64,
    /// Directories of objects that go for it.
    removed: Vec<PathBuf>,
}

/// Room that was taken. Nobody adds up what the cache takes up before it is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Taken<'a>(#[expect(dead_code, reason = "a lock")] RwLockReadGuard<'a, ()>);

/// Keeps room from being made, so that no object goes while it is opened.
#[derive(Debug)]
pub(super) struct Opening(Option<File>);

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            // A child that was just forked may have a copy of the descriptor.
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
    }
}

impl Room {
    /// Creates the room of the cache in `dir`.
    pub(super) fn on_disk(dir: &Path, budget: Budget) -> io::Result<Arc<Self>> {
        let grants = dir.join("grants");
        super::create_private_dir(&grants)?;
        let lock = open_lock(dir)?;
        let grant = tempfile::Builder::new().prefix("").tempfile_in(&grants)?;
        rustix::fs::flock(&grant, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self::new(Place::Disk { dir: dir.to_owned(), budget, lock, grant }))
    }

    /// Creates room in memory.
    pub(super) fn in_memory(size: Amount) -> Arc<Self> {
        Self::new(Place::Memory { limit: size.of(memory()), stores: Mutex::default() })
    }

    fn new(place: Place) -> Arc<Self> {
        let limit = match &place {
            Place::Disk { dir, budget, .. } => budget.size.of(FileSystem::of(dir).total),
            Place::Memory { limit, .. } => *limit,
        };
        let (least, most) = GRANT_BYTES;
        let grant_bytes = (limit / GRANT_DIVISOR).clamp(least, most) / UNIT * UNIT;
        Arc::new(Self {
            place,
            grant_bytes,
            granted: AtomicU64::new(0),
            looking: Mutex::default(),
            refused: Mutex::default(),
            storing: RwLock::default(),
            is_refilling: AtomicBool::new(false),
        })
    }

    /// Keeps others from making room until the result is dropped.
    pub(super) fn opening(&self) -> Opening {
        let Place::Disk { dir, .. } = &self.place else { return Opening(None) };
        // Without the lock, an object that goes at this moment is noticed all the same.
        let file = open_lock(dir).ok();
        let locked = file.filter(|file| {
            rustix::io::retry_on_intr(|| rustix::fs::flock(file, FlockOperation::LockShared))
                .is_ok()
        });
        Opening(locked)
    }

    /// Counts a file of a cache in memory for as long as it is open.
    pub(super) fn count(&self, file: &Arc<File>) {
        if let Place::Memory { stores, .. } = &self.place {
            let mut stores = lock(stores);
            stores.retain(|store| store.strong_count() > 0);
            stores.push(Arc::downgrade(file));
        }
    }

    /// Takes room for `len` bytes at `offset` of a file; `None` if there is none. Where it is
    /// scarce, waits for objects to be removed. The bytes must be stored before the result is
    /// dropped.
    pub(super) fn take(self: &Arc<Self>, offset: u64, len: u64) -> Option<Taken<'_>> {
        let units = (offset + len).div_ceil(UNIT) - offset / UNIT;
        let bytes = units * UNIT;
        if let Some(taken) = self.take_granted(bytes) {
            if self.granted.load(Ordering::Relaxed) < self.grant_bytes / 2 {
                self.refill_soon();
            }
            return Some(taken);
        }
        if self.refill(bytes) { self.take_granted(bytes) } else { None }
    }

    fn take_granted(&self, bytes: u64) -> Option<Taken<'_>> {
        let storing = self.storing.read().unwrap_or_else(PoisonError::into_inner);
        let take = |granted: u64| granted.checked_sub(bytes);
        let taken = self.granted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_ok().then_some(Taken(storing))
    }

    /// Whether `bytes` more could be stored, with what would have to go for them. Takes nothing.
    pub(super) fn could_take(&self, bytes: u64) -> bool {
        let _alone = lock(&self.looking);
        self.find(bytes, false).is_ok_and(|found| found.bytes >= bytes)
    }

    /// Whether room was refused lately.
    pub(super) fn is_short(&self) -> bool {
        lock(&self.refused).is_some_and(|at| now() < at + REFUSED_PAUSE)
    }

    /// Removes objects because the file system is full, whatever it says of its free space.
    /// Returns whether some went.
    pub(super) fn handle_full_disk(&self) -> bool {
        let Place::Disk { dir, lock: file, .. } = &self.place else { return false };
        let _alone = lock(&self.looking);
        if self.is_short() {
            return false;
        }
        let least = self.grant_bytes;
        let freed = with_lock(file, || {
            let mut freed = 0;
            let mut removed = Vec::new();
            for object in kept::list_sizes(dir)? {
                if freed >= least {
                    break;
                }
                if let Some(gone) = object.take_away()? {
                    freed += object.allocated;
                    removed.push(gone);
                }
            }
            Ok(removed)
        });
        let removed = freed.unwrap_or_default();
        delete(&removed);
        if removed.is_empty() {
            *lock(&self.refused) = Some(now());
        }
        !removed.is_empty()
    }

    /// Records that something is used no more, so that it may go.
    pub(super) fn handle_unused(&self) {
        *lock(&self.refused) = None;
    }

    fn refill_soon(self: &Arc<Self>) {
        if self.is_refilling.swap(true, Ordering::Relaxed) {
            return;
        }
        let room = self.clone();
        let thread = std::thread::Builder::new().name("cache".into());
        let spawned = thread.spawn(move || {
            room.refill(room.grant_bytes / 2);
            room.is_refilling.store(false, Ordering::Relaxed);
        });
        if spawned.is_err() {
            self.is_refilling.store(false, Ordering::Relaxed);
        }
    }

    /// Takes a grant of `bytes` at least. Returns whether it got it.
    fn refill(&self, bytes: u64) -> bool {
        let _alone = lock(&self.looking);
        if self.granted.load(Ordering::Relaxed) >= bytes {
            return true;
        }
        if self.is_short() {
            return false;
        }
        let is_granted = match self.find(bytes, true) {
            Ok(found) => {
                delete(&found.removed);
                self.granted.store(found.bytes, Ordering::Relaxed);
                found.bytes >= bytes
            }
            Err(error) => {
                if let Some(more) = log_limit::allow("cannot count the cache", &error) {
                    warn!(%error, "cannot find out what the cache takes up{more}");
                }
                false
            }
        };
        *lock(&self.refused) = (!is_granted).then(now);
        is_granted
    }

    /// Looks for room for a grant, and for `bytes` at least. With `takes` it is taken.
    fn find(&self, bytes: u64, takes: bool) -> io::Result<Found> {
        let _alone = self.storing.write().unwrap_or_else(PoisonError::into_inner);
        match &self.place {
            Place::Disk { dir, budget, lock, grant } => with_lock(lock, || {
                let wanted = if takes { bytes.max(self.grant_bytes) } else { bytes };
                let usage = Usage::of(dir, Some(grant.path()))?;
                let found = usage.find(dir, *budget, bytes, wanted, takes)?;
                if takes {
                    grant.as_file().set_len(found.bytes)?;
                }
                Ok(found)
            }),
            Place::Memory { limit, stores } => {
                let stores: Vec<_> = lock(stores).iter().filter_map(Weak::upgrade).collect();
                let used = stores.iter().map(|file| allocated(file)).sum::<u64>();
                let wanted = bytes.max(self.grant_bytes);
                let bytes = limit.saturating_sub(used).min(wanted);
                Ok(Found { bytes, removed: Vec::new() })
            }
        }
    }
}

/// Use of a cache on disk.
#[derive(Debug)]
struct Usage {
    /// Objects, the least recently used first.
    objects: Vec<Kept>,
    /// Bytes of all objects.
    used: u64,
    /// Bytes that processes may still store, except this one.
    granted: u64,
}

impl Usage {
    /// Adds up what the cache in `dir` takes up. `own` is the grant of this process.
    fn of(dir: &Path, own: Option<&Path>) -> io::Result<Self> {
        let objects = kept::list_sizes(dir)?;
        let links: u64 = ["contents", "paths"].iter().map(|name| entries(&dir.join(name))).sum();
        let used = objects.iter().map(|object| object.allocated).sum::<u64>() + links;
        Ok(Self { objects, used, granted: other_grants(&dir.join("grants"), own) })
    }

    /// Finds room for `wanted` bytes, or at least for `least`. With `takes`, objects go for it.
    fn find(
        &self,
        dir: &Path,
        budget: Budget,
        least: u64,
        wanted: u64,
        takes: bool,
    ) -> io::Result<Found> {
        let mut room = self.room(dir, budget);
        let possible = || {
            let unused = self.objects.iter().filter(|object| object.is_unused());
            unused.map(|object| i128::from(object.allocated)).sum::<i128>()
        };
        let mut removed = Vec::new();
        if room < least.into() && room + possible() < least.into() {
            // Nothing goes in vain.
            let bytes = u64::try_from(room.max(0)).unwrap_or(u64::MAX);
            return Ok(Found { bytes, removed });
        }
        for object in &self.objects {
            if room >= wanted.into() {
                break;
            }
            let gone =
                if takes { object.take_away()? } else { object.is_unused().then(PathBuf::new) };
            if let Some(gone) = gone {
                removed.push(gone);
                room += i128::from(object.allocated);
            }
        }
        if takes && !removed.is_empty() {
            info!(objects = removed.len(), "removed the least recently used files of the cache");
        }
        let bytes = u64::try_from(room.max(0)).unwrap_or(u64::MAX).min(wanted);
        Ok(Found { bytes, removed })
    }

    /// Returns how much more the cache may take up; less than 0 if it takes up too much.
    fn room(&self, dir: &Path, budget: Budget) -> i128 {
        let system = FileSystem::of(dir);
        let limit = budget.size.of(system.total);
        // Lists, hashes and states are stored without a grant.
        let limit = limit - limit / 64;
        let by_size = i128::from(limit) - i128::from(self.used);
        let by_free = i128::from(system.free) - i128::from(budget.min_free.of(system.total));
        by_size.min(by_free) - i128::from(self.granted)
    }
}

/// Returns what the processes with grants in `dir` may still store, except that with the grant
/// `own`. Grants of processes that are gone are removed.
fn other_grants(dir: &Path, own: Option<&Path>) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let mut sum = 0;
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if own == Some(&path) {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            let _ = fs::remove_file(&path);
        } else {
            sum += file.metadata().map_or(0, |metadata| metadata.len());
        }
    }
    sum
}

/// Returns what the files of a directory take up, and the directory itself.
fn entries(dir: &Path) -> u64 {
    let own = fs::metadata(dir).map_or(0, |metadata| metadata.blocks() * BLOCK);
    let files = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(fs::symlink_metadata(entry.ok()?.path()).ok()?.blocks() * BLOCK));
    own + files.sum::<u64>()
}

/// Returns what an open file takes up.
fn allocated(file: &File) -> u64 {
    file.metadata().map_or(0, |metadata| metadata.blocks() * BLOCK)
}

/// Runs `work`, which removes an object of the cache in `dir`, while nobody opens one.
pub(super) fn while_nobody_opens<T>(
    dir: &Path,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    with_lock(&open_lock(dir)?, work)
}

/// Deletes what was taken away.
fn delete(removed: &[PathBuf]) {
    for object in removed {
        match fs::remove_dir_all(object) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                if let Some(more) = log_limit::allow("cannot remove", &error) {
                    warn!(object = %object.display(), %error, "cannot remove from the cache{more}");
                }
            }
            Ok(()) | Err(_) => {}
        }
    }
}

fn open_lock(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW).open(dir.join("lock"))
}

/// Runs `work` while no other process makes room, and no object is opened.
fn with_lock<T>(file: &File, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    rustix::io::retry_on_intr(|| rustix::fs::flock(file, FlockOperation::LockExclusive))?;
    let result = work();
    let _ = rustix::fs::flock(file, FlockOperation::Unlock);
    result
}

/// Returns the memory of this machine in bytes.
pub(super) fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

#[cfg(test)]
mod tests;
