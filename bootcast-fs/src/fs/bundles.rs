//! Bundles of a mount: when one is asked for, and which files each has. docs/SEMANTICS.md, "Small
//! files".

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootcast_proto::bundle::{BundleIndex, BundleInfo};
use bootcast_proto::limits::{BUNDLE_BYTES, BUNDLE_FILES, SMALL_FILE};
use bootcast_proto::path::decode_segment;
use bootcast_proto::{ContentId, Etag, RemotePath};

use crate::object::Object;

/// Number of small files of a directory that are opened within [`OPENS_WITHIN`] before a bundle is
/// asked for. Fewer do not show that more will follow.
const OPENS: usize = 8;

/// Number of opened small files that suffice if other hosts want these very files, because each
/// needs a cast of its own otherwise.
const OPENS_AMONG_MANY: usize = 3;

/// Time within which the opens of a directory are counted together.
const OPENS_WITHIN: Duration = Duration::from_secs(2);

/// Time for which no bundle of a directory is asked for after one was refused, or did not come.
const PAUSE: Duration = Duration::from_secs(10);

/// Maximum number of bundles of a mount.
const MAX_BUNDLES: usize = 4;

/// Time after its last use for which a bundle is kept.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// Number of times in a row that a bundle may be slower than a request for a single file.
const MAX_LATE: u32 = 3;

/// Maximum number of directories whose opens are counted.
const MAX_DIRECTORIES: usize = 64;

/// Longest index that is read in bytes.
const INDEX_MAX: u64 = 4 << 20;

/// Bundles, and the opens that lead to them, by directory.
#[derive(Debug, Default)]
pub(super) struct Bundles {
    directories: HashMap<RemotePath, Directory>,
    /// Objects of all bundles, from their open until they have left their casts.
    objects: Vec<Arc<Object>>,
}

#[derive(Debug)]
struct Directory {
    /// Names that were opened since `since`, but no more than [`OPENS`], and whether other hosts
    /// want them.
    opened: BTreeMap<Vec<u8>, bool>,
    since: Instant,
    is_asking: bool,
    paused_until: Option<Instant>,
    bundles: Vec<Bundle>,
}

/// A bundle whose index is known.
#[derive(Debug)]
struct Bundle {
    name: String,
    object: Arc<Object>,
    files: HashMap<Vec<u8>, Place>,
    /// First file of the bundle that follows, until that is asked for.
    next: Option<Vec<u8>>,
    used: Instant,
    /// Number of files that were taken.
    taken: usize,
    /// Number of files that came sooner over HTTP, since one was taken.
    late: u32,
}

/// A file in a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) etag: Etag,
    /// Bytes of the bundle.
    pub(super) bytes: Range<u64>,
    pub(super) id: Option<ContentId>,
}

/// Whether a file comes with a bundle.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// It is in this one.
    In(Arc<Object>, Place),
    /// A bundle is being asked for, which may have it.
    Maybe,
    /// No bundle has this version of it.
    No,
}

impl Directory {
    fn new(now: Instant) -> Self {
        Self {
            opened: BTreeMap::new(),
            since: now,
            is_asking: false,
            paused_until: None,
            bundles: Vec::new(),
        }
    }

    fn is_in_use(&self, now: Instant) -> bool {
        self.is_asking
            || !self.bundles.is_empty()
            || now < self.since + OPENS_WITHIN
            || self.paused_until.is_some_and(|until| now < until)
    }
}

