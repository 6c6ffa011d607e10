//! Stores: the bytes of one version of one file.

mod following;
mod scarcity;

pub use following::Lock;
pub(crate) use following::{SHARE_SOCKET, open_dir};
pub use scarcity::Settled;

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bootcast_proto::{ContentId, Etag, Geometry};
use rustix::fs::{FlockOperation, SeekFrom};
use tempfile::TempDir;

use super::room::Room;
use super::state::{self, HeldSnapshot, Restored, StateFile};
use super::window::Window;
use super::{Cache, LeafValues, ObjectKey, Older, Symbols, contents, holes, kept, paths};

/// Bytes without a checkpoint that are worth to be looked at.
const MIN_UNRECORDED: u64 = 1 << 20;

/// Reason why a checkpoint failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The data did not reach the disk and may be lost.
    #[error("the data did not reach the disk: {0}")]
    Data(String),
    /// The data is on disk, but the state could not be saved. A later use will not find the pages
    /// that are new since the last checkpoint.
    #[error(transparent)]
    State(io::Error),
}

/// Sparse file for the pages of one version. Missing bytes read as zeros; the `Assembly` knows
/// which pages are held.
#[derive(Debug)]
pub struct Store {
    data: Arc<File>,
    symbols: Symbols,
    /// Room of a cache with a budget.
    room: Option<Arc<Room>>,
    /// Whether no page will be written any more, so that others may lock the object, too.
    is_settled: AtomicBool,
    /// Bytes that the cache has no room for.
    window: Window,
    /// Directory that vanishes with the store.
    private_dir: Option<TempDir>,
    /// Whether `data` is locked, so that nobody removes the object.
    is_pinned: Mutex<bool>,
    /// Role of this store for its object. Only a store with [`Use::Own`] saves the state.
    use_of_object: Mutex<Use>,
    /// Cache in which [`Self::open_own`] opens a private store.
    cache: Cache,
    /// Whether the file is in memory and needs no checkpoints.
    is_in_memory: bool,
    /// Whether held bytes may be in a hole of the file. Until then no check looks for one.
    may_have_holes: AtomicBool,
    /// Whether blocks of zeros are freed, though the file knows no holes: it is a device.
    frees_zeros: bool,
    /// Directory and identity of a persistent store; `None` for transient ones.
    object_dir: Option<ObjectDir>,
    /// Hashes of a persistent store's content, if their file can be opened.
    leaf_values: Option<LeafValues>,
    /// Pages of the last checkpoint, until [`Self::take_restored`].
    restored: Option<Restored>,
    /// Whether the pages of `restored` were stored just now, and no state lists them.
    is_adopted: bool,
    /// Earlier bytes that may have leaves of this version, the best first, until
    /// [`Self::take_older`].
    older: Vec<Older>,
    /// State on disk, whose blocks are written in place; `None` if the next save replaces it.
    state: Mutex<Option<StateFile>>,
    disk: Box<dyn Disk>,
    /// Set once a sync has failed, and never cleared. The kernel reports a failed write-back only
    /// once and then counts the lost pages as written, so a later successful sync proves nothing.
    data_loss: Mutex<Option<DataLoss>>,
}

/// Use that a store makes of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// It stores what arrives.
    Own,
    /// The object was complete when it was opened, and others may use it too.
    Shared,
    /// Another store fills the object. docs/SEMANTICS.md, "One copy for several mounts".
    Following,
}

/// Failed sync of a store.
#[derive(Clone, Debug)]
struct DataLoss {
    /// Error of the sync.
    reason: String,
    /// Whether the state, which may list lost pages as held, was removed.
    is_state_removed: bool,
}

/// Bytes that could not be written.
struct Unwritten<'s, 'b> {
    slices: &'s mut [IoSlice<'b>],
    offset: u64,
    error: io::Error,
}

/// Steps of a checkpoint, as a trait so that tests can make each of them fail.
trait Disk: fmt::Debug + Send + Sync {
    /// Waits until the data is on disk.
    fn sync_data(&self, data: &File) -> io::Result<()>;
    /// Saves the state, in its file if that is known.
    fn save(
        &self,
        object: &ObjectDir,
        snapshot: &HeldSnapshot,
        state: &mut Option<StateFile>,
    ) -> io::Result<()>;
    /// Removes the state. A crash may bring it back until [`Self::sync_dir`] has succeeded.
    fn remove_state(&self, object: &ObjectDir) -> io::Result<()>;
    /// Waits until the removal of the state is on disk.
    fn sync_dir(&self, object: &ObjectDir) -> io::Result<()>;
}

