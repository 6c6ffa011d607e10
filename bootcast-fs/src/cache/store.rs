//! The bytes of one version of one file.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bootcast_proto::Etag;
use rustix::fs::{FlockOperation, SeekFrom};

use super::state::{self, Kept};
use super::{Cache, ObjectKey, Symbols};
use crate::receiver::Assembly;

/// Why a checkpoint failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The data did not reach the disk and may be lost.
    #[error("the data did not reach the disk: {0}")]
    Data(String),
    /// The data is on disk, but the state was not saved, so it will be forgotten.
    #[error(transparent)]
    State(io::Error),
}

/// Sparse file that fills with pages. Missing bytes read as zeros; the [`Assembly`] knows which
/// pages are held.
#[derive(Debug)]
pub struct Store {
    data: File,
    symbols: Symbols,
    /// Whether the file is in memory, where nothing has to reach a disk.
    is_in_memory: bool,
    /// Where the state is saved; `None` for nameless stores.
    place: Option<Place>,
    kept: Option<Assembly>,
    disk: Box<dyn Disk>,
    /// Why data is lost, once it is. The kernel tells a failed write-back once; from then on it
    /// takes the lost pages for written, so that a later success says nothing.
    lost: Mutex<Option<Lost>>,
}

#[derive(Clone, Debug)]
struct Lost {
    reason: String,
    /// Whether the state is gone that may speak of what was lost.
    is_forgotten: bool,
}

/// The steps of a checkpoint, so that tests can let each of them fail.
trait Disk: fmt::Debug + Send + Sync {
    /// Waits until the data is on disk.
    fn sync_data(&self, data: &File) -> io::Result<()>;
    /// Replaces the state.
    fn save(&self, place: &Place, kept: &Kept) -> io::Result<()>;
    /// Removes the state.
    fn discard(&self, place: &Place) -> io::Result<()>;
}

/// The disk that is there.
#[derive(Debug)]
struct TrueDisk;

impl Disk for TrueDisk {
    fn sync_data(&self, data: &File) -> io::Result<()> {
        data.sync_data()
    }

    fn save(&self, place: &Place, kept: &Kept) -> io::Result<()> {
        state::save(&place.dir, &place.key, &place.etag, kept)
    }

    fn discard(&self, place: &Place) -> io::Result<()> {
        state::discard(&place.dir)
    }
}

#[derive(Debug)]
struct Place {
    dir: PathBuf,
    key: ObjectKey,
    etag: Etag,
}

impl Store {
    /// Creates a store that disappears with its last descriptor. Its symbols are kept in `cache`.
    pub(crate) fn nameless(data: File, cache: Cache) -> Self {
        Self::with(data, cache, None, None)
    }

    /// Creates a store that persists, except for its symbols. The caller has locked `data`.
    pub(super) fn named(
        data: File,
        dir: PathBuf,
        key: ObjectKey,
        etag: Etag,
        cache: Cache,
    ) -> io::Result<Self> {
        let kept = state::load(&dir, &key, &etag, &data)?;
        if kept.is_none() {
            // Nothing vouches for these bytes, and the old state must not vouch for the next ones.
            state::discard(&dir)?;
            data.set_len(0)?;
        }
        Ok(Self::with(data, cache, Some(Place { dir, key, etag }), kept))
    }

    fn with(data: File, cache: Cache, place: Option<Place>, kept: Option<Assembly>) -> Self {
        Self {
            data,
            is_in_memory: matches!(cache, Cache::Memory),
            symbols: Symbols::new(cache),
            place,
            kept,
            disk: Box::new(TrueDisk),
            lost: Mutex::default(),
        }
    }

    /// Takes the pages that an earlier use left. Works once.
    pub fn take_kept(&mut self) -> Option<Assembly> {
        self.kept.take()
    }

    /// Sets the size of the file, so that a read near the end of the received pages is not short.
    /// The size of a device is fixed: fails if it is too small.
    pub fn set_size(&self, size: u64) -> io::Result<()> {
        let metadata = self.data.metadata()?;
        if metadata.file_type().is_block_device() {
            return self.check_device(size);
        }
        if metadata.len() == size { Ok(()) } else { self.data.set_len(size) }
    }

    fn check_device(&self, size: u64) -> io::Result<()> {
        let room = rustix::fs::seek(&self.data, SeekFrom::End(0))?;
        if size <= room {
            return Ok(());
        }
        let text = format!("the file has {size} bytes, the device {room}");
        Err(io::Error::new(io::ErrorKind::StorageFull, text))
    }

    /// Writes `slices` one after another, starting at `offset`.
    pub fn write_run(&self, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        while !slices.is_empty() {
            let write = || rustix::io::pwritev(&self.data, slices, offset);
            let written = rustix::io::retry_on_intr(write)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += written as u64;
            IoSlice::advance_slices(&mut slices, written);
        }
        Ok(())
    }

