//! A file with a manifest, and objects of it, for tests.
#![expect(clippy::disallowed_methods, reason = "a test has a clock")]

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootcast_proto::manifest::SEGMENT_BYTES;
use bootcast_proto::{Etag, JoinAnswer, Manifest, PageRange, RemotePath, Token, ZeroMap};

use super::{ListsFailure, Object};
use crate::cache::{Cache, ObjectKey, Store};
use crate::receiver::{Action, Fill, ListRequest, Timing, Verify};

/// Bytes of a page.
pub(super) const PAGE: u64 = 1456;

/// Returns a part of the file as indices of its bytes.
pub(super) fn range(bytes: &Range<u64>) -> Range<usize> {
    let index = |at: u64| usize::try_from(at).unwrap();
    index(bytes.start)..index(bytes.end)
}

pub(super) fn key() -> ObjectKey {
    let path = RemotePath::decode("image").unwrap();
    let etag = Some(Etag::new("v1").unwrap());
    ObjectKey { server: "head:8888".into(), path, etag, content: None }
}

/// A file of three segments and a bit. All is zeros but 100 bytes.
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    manifest: Manifest,
}

impl File {
    pub(super) fn new() -> Self {
        let mut bytes = vec![0; range(&(0..3 * SEGMENT_BYTES + 77)).end];
        bytes[5_000_000..5_000_100].fill(7);
        Self { manifest: Manifest::of_content(&bytes), bytes }
    }

    /// The true map, and those of a lying server: leaves of data in it, too.
    pub(super) fn map(&self, data: bool) -> ZeroMap {
        let tree = self.manifest.tree();
        let mut map = ZeroMap::new(tree.leaves());
        let is_zeros = |leaf: &u64| self.bytes[range(&tree.leaf(*leaf))].iter().all(|it| *it == 0);
        (0..tree.leaves()).filter(|leaf| data || is_zeros(leaf)).for_each(|leaf| map.insert(leaf));
        map
    }

    pub(super) fn answer(&self, token: u128) -> JoinAnswer {
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
    pub(super) fn object(&self, fill: Fill, stored: &[u8]) -> Arc<Object> {
        self.object_with(Verify::Leaf, fill, stored)
    }

    pub(super) fn object_with(&self, verify: Verify, fill: Fill, stored: &[u8]) -> Arc<Object> {
        let store = Cache::Memory.open(&key()).unwrap();
        store.write_run(&mut [IoSlice::new(stored)], 0).unwrap();
        self.object_in(store, verify, fill)
    }

    /// Returns an object that joined, with this store.
    pub(super) fn object_in(&self, store: Store, verify: Verify, fill: Fill) -> Arc<Object> {
        let timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
        let size = Some(self.bytes.len() as u64);
        let object = Object::new(key(), store, size, timing, fill, 1).with_verify(verify);
        object.open();
        assert_eq!(object.poll(Instant::now()).actions, [Action::Join]);
        object.begin_join();
        assert!(object.handle_join(Ok(self.answer(1)), Instant::now()).is_empty());
        Arc::new(object)
    }

    /// Answers the requests for hashes, checks leaves, and stores replacements until there is
    /// nothing to do. Returns the requests for leaf lists, and all other actions.
    pub(super) fn serve(&self, object: &Arc<Object>) -> (Vec<ListRequest>, Vec<Action>) {
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
            if let Some(mut verifying) = object.begin_verifying(now) {
                while verifying.step(drop, || now) {}
            }
        }
        (lists, others)
    }

    pub(super) fn assert_complete(&self, object: &Object) {
        assert!(object.snapshot().is_complete);
        let mut stored = vec![1; self.bytes.len()];
        object.store().read_exact_at(&mut stored, 0).unwrap();
        assert!(stored == self.bytes);
    }
}

/// Stores the pages that have these bytes, as if they came in the cast.
pub(super) fn receive(file: &File, object: &Object, bytes: &Range<u64>) {
    let page = |at: u64| u32::try_from(at).unwrap();
    let pages = PageRange::new(page(bytes.start / PAGE), page(bytes.end.div_ceil(PAGE)));
    let start = u64::from(pages.start.0) * PAGE;
    let own =
        &file.bytes[range(&(start..(u64::from(pages.end.0) * PAGE).min(file.bytes.len() as u64)))];
    object.store().write_run(&mut [IoSlice::new(own)], start).unwrap();
    let mut inner = object.lock();
    let epoch = inner.receiver.epoch();
    inner.receiver.handle_stored(pages, epoch);
}
