use std::io::IoSlice;
use std::time::Duration;

use bootcast_proto::{Etag, Geometry, PageRange, PageSet, PageSize};

use super::*;
use crate::cache::{Cache, HeldSnapshot, ObjectKey, Store};

const BYTES: &[u8] = b"aaaabbbbcc";

fn cache() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::on_disk(dir.path()).unwrap();
    (dir, cache)
}

fn key(path: &str) -> ObjectKey {
    let etag = Some(Etag::new("v1").unwrap());
    let path = RemotePath::decode(path).unwrap();
    ObjectKey { server: "head:8888".into(), path, etag, content: None }
}

/// Stores the first pages of a file of three.
fn keep(cache: &Cache, path: &str, pages: u32) -> Store {
    let store = cache.open(&key(path)).unwrap();
    let geometry = Geometry::new(BYTES.len() as u64, PageSize::new(4).unwrap()).unwrap();
    let mut held = PageSet::new(geometry.pages());
    held.insert_range(PageRange::new(0, pages));
    let content = ContentId::of_content(BYTES);
    let snapshot = HeldSnapshot::of_pages(geometry, &held, &[], None);
    let snapshot = HeldSnapshot { content: Some(content), is_verified: pages == 3, ..snapshot };
    store.set_size(BYTES.len() as u64).unwrap();
    let len = BYTES.len().min(pages as usize * 4);
    store.write_run(&mut [IoSlice::new(&BYTES[..len])], 0).unwrap();
    store.checkpoint(&snapshot).unwrap();
    store
}

fn only(dir: &Path) -> Kept {
    let mut kept = list(dir).unwrap();
    assert_eq!(kept.len(), 1);
    kept.remove(0)
}

fn names(dir: &Path) -> Vec<(String, u32)> {
    let kept = list(dir).unwrap().into_iter();
    kept.map(|object| object.file.unwrap()).map(|file| (file.path.encode(), file.held)).collect()
}

#[test]
fn objects_are_listed_in_the_order_of_their_use() {
    let (dir, cache) = cache();
    assert!(list(dir.path()).unwrap().is_empty());
    keep(&cache, "old", 3);
    keep(&cache, "new", 2);
    for (object, seconds) in list(dir.path()).unwrap().iter().zip([1, 2]) {
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        File::open(&object.dir).unwrap().set_modified(used).unwrap();
    }
    assert_eq!(names(dir.path()), [("old".to_owned(), 3), ("new".to_owned(), 2)]);
    drop(cache.open(&key("old")).unwrap());
    assert_eq!(names(dir.path()), [("new".to_owned(), 2), ("old".to_owned(), 3)]);
}

#[test]
fn damage_is_found_and_files_that_are_not_complete_are_not_checked() {
    let (dir, cache) = cache();
    keep(&cache, "part", 2);
    let part = only(dir.path());
    assert_eq!(part.check().unwrap(), Checked::Unknown);
    keep(&cache, "part", 3);
    let whole = only(dir.path());
    assert_eq!(whole.check().unwrap(), Checked::Right);
    fs::write(whole.dir.join("data"), b"aaaabbbbcd").unwrap();
    assert_eq!(whole.check().unwrap(), Checked::Damaged);
    fs::write(whole.dir.join("state"), b"{}").unwrap();
    let whole = only(dir.path());
    assert_eq!((whole.file.clone(), whole.check().unwrap()), (None, Checked::Unknown));
}

#[test]
fn an_object_in_use_is_not_removed() {
    let (dir, cache) = cache();
    let filling = keep(&cache, "image", 2);
    let object = only(dir.path());
    assert!(!object.remove().unwrap(), "it is being filled");
    drop(filling);
    drop(keep(&cache, "image", 3));
    let reading = cache.open(&key("image")).unwrap();
    assert!(!object.remove().unwrap(), "it is being read");
    drop(reading);
    assert!(object.remove().unwrap());
    assert!(list(dir.path()).unwrap().is_empty() && !object.dir.exists());
    assert!(object.remove().unwrap(), "somebody else removed it");
}

#[test]
fn what_a_removal_that_was_cut_off_left_is_listed_first_and_can_be_removed() {
    let (dir, cache) = cache();
    drop(keep(&cache, "image", 3));
    let object = only(dir.path());
    fs::rename(&object.dir, object.dir.with_extension("removed")).unwrap();
    let left = only(dir.path());
    assert_eq!(left.file, None);
    drop(keep(&cache, "image", 3));
    assert_eq!(list(dir.path()).unwrap()[0].dir, left.dir);
    assert!(left.remove().unwrap() && object.remove().unwrap());
    assert!(list(dir.path()).unwrap().is_empty());
}

#[test]
fn who_opened_an_object_before_it_was_removed_does_not_take_the_state_of_the_next_one() {
    let (dir, cache) = cache();
    drop(keep(&cache, "image", 2));
    let object = only(dir.path());
    let opened = open_data(&object.dir, false).unwrap();
    assert!(is_present(&object.dir, &opened).unwrap());
    assert!(object.remove().unwrap());
    assert!(!is_present(&object.dir, &opened).unwrap());
    drop(keep(&cache, "image", 3));
    assert!(Store::shared(opened, object.dir.clone(), key("image"), cache.clone()).is_none());
}
