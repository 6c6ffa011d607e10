#![expect(clippy::disallowed_methods, reason = "a test has a clock")]

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use bootcast_proto::manifest::{ContentTree, LEAF_BYTES, SEGMENT_BYTES};
use bootcast_proto::{Etag, JoinAnswer, Manifest, RemotePath, Token};

use super::super::{ListsFailure, Seek};
use super::*;
use crate::cache::{Cache, ObjectKey};
use crate::receiver::{Action, Fill, ListRequest, Timing, Verify};

const PAGE: u64 = 1456;

/// Returns a part of the file as indices of its bytes.
fn range(bytes: &Range<u64>) -> Range<usize> {
    let index = |at: u64| usize::try_from(at).unwrap();
    index(bytes.start)..index(bytes.end)
}

/// A file of three segments and a bit. All is zeros but 100 bytes.
struct File {
    bytes: Vec<u8>,
    manifest: Manifest,
}

impl File {
    fn new() -> Self {
        let mut bytes = vec![0; range(&(0..3 * SEGMENT_BYTES + 77)).end];
        bytes[5_000_000..5_000_100].fill(7);
        let tree = ContentTree::new(bytes.len() as u64);
        let leaf = |leaf| tree.leaf_value(leaf, &bytes[range(&tree.leaf(leaf))]);
        let leaves = (0..tree.leaves()).map(leaf).collect();
        Self { manifest: Manifest::new(tree, leaves), bytes }
    }

    /// The true map, and those of a lying server: leaves of data in it, too.
    fn map(&self, data: bool) -> ZeroMap {
        let tree = self.manifest.tree();
        let mut map = ZeroMap::new(tree.leaves());
        let is_zeros = |leaf: &u64| self.bytes[range(&tree.leaf(*leaf))].iter().all(|it| *it == 0);
        (0..tree.leaves()).filter(|leaf| data || is_zeros(leaf)).for_each(|leaf| map.insert(leaf));
        map
    }

    fn answer(&self, token: u128) -> JoinAnswer {
        let (size, b3) = (self.bytes.len(), self.manifest.id());
        let pages = size.div_ceil(1456);
        let token = Token::from_random(token);
        JoinAnswer::parse(&format!(
            "CONNECT=239.255.0.1:9000\nTOKEN={}\nPAGES={pages}\nPAGESIZE={PAGE}\nSIZE={size}\n\
             ETAG=v1\nREPAIR=9001\nFEC=cauchy8-128/16\nLEASE=60\nB3={b3}\nLEAF=16384\n",
            token.as_str()
        ))
        .unwrap()
    }

    /// Returns an object that joined, with `stored` as its store.
    fn object(&self, fill: Fill, stored: &[u8]) -> Arc<Object> {
        self.object_with(Verify::Leaf, fill, stored)
    }

    fn object_with(&self, verify: Verify, fill: Fill, stored: &[u8]) -> Arc<Object> {
        let path = RemotePath::decode("image").unwrap();
        let etag = Some(Etag::new("v1").unwrap());
        let key = ObjectKey { server: "head:8888".into(), path, etag, content: None };
        let store = Cache::Memory.open(&key).unwrap();
        store.write_run(&mut [IoSlice::new(stored)], 0).unwrap();
        let timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
        let size = Some(self.bytes.len() as u64);
        let object = Object::new(key, store, size, timing, fill, 1).with_verify(verify);
        object.open();
        assert_eq!(object.poll(Instant::now()).actions, [Action::Join]);
        object.begin_join();
        assert!(object.handle_join(Ok(self.answer(1)), Instant::now()).is_empty());
        Arc::new(object)
    }

