//! Two objects of one version, as two processes have them: what one is told makes it readable.
#![expect(clippy::disallowed_methods, reason = "a test has a clock")]

use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::cache::{Cache, ObjectKey};
use crate::object::fixture::{File, PAGE, range, receive};
use crate::object::{Unread, Waiter};
use crate::receiver::{Action, Timing, Verify};

/// Bytes of which the holder has every page: leaves 0 to 30, and a part of the next one.
const HELD: Range<u64> = 0..350 * PAGE;

/// Answer to a read.
type Answer = Result<Vec<u8>, Unread>;

/// Answers that reads got.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<Vec<Answer>>>);

impl Waiter for Answers {
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>) {
        self.0.lock().unwrap().push(outcome.map(<[u8]>::to_vec));
    }

    fn is_abandoned(&self) -> bool {
        false
    }
}

struct Pair {
    file: File,
    holder: Arc<Object>,
    follower: Arc<Object>,
    dir: tempfile::TempDir,
}

impl Pair {
    /// A holder with the bytes of [`HELD`], and a follower that has the file open.
    fn new(holder: Verify, follower: Verify) -> Self {
        let (file, dir) = (File::new(), tempfile::tempdir().unwrap());
        let cache = Cache::on_disk(dir.path()).unwrap();
        let key = crate::object::fixture::key();
        let holder = file.object_in(cache.open(&key).unwrap(), holder, Fill::Full);
        receive(&file, &holder, &HELD);
        file.serve(&holder);
        let follower = open(&cache, key, follower);
        Self { file, holder, follower, dir }
    }

    fn following(&self) -> Following {
        match self.follower.begin_sharing() {
            Some(Sharing::Follow(following)) => following,
            other => panic!("{other:?}"),
        }
    }

    /// Tells the follower what is new. Returns the runs.
    fn tell(&self, following: &Following, told: &mut Told) -> Vec<Range<u64>> {
        let News::Readable(runs) = self.holder.news(told) else { panic!("no news") };
        for ready in following.handle_told(&runs, told.has_leaves()) {
            self.follower.answer(ready);
        }
        runs
    }

    fn attach(&self, following: &Following) -> Told {
        assert!(following.attach(&self.holder.describe().unwrap()));
        self.holder.nothing_told(self.follower.verifies_leaves())
    }
}

/// Returns a run from the start, as it is told.
fn run(end: u64) -> Vec<Range<u64>> {
    std::iter::once(0..end).collect()
}

fn open(cache: &Cache, key: ObjectKey, verify: Verify) -> Arc<Object> {
    let timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
    let store = cache.open(&key).unwrap();
    assert!(store.follows());
    let object = Object::new(key, store, None, timing, Fill::Full, 2).with_verify(verify);
    object.open();
    Arc::new(object)
}

#[test]
fn a_follower_reads_what_it_is_told_and_does_not_join() {
    let pair = Pair::new(Verify::Leaf, Verify::Leaf);
    let (following, answers) = (pair.following(), Answers::default());
    assert!(pair.follower.begin_sharing().is_none(), "two follow at once");
    let mut told = pair.attach(&following);
    let _ = pair.follower.read(4990..5_010, Box::new(answers.clone()), Instant::now());
    assert!(answers.0.lock().unwrap().is_empty(), "nothing was told");
    assert_eq!(pair.tell(&following, &mut told), run(31));
    let bytes = pair.file.bytes[range(&(4990..5010))].to_vec();
    assert_eq!(*answers.0.lock().unwrap(), [Ok(bytes)]);
    assert!(pair.tell(&following, &mut told).is_empty(), "told twice");
    assert_eq!(pair.follower.poll(Instant::now()).actions, []);
    assert_eq!(pair.follower.snapshot().contiguous, pair.holder.snapshot().contiguous);
}