    /// Fills `buffer` from `offset`. Fails if the file is shorter.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.data.read_exact_at(buffer, offset)
    }

    /// Spool of repair symbols for this version.
    pub fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// Saves which pages are held, so that they survive a crash. Waits for the disk. Once data was
    /// lost, every later call fails as well, and tries again to remove the state if that failed.
    pub fn checkpoint(&self, kept: &Kept) -> Result<(), CheckpointError> {
        if self.is_in_memory {
            return Ok(());
        }
        self.forget_if_lost()?;
        if let Err(error) = self.disk.sync_data(&self.data) {
            let lost = Lost { reason: error.to_string(), is_forgotten: false };
            *self.lost() = Some(lost);
            return self.forget_if_lost();
        }
        let Some(place) = &self.place else { return Ok(()) };
        self.disk.save(place, kept).map_err(CheckpointError::State)
    }

    /// Fails where data was lost, and sees to it that no state vouches for it: whatever an earlier
    /// one says is held may be what was lost.
    pub fn forget_if_lost(&self) -> Result<(), CheckpointError> {
        let mut lost = self.lost();
        let Some(Lost { reason, is_forgotten }) = &mut *lost else { return Ok(()) };
        if !*is_forgotten {
            let discarded = self.place.as_ref().map_or(Ok(()), |place| self.disk.discard(place));
            *is_forgotten = discarded.is_ok();
        }
        Err(CheckpointError::Data(reason.clone()))
    }

    fn lost(&self) -> MutexGuard<'_, Option<Lost>> {
        // Nothing that holds the lock can panic half way.
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the bytes are in memory, and so as safe as they can be.
    pub fn is_in_memory(&self) -> bool {
        self.is_in_memory
    }

    /// Whether held pages outlive this program.
    pub fn is_persistent(&self) -> bool {
        self.place.is_some()
    }
}

#[cfg(test)]
impl Store {
    /// Lets the next sync and the removal of the state after it fail.
    pub(crate) fn with_failing_disk(mut self) -> Self {
        self.disk = Box::new(tests::FailingDisk::once());
        self
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The last chance to remove a state that may speak of lost data.
        let _ = self.forget_if_lost();
        if self.place.is_some() {
            // Closing is not enough: a child that was just forked has this descriptor until it
            // executes its program, and the lock with it.
            let _ = rustix::fs::flock(&self.data, FlockOperation::Unlock);
        }
    }
}

impl AsFd for Store {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering::Relaxed;

    use bootcast_proto::{Geometry, PageRange, PageSet, PageSize, RemotePath};

    use super::super::Cache;
    use super::*;

    fn key(etag: &str) -> ObjectKey {
        let path = RemotePath::decode("images/a%20b").unwrap();
        ObjectKey { server: "head:8888".into(), path, etag: Some(Etag::new(etag).unwrap()) }
    }

    fn kept(size: u64, held: PageRange) -> Kept {
        let geometry = Geometry::new(size, PageSize::new(4).unwrap()).unwrap();
        let mut set = PageSet::new(geometry.pages());
        set.insert_range(held);
        Kept { geometry, held: set }
    }

    /// A disk whose next calls fail as often as they are told to.
    #[derive(Clone, Debug, Default)]
    pub(super) struct FailingDisk(Arc<Faults>);

    impl FailingDisk {
        pub(super) fn once() -> Self {
            let disk = Self::default();
            disk.0.sync_data.store(1, Relaxed);
            disk.0.discard.store(1, Relaxed);
            disk
        }
    }

    #[derive(Debug, Default)]
    struct Faults {
        sync_data: AtomicU32,
        save: AtomicU32,
        discard: AtomicU32,
    }

