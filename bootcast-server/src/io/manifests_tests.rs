//! Manifests: computed once, kept, awaited, and known in part.

use std::io::{IoSliceMut, Write};

use tempfile::TempDir;

use super::*;
use crate::io::identity::Identity;
use crate::io::reader::source::{FileSource, PageSource, ReadError};
use crate::io::stable_version::await_stable_version;

fn path(name: &str) -> RemotePath {
    RemotePath::decode(name).unwrap()
}

fn open(bytes: &[u8]) -> OpenFile {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    OpenFile::new(file).unwrap()
}

fn again(open: &OpenFile) -> OpenFile {
    open.try_clone().unwrap()
}

#[tokio::test]
async fn concurrent_requests_for_a_manifest_hash_the_file_once() {
    let manifests = Manifests::new(None);
    let file = open(b"abc");
    assert_eq!(manifests.content_id(file.version).await, None);
    let name = path("a");
    let (first, second) =
        tokio::join!(manifests.get(&name, again(&file)), manifests.get(&name, again(&file)));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(first.id().as_bytes(), blake3::hash(b"abc").as_bytes());
    assert_eq!(manifests.content_id(file.version).await, Some(first.id()));
}

#[tokio::test]
async fn a_failure_is_not_kept() {
    let manifests = Manifests::new(None);
    let file = open(b"abc");
    let key = file.version.key();
    file.file.set_len(1).unwrap();
    let failed = manifests.get(&path("a"), file).await;
    assert!(matches!(failed, Err(ManifestError::Hash(_))), "{failed:?}");
    assert!(manifests.lock().entry(&key).is_none());
}

#[tokio::test]
async fn a_kept_manifest_is_loaded_without_reading_the_file() {
    let dir = TempDir::new().unwrap();
    let file = open(b"abc");
    let computed = hash(&file, &HashProgress::new(3)).unwrap().manifest;
    StateDir::open(dir.path()).unwrap().store(&file.version, &computed).unwrap();
    // A file that cannot be hashed any more.
    file.file.set_len(1).unwrap();
    let manifests = || Manifests::new(StateDir::open(dir.path()).ok());
    assert_eq!(manifests().content_id(file.version).await, Some(computed.id()));
    assert_eq!(*manifests().get(&path("a"), file).await.unwrap(), computed);
}

#[tokio::test]
async fn who_does_not_wait_finds_a_kept_content_id_a_moment_later() {
    let dir = TempDir::new().unwrap();
    let file = open(b"abc");
    let computed = hash(&file, &HashProgress::new(3)).unwrap().manifest;
    StateDir::open(dir.path()).unwrap().store(&file.version, &computed).unwrap();
    let manifests = Manifests::new(StateDir::open(dir.path()).ok());
    assert_eq!(manifests.content_id_now(open(b"other").version), None);
    assert_eq!(manifests.content_id_now(file.version), None, "one is loaded at a time");
    while manifests.content_id_now(file.version).is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(manifests.content_id_now(file.version), Some(computed.id()));
}

#[tokio::test]
async fn a_content_id_is_remembered_longer_than_its_leaf_values() {
    let manifests = Manifests::new(None);
    let file = open(b"abc");
    let id = manifests.get(&path("a"), again(&file)).await.unwrap().id();
    manifests.lock().remove(&file.version.key());
    assert_eq!(manifests.content_id(file.version).await, Some(id));
}

#[tokio::test]
async fn whoever_asks_for_the_known_part_does_not_wait_for_the_rest() {
    let manifests = Manifests::new(None);
    let (file, name) = (open(b"abc"), path("a"));
    // Nothing runs on this runtime before the first await.
    let part = manifests.known(&name, again(&file)).unwrap();
    let Known::Part(progress) = part else { panic!("{part:?}") };
    assert_eq!(progress.segments(), Some(vec![]));
    let whole = manifests.get(&name, again(&file)).await.unwrap();
    assert_eq!(progress.segments(), None, "it is finished");
    let known = manifests.known(&name, file).unwrap();
    assert!(matches!(known, Known::Whole(known) if Arc::ptr_eq(&known, &whole)));
}

#[tokio::test]
async fn a_manifest_is_awaited_once_for_all_joins_and_again_when_it_was_known() {
    let manifests = Manifests::new(None);
    let (file, name) = (open(b"abc"), path("a"));
    let (sender, mut ready) = tokio::sync::mpsc::unbounded_channel();
    let wait = |file: &OpenFile| {
        let sender = sender.clone();
        manifests.when_known(&name, again(file), true, move |manifest| {
            sender.send(manifest.id()).unwrap();
        });
    };
    wait(&file);
    wait(&file);
    let first = ready.recv().await.unwrap();
    assert_eq!(first.as_bytes(), blake3::hash(b"abc").as_bytes());
    wait(&file);
    assert_eq!(ready.recv().await, Some(first));
    assert!(ready.try_recv().is_err(), "the second call of two found the first one waiting");

    let shrunk = open(b"abc");
    shrunk.file.set_len(1).unwrap();
    wait(&shrunk);
    while !manifests.lock().awaited.is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(ready.try_recv().is_err(), "the file cannot be hashed");
}