#[test]
fn a_holder_learns_what_the_readers_of_its_follower_wait_for() {
    let pair = Pair::new(Verify::Leaf, Verify::Leaf);
    let mut following = pair.following();
    assert_eq!(following.wishes(false), Some(Wishes { bytes: vec![], fill: true }));
    let mut told = pair.attach(&following);
    pair.tell(&following, &mut told);
    for bytes in [0..10, 5_000_000..5_000_010] {
        let _ = pair.follower.read(bytes, Box::new(Answers::default()), Instant::now());
    }
    let leaf = 305 * 16384..306 * 16384;
    let bytes = vec![leaf.clone()];
    assert_eq!(following.wishes(false), Some(Wishes { bytes, fill: true }));
    let pages = following.wishes(true).unwrap().bytes[0].clone();
    assert!(pages.start.is_multiple_of(PAGE) && pages.start < leaf.start && pages.end > leaf.end);
    pair.follower.close(Instant::now());
    assert_eq!(following.wishes(false), None);
    assert!(!pair.follower.pin(), "nobody follows for it");
}

#[test]
fn where_one_of_them_does_not_verify_pages_are_told() {
    for (holder, follower) in [(Verify::Tag, Verify::Leaf), (Verify::Leaf, Verify::Tag)] {
        let pair = Pair::new(holder, follower);
        let following = pair.following();
        let mut told = pair.attach(&following);
        assert!(!told.has_leaves());
        let runs = pair.tell(&following, &mut told);
        // Pages that lie in verified leaves with all of their bytes, or all pages that are here.
        let pages = if holder == Verify::Leaf { 31 * 16384 / PAGE } else { HELD.end / PAGE };
        assert_eq!(runs, run(pages), "{holder:?} {follower:?}");
        let (_, others) = pair.file.serve(&pair.follower);
        assert_eq!(others, [], "{holder:?} {follower:?}");
        let leaves = pages * PAGE / 16384 * 16384;
        let readable = if follower == Verify::Leaf { leaves } else { pages * PAGE };
        assert_eq!(pair.follower.snapshot().contiguous, readable, "{holder:?} {follower:?}");
    }
}

#[test]
fn a_follower_takes_over_with_what_it_was_told() {
    let pair = Pair::new(Verify::Leaf, Verify::Leaf);
    let mut following = pair.following();
    let mut told = pair.attach(&following);
    pair.tell(&following, &mut told);
    assert_eq!(following.try_lock().0, Attached::Held);
    let Pair { file, holder, follower, dir } = pair;
    drop(holder);
    assert_eq!(following.try_lock().0, Attached::Locked);
    assert_eq!(follower.snapshot().contiguous, 31 * 16384);
    assert_eq!(file.serve(&follower).1, [Action::Join]);
    assert!(matches!(follower.begin_sharing(), Some(Sharing::Hold(_))));
    follower.begin_join();
    assert!(follower.handle_join(Ok(file.answer(2)), Instant::now()).is_empty());
    receive(&file, &follower, &(HELD.end..file.bytes.len() as u64));
    file.serve(&follower);
    // The last page of what was told was not told of.
    receive(&file, &follower, &(30 * 16384..HELD.end));
    file.serve(&follower);
    file.assert_complete(&follower);
    drop(dir);
}

#[test]
fn a_follower_that_goes_on_alone_counts_on_nothing_of_the_holder() {
    let pair = Pair::new(Verify::Leaf, Verify::Leaf);
    let mut following = pair.following();
    let mut told = pair.attach(&following);
    pair.tell(&following, &mut told);
    assert!(following.start_alone().is_empty());
    assert_eq!(pair.follower.snapshot().contiguous, 0);
    assert!(!pair.follower.follows() && !pair.follower.store().is_persistent());
    assert_eq!(pair.follower.poll(Instant::now()).actions.first(), Some(&Action::Join));
    assert!(pair.follower.begin_sharing().is_none());
    receive(&pair.file, &pair.follower, &HELD);
    assert_ne!(pair.holder.describe(), None);
}

#[test]
fn a_holder_without_room_sends_its_followers_away() {
    let pair = Pair::new(Verify::Leaf, Verify::Leaf);
    let mut told = pair.holder.nothing_told(true);
    pair.holder.stop_filling(&mut pair.holder.lock());
    assert_eq!(pair.holder.news(&mut told), News::Failed);
    pair.holder.shut_down();
    assert_eq!(pair.holder.news(&mut told), News::Ending);
    assert_eq!(pair.holder.describe(), None);
}