/// Disk operations outside tests.
#[derive(Debug)]
struct RealDisk;

impl Disk for RealDisk {
    fn sync_data(&self, data: &File) -> io::Result<()> {
        data.sync_data()
    }

    fn save(
        &self,
        object: &ObjectDir,
        snapshot: &HeldSnapshot,
        state: &mut Option<StateFile>,
    ) -> io::Result<()> {
        state::save(&object.dir, &object.key, &object.etag, snapshot, state)
    }

    fn remove_state(&self, object: &ObjectDir) -> io::Result<()> {
        state::remove(&object.dir)
    }

    fn sync_dir(&self, object: &ObjectDir) -> io::Result<()> {
        state::sync_dir(&object.dir)
    }
}

/// Removes the state durably. The directory is synced even if there is no state: an earlier call
/// may have removed it and failed to sync.
fn discard_state(disk: &dyn Disk, object: &ObjectDir) -> io::Result<()> {
    disk.remove_state(object)?;
    disk.sync_dir(object)
}

/// Directory of an object and the identity of its content.
#[derive(Debug)]
struct ObjectDir {
    dir: PathBuf,
    key: ObjectKey,
    etag: Etag,
}

impl Store {
    /// Creates a store that records no state, so that a later use cannot find its pages. `data` may
    /// be nameless or the output of `bootcast get`. Repair symbols are stored in `cache`.
    pub(crate) fn transient(data: File, cache: Cache) -> Self {
        Self::with(data, cache, None, None)
    }

    /// Frees blocks of a device that become zeros, where the device can, instead of writing them.
    pub(crate) fn freeing_zeros(mut self) -> Self {
        self.frees_zeros = true;
        self
    }

    /// Creates a store like [`Self::transient`] in a directory that vanishes with it. The caller
    /// must have locked `data`.
    pub(super) fn private(data: File, dir: TempDir, cache: Cache) -> Self {
        let mut store = Self::with(data, cache, None, None);
        store.symbols.keep_in(dir.path());
        store.private_dir = Some(dir);
        store
    }

    /// Creates a store whose pages, but not its repair symbols, can be found by a later use. The
    /// caller must have locked `data`.
    pub(super) fn persistent(
        data: File,
        dir: PathBuf,
        key: ObjectKey,
        etag: Etag,
        cache: Cache,
    ) -> io::Result<Self> {
        let loaded = state::load(&dir, &key, &etag, &data)?;
        let (restored, state) = loaded.map_or((None, None), |(it, state)| (Some(it), state));
        let object = ObjectDir { dir, key, etag };
        let is_new = data.metadata()?.len() == 0 && !state::exists(&object.dir)?;
        if restored.is_none() && !is_new {
            // `data` has no valid state. An invalid one must not stay and be read with new data.
            discard_state(&RealDisk, &object)?;
            if LeafValues::open_existing(&object.dir).is_err() {
                data.set_len(0)?;
            }
        }
        let is_settled = restored
            .as_ref()
            .is_some_and(|restored| restored.content.is_some() && restored.assembly.is_complete());
        let mut store = Self::with(data, cache, Some(object), restored);
        store.state = Mutex::new(state);
        if is_settled {
            // No page of it will be written, so that others may read it.
            store.is_settled = AtomicBool::new(true);
            let _ = rustix::fs::flock(&store.data, FlockOperation::NonBlockingLockShared);
        } else if let Some(object) = &store.object_dir {
            store.symbols.keep_in(&object.dir);
        }
        Ok(store)
    }

