//! Stores: the bytes of one version of one file.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use bootcast_proto::Etag;
use rustix::fs::{FlockOperation, SeekFrom};

use super::state::{self, HeldSnapshot, Restored};
use super::{Cache, LeafValues, ObjectKey, Symbols, contents, holes};

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
    data: File,
    symbols: Symbols,
    /// Whether the object was complete when it was opened, and others may use it too. Its state is
    /// not saved again.
    is_shared: bool,
    /// Whether the file is in memory and needs no checkpoints.
    is_in_memory: bool,
    /// Directory and identity of a persistent store; `None` for transient ones.
    object_dir: Option<ObjectDir>,
    /// Hashes of a persistent store's content, if their file can be opened.
    leaf_values: Option<LeafValues>,
    /// Pages of the last checkpoint, until [`Self::take_restored`].
    restored: Option<Restored>,
    disk: Box<dyn Disk>,
    /// Set once a sync has failed, and never cleared. The kernel reports a failed write-back only
    /// once and then counts the lost pages as written, so a later successful sync proves nothing.
    data_loss: Mutex<Option<DataLoss>>,
}

/// Failed sync of a store.
#[derive(Clone, Debug)]
struct DataLoss {
    /// Error of the sync.
    reason: String,
    /// Whether the state, which may list lost pages as held, was removed.
    is_state_removed: bool,
}

/// Steps of a checkpoint, as a trait so that tests can make each of them fail.
trait Disk: fmt::Debug + Send + Sync {
    /// Waits until the data is on disk.
    fn sync_data(&self, data: &File) -> io::Result<()>;
    /// Replaces the state.
    fn save(&self, object: &ObjectDir, snapshot: &HeldSnapshot) -> io::Result<()>;
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

    fn save(&self, object: &ObjectDir, snapshot: &HeldSnapshot) -> io::Result<()> {
        state::save(&object.dir, &object.key, &object.etag, snapshot)
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

    /// Creates a store whose pages, but not its repair symbols, can be found by a later use. The
    /// caller must have locked `data`.
    pub(super) fn persistent(
        data: File,
        dir: PathBuf,
        key: ObjectKey,
        etag: Etag,
        cache: Cache,
    ) -> io::Result<Self> {
        let restored = state::load(&dir, &key, &etag, &data)?;
        let object = ObjectDir { dir, key, etag };
        let is_new = data.metadata()?.len() == 0 && !state::exists(&object.dir)?;
        if restored.is_none() && !is_new {
            // `data` has no valid state. An invalid one must not stay and be read with new data.
            discard_state(&RealDisk, &object)?;
            data.set_len(0)?;
        }
        Ok(Self::with(data, cache, Some(object), restored))
    }

    /// Creates a store of an object that is complete, and that other stores may use at the same
    /// time; `None` if it is not complete, or if another store still fills it. With `key.content`
    /// the object need not be of that path and version, but of that content.
    pub(super) fn shared(data: File, dir: PathBuf, key: ObjectKey, cache: Cache) -> Option<Self> {
        rustix::fs::flock(&data, FlockOperation::NonBlockingLockShared).ok()?;
        let restored = state::load_complete(&dir, key.content, &data)?;
        let etag = key.etag.clone()?;
        let object = ObjectDir { dir, key, etag };
        let mut store = Self::with(data, cache, Some(object), Some(restored));
        store.is_shared = true;
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
            object_dir.is_none() || matches!(cache, Cache::Disk(_)),
            "the state of a store in memory would outlive its bytes"
        );
        let leaf_values = object_dir.as_ref().and_then(|it| LeafValues::open(&it.dir).ok());
        Self {
            data,
            leaf_values,
            is_shared: false,
            is_in_memory: matches!(cache, Cache::Memory),
            symbols: Symbols::new(cache),
            object_dir,
            restored,
            disk: Box::new(RealDisk),
            data_loss: Mutex::default(),
        }
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

    /// Writes `slices` one after another, starting at `offset`. Zeros are not written where the file
    /// has a hole, which reads as zeros.
    pub fn write_run(&self, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        while !slices.is_empty() {
            let part = holes::first_part(slices);
            let (head, rest) = std::mem::take(&mut slices).split_at_mut(part.slices);
            if !part.is_zeros || !holes::is_hole(&self.data, offset, part.len) {
                self.write_all(head, offset)?;
            }
            offset += part.len as u64;
            slices = rest;
        }
        Ok(())
    }

    fn write_all(&self, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        while !slices.is_empty() {
            let write = || rustix::io::pwritev(&self.data, slices, offset);
            let written = rustix::io::retry_on_intr(write)?;
            debug_assert!(written <= slices.iter().map(|slice| slice.len()).sum::<usize>());
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += written as u64;
            IoSlice::advance_slices(&mut slices, written);
        }
        Ok(())
    }

    /// Fills `buffer` with the bytes at `offset`. Fails if the file ends before.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.data.read_exact_at(buffer, offset)
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
        let Some(object) = self.object_dir.as_ref().filter(|_| !self.is_shared) else {
            return Ok(());
        };
        self.disk.save(object, snapshot).map_err(CheckpointError::State)?;
        if let Some(content) = snapshot.complete_content() {
            // Without the link, the content is received once more under another name.
            let _ = contents::record(&object.dir, content);
            // From here on no page is written, so that others may read the object.
            let _ = rustix::fs::flock(&self.data, FlockOperation::NonBlockingLockShared);
        }
        Ok(())
    }

