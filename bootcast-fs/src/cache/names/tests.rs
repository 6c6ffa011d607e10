//! A later mount of the same server finds the names that an earlier one recorded.

use std::fs::OpenOptions;
use std::io::{IoSlice, Write};
use std::os::unix::fs::PermissionsExt;

use bootcast_proto::{Etag, Geometry, PageSet, PageSize};
use tempfile::TempDir;

use super::*;
use crate::cache::HeldSnapshot;

fn path(text: &str) -> RemotePath {
    RemotePath::decode(text).unwrap()
}

fn attributes(kind: Kind, size: u64, etag: &str) -> Attributes {
    let etag = (kind == Kind::File).then(|| Etag::new(etag).unwrap());
    let (mode, mtime, mtime_ns) = (0o640, 5, 6);
    Attributes { kind, size, mode, mtime, mtime_ns, etag, target: None, allocated: None }
}

fn names(dir: &TempDir) -> Names {
    Names::of(&Cache::on_disk(dir.path()).unwrap(), "head:8888").unwrap().unwrap()
}

/// Stores three bytes as the content of `path`, and records the name.
fn store(names: &Names, name: &str, etag: &str) -> Attributes {
    let file = attributes(Kind::File, 3, etag);
    let key = names.key(&path(name), &file, None);
    let geometry = Geometry::new(3, PageSize::new(4).unwrap()).unwrap();
    let mut held = PageSet::new(geometry.pages());
    held.insert_range(geometry.all());
    let store = names.cache.open(&key).unwrap();
    store.set_size(3).unwrap();
    store.write_run(&mut [IoSlice::new(b"abc")], 0).unwrap();
    store.checkpoint(&HeldSnapshot::of_pages(geometry, &held, &[], None)).unwrap();
    names.record(&path(name), &file, None).unwrap();
    file
}

#[test]
fn a_later_use_finds_directories_links_and_complete_files() {
    let dir = tempfile::tempdir().unwrap();
    let earlier = names(&dir);
    let directory = attributes(Kind::Directory, 0, "");
    earlier.record_root(&path(""), &directory).unwrap();
    earlier.record(&path("a%0Ab"), &directory, None).unwrap();
    let file = store(&earlier, "a%0Ab/held", "v1");
    let missing = attributes(Kind::File, 3, "v2");
    earlier.record(&path("a%0Ab/missing"), &missing, None).unwrap();

    let later = names(&dir);
    assert_eq!(later.root(&path("")), Some(directory.clone()));
    assert_eq!(later.root(&path("a%0Ab")), None, "it was not mounted itself");
    assert_eq!(later.find(&path("a%0Ab")).unwrap().attributes, directory);
    assert_eq!(later.find(&path("a%0Ab/held")).unwrap().attributes, file);
    assert_eq!(later.find(&path("a%0Ab/missing")), None, "its content is not here");
    let listed: Vec<_> = later.list(&path("a%0Ab")).into_iter().map(|(path, _)| path).collect();
    assert_eq!(listed, [path("a%0Ab/held")]);
    let other = Names::of(&earlier.cache, "other:8888").unwrap().unwrap();
    assert_eq!(other.root(&path("")), None, "another server");
}

#[test]
fn the_latest_attributes_of_a_name_count_and_equal_ones_are_written_once() {
    let dir = tempfile::tempdir().unwrap();
    store(&names(&dir), "a", "v1");
    let len = |names: &Names| fs::metadata(names.file(&path(""))).unwrap().len();
    let later = names(&dir);
    let before = len(&later);
    store(&later, "a", "v1");
    assert_eq!(len(&later), before);
    let newer = store(&later, "a", "v2");
    assert!(len(&later) > before);
    assert_eq!(later.find(&path("a")).unwrap().attributes, newer);
}

#[test]
fn a_damaged_line_is_ignored_and_takes_no_other_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let written = names(&dir);
    let directory = attributes(Kind::Directory, 0, "");
    written.record(&path("a"), &directory, None).unwrap();
    written.record(&path("b"), &directory, None).unwrap();
    let file = written.file(&path(""));
    let text = fs::read_to_string(&file).unwrap().replace("\"a\"", "\"c\"");
    fs::write(&file, &text).unwrap();
    OpenOptions::new().append(true).open(&file).unwrap().write_all(b"0123 {\"na").unwrap();
    let later = names(&dir);
    later.record(&path("d"), &directory, None).unwrap();
    let listed: Vec<_> = later.list(&path("")).into_iter().map(|(path, _)| path).collect();
    assert_eq!(listed, [path("b"), path("d")]);
}