    /// Creates a store of an object that is complete, and that other stores may use at the same
    /// time; `None` if it is not complete, or if another store still fills it. With `key.content`
    /// the object need not be of that path and version, but of that content.
    pub(super) fn shared(data: File, dir: PathBuf, key: ObjectKey, cache: Cache) -> Option<Self> {
        rustix::fs::flock(&data, FlockOperation::NonBlockingLockShared).ok()?;
        if !kept::is_present(&dir, &data).ok()? {
            return None;
        }
        let restored = state::load_complete(&dir, key.content, &data)?;
        let etag = key.etag.clone()?;
        let object = ObjectDir { dir, key, etag };
        // A newer version of this path may take leaves from there.
        let _ = paths::record(&object.dir, &object.key);
        let mut store = Self::with(data, cache, Some(object), Some(restored));
        store.use_of_object = Mutex::new(Use::Shared);
        Some(store)
    }

    fn with(
        data: File,
        cache: Cache,
        object_dir: Option<ObjectDir>,
        restored: Option<Restored>,
    ) -> Self {
        assert!(
            object_dir.is_some() || restored.is_none(),
            "pages are restored to a store without a state"
        );
        assert!(
            object_dir.is_none() || cache.dir().is_some(),
            "the state of a store in memory would outlive its bytes"
        );
        let leaf_values = object_dir.as_ref().and_then(|it| LeafValues::open(&it.dir).ok());
        let (data, room) = (Arc::new(data), cache.room().cloned());
        let own_cache = cache.clone();
        if let Some(room) = &room {
            room.count(&data);
        }
        Self {
            data,
            room,
            is_settled: AtomicBool::new(false),
            window: Window::default(),
            private_dir: None,
            is_pinned: Mutex::new(true),
            leaf_values,
            use_of_object: Mutex::new(Use::Own),
            cache: own_cache,
            is_in_memory: cache.dir().is_none(),
            may_have_holes: AtomicBool::new(restored.is_some()),
            frees_zeros: false,
            symbols: Symbols::new(cache),
            object_dir,
            restored,
            is_adopted: false,
            older: Vec::new(),
            state: Mutex::default(),
            disk: Box::new(RealDisk),
            data_loss: Mutex::default(),
        }
    }

    /// Whether it stores what arrives.
    fn fills(&self) -> bool {
        *crate::panics::lock(&self.use_of_object) == Use::Own
    }

    /// Whether every page was held at the last checkpoint, before [`Self::take_restored`].
    pub(super) fn is_complete(&self) -> bool {
        self.restored.as_ref().is_some_and(|restored| restored.assembly.is_complete())
    }

    /// Whether [`Self::take_restored`] would return pages.
    pub(super) fn has_restored(&self) -> bool {
        self.restored.is_some()
    }

    /// Sets the pages that were stored just now.
    pub(super) fn set_adopted(&mut self, restored: Restored) {
        assert!(self.fills(), "others fill the object");
        self.restored = Some(restored);
        self.is_adopted = true;
        self.older.clear();
    }

    /// Whether pages of [`Self::take_restored`] are in no state yet.
    pub fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    /// Adds what leaves may be taken from: what an earlier use left here, and `older`, an older
    /// version of the path.
    pub(super) fn with_older(mut self, older: Option<Older>) -> Self {
        self.older = self.unrecorded().into_iter().chain(older).collect();
        self
    }

    /// Returns what an earlier use left in this store without a checkpoint, if that is much: its
    /// process was killed, or the machine failed.
    fn unrecorded(&self) -> Option<Older> {
        let object = self.object_dir.as_ref().filter(|_| self.fills())?;
        let recorded = self.restored.as_ref().map_or(0, |it| it.assembly.arrived_bytes());
        let allocated =
            std::os::unix::fs::MetadataExt::blocks(&self.data.metadata().ok()?) * kept::BLOCK;
        // Each run of pages may take up a block more than it has bytes.
        let is_much = allocated > recorded + recorded / 8 + MIN_UNRECORDED;
        if is_much { Older::of_earlier_use(&object.dir) } else { None }
    }

    /// Takes what leaves may be taken from; nothing from the second call on.
    pub fn take_older(&mut self) -> Vec<Older> {
        std::mem::take(&mut self.older)
    }

    /// Takes the pages of the last checkpoint of an earlier use; `None` from the second call on.
    pub fn take_restored(&mut self) -> Option<Restored> {
        self.restored.take()
    }