    /// Fails if data was lost. Then also removes the state, because any page that it lists as held
    /// may be lost.
    pub fn fail_if_lost(&self) -> Result<(), CheckpointError> {
        let mut data_loss = self.data_loss();
        let Some(DataLoss { reason, is_state_removed }) = &mut *data_loss else { return Ok(()) };
        if !*is_state_removed {
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
}

#[cfg(test)]
impl Store {
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
        if self.object_dir.is_some() {
            // Closing the descriptor may not release the lock: a child that was just forked has a
            // copy of the descriptor until it executes its program.
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

    use bootcast_proto::{ContentId, Geometry, PageRange, PageSet, PageSize, RemotePath};

    use super::super::Cache;
    use super::*;

    fn key(etag: &str) -> ObjectKey {
        let path = RemotePath::decode("images/a%20b").unwrap();
        let etag = Some(Etag::new(etag).unwrap());
        ObjectKey { server: "head:8888".into(), path, etag, content: None }
    }

    fn content(byte: u8) -> ContentId {
        ContentId::from_bytes([byte; 32])
    }

    /// Key of another file on another server with the same content.
    fn other_key(content: ContentId) -> ObjectKey {
        let path = RemotePath::decode("other").unwrap();
        let etag = Some(Etag::new("w1").unwrap());
        ObjectKey { server: "head2:8888".into(), path, etag, content: Some(content) }
    }

    /// Completes the file that [`fill`] began.
    fn complete(store: &Store) {
        store.write_run(&mut [IoSlice::new(b"cc")], 8).unwrap();
        let all = HeldSnapshot { content: Some(content(1)), ..snapshot(10, PageRange::new(0, 3)) };
        store.checkpoint(&all).unwrap();
    }

    #[test]
    fn a_complete_content_is_found_under_another_name_and_shared() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        fill(&cache);
        let store = cache.open(&key("v1")).unwrap();
        assert!(!cache.open(&other_key(content(1))).unwrap().is_shared, "not complete yet");
        complete(&store);
        for (key, is_found) in [
            (key("v1"), true),
            (other_key(content(1)), true),
            (other_key(content(2)), false),
            (ObjectKey { content: None, ..other_key(content(1)) }, false),
        ] {
            let mut other = cache.open(&key).unwrap();
            assert_eq!(other.take_restored().is_some(), is_found, "{key:?}");
            assert_eq!(other.is_shared, is_found);
            let mut bytes = [0; 10];
            assert_eq!(other.read_exact_at(&mut bytes, 0).is_ok(), is_found);
            assert!(!is_found || bytes == *b"aaaabbbbcc");
        }
    }

    #[test]
    fn a_link_to_an_object_that_is_gone_or_damaged_finds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        fill(&cache);
        complete(&cache.open(&key("v1")).unwrap());
        let object = std::fs::read_dir(dir.path().join("objects")).unwrap().next().unwrap();
        let object = object.unwrap().path();
        std::fs::write(object.join("state"), b"x").unwrap();
        assert!(cache.open(&other_key(content(1))).unwrap().take_restored().is_none());
        std::fs::remove_dir_all(&object).unwrap();
        assert!(cache.open(&other_key(content(1))).unwrap().take_restored().is_none());
    }

    fn snapshot(size: u64, held: PageRange) -> HeldSnapshot {
        let geometry = Geometry::new(size, PageSize::new(4).unwrap()).unwrap();
        let mut set = PageSet::new(geometry.pages());
        set.insert_range(held);
        HeldSnapshot { geometry, held: set, content: None, is_verified: true }
    }

    /// Disk whose next calls fail, each as often as its counter says.
    #[derive(Clone, Debug, Default)]
    pub(super) struct FailingDisk(Arc<Faults>);

    impl FailingDisk {
        /// Creates a disk whose next sync of the data and next removal of the state fail.
        pub(super) fn sync_once() -> Self {
            let disk = Self::default();
            disk.0.sync_data.store(1, Relaxed);
            disk.0.remove_state.store(1, Relaxed);
            disk
        }

        /// Creates a disk whose next save of the state fails.
        pub(super) fn save_once() -> Self {
            let disk = Self::default();
            disk.0.save.store(1, Relaxed);
            disk
        }
    }

    /// Number of coming calls that fail.
    #[derive(Debug, Default)]
    struct Faults {
        sync_data: AtomicU32,
        save: AtomicU32,
        remove_state: AtomicU32,
        sync_dir: AtomicU32,
    }

    fn fail(faults: &AtomicU32, call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match faults.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Err(io::ErrorKind::StorageFull.into()),
            Err(_) => call(),
        }
    }