#[test]
fn a_manifest_of_a_version_that_was_not_stable_does_not_last() {
    let file = open(b"abc");
    for (age_s, is_lasting) in [(0, false), (1, true)] {
        let now = file.version.modified() + Duration::from_secs(age_s);
        let computed = hash_at(&file, &HashProgress::new(3), |_| true, now).unwrap().unwrap();
        assert_eq!(computed.is_lasting, is_lasting, "{age_s} s");
    }
}

#[tokio::test]
async fn a_segment_is_hashed_on_request_before_its_turn() {
    let manifests = Manifests::new(None);
    let (file, name) = (open(&vec![1; 5 << 22]), path("a"));
    let progress = Arc::new(HashProgress::new(file.version.size()));
    manifests.hash_first(&name, again(&file), &progress, 4..9).await.unwrap();
    let whole = hash(&file, &HashProgress::new(file.version.size())).unwrap().manifest;
    assert_eq!(progress.leaves_of(4..5), Some(whole.leaves()[4 * 256..].to_vec()));
    manifests.hash_first(&name, again(&file), &progress, 0..5).await.unwrap();
    assert_eq!(progress.leaves_of(0..9), Some(whole.leaves().to_vec()), "four at a time");

    let shrunk = open(&vec![1; 5 << 22]);
    shrunk.file.set_len(1 << 22).unwrap();
    let progress = Arc::new(HashProgress::new(shrunk.version.size()));
    let changed = manifests.hash_first(&name, shrunk, &progress, 0..1).await;
    assert!(matches!(changed, Err(ManifestError::Hash(_))), "{changed:?}");
    assert_eq!(progress.leaves_of(0..1), Some(vec![]), "values of another version");
}

#[tokio::test]
async fn what_can_be_read_stays_known_and_the_rest_is_tried_again_after_a_minute() {
    let manifests = Manifests::new(None);
    let (file, name) = (open(b"abc"), path("a"));
    let (version, key) = (file.version, file.version.key());
    let (sender, result) = watch::channel(None);
    let progress = Arc::new(HashProgress::new(3));
    let lead = Arc::new(Lead::closed(3));
    let entry = Entry { result, progress: Arc::clone(&progress), lead, retry_at: None };
    manifests.lock().insert(key, entry);
    let error = HashError::from(io::Error::from(io::ErrorKind::Other));
    manifests.publish(&name, version, Err(Arc::new(error).into()), &sender);

    let known = manifests.known(&name, again(&file)).unwrap();
    assert!(matches!(known, Known::Part(part) if Arc::ptr_eq(&part, &progress)));
    let whole = manifests.get(&name, again(&file)).await;
    assert!(matches!(whole, Err(ManifestError::Hash(_))), "{whole:?}");
    let retry_at = manifests.lock().entry(&key).unwrap().retry_at.unwrap();
    assert!(retry_at > Instant::now() + RETRY / 2);
    manifests.lock().set_retry_at(&key, Instant::now());
    let whole = manifests.get(&name, file).await.unwrap();
    assert_eq!(whole.id().as_bytes(), blake3::hash(b"abc").as_bytes());
    assert_eq!(progress.segments(), None, "the values that were known are used");
}

/// A served directory with a file of six segments, which is larger than a lead.
fn large_file() -> (TempDir, Identity, RemotePath) {
    let dir = TempDir::new().unwrap();
    let bytes: Vec<u8> = (0..6 << 22).map(|at: u32| (at ^ (at >> 9)).to_le_bytes()[0]).collect();
    std::fs::write(dir.path().join("a"), bytes).unwrap();
    let source = Arc::new(source::Source::new(dir.path()).unwrap());
    (dir, Identity::new(source, Manifests::new(None)), path("a"))
}

/// Waits until the hasher of a file waits for the stream.
async fn wait_held(manifests: &Manifests, name: &RemotePath, open: OpenFile) {
    let Known::Part(progress) = manifests.known(name, open).unwrap() else {
        panic!("all is hashed")
    };
    while !progress.has(3) {
        tokio::task::yield_now().await;
    }
    assert!(!progress.has(4), "it stays near the stream");
}