impl Bundles {
    /// Records the open of a small file that did not come with a bundle. Returns whether to ask
    /// for a bundle. `is_wanted`: other hosts want the file.
    pub(super) fn handle_open(&mut self, path: &RemotePath, is_wanted: bool, now: Instant) -> bool {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return false };
        if self.directories.len() >= MAX_DIRECTORIES && !self.directories.contains_key(&directory) {
            self.directories.retain(|_, directory| directory.is_in_use(now));
            if self.directories.len() >= MAX_DIRECTORIES {
                return false;
            }
        }
        let new = || Directory::new(now);
        let directory = self.directories.entry(directory).or_insert_with(new);
        if directory.since + OPENS_WITHIN <= now {
            directory.opened.clear();
            directory.since = now;
        }
        if directory.opened.len() < OPENS {
            directory.opened.insert(name.to_vec(), is_wanted);
        }
        let is_paused = directory.paused_until.is_some_and(|until| now < until);
        let wanted = directory.opened.values().filter(|is_wanted| **is_wanted).count();
        let is_enough = directory.opened.len() >= OPENS || wanted >= OPENS_AMONG_MANY;
        let asks = is_enough && !directory.is_asking && !is_paused;
        directory.is_asking |= asks;
        asks
    }

    /// Handles that the bundle that was asked for does not exist or did not come.
    pub(super) fn handle_none(&mut self, directory: &RemotePath, now: Instant) {
        if let Some(directory) = self.directories.get_mut(directory) {
            directory.is_asking = false;
            directory.paused_until = Some(now + PAUSE);
        }
    }

    /// Adds the object of a bundle whose index is not known yet. It must have been opened.
    pub(super) fn begin(&mut self, object: &Arc<Object>) {
        self.objects.push(Arc::clone(object));
    }

    /// Adds the bundle that was asked for. Returns an object that the caller must close, which is
    /// that of another bundle that makes room for it, or its own if it is of no use.
    pub(super) fn add(
        &mut self,
        directory: &RemotePath,
        info: BundleInfo,
        object: Arc<Object>,
        files: HashMap<Vec<u8>, Place>,
        now: Instant,
    ) -> Option<Arc<Object>> {
        let Some(found) = self.directories.get_mut(directory) else { return Some(object) };
        found.is_asking = false;
        if found.bundles.iter().any(|bundle| bundle.name == info.name) {
            // It does not have what was asked for in this version.
            found.paused_until = Some(now + PAUSE);
            return Some(object);
        }
        let next = info.next.and_then(|next| decode_segment(&next).ok());
        let (name, used) = (info.name, now);
        found.bundles.push(Bundle { name, object, files, next, used, taken: 0, late: 0 });
        self.make_room()
    }

    /// Whether the bundle of this name is here.
    pub(super) fn has(&self, directory: &RemotePath, name: &str) -> bool {
        let found = self.directories.get(directory);
        found.is_some_and(|it| it.bundles.iter().any(|bundle| bundle.name == name))
    }

    /// Removes the bundle that was not used for longest, if there are too many.
    fn make_room(&mut self) -> Option<Arc<Object>> {
        let count: usize = self.directories.values().map(|it| it.bundles.len()).sum();
        let bundles = self.directories.values().flat_map(|it| &it.bundles);
        let oldest = bundles.min_by_key(|bundle| bundle.used).filter(|_| count > MAX_BUNDLES)?;
        let object = Arc::clone(&oldest.object);
        self.remove(&object);
        Some(object)
    }

    fn remove(&mut self, object: &Arc<Object>) {
        for directory in self.directories.values_mut() {
            directory.bundles.retain(|bundle| bundle.object.id() != object.id());
        }
    }

    /// Looks for a version of a file.
    pub(super) fn find(&mut self, path: &RemotePath, etag: &Etag, now: Instant) -> Found {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Found::No;
        };
        let Some(directory) = self.directories.get_mut(&directory) else { return Found::No };
        for bundle in &mut directory.bundles {
            if let Some(place) = bundle.files.get(name).filter(|place| place.etag == *etag) {
                bundle.used = now;
                return Found::In(Arc::clone(&bundle.object), place.clone());
            }
        }
        if directory.is_asking { Found::Maybe } else { Found::No }
    }

    /// Handles that a file was taken from a bundle. Returns the name of a file whose bundle is to
    /// be asked for now.
    pub(super) fn handle_taken(&mut self, path: &RemotePath, object: &Object) -> Option<Vec<u8>> {
        let directory = self.directories.get_mut(&path.parent()?)?;
        let mut bundles = directory.bundles.iter_mut();
        let bundle = bundles.find(|bundle| bundle.object.id() == object.id())?;
        bundle.taken += 1;
        bundle.late = 0;
        if bundle.taken * 2 < bundle.files.len() || directory.is_asking {
            return None;
        }
        let next = bundle.next.take()?;
        directory.is_asking = true;
        Some(next)
    }

    /// Handles that a file came sooner over HTTP than from a bundle. Returns whether that happened
    /// too often.
    pub(super) fn handle_late(&mut self, path: &RemotePath, object: &Object) -> bool {
        let directory = path.parent().and_then(|path| self.directories.get_mut(&path));
        let mut bundles = directory.into_iter().flat_map(|directory| &mut directory.bundles);
        let Some(bundle) = bundles.find(|bundle| bundle.object.id() == object.id()) else {
            return false;
        };
        bundle.late += 1;
        bundle.late >= MAX_LATE
    }

    /// Handles that a bundle is given up. Returns whether the caller must close its object; `false`
    /// if another caller does.
    pub(super) fn give_up(&mut self, path: &RemotePath, object: &Object, now: Instant) -> bool {
        let directory = path.parent().and_then(|path| self.directories.get_mut(&path));
        let Some(directory) = directory else { return false };
        let at = directory.bundles.iter().position(|bundle| bundle.object.id() == object.id());
        let Some(at) = at else { return false };
        directory.bundles.remove(at);
        directory.paused_until = Some(now + PAUSE);
        true
    }

    /// Removes what is not used any more. Returns objects that the caller must close.
    pub(super) fn tidy(&mut self, now: Instant) -> Vec<Arc<Object>> {
        self.objects.retain(|object| !object.snapshot().is_idle);
        let bundles = self.directories.values().flat_map(|directory| &directory.bundles);
        let old = bundles.filter(|bundle| bundle.used + KEPT_FOR <= now);
        let old: Vec<_> = old.map(|bundle| Arc::clone(&bundle.object)).collect();
        for object in &old {
            self.remove(object);
        }
        self.directories.retain(|_, directory| directory.is_in_use(now));
        old
    }

    /// Returns the objects of all bundles.
    pub(super) fn objects(&self) -> Vec<Arc<Object>> {
        self.objects.clone()
    }
}