    impl Disk for FailingDisk {
        fn sync_data(&self, data: &File) -> io::Result<()> {
            fail(&self.0.sync_data, || RealDisk.sync_data(data))
        }

        fn save(&self, object: &ObjectDir, snapshot: &HeldSnapshot) -> io::Result<()> {
            fail(&self.0.save, || RealDisk.save(object, snapshot))
        }

        fn remove_state(&self, object: &ObjectDir) -> io::Result<()> {
            fail(&self.0.remove_state, || RealDisk.remove_state(object))
        }

        fn sync_dir(&self, object: &ObjectDir) -> io::Result<()> {
            fail(&self.0.sync_dir, || RealDisk.sync_dir(object))
        }
    }

    /// Opens a store whose last checkpoint has pages 0 and 1 of a 10-byte file.
    fn failing_store(cache: &Cache) -> (Store, Arc<Faults>) {
        fill(cache);
        let mut store = cache.open(&key("v1")).unwrap();
        store.take_restored().unwrap();
        let disk = FailingDisk::default();
        store.disk = Box::new(disk.clone());
        (store, disk.0)
    }

    #[test]
    fn zeros_stay_holes_and_replace_other_bytes() {
        let data = tempfile::tempfile().unwrap();
        let store = Store::transient(data, Cache::Memory);
        let write = |bytes: &[u8], offset| {
            store.write_run(&mut [IoSlice::new(bytes)], offset).unwrap();
        };
        let has_blocks = || rustix::fs::fstat(&store).unwrap().st_blocks > 0;
        let mut expected = vec![0; 1 << 20];
        store.set_size(1 << 20).unwrap();
        write(&expected, 0);
        assert!(!has_blocks(), "nothing but zeros was written");
        for (byte, place) in [(7, 100_000..200_000), (0, 120_000..150_000)] {
            expected[place.clone()].fill(byte);
            write(&expected[place.clone()], place.start as u64);
        }
        assert!(has_blocks());
        // The size is not known: what was not written could not be read.
        write(&[0; 5000], 1 << 20);
        expected.resize(expected.len() + 5000, 0);
        let mut read = vec![1; expected.len()];
        store.read_exact_at(&mut read, 0).unwrap();
        assert!(read == expected);
    }