    /// Sets the size of the file, so that reads behind the last received page are not short. A
    /// block device cannot be resized: fails if it is smaller than `size`.
    pub fn set_size(&self, size: u64) -> io::Result<()> {
        let metadata = self.data.metadata()?;
        if metadata.file_type().is_block_device() {
            return self.check_device(size);
        }
        if metadata.len() == size { Ok(()) } else { self.data.set_len(size) }
    }

    /// Fails if the block device is smaller than `size`.
    fn check_device(&self, size: u64) -> io::Result<()> {
        let capacity = rustix::fs::seek(&self.data, SeekFrom::End(0))?;
        if size <= capacity {
            return Ok(());
        }
        let text = format!("the file has {size} bytes, but the device only {capacity}");
        Err(io::Error::new(io::ErrorKind::StorageFull, text))
    }

    /// Writes `slices` one after another, starting at `offset`. Zeros are not written where the
    /// file has a hole, which reads as zeros.
    pub fn write_run(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.write_parts(slices, offset, |part, offset| self.write_all(part, offset))
    }

    /// Like [`Self::write_run`], of bytes that `older` has at the same offset. Both files share the
    /// blocks where the file system can.
    pub fn write_from(
        &self,
        older: &Older,
        slices: &mut [IoSlice<'_>],
        offset: u64,
    ) -> io::Result<()> {
        self.write_parts(slices, offset, |mut part, mut offset| {
            let len = part.iter().map(|slice| slice.len()).sum();
            let taken = self.room.as_ref().map(|room| room.take(offset, len as u64));
            if matches!(taken, Some(None)) {
                // A copy runs ahead of its readers, and must not drop bytes that others read.
                return Err(io::ErrorKind::StorageFull.into());
            }
            let copied = older.settled_data().map_or(0, |data| self.copy_from(data, offset, len));
            IoSlice::advance_slices(&mut part, copied);
            offset += copied as u64;
            drop(taken);
            self.write_all(part, offset)
        })
    }

    /// Copies bytes at an offset from there in another file. Returns how many it copied before the
    /// kernel refused.
    fn copy_from(&self, other: BorrowedFd<'_>, offset: u64, len: usize) -> usize {
        let mut copied = 0;
        while copied < len {
            let (mut from, mut to) = (offset + copied as u64, offset + copied as u64);
            let copy = rustix::fs::copy_file_range(
                other,
                Some(&mut from),
                &self.data,
                Some(&mut to),
                len - copied,
            );
            match copy {
                Ok(0) | Err(_) => break,
                Ok(more) => copied += more.min(len - copied),
            }
            // The other file may have one there.
            self.record_hole();
        }
        copied
    }

    /// Calls `write` with each part of `slices` that must be written, and its offset.
    fn write_parts(
        &self,
        mut slices: &mut [IoSlice<'_>],
        mut offset: u64,
        write: impl Fn(&mut [IoSlice<'_>], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        while !slices.is_empty() {
            let part = holes::first_part(slices);
            let (head, rest) = std::mem::take(&mut slices).split_at_mut(part.slices);
            if part.is_zeros && holes::is_hole(&self.data, offset, part.len) {
                self.record_hole();
                self.window.remove(&(offset..offset + part.len as u64));
            } else if part.is_zeros && self.frees_zeros {
                self.write_zeros(offset..offset + part.len as u64)?;
            } else {
                write(head, offset)?;
            }
            offset += part.len as u64;
            slices = rest;
        }
        Ok(())
    }

    /// Makes these bytes zeros: they are written where the file has no hole. The file must have its
    /// final size.
    pub fn write_zeros(&self, bytes: Range<u64>) -> io::Result<()> {
        self.record_hole();
        self.window.remove(&bytes);
        if !self.frees_zeros {
            return self.write_zeros_outside_holes(bytes);
        }
        let freed = holes::free(&self.data, &bytes);
        self.write_zeros_outside_holes(bytes.start..freed.start)?;
        self.write_zeros_outside_holes(freed.end..bytes.end)
    }

    fn write_zeros_outside_holes(&self, bytes: Range<u64>) -> io::Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut rest = bytes;
        while let Some(data) = holes::first_data(&self.data, &rest) {
            for start in data.clone().step_by(ZEROS.len()) {
                let len = (data.end - start).min(ZEROS.len() as u64);
                let len = usize::try_from(len).expect("at most the length of a slice");
                self.write_all(&mut [IoSlice::new(&ZEROS[..len])], start)?;
            }
            rest.start = data.end;
        }
        Ok(())
    }

    /// Returns the first of these bytes that are in a hole, so that they are zeros.
    pub fn next_hole(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        let mut rest = bytes.clone();
        loop {
            let hole = holes::first_hole(&self.data, &rest)?;
            match self.window.within(&hole).first() {
                Some(other) if other.start == hole.start => rest.start = other.end,
                Some(other) => return Some(hole.start..other.start),
                None => return Some(hole),
            }
        }
    }

    /// Whether all of these bytes, which are held, are in a hole, so that they are zeros. Costs
    /// nothing where every held byte was written.
    pub fn is_hole(&self, bytes: &Range<u64>) -> bool {
        self.may_have_holes.load(Ordering::Relaxed)
            && usize::try_from(bytes.end - bytes.start)
                .is_ok_and(|len| holes::is_hole(&self.data, bytes.start, len))
            && !self.window.overlaps(bytes)
    }

    /// Records that held bytes may be in a hole from now on.
    fn record_hole(&self) {
        self.may_have_holes.store(true, Ordering::Relaxed);
    }

    /// Writes `slices` one after another. What the cache has no room for goes to the window; fails
    /// with [`is_no_room`] if that is full, too.
    fn write_all(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let Some(room) = &self.room else {
            return self.write_data(slices, offset).map_err(|unwritten| unwritten.error);
        };
        let len = slices.iter().map(|slice| slice.len()).sum::<usize>();
        let all = offset..offset + len as u64;
        let mut written = match room.take(offset, len as u64) {
            Some(_taken) => self.write_data(slices, offset),
            None => Err(Unwritten { slices, offset, error: io::ErrorKind::StorageFull.into() }),
        };
        if let Err(unwritten) = written {
            let retries = is_no_room(&unwritten.error) && room.handle_full_disk();
            written = if retries {
                self.write_data(unwritten.slices, unwritten.offset)
            } else {
                Err(unwritten)
            };
        }
        match written {
            Ok(()) => {
                self.window.remove(&all);
                Ok(())
            }
            Err(Unwritten { slices, offset, error }) if is_no_room(&error) => {
                self.window.remove(&(all.start..offset));
                self.window.write(slices, offset)
            }
            Err(Unwritten { error, .. }) => Err(error),
        }
    }

    /// Writes `slices` to the file.
    fn write_data<'s, 'b>(
        &self,
        mut slices: &'s mut [IoSlice<'b>],
        mut offset: u64,
    ) -> Result<(), Unwritten<'s, 'b>> {
        while !slices.is_empty() {
            let write = || rustix::io::pwritev(&self.data, slices, offset);
            let written = match rustix::io::retry_on_intr(write) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                written => written.map_err(io::Error::from),
            };
            match written {
                Ok(written) => {
                    debug_assert!(written <= slices.iter().map(|slice| slice.len()).sum::<usize>());
                    offset += written as u64;
                    IoSlice::advance_slices(&mut slices, written);
                }
                Err(error) => return Err(Unwritten { slices, offset, error }),
            }
        }
        Ok(())
    }

