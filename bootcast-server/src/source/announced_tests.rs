#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;

/// A file whose attributes tests change, and the announcements of one path.
struct Fixture {
    file: File,
    announcements: Announcements,
    path: RemotePath,
    now: Instant,
    serial: u64,
}

impl Fixture {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3).unwrap();
        let announcements = Announcements::new([]);
        let path = RemotePath::decode("file").unwrap();
        Self { file, announcements, path, now: Instant::now(), serial: 7 }
    }

    /// Attributes with another modification time.
    fn touched(&self, seconds: u64) -> Version {
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        self.file.set_modified(time).unwrap();
        Version::of_file(&self.file).unwrap()
    }

    fn resolve(&mut self, present: Version, can_prove: bool) -> Resolution {
        let Self { path, serial, now, .. } = self;
        self.announcements.resolve(path, present, |_| can_prove, *serial, *now).0
    }

    fn compared(&mut self, announced: Version, present: Version, is_equal: bool) -> Option<Alias> {
        let Self { path, serial, .. } = self;
        self.announcements.on_compared(path, announced, present, is_equal, *serial)
    }

    /// The version that is announced without doubt.
    fn announced(&mut self, present: Version) -> Version {
        let resolution = self.resolve(present, true);
        assert!(!resolution.is_suspect && resolution.compare_until.is_none(), "{resolution:?}");
        resolution.version
    }
}

#[test]
fn attributes_of_equal_content_become_an_alias() {
    let mut it = Fixture::new();
    let (old, new, newer) = (it.touched(1), it.touched(2), it.touched(3));
    assert_eq!(it.announced(old), old);
    let suspect = it.resolve(new, true);
    assert!(suspect.is_suspect && suspect.version == old && suspect.compare_until.is_some());
    assert_eq!(it.resolve(new, true).compare_until, None, "it is being compared");
    assert_eq!(it.compared(old, new, true), Some((new, old)));
    assert_eq!(it.announced(new), old);
    assert_eq!(it.announced(old), old);
    // Another change begins with the same version.
    assert_eq!(it.resolve(newer, true).version, old);
    assert_eq!(it.compared(old, newer, true), Some((newer, old)));
    assert_eq!(it.announced(newer), old);
}

#[test]
fn other_content_is_another_version() {
    let mut it = Fixture::new();
    let (old, new) = (it.touched(1), it.touched(2));
    it.announced(old);
    assert!(it.resolve(new, true).is_suspect);
    assert_eq!(it.compared(old, new, false), Some((new, new)));
    assert_eq!(it.announced(new), new);
    assert_eq!(it.compared(old, new, true), None, "an outdated outcome counts for nothing");
}

#[test]
fn without_a_manifest_only_attributes_count() {
    let mut it = Fixture::new();
    let (old, new) = (it.touched(1), it.touched(2));
    it.announced(old);
    let resolution = it.resolve(new, false);
    assert_eq!((resolution.version, resolution.is_suspect), (new, false));
}

#[test]
fn another_size_is_another_version_at_once() {
    let mut it = Fixture::new();
    let old = it.touched(1);
    it.announced(old);
    it.file.write_all_at(b"x", 3).unwrap();
    let longer = Version::of_file(&it.file).unwrap();
    let resolution = it.resolve(longer, true);
    assert_eq!((resolution.version, resolution.is_suspect), (longer, false));
}

#[test]
fn a_comparison_that_takes_too_long_counts_as_other_content() {
    let mut it = Fixture::new();
    let (old, new) = (it.touched(1), it.touched(2));
    it.announced(old);
    let until = it.resolve(new, true).compare_until.unwrap();
    it.now += SUSPECT_TIME.checked_sub(Duration::from_millis(1)).unwrap();
    assert!(it.resolve(new, true).is_suspect);
    it.now = until;
    assert_eq!(it.announced(new), new);
}

#[test]
fn a_file_that_changes_all_the_time_is_not_suspect_for_ever() {
    let mut it = Fixture::new();
    let old = it.touched(1);
    it.announced(old);
    let until = it.resolve(it.touched(2), true).compare_until.unwrap();
    for seconds in 3..10 {
        let present = it.touched(seconds);
        assert_eq!(it.resolve(present, true).compare_until, Some(until));
        it.announcements.on_compare_aborted(&it.path, present);
        assert_eq!(it.resolve(present, true).compare_until, Some(until), "it is compared again");
        it.now += Duration::from_secs(1);
    }
    it.now = until;
    let last = it.touched(10);
    assert_eq!(it.announced(last), last);
}

#[test]
fn other_bytes_under_equal_attributes_get_an_etag_of_their_own_for_good() {
    let mut it = Fixture::new();
    let present = it.touched(1);
    it.announced(present);
    let path = it.path.clone();
    let alias = it.announcements.on_other_bytes(&path, present, present, 7).unwrap();
    let second = present.with_generation(7);
    assert_eq!(alias, (present, second));
    assert_eq!(it.announced(present), second);
    // Within the same second the next content gets the next number.
    let third = it.announcements.on_other_bytes(&path, second, present, 7).unwrap().1;
    assert_eq!(third.generation(), 8);
    assert_eq!(it.announcements.on_other_bytes(&path, second, present, 7), None);
    // After a restart.
    it.announcements = Announcements::new([(present.key(), third)]);
    assert_eq!(it.announced(present), third);
}

#[test]
fn attributes_that_are_an_alias_of_an_earlier_version_stand_for_it_again() {
    let mut it = Fixture::new();
    let (old, touched, other) = (it.touched(1), it.touched(2), it.touched(3));
    it.announced(old);
    it.resolve(touched, true);
    it.compared(old, touched, true);
    it.resolve(other, true);
    it.compared(old, other, false);
    assert_eq!(it.announced(other), other);
    assert_eq!(it.announced(touched), old);
}