#[test]
fn a_long_file_loses_the_names_whose_content_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let written = names(&dir);
    store(&written, "held", "v1");
    for number in 0..TIDY_LINES {
        let file = attributes(Kind::File, 3, "v1");
        written.record(&path(&format!("gone-{number}")), &file, None).unwrap();
    }
    let later = names(&dir);
    later.record(&path("d"), &attributes(Kind::Directory, 0, ""), None).unwrap();
    let left: Vec<_> = later.lines(&path("")).keys().cloned().collect();
    assert_eq!(left, ["d", "held"]);
    assert!(later.find(&path("held")).is_some());
}

/// Returns a directory with this time.
fn directory(mtime: i64) -> Attributes {
    Attributes { mtime, ..attributes(Kind::Directory, 0, "") }
}

/// Returns the time of a directory that a later use finds.
fn mtime(dir: &TempDir, name: &str) -> Option<i64> {
    names(dir).find(&path(name)).map(|found| found.attributes.mtime)
}

#[test]
fn attributes_that_could_not_be_written_are_written_later() {
    let dir = tempfile::tempdir().unwrap();
    let names = names(&dir);
    names.record(&path("a"), &directory(1), None).unwrap();
    let file = names.file(&path(""));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    names.record(&path("b"), &directory(1), None).unwrap_err();
    assert!(!names.is_recorded(&path("b"), &directory(1), None));
    fs::remove_dir(&file).unwrap();
    names.record(&path("b"), &directory(1), None).unwrap();
    assert!(names.is_recorded(&path("b"), &directory(1), None));
    assert_eq!(mtime(&dir, "b"), Some(1));
}

#[test]
fn attributes_that_were_replaced_can_return() {
    let dir = tempfile::tempdir().unwrap();
    let names = names(&dir);
    for time in [1, 2, 1] {
        names.record(&path("a"), &directory(time), None).unwrap();
        assert_eq!(mtime(&dir, "a"), Some(time));
    }
}

#[test]
fn attributes_that_another_process_replaced_are_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (names(&dir), names(&dir));
    for _ in 0..2 {
        one.record(&path("a"), &directory(1), None).unwrap();
        other.record(&path("a"), &directory(2), None).unwrap();
        assert!(!one.is_recorded(&path("a"), &directory(1), None));
        assert_eq!(mtime(&dir, "a"), Some(2));
    }
}

#[test]
fn a_file_that_grows_is_tidied_while_others_append_to_it() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let names = names(&dir);
            scope.spawn(move || {
                for time in 0..40 {
                    for number in 0..10 {
                        let name = path(&format!("{thread}-{number}"));
                        names.record(&name, &directory(time), None).unwrap();
                    }
                }
            });
        }
    });
    let later = names(&dir);
    let listed = later.list(&path(""));
    assert_eq!(listed.len(), 30);
    assert!(listed.iter().all(|(_, found)| found.attributes.mtime == 39), "{listed:?}");
    let text = fs::read_to_string(later.file(&path(""))).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty()).count();
    assert!(lines <= 2 * 30 + TIDY_LINES + 1, "{lines}");
    let files = fs::read_dir(dir.path().join("names")).unwrap();
    let modes: Vec<_> =
        files.map(|file| file.unwrap().metadata().unwrap().permissions().mode() & 0o777).collect();
    assert_eq!(modes, [0o600]);
}

#[test]
fn a_mount_records_names_again_after_all_were_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let names = names(&dir);
    names.record(&path("a"), &directory(1), None).unwrap();
    fs::write(dir.path().join("names/.left"), "{").unwrap();
    forget_names(dir.path()).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("names")).unwrap().count(), 0);
    assert!(names.list(&path("")).is_empty());
    assert!(!names.is_recorded(&path("a"), &directory(1), None));
    names.record(&path("a"), &directory(1), None).unwrap();
    assert_eq!(mtime(&dir, "a"), Some(1));
}

#[test]
fn a_file_that_is_being_received_keeps_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let names = names(&dir);
    let file = attributes(Kind::File, 3, "v1");
    let _store = names.cache.open(&names.key(&path("open"), &file, None)).unwrap();
    names.record(&path("open"), &file, None).unwrap();
    for time in 0..300 {
        names.record(&path("d"), &directory(time), None).unwrap();
    }
    let left: Vec<_> = names.lines(&path("")).keys().cloned().collect();
    assert_eq!(left, ["d", "open"]);
}
