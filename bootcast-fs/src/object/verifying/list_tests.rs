//! Hashes that an earlier use left in the cache.

#![expect(clippy::disallowed_methods, reason = "a test has a clock")]

use std::path::Path;

use bootcast_proto::manifest::{ContentTree, SEGMENT_BYTES};
use bootcast_proto::{Etag, JoinAnswer, Manifest, RemotePath, Token};

use super::*;
use crate::cache::{Cache, ObjectKey, Store};
use crate::receiver::{Action, Fill, Timing, Verify};

/// Hashes of a file of two segments and a bit, whatever its bytes are.
fn manifest() -> Manifest {
    let tree = ContentTree::new(2 * SEGMENT_BYTES + 77);
    let leaves = (0..tree.leaves()).map(|leaf| *blake3::hash(&leaf.to_le_bytes()).as_bytes());
    Manifest::new(tree, leaves.collect())
}

fn key(manifest: &Manifest) -> ObjectKey {
    ObjectKey {
        server: "head:8888".into(),
        path: RemotePath::decode("image").unwrap(),
        etag: Some(Etag::new("v1").unwrap()),
        content: Some(manifest.id()),
    }
}

/// Opens a store in which an earlier use left leaf values of the first segment, and values of
/// segments.
fn store(dir: &Path, manifest: &Manifest, leaves: &[Value], segments: &[Value]) -> Store {
    let store = Cache::on_disk(dir).unwrap().open(&key(manifest)).unwrap();
    let stored = store.leaf_values().unwrap();
    stored.save_leaves(0, leaves).unwrap();
    stored.save_segments(manifest.tree(), segments).unwrap();
    store
}

/// Returns an object that joined, with a reader at the start of the file.
fn object(manifest: &Manifest, store: Store) -> Object {
    let timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
    let size = manifest.tree().size();
    let object = Object::new(key(manifest), store, Some(size), timing, Fill::Full, 1);
    let object = object.with_verify(Verify::Leaf);
    object.open();
    let answer = JoinAnswer::parse(&format!(
        "CONNECT=239.255.0.1:9000\nTOKEN={}\nPAGES={}\nPAGESIZE=1456\nSIZE={size}\nETAG=v1\n\
         B3={}\nLEAF=16384\n",
        Token::from_random(1).as_str(),
        size.div_ceil(1456),
        manifest.id()
    ));
    assert!(object.handle_join(Ok(answer.unwrap()), Instant::now()).is_empty());
    assert!(object.lock().receiver.handle_read(&(0..1), Instant::now()).is_some());
    object
}

#[test]
fn hashes_in_the_cache_are_taken_in_any_order_and_lists_not_stored_again() {
    let (manifest, now) = (manifest(), Instant::now());
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), &manifest, &manifest.leaves()[..256], manifest.segments());
    let object = object(&manifest, store);
    let (segments, leaves) = (ListRequest::Segments, ListRequest::Leaves(0..1));
    let actions = object.poll(now).actions;
    for request in [&segments, &leaves] {
        assert!(actions.contains(&Action::Lists(request.clone())), "{actions:?}");
    }
    assert!(object.take_stored_lists(&leaves, now));
    assert!(object.take_stored_lists(&segments, now));
    let mut learned = std::iter::from_fn(|| object.next_learned());
    assert!(learned.all(|it| matches!(it, Learned::Segments(_))), "leaf lists are stored already");
}

#[test]
fn hashes_of_another_content_in_the_cache_are_not_taken() {
    let (manifest, now) = (manifest(), Instant::now());
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), &manifest, &[[1; 32]; 256], &[[2; 32]; 3]);
    let object = object(&manifest, store);
    let _ = object.poll(now);
    let (segments, leaves) = (ListRequest::Segments, ListRequest::Leaves(0..1));
    assert!(!object.take_stored_lists(&leaves, now));
    assert!(!object.take_stored_lists(&segments, now));
    let answer = |values: &[Value]| Ok((Some(manifest.id()), values.to_vec()));
    assert!(object.handle_lists(&segments, answer(manifest.segments()), now).is_empty());
    assert!(!object.take_stored_lists(&leaves, now), "the leaf list is not that of the content");
    assert!(object.handle_lists(&leaves, answer(&manifest.leaves()[..256]), now).is_empty());
    object.save_lists();
    assert_eq!(object.stored_lists(&segments).unwrap(), manifest.segments());
    assert_eq!(object.stored_lists(&leaves).unwrap(), manifest.leaves()[..256]);
}