    fn fail(faults: &AtomicU32, call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match faults.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Err(io::ErrorKind::StorageFull.into()),
            Err(_) => call(),
        }
    }

    impl Disk for FailingDisk {
        fn sync_data(&self, data: &File) -> io::Result<()> {
            fail(&self.0.sync_data, || TrueDisk.sync_data(data))
        }

        fn save(&self, place: &Place, kept: &Kept) -> io::Result<()> {
            fail(&self.0.save, || TrueDisk.save(place, kept))
        }

        fn discard(&self, place: &Place) -> io::Result<()> {
            fail(&self.0.discard, || TrueDisk.discard(place))
        }
    }

    /// A store that holds pages 0 and 1 of a 10-byte file since an earlier checkpoint.
    fn failing_store(cache: &Cache) -> (Store, Arc<Faults>) {
        fill(cache);
        let mut store = cache.open(&key("v1")).unwrap();
        store.take_kept().unwrap();
        let disk = FailingDisk::default();
        store.disk = Box::new(disk.clone());
        (store, disk.0)
    }

    #[test]
    fn a_forked_child_does_not_keep_an_object_locked() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        fill(&cache);
        let store = cache.open(&key("v1")).unwrap();
        // A child has the same open file description, as this duplicate has.
        let childs = store.as_fd().try_clone_to_owned().unwrap();
        drop(store);
        assert!(cache.open(&key("v1")).unwrap().take_kept().is_some());
        drop(childs);
    }

    #[test]
    fn data_that_did_not_reach_the_disk_is_never_remembered_whatever_else_fails() {
        for failing_discards in [0, 1, 2, 3] {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::on_disk(dir.path()).unwrap();
            let (store, faults) = failing_store(&cache);
            faults.sync_data.store(1, Relaxed);
            faults.discard.store(failing_discards, Relaxed);
            let all = kept(10, PageRange::new(0, 3));
            for attempt in 0..3 {
                // From the second attempt on the disk works again, or says so.
                let result = store.checkpoint(&all);
                assert!(matches!(result, Err(CheckpointError::Data(_))), "{attempt}: {result:?}");
            }
            drop(store);
            let kept = cache.open(&key("v1")).unwrap().take_kept();
            assert!(kept.is_none(), "{failing_discards}: the state was removed at last");
        }
    }

    #[test]
    fn a_state_that_cannot_be_written_is_written_the_next_time() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        let (store, faults) = failing_store(&cache);
        faults.save.store(1, Relaxed);
        let all = kept(10, PageRange::new(0, 3));
        assert!(matches!(store.checkpoint(&all), Err(CheckpointError::State(_))));
        store.checkpoint(&all).unwrap();
        drop(store);
        assert!(cache.open(&key("v1")).unwrap().take_kept().unwrap().is_complete());
    }

    #[test]
    fn a_nameless_file_on_disk_can_lose_data_too() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        let _first = cache.open(&key("v1")).unwrap();
        let mut second = cache.open(&key("v1")).unwrap();
        let disk = FailingDisk::default();
        second.disk = Box::new(disk.clone());
        let all = kept(10, PageRange::new(0, 3));
        second.checkpoint(&all).unwrap();
        disk.0.sync_data.store(1, Relaxed);
        assert!(matches!(second.checkpoint(&all), Err(CheckpointError::Data(_))));
    }

    /// Writes "aaaabbbb" into a file of 10 bytes and makes a checkpoint.
    fn fill(cache: &Cache) {
        let store = cache.open(&key("v1")).unwrap();
        store.set_size(10).unwrap();
        store.write_run(&mut [IoSlice::new(b"aaaa"), IoSlice::new(b"bbbb")], 0).unwrap();
        store.checkpoint(&kept(10, PageRange::new(0, 2))).unwrap();
    }

    #[test]
    fn what_was_checkpointed_is_there_in_the_next_life() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        fill(&cache);
        let mut store = cache.open(&key("v1")).unwrap();
        let assembly = store.take_kept().unwrap();
        assert!(assembly.holds(&(0..8)) && !assembly.holds(&(8..10)));
        let mut bytes = [0; 8];
        store.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"aaaabbbb");
    }

    #[test]
    fn another_version_finds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        fill(&cache);
        assert!(cache.open(&key("v2")).unwrap().take_kept().is_none());
    }

    #[test]
    fn a_store_in_use_is_not_shared() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        fill(&cache);
        let first = cache.open(&key("v1")).unwrap();
        let mut second = cache.open(&key("v1")).unwrap();
        assert!(first.is_persistent() && !second.is_persistent());
        assert!(second.take_kept().is_none());
    }

    #[test]
    fn a_damaged_object_counts_as_empty() {
        type Damage = fn(&std::path::Path);
        let damages: [Damage; 4] = [
            |object| std::fs::write(object.join("state"), b"{}\n").unwrap(),
            |object| std::fs::write(object.join("state"), b"\xff").unwrap(),
            |object| std::fs::remove_file(object.join("state")).unwrap(),
            |object| {
                File::options().write(true).open(object.join("data")).unwrap().set_len(9).unwrap();
            },
        ];
        for damage in damages {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::on_disk(dir.path()).unwrap();
            fill(&cache);
            let object = std::fs::read_dir(dir.path().join("objects")).unwrap().next().unwrap();
            damage(&object.unwrap().path());
            let mut store = cache.open(&key("v1")).unwrap();
            assert!(store.take_kept().is_none());
            assert_eq!(store.data.metadata().unwrap().len(), 0);
            // The program dies before the first checkpoint of its second run.
            store.set_size(10).unwrap();
            drop(store);
            assert!(cache.open(&key("v1")).unwrap().take_kept().is_none());
        }
    }

    #[test]
    fn a_store_without_a_version_or_in_memory_ends_with_its_use() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Cache::on_disk(dir.path()).unwrap();
        let plain = ObjectKey { etag: None, ..key("v1") };
        for store in [disk.open(&plain).unwrap(), Cache::Memory.open(&key("v1")).unwrap()] {
            store.checkpoint(&kept(4, PageRange::new(0, 1))).unwrap();
            assert!(!store.is_persistent());
        }
        assert_eq!(std::fs::read_dir(dir.path().join("objects")).unwrap().count(), 0);
    }
}