#[tokio::test]
async fn a_stream_takes_what_was_hashed_and_a_file_that_changes_has_no_manifest() {
    let (dir, identity, name) = large_file();
    let manifests = identity.manifests();
    let open = await_stable_version(identity.open(&name).unwrap()).await.unwrap();
    let stream = FileSource::new(name.clone(), again(&open), identity.clone());
    manifests.when_known(&name, again(&open), true, |_| panic!("the file changes"));
    wait_held(manifests, &name, open).await;
    let first = |read: fn(&FileSource, &mut [IoSliceMut<'_>]) -> _| {
        let mut byte = [0];
        let read: Result<(), ReadError> = read(&stream, &mut [IoSliceMut::new(&mut byte)]);
        read.map(|()| byte).unwrap()
    };
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("a")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1], 0).unwrap();
    assert_eq!(first(|stream, buffers| stream.read_stream(buffers, 0)), [0], "it was read before");
    assert_eq!(first(|stream, buffers| stream.read(buffers, 0)), [1]);
    assert!(matches!(stream.check_version(), Err(ReadError::Changed)));
    drop(stream);
    while !manifests.lock().awaited.is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(manifests.lock().entry(&identity.open(&name).unwrap().version.key()).is_none());
}

#[tokio::test]
async fn a_stream_takes_nothing_that_was_read_from_another_file_of_its_version() {
    let (dir, identity, name) = large_file();
    let manifests = identity.manifests();
    let open = identity.open(&name).unwrap();
    let stream = FileSource::new(name.clone(), again(&open), identity.clone());
    std::fs::write(dir.path().join("b"), vec![1; 6 << 22]).unwrap();
    let other = identity.open(&path("b")).unwrap();
    let other = OpenFile { version: open.version, ..other };
    manifests.when_known(&name, again(&other), true, |_| {});
    wait_held(manifests, &name, other).await;
    let mut byte = [9];
    stream.read_stream(&mut [IoSliceMut::new(&mut byte)], 0).unwrap();
    assert_eq!(byte, [0], "the version check of the stream looks at its own file");
    assert!(stream.check_version().is_ok());
}

#[tokio::test]
async fn whoever_waits_for_the_whole_manifest_does_not_wait_for_the_stream() {
    let (dir, identity, name) = large_file();
    let manifests = identity.manifests();
    let open = identity.open(&name).unwrap();
    manifests.when_known(&name, again(&open), true, |_| {});
    wait_held(manifests, &name, again(&open)).await;
    let manifest = manifests.get(&name, open).await.unwrap();
    let bytes = std::fs::read(dir.path().join("a")).unwrap();
    assert_eq!(manifest.id().as_bytes(), blake3::hash(&bytes).as_bytes());
}

#[tokio::test]
async fn a_stream_that_stands_still_keeps_no_lead_of_a_file_that_is_hashed() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("a"), vec![1; 1 << 22]).unwrap();
    let source = Arc::new(source::Source::new(dir.path()).unwrap());
    let (identity, name) = (Identity::new(source, Manifests::new(None)), path("a"));
    let manifests = identity.manifests();
    let open = identity.open(&name).unwrap();
    let stream = FileSource::new(name.clone(), again(&open), identity.clone());
    manifests.when_known(&name, again(&open), true, |_| {});
    let lead = manifests.lead(&open).unwrap();
    stream.read_stream(&mut [IoSliceMut::new(&mut [0])], 0).unwrap();
    while stream.manifest().is_none() {
        tokio::task::yield_now().await;
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while lead.is_open() {
        assert!(Instant::now() < deadline, "the stream reads nothing any more");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(stream);
}

#[tokio::test]
async fn few_files_are_hashed_near_their_streams_at_a_time() {
    let (manifests, file) = (Manifests::new(None), open(b"a"));
    let new_lead = |has_stream| manifests.new_lead(&file, has_stream);
    let leads: Vec<_> = (0..with_stream::LEADS).map(|_| new_lead(true)).collect();
    assert!(leads.iter().all(Lead::is_open));
    assert!(!new_lead(true).is_open());
    leads[1].close();
    assert!(!new_lead(false).is_open(), "there is no stream");
    assert!(new_lead(true).is_open());
}

#[tokio::test]
async fn members_of_a_file_that_memory_can_hold_do_not_wait_for_its_stream() {
    let (mut manifests, file) = (Manifests::new(None), open(b"abc"));
    let closes_with = |manifests: &Manifests| {
        let lead = manifests.new_lead(&file, true);
        (1..100).find(|_| {
            lead.add_member();
            !lead.is_open()
        })
    };
    manifests.page_cache = 3;
    assert_eq!(closes_with(&manifests), Some(2));
    manifests.page_cache = 2;
    assert_eq!(closes_with(&manifests), Some(9));
}