    /// Answers the requests for hashes, checks leaves, and stores replacements until there is
    /// nothing to do. Returns the requests for leaf lists, and all other actions.
    fn serve(&self, object: &Arc<Object>) -> (Vec<ListRequest>, Vec<Action>) {
        let (mut lists, mut others) = (Vec::new(), Vec::new());
        let mut now = Instant::now();
        for _ in 0..20 {
            now += Duration::from_millis(300);
            for action in object.poll(now).actions {
                match action {
                    Action::Lists(request) => {
                        let (tree, id) = (self.manifest.tree(), Some(self.manifest.id()));
                        let values = match &request {
                            ListRequest::Segments => self.manifest.segments(),
                            ListRequest::Leaves(segments) => {
                                lists.push(request.clone());
                                let first = tree.leaves_of(segments.start).start;
                                let end = tree.leaves_of(segments.end - 1).end;
                                &self.manifest.leaves()[range(&(first..end))]
                            }
                        };
                        let answer = Ok::<_, ListsFailure>((id, values.to_vec()));
                        drop(object.handle_lists(&request, answer, now));
                    }
                    Action::Replace(leaves) => {
                        let bytes = &self.bytes[range(&leaves.bytes())];
                        drop(object.store_replacement(&leaves, Some(bytes), now));
                        others.push(Action::Replace(leaves));
                    }
                    other => others.push(other),
                }
            }
            if let Some(mut verifying) = object.begin_verifying() {
                while verifying.step(drop, || now) {}
            }
        }
        (lists, others)
    }

    fn read(&self, object: &Object) -> Vec<u8> {
        let mut read = vec![1; self.bytes.len()];
        object.store().read_exact_at(&mut read, 0).unwrap();
        read
    }
}

fn take(object: &Object, map: &ZeroMap) {
    object.take_zeros(map, drop, Instant::now);
}

/// Stores the pages that have these bytes, as if they came in the cast.
fn receive(file: &File, object: &Object, bytes: &Range<u64>) {
    let page = |at: u64| u32::try_from(at).unwrap();
    let pages = PageRange::new(page(bytes.start / PAGE), page(bytes.end.div_ceil(PAGE)));
    let start = u64::from(pages.start.0) * PAGE;
    let own = &file.bytes[range(&(start..u64::from(pages.end.0) * PAGE))];
    object.store().write_run(&mut [IoSlice::new(own)], start).unwrap();
    let mut inner = object.lock();
    let epoch = inner.receiver.epoch();
    inner.receiver.handle_stored(pages, epoch);
}

fn is_report(action: &Action) -> bool {
    matches!(action, Action::Report(report) if report.zeros && report.needs.is_empty())
}

#[test]
fn pages_of_zeros_arrive_without_a_byte_and_the_server_hears_of_it_at_once() {
    let file = File::new();
    let object = file.object(Fill::Full, &[]);
    let actions = object.poll(Instant::now()).actions;
    assert!(actions.contains(&Action::ZeroMap), "{actions:?}");
    take(&object, &file.map(false));
    let actions = object.poll(Instant::now()).actions;
    assert!(actions.iter().any(is_report), "{actions:?}");
    let blocks = rustix::fs::fstat(object.store()).unwrap().st_blocks;
    assert_eq!(blocks, 0, "nothing was written");
    let missing = object.lock().receiver.assembly().unwrap().missing();
    assert!((12..=14).contains(&missing), "{missing} pages of one leaf are missing");
}

#[test]
fn without_verification_the_map_is_not_asked_for() {
    let object = File::new().object_with(Verify::Tag, Fill::Full, &[]);
    let actions = object.poll(Instant::now()).actions;
    assert!(!actions.contains(&Action::ZeroMap), "{actions:?}");
}

#[test]
fn segments_of_zeros_are_verified_without_leaf_lists() {
    let file = File::new();
    let object = file.object(Fill::Full, &[]);
    // Stale bytes of an earlier use, of which nobody knows, lie where zeros belong.
    let object_with_stale = file.object(Fill::Full, &vec![9; 6_000_000]);
    for object in [object, object_with_stale] {
        take(&object, &file.map(false));
        let (lists, _) = file.serve(&object);
        assert_eq!(lists, [], "the list of segment 1 comes in the cast");
        let holds = |bytes: Range<u64>| object.lock().receiver.holds(&bytes);
        assert!(holds(0..SEGMENT_BYTES) && holds(2 * SEGMENT_BYTES..file.bytes.len() as u64));
        assert!(!holds(SEGMENT_BYTES..SEGMENT_BYTES + 1));
        let leaf = 5_000_000 / LEAF_BYTES * LEAF_BYTES;
        receive(&file, &object, &(leaf..leaf + LEAF_BYTES));
        let (lists, others) = file.serve(&object);
        assert_eq!(lists, [ListRequest::Leaves(1..2)]);
        assert!(!others.iter().any(|action| matches!(action, Action::Replace(_))));
        assert!(object.snapshot().is_complete);
        assert!(file.read(&object) == file.bytes);
    }
}

