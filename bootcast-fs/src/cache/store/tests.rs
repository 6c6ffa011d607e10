//! What a store keeps, what others find of it, and what a failing disk makes of it.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use bootcast_proto::manifest::UNKNOWN;
use bootcast_proto::{ContentId, Geometry, PageRange, PageSet, PageSize, RemotePath};

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
    assert!(!cache.open(&other_key(content(1))).unwrap().is_shared(), "not complete yet");
    complete(&store);
    for (key, is_found) in [
        (key("v1"), true),
        (other_key(content(1)), true),
        (other_key(content(2)), false),
        (ObjectKey { content: None, ..other_key(content(1)) }, false),
    ] {
        let mut other = cache.open(&key).unwrap();
        assert_eq!(other.take_restored().is_some(), is_found, "{key:?}");
        assert_eq!(other.is_shared(), is_found);
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

#[test]
fn a_link_that_leads_out_of_the_objects_finds_nothing() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cache = Cache::on_disk(dir.path()).unwrap();
    fill(&cache);
    complete(&cache.open(&key("v1")).unwrap());
    let link = dir.path().join("contents").join(content(1).to_string());
    let target = std::fs::read_link(&link).unwrap();
    let object = link.parent().unwrap().join(&target);
    let outside = elsewhere.path().join("object");
    std::fs::create_dir(&outside).unwrap();
    for file in ["data", "state", "leaves"] {
        std::fs::copy(object.join(file), outside.join(file)).unwrap();
    }
    let below = target.join("below");
    for (target, is_found) in [
        (outside.clone(), false),
        (target.join("../../..").join(outside.strip_prefix("/").unwrap()), false),
        (below, false),
        ("../objects".into(), false),
        (target, true),
    ] {
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let found = cache.open(&other_key(content(1))).unwrap().take_restored();
        assert_eq!(found.is_some(), is_found, "{}", target.display());
    }
}

fn snapshot(size: u64, held: PageRange) -> HeldSnapshot {
    let geometry = Geometry::new(size, PageSize::new(4).unwrap()).unwrap();
    let mut set = PageSet::new(geometry.pages());
    set.insert_range(held);
    HeldSnapshot { is_verified: true, ..HeldSnapshot::of_pages(geometry, &set, &[], None) }
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

    fn save(
        &self,
        object: &ObjectDir,
        snapshot: &HeldSnapshot,
        state: &mut Option<StateFile>,
    ) -> io::Result<()> {
        fail(&self.0.save, || RealDisk.save(object, snapshot, state))
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
    assert!(store.is_hole(&(0..1 << 20)));
    for (byte, place) in [(7, 100_000..200_000), (0, 120_000..150_000)] {
        expected[place.clone()].fill(byte);
        write(&expected[place.clone()], place.start as u64);
    }
    assert!(has_blocks() && !store.is_hole(&(120_000..150_000)));
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
fn a_second_store_of_an_object_in_use_follows_until_it_can_lock_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    fill(&cache);
    let first = cache.open(&key("v1")).unwrap();
    let mut second = cache.open(&key("v1")).unwrap();
    assert!(!first.follows() && second.follows() && first.is_followable());
    assert!(second.take_restored().is_none());
    assert!(matches!(second.try_lock().unwrap(), Lock::Held));
    let mut bytes = [0; 4];
    second.read_exact_at(&mut bytes, 4).unwrap();
    assert_eq!(&bytes, b"bbbb");
    // A follower does not save the state: that is for the holder.
    second.checkpoint(&snapshot(10, PageRange::new(0, 3))).unwrap();
    drop(first);
    let Lock::Own(Some(restored)) = second.try_lock().unwrap() else { panic!("no lock") };
    assert!(restored.assembly.holds(&(0..8)) && !restored.assembly.holds(&(8..10)));
    assert!(!second.follows() && second.is_followable());
    assert!(cache.open(&key("v1")).unwrap().follows());
}

#[test]
fn a_store_that_followed_shares_an_object_that_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    fill(&cache);
    let first = cache.open(&key("v1")).unwrap();
    let second = cache.open(&key("v1")).unwrap();
    complete(&first);
    assert!(first.is_settled() && !first.is_followable());
    let Lock::Shared(restored) = second.try_lock().unwrap() else { panic!("not shared") };
    assert!(restored.assembly.is_complete() && second.is_shared());
    assert!(cache.open(&key("v1")).unwrap().is_shared());
}

#[test]
fn a_store_that_follows_finds_that_its_object_was_removed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    fill(&cache);
    let first = cache.open(&key("v1")).unwrap();
    let second = cache.open(&key("v1")).unwrap();
    drop(first);
    for kept in crate::cache::list(dir.path()).unwrap() {
        assert!(kept.remove().unwrap());
    }
    assert!(matches!(second.try_lock().unwrap(), Lock::Removed));
    let own = second.open_own().unwrap();
    assert!(!own.follows() && !own.is_followable());
}

#[test]
fn nothing_of_a_damaged_object_counts_as_held() {
    type Damage = fn(&std::path::Path);
    let damages: [Damage; 5] = [
        |object| std::fs::write(object.join("state"), b"{}\n").unwrap(),
        |object| std::fs::write(object.join("state"), b"\xff").unwrap(),
        |object| flip_size(&object.join("state")),
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
        // Ends without a checkpoint, as in a crash.
        store.set_size(10).unwrap();
        drop(store);
        assert!(cache.open(&key("v1")).unwrap().take_restored().is_none());
        assert!(!object.join("state").exists());
    }
}

/// Changes the size in the state.
fn flip_size(state: &std::path::Path) {
    let bytes = std::fs::read(state).unwrap();
    let size = bytes.windows(9).position(|part| part == b"\"size\":10").unwrap() + 8;
    let damaged = [&bytes[..size], b"2", &bytes[size + 1..]].concat();
    std::fs::write(state, damaged).unwrap();
}