    #[test]
    fn a_store_is_unlocked_on_drop_even_if_a_child_has_its_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        fill(&cache);
        let store = cache.open(&key("v1")).unwrap();
        // Shares the open file description with the store, as a forked child would.
        let duplicate = store.as_fd().try_clone_to_owned().unwrap();
        drop(store);
        assert!(cache.open(&key("v1")).unwrap().take_restored().is_some());
        drop(duplicate);
    }

    #[test]
    fn after_a_failed_sync_no_page_is_restored_even_if_removing_the_state_fails_first() {
        for failing_removals in [0, 1, 2, 3] {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::on_disk(dir.path()).unwrap();
            let (store, faults) = failing_store(&cache);
            faults.sync_data.store(1, Relaxed);
            faults.remove_state.store(failing_removals, Relaxed);
            let all = snapshot(10, PageRange::new(0, 3));
            for attempt in 0..3 {
                // From the second attempt on, the sync would succeed.
                let result = store.checkpoint(&all);
                assert!(matches!(result, Err(CheckpointError::Data(_))), "{attempt}: {result:?}");
            }
            drop(store);
            let restored = cache.open(&key("v1")).unwrap().take_restored();
            assert!(restored.is_none(), "{failing_removals}: the state was not removed");
        }
    }

    #[test]
    fn a_removal_of_the_state_that_may_not_survive_a_crash_is_synced_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        let (store, faults) = failing_store(&cache);
        faults.sync_data.store(1, Relaxed);
        faults.sync_dir.store(2, Relaxed);
        let all = snapshot(10, PageRange::new(0, 3));
        assert!(matches!(store.checkpoint(&all), Err(CheckpointError::Data(_))));
        assert_eq!(faults.sync_dir.load(Relaxed), 1);
        assert!(matches!(store.checkpoint(&all), Err(CheckpointError::Data(_))));
        assert_eq!(faults.sync_dir.load(Relaxed), 0);
    }

    #[test]
    fn a_failed_sync_is_reported_even_if_saving_the_state_fails_before_and_would_fail_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        let (store, faults) = failing_store(&cache);
        let all = snapshot(10, PageRange::new(0, 3));
        faults.save.store(2, Relaxed);
        assert!(matches!(store.checkpoint(&all), Err(CheckpointError::State(_))));
        faults.sync_data.store(1, Relaxed);
        for _ in 0..2 {
            assert!(matches!(store.checkpoint(&all), Err(CheckpointError::Data(_))));
        }
        assert_eq!(faults.save.load(Relaxed), 1, "lost pages were to be saved as held");
        drop(store);
        assert!(cache.open(&key("v1")).unwrap().take_restored().is_none());
    }

    #[test]
    fn after_a_failed_write_of_the_state_the_next_checkpoint_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        let (store, faults) = failing_store(&cache);
        faults.save.store(1, Relaxed);
        let all = snapshot(10, PageRange::new(0, 3));
        assert!(matches!(store.checkpoint(&all), Err(CheckpointError::State(_))));
        store.checkpoint(&all).unwrap();
        drop(store);
        assert!(cache.open(&key("v1")).unwrap().take_restored().unwrap().assembly.is_complete());
    }

    #[test]
    fn a_failed_sync_of_a_transient_store_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        let _first = cache.open(&key("v1")).unwrap();
        let mut second = cache.open(&key("v1")).unwrap();
        let disk = FailingDisk::default();
        second.disk = Box::new(disk.clone());
        let all = snapshot(10, PageRange::new(0, 3));
        second.checkpoint(&all).unwrap();
        disk.0.sync_data.store(1, Relaxed);
        assert!(matches!(second.checkpoint(&all), Err(CheckpointError::Data(_))));
    }

    /// Writes "aaaabbbb" into the store of a 10-byte file and makes a checkpoint.
    fn fill(cache: &Cache) {
        let store = cache.open(&key("v1")).unwrap();
        store.set_size(10).unwrap();
        store.write_run(&mut [IoSlice::new(b"aaaa"), IoSlice::new(b"bbbb")], 0).unwrap();
        store.checkpoint(&snapshot(10, PageRange::new(0, 2))).unwrap();
    }

    #[test]
    fn the_pages_of_a_checkpoint_are_restored() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        fill(&cache);
        let mut store = cache.open(&key("v1")).unwrap();
        let assembly = store.take_restored().unwrap().assembly;
        assert!(assembly.holds(&(0..8)) && !assembly.holds(&(8..10)));
        let mut bytes = [0; 8];
        store.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"aaaabbbb");
    }

    #[test]
    fn another_version_has_no_restored_pages() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        fill(&cache);
        assert!(cache.open(&key("v2")).unwrap().take_restored().is_none());
    }

    #[test]
    fn a_second_store_of_an_object_in_use_is_transient_and_empty() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        fill(&cache);
        let first = cache.open(&key("v1")).unwrap();
        let mut second = cache.open(&key("v1")).unwrap();
        assert!(first.is_persistent() && !second.is_persistent());
        assert!(second.take_restored().is_none());
    }

    #[test]
    fn a_damaged_object_is_emptied() {
        type Damage = fn(&std::path::Path);
        let damages: [Damage; 5] = [
            |object| std::fs::write(object.join("state"), b"{}\n").unwrap(),
            |object| std::fs::write(object.join("state"), b"\xff").unwrap(),
            |object| flip_last_page(&object.join("state")),
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
            let object = object.unwrap().path();
            damage(&object);
            let mut store = cache.open(&key("v1")).unwrap();
            assert!(store.take_restored().is_none());
            assert_eq!(store.data.metadata().unwrap().len(), 0);
            // Ends without a checkpoint, as in a crash.
            store.set_size(10).unwrap();
            drop(store);
            assert!(cache.open(&key("v1")).unwrap().take_restored().is_none());
            assert!(!object.join("state").exists());
        }
    }

    /// Marks the missing page 2 of [`fill`]'s file as held.
    fn flip_last_page(state: &std::path::Path) {
        let mut bytes = std::fs::read(state).unwrap();
        let bitmap = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        assert_eq!(bytes[bitmap], 0b011);
        bytes[bitmap] ^= 0b100;
        std::fs::write(state, bytes).unwrap();
    }

    #[test]
    fn a_state_without_a_checksum_is_replaced_at_the_next_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::on_disk(dir.path()).unwrap();
        fill(&cache);
        let object = std::fs::read_dir(dir.path().join("objects")).unwrap().next();
        let state = object.unwrap().unwrap().path().join("state");
        let bytes = std::fs::read(&state).unwrap();
        // The file as earlier versions wrote it.
        let earlier = bytes[..bytes.len() - 32].to_vec();
        let header = String::from_utf8_lossy(&earlier).replacen("\"format\":2", "\"format\":1", 1);
        std::fs::write(&state, header.as_bytes()).unwrap();
        assert!(cache.open(&key("v1")).unwrap().take_restored().is_none());
        fill(&cache);
        assert_eq!(std::fs::read(&state).unwrap(), bytes);
        assert!(cache.open(&key("v1")).unwrap().take_restored().is_some());
    }

    #[test]
    fn a_store_without_a_version_or_in_memory_is_not_persistent() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Cache::on_disk(dir.path()).unwrap();
        let plain = ObjectKey { etag: None, ..key("v1") };
        for store in [disk.open(&plain).unwrap(), Cache::Memory.open(&key("v1")).unwrap()] {
            store.checkpoint(&snapshot(4, PageRange::new(0, 1))).unwrap();
            assert!(!store.is_persistent());
        }
        assert_eq!(std::fs::read_dir(dir.path().join("objects")).unwrap().count(), 0);
    }
}