#[test]
fn what_a_wrong_map_claims_is_never_read_and_fetched() {
    let file = File::new();
    let object = file.object(Fill::Full, &[]);
    take(&object, &file.map(true));
    assert!(object.has_all_pages());
    let (lists, others) = file.serve(&object);
    assert_eq!(lists, [ListRequest::Leaves(1..2)], "the segment's value refutes the map");
    let replaced: Vec<_> = (others.into_iter())
        .filter_map(|action| if let Action::Replace(it) = action { Some(it.bytes()) } else { None })
        .collect();
    let leaf = 5_000_000 / LEAF_BYTES * LEAF_BYTES;
    assert_eq!((replaced.len(), &replaced[0]), (1, &(leaf..leaf + LEAF_BYTES)));
    assert!(object.snapshot().is_complete);
    assert!(file.read(&object) == file.bytes);
}

#[test]
fn on_demand_only_zeros_that_are_read_are_verified_and_none_is_demanded() {
    let file = File::new();
    let object = file.object(Fill::Demand, &[]);
    take(&object, &file.map(false));
    file.serve(&object);
    let holds = |bytes: Range<u64>| object.lock().receiver.holds(&bytes);
    assert!(!holds(0..1) && !object.lock().receiver.has_check());
    assert!(object.lock().receiver.handle_read(&(0..1), Instant::now()).is_some());
    let (lists, others) = file.serve(&object);
    assert!(holds(0..1), "{others:?}");
    assert!(!others.iter().any(|action| matches!(action, Action::Want(_))), "{others:?}");
    assert_eq!(lists, []);
}

#[test]
fn another_membership_of_the_same_version_says_at_once_that_it_has_the_map() {
    let file = File::new();
    let object = file.object(Fill::Full, &[]);
    take(&object, &file.map(false));
    drop(object.handle_join(Ok(file.answer(2)), Instant::now()));
    let actions = object.poll(Instant::now()).actions;
    assert!(actions.iter().any(|action| matches!(action, Action::Report(it) if it.zeros)));
}

#[test]
fn holes_are_shown_where_zeros_are_verified_and_nowhere_else() {
    let file = File::new();
    let size = file.bytes.len() as u64;
    let object = file.object(Fill::Full, &[]);
    assert_eq!(object.seek(0, Seek::Hole), Some(size), "nothing is here yet");
    assert_eq!(object.seek(100, Seek::Data), Some(100));
    take(&object, &file.map(false));
    assert_eq!(object.seek(0, Seek::Hole), Some(size), "nothing is verified yet");
    file.serve(&object);
    assert_eq!(object.seek(7, Seek::Hole), Some(7));
    assert_eq!(object.seek(0, Seek::Data), Some(SEGMENT_BYTES));
    assert_eq!(object.seek(SEGMENT_BYTES, Seek::Hole), Some(2 * SEGMENT_BYTES));
    assert_eq!(object.seek(2 * SEGMENT_BYTES, Seek::Data), None);
    let leaf = 5_000_000 / LEAF_BYTES * LEAF_BYTES;
    receive(&file, &object, &(leaf..leaf + LEAF_BYTES));
    file.serve(&object);
    let data = object.seek(0, Seek::Data).unwrap();
    let end = object.seek(data, Seek::Hole).unwrap();
    // The store has whole blocks, and its data begins with a page that begins before the leaf.
    assert!(leaf - PAGE - 4096 <= data && data <= 5_000_000, "{data}");
    assert!(5_000_100 <= end && end <= leaf + 2 * LEAF_BYTES, "{end}");
    assert_eq!(object.seek(end, Seek::Data), None);
    for seek in [Seek::Data, Seek::Hole] {
        assert_eq!(object.seek(size, seek), None);
        assert_eq!(object.seek(u64::MAX, seek), None);
    }
}