    /// Fills `buffer` with the bytes at `offset`. Fails if the file ends before.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.window.read_exact_at(&self.data, buffer, offset)
    }

    /// Returns the hashes of the content that an earlier or later use shares; `None` if this store
    /// is transient.
    pub fn leaf_values(&self) -> Option<&LeafValues> {
        self.leaf_values.as_ref()
    }

    /// Returns the spool of repair symbols for this version.
    pub fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// Syncs the data, then saves which pages are held, so that they survive a crash. Waits for the
    /// disk. After a data loss, every later call fails too, and retries the removal of the state if
    /// that failed before. The caller must not make two checkpoints at the same time.
    pub fn checkpoint(&self, snapshot: &HeldSnapshot) -> Result<(), CheckpointError> {
        if self.is_in_memory {
            return Ok(());
        }
        self.fail_if_lost()?;
        if let Err(error) = self.disk.sync_data(&self.data) {
            let loss = DataLoss { reason: error.to_string(), is_state_removed: false };
            *self.data_loss() = Some(loss);
            return self.fail_if_lost();
        }
        let Some(object) = self.object_dir.as_ref().filter(|_| self.fills()) else {
            return Ok(());
        };
        let mut state = crate::panics::lock(&self.state);
        // It is counted, but saved in any case: some room is left for states.
        drop(self.room.as_ref().map(|room| room.take(0, snapshot.len())));
        let saved = self.disk.save(object, snapshot, &mut state);
        drop(state);
        if saved.as_ref().is_err_and(is_no_room) {
            self.make_room();
        }
        saved.map_err(CheckpointError::State)?;
        // Without the line, a newer version receives what it could have from here.
        let _ = paths::record(&object.dir, &object.key);
        if let Some(content) = snapshot.complete_content() {
            // Without the link, the content is received once more under another name.
            let _ = contents::record(&object.dir, content);
            // From here on no page is written, so that others may read the object.
            self.is_settled.store(true, Ordering::Relaxed);
            let _ = rustix::fs::flock(&self.data, FlockOperation::NonBlockingLockShared);
        }
        Ok(())
    }

    /// Whether a checkpoint of a file with this geometry and content id needs the changed pages
    /// only.
    pub fn saves_changes(&self, geometry: &Geometry, content: Option<ContentId>) -> bool {
        let state = crate::panics::lock(&self.state);
        state.as_ref().is_some_and(|state| state.fits(geometry, content))
    }

    /// Removes objects that nobody uses, because the file system is full.
    fn make_room(&self) {
        if let Some(room) = &self.room {
            room.handle_full_disk();
        }
    }

    /// Fails if data was lost. Then also removes the state, because any page that it lists as held
    /// may be lost.
    pub fn fail_if_lost(&self) -> Result<(), CheckpointError> {
        let mut data_loss = self.data_loss();
        let Some(DataLoss { reason, is_state_removed }) = &mut *data_loss else { return Ok(()) };
        if !*is_state_removed {
            *crate::panics::lock(&self.state) = None;
            let discard = |object| discard_state(&*self.disk, object);
            *is_state_removed = self.object_dir.as_ref().map_or(Ok(()), discard).is_ok();
        }
        Err(CheckpointError::Data(reason.clone()))
    }

    fn data_loss(&self) -> MutexGuard<'_, Option<DataLoss>> {
        // No code panics in the middle of a change while it holds the lock.
        crate::panics::lock(&self.data_loss)
    }

    /// Whether the bytes are in memory, where they need no checkpoint.
    pub fn is_in_memory(&self) -> bool {
        self.is_in_memory
    }

    /// Whether held pages outlive this process.
    pub fn is_persistent(&self) -> bool {
        self.object_dir.is_some()
    }

    /// Returns the path of the file with the bytes; `None` if they do not outlive this process.
    pub fn path(&self) -> Option<PathBuf> {
        self.object_dir.as_ref().map(|object| object.dir.join("data"))
    }
}

#[cfg(test)]
impl Store {
    /// Whether the object was complete when it was opened.
    pub(super) fn is_shared(&self) -> bool {
        *crate::panics::lock(&self.use_of_object) == Use::Shared
    }

    /// Returns the file with the bytes.
    pub(super) fn file(&self) -> &File {
        &self.data
    }

    /// Makes the next sync of the data fail, and the removal of the state after it.
    pub(crate) fn with_failing_sync(mut self) -> Self {
        self.disk = Box::new(tests::FailingDisk::sync_once());
        self
    }

    /// Makes the next save of the state fail.
    pub(crate) fn with_failing_save(mut self) -> Self {
        self.disk = Box::new(tests::FailingDisk::save_once());
        self
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The last chance to remove a state that may list lost pages as held.
        let _ = self.fail_if_lost();
        self.remove_socket();
        if self.object_dir.is_some() {
            // Closing the descriptor may not release the lock: a child that was just forked has a
            // copy of the descriptor until it executes its program.
            let _ = rustix::fs::flock(&self.data, FlockOperation::Unlock);
        }
    }
}

/// Whether a write failed because there is no room.
pub(crate) fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl AsFd for Store {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }
}

#[cfg(test)]
mod tests;