#[test]
fn a_damaged_bit_of_a_page_makes_it_missing_and_is_repaired_by_the_next_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    fill(&cache);
    let object = std::fs::read_dir(dir.path().join("objects")).unwrap().next();
    let state = object.unwrap().unwrap().path().join("state");
    let mut bytes = std::fs::read(&state).unwrap();
    assert_eq!(bytes[4096], 0b011);
    bytes[4096] ^= 0b100;
    std::fs::write(&state, &bytes).unwrap();
    let held = |store: &mut Store| store.take_restored().unwrap().assembly.arrived().len();
    let mut store = cache.open(&key("v1")).unwrap();
    assert_eq!(held(&mut store), 0);
    store.checkpoint(&snapshot(10, PageRange::new(1, 2))).unwrap();
    drop(store);
    assert_eq!(held(&mut cache.open(&key("v1")).unwrap()), 1);
}

#[test]
fn a_state_without_a_checksum_is_replaced_at_the_next_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    fill(&cache);
    let object = std::fs::read_dir(dir.path().join("objects")).unwrap().next();
    let state = object.unwrap().unwrap().path().join("state");
    // The file as earlier versions wrote it.
    let header = concat!(
        r#"{"format":1,"server":"head:8888","path":"images/a%20b","#,
        r#""etag":"v1","size":10,"page_size":4}"#,
    );
    std::fs::write(&state, [header.as_bytes(), b"\n\x03"].concat()).unwrap();
    assert!(cache.open(&key("v1")).unwrap().take_restored().is_none());
    fill(&cache);
    assert!(std::fs::read(&state).unwrap().starts_with(br#"{"format":3,"#));
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

/// Completes a version with hashes.
fn complete_with_hashes(cache: &Cache, etag: &str, bytes: &[u8]) {
    let store = cache.open(&key(etag)).unwrap();
    store.set_size(bytes.len() as u64).unwrap();
    store.write_run(&mut [IoSlice::new(bytes)], 0).unwrap();
    store.leaf_values().unwrap().save_leaves(0, &[[1; 32]; 2]).unwrap();
    let content = Some(content(bytes[0]));
    store.checkpoint(&HeldSnapshot { content, ..whole(bytes.len() as u64) }).unwrap();
}

fn whole(size: u64) -> HeldSnapshot {
    let pages = u32::try_from(size.div_ceil(4)).unwrap();
    snapshot(size, PageRange::new(0, pages))
}

#[test]
fn a_new_version_finds_the_newest_complete_one_of_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    let mut first = cache.open(&key("v1")).unwrap();
    assert!(first.take_older().is_empty());
    drop(first);
    let of = |byte| vec![byte; 20_000];
    complete_with_hashes(&cache, "v1", &of(1));
    complete_with_hashes(&cache, "v2", &of(2));
    fill(&cache);
    let older = |key: &ObjectKey| {
        let older = cache.open(key).unwrap().take_older().pop()?;
        let mut byte = [0];
        older.read_exact_at(&mut byte, 19_999).unwrap();
        Some((byte[0], older.leaf_values(0).len(), older.leaf_values(1).len()))
    };
    assert_eq!(older(&key("v3")), Some((2, 2, 0)));
    assert_eq!(older(&key("v2")), None, "it is complete itself");
    assert_eq!(older(&other_key(content(9))), None, "the path is another one");
}

#[test]
fn bytes_of_an_older_version_are_stored_and_its_holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    let bytes = [vec![7; 49_152], vec![0; 196_608], vec![9; 10]].concat();
    complete_with_hashes(&cache, "v1", &bytes);
    let mut new = cache.open(&key("v2")).unwrap();
    new.set_size(bytes.len() as u64).unwrap();
    let older = new.take_older().pop().unwrap();
    let mut slices: Vec<_> = bytes.chunks(16_384).map(IoSlice::new).collect();
    new.write_from(&older, &mut slices, 0).unwrap();
    let mut copied = vec![1; bytes.len()];
    new.read_exact_at(&mut copied, 0).unwrap();
    assert!(copied == bytes);
    assert!(new.is_hole(&(49_152..245_760)));
}

#[test]
fn what_a_killed_use_left_is_compared_where_the_file_has_data() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    let (size, segment) = (12 << 20, 4 << 20);
    let killed = cache.open(&key("v1")).unwrap();
    killed.set_size(size).unwrap();
    // In the second segment: its first two leaves, and some bytes of its third one.
    killed.write_run(&mut [IoSlice::new(&vec![7; 33_000])], segment).unwrap();
    killed.write_run(&mut [IoSlice::new(&vec![7; 2 << 20])], 2 * segment).unwrap();
    drop(killed);
    let mut next = cache.open(&key("v1")).unwrap();
    assert!(next.take_restored().is_none(), "there was no checkpoint");
    let left = next.take_older().pop().unwrap();
    let own: Vec<_> = (0..=255).map(|leaf| [leaf; 32]).collect();
    let compared = |number| left.values_to_compare(number, &own);
    assert!(compared(0).iter().all(|value| *value == UNKNOWN), "a hole");
    // A file system may allocate more than was written.
    assert_eq!(compared(1)[..3], own[..3]);
    assert_eq!(compared(1)[200..], [UNKNOWN; 56]);
    assert_eq!(compared(2)[..128], own[..128]);
    let mut bytes = [0; 4];
    left.read_exact_at(&mut bytes, segment).unwrap();
    assert_eq!(bytes, [7; 4]);
}

#[test]
fn little_without_a_checkpoint_is_not_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    fill(&cache);
    assert!(cache.open(&key("v1")).unwrap().take_older().is_empty());
}