/// Whether a bundle is of a size that a server may state.
pub(super) fn is_sound(info: &BundleInfo) -> bool {
    info.index <= INDEX_MAX && info.index < info.size && info.size <= info.index + BUNDLE_BYTES
        || info.index == info.size && info.index <= INDEX_MAX
}

/// Reads the index of a bundle; `None` if it makes no sense.
pub(super) fn read_index(text: &[u8], info: &BundleInfo) -> Option<HashMap<Vec<u8>, Place>> {
    let index: BundleIndex = serde_json::from_slice(text).ok()?;
    let (mut files, mut offset) = (HashMap::new(), info.index);
    for file in index.files {
        let bytes = offset..offset.checked_add(file.size)?;
        offset = bytes.end;
        let name = decode_segment(&file.name).ok()?;
        files.insert(name, Place { etag: file.etag, bytes, id: file.b3 });
    }
    let is_small = |place: &Place| place.bytes.end - place.bytes.start <= SMALL_FILE;
    let is_sound =
        offset == info.size && files.len() <= BUNDLE_FILES && files.values().all(is_small);
    is_sound.then_some(files)
}

/// Reads the index of a bundle for fuzzing.
pub(crate) fn fuzz_index(info: &BundleInfo, text: &[u8]) {
    if !is_sound(info) {
        return;
    }
    for place in read_index(text, info).unwrap_or_default().into_values() {
        assert!(info.index <= place.bytes.start && place.bytes.end <= info.size, "out of bounds");
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    fn path(text: &str) -> RemotePath {
        RemotePath::decode(text).unwrap()
    }

    fn info(index: u64, size: u64) -> BundleInfo {
        BundleInfo { name: "b".into(), etag: Etag::new("1").unwrap(), size, index, next: None }
    }

    #[test]
    fn eight_files_of_a_directory_within_two_seconds_lead_to_a_bundle() {
        let (mut bundles, start) = (Bundles::default(), Instant::now());
        let mut open = |name: &str, ms| {
            bundles.handle_open(&path(name), false, start + Duration::from_millis(ms))
        };
        for k in 0..7 {
            assert!(!open(&format!("d/{k}"), k), "{k}");
        }
        assert!(!open("d/3", 10) && !open("e/8", 10), "the same file, another directory");
        assert!(open("d/7", 1999));
        assert!(!open("d/8", 1999), "it is being asked for");
        for k in 0..8 {
            // The time is over after seven.
            assert!(!open(&format!("f/{k}"), k * 300), "{k}");
        }
    }

    #[test]
    fn three_files_suffice_if_others_want_them_too() {
        let (mut bundles, now) = (Bundles::default(), Instant::now());
        let mut open = |name, is_wanted| bundles.handle_open(&path(name), is_wanted, now);
        assert!(!open("d/a", true) && !open("d/b", false) && !open("d/c", true));
        assert!(open("d/d", true));
    }

    #[test]
    fn a_refusal_is_remembered_for_a_while() {
        let (mut bundles, start) = (Bundles::default(), Instant::now());
        let asks = |bundles: &mut Bundles, now| {
            let opens = (0..8).map(|k| bundles.handle_open(&path(&format!("d/{k}")), false, now));
            opens.fold(false, |asks, it| asks | it)
        };
        assert!(asks(&mut bundles, start));
        let etag = Etag::new("1").unwrap();
        assert!(matches!(bundles.find(&path("d/1"), &etag, start), Found::Maybe));
        bundles.handle_none(&path("d"), start);
        assert!(matches!(bundles.find(&path("d/1"), &etag, start), Found::No));
        assert!(!asks(&mut bundles, start + PAUSE / 2));
        assert!(asks(&mut bundles, start + PAUSE));
    }

    #[test]
    fn directories_are_limited() {
        let (mut bundles, start) = (Bundles::default(), Instant::now());
        for k in 0..2 * MAX_DIRECTORIES {
            bundles.handle_open(&path(&format!("{k}/a")), false, start);
        }
        assert_eq!(bundles.directories.len(), MAX_DIRECTORIES);
        assert!(bundles.tidy(start + OPENS_WITHIN).is_empty());
        assert_eq!(bundles.directories.len(), 0);
    }

    #[test]
    fn an_index_must_fit_its_bundle() {
        let text = br#"{"files":[{"name":"a%20b","etag":"1","size":3,"x":1},
            {"name":"c","etag":"2","size":0}]}"#;
        let files = read_index(text, &info(100, 103)).unwrap();
        assert_eq!(
            (files[&b"a b"[..]].bytes.clone(), files[&b"c"[..]].bytes.clone()),
            (100..103, 103..103)
        );
        assert_eq!(read_index(text, &info(100, 104)), None);
        assert_eq!(read_index(b"{", &info(100, 103)), None);
        let large = br#"{"files":[{"name":"a","etag":"1","size":65537}]}"#;
        assert_eq!(read_index(large, &info(100, 65_637)), None);
        assert!(is_sound(&info(100, 103)) && is_sound(&info(100, 100)));
        assert!(!is_sound(&info(101, 100)) && !is_sound(&info(1, BUNDLE_BYTES + 2)));
    }
}
