//! Which bytes are read as a state, and what a save writes.

use bootcast_proto::RemotePath;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A file of three groups and a bit.
const PAGES: u32 = 3 * GROUP_PAGES + 20;
const SIZE: u64 = PAGES as u64 * 4;

fn etag() -> Etag {
    Etag::new("v1").unwrap()
}

fn key() -> ObjectKey {
    let path = RemotePath::decode("images/a%20b").unwrap();
    ObjectKey { server: "head:8888".into(), path, etag: Some(etag()), content: None }
}

fn geometry() -> Geometry {
    Geometry::new(SIZE, PageSize::new(4).unwrap()).unwrap()
}

fn set(runs: &[PageRange]) -> PageSet {
    let mut held = PageSet::new(PAGES);
    for run in runs {
        held.insert_range(*run);
    }
    held
}

fn snapshot(held: &PageSet, changed: Option<&[u32]>) -> HeldSnapshot {
    let changed = changed.map(|changed| changed.iter().copied().collect());
    let content = Some(ContentId::from_bytes([7; 32]));
    HeldSnapshot { content, ..HeldSnapshot::of_pages(geometry(), held, &[], changed.as_ref()) }
}

/// Runs of held pages in the first and the third group.
fn runs() -> [PageRange; 2] {
    [PageRange::new(3, 9), PageRange::new(2 * GROUP_PAGES + 7, 3 * GROUP_PAGES)]
}

/// A directory with a state, and that state.
fn saved() -> (TempDir, Option<StateFile>) {
    let (dir, mut open) = (tempfile::tempdir().unwrap(), None);
    save(dir.path(), &key(), &etag(), &snapshot(&set(&runs()), None), &mut open).unwrap();
    (dir, open)
}

fn file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn read_bytes(bytes: &[u8]) -> Result<Parsed, Unusable> {
    parse(&file(bytes), &key(), &etag(), SIZE).unwrap()
}

fn bytes_of(dir: &TempDir) -> Vec<u8> {
    fs::read(dir.path().join("state")).unwrap()
}

/// Pages that are held by a state.
fn held(bytes: &[u8]) -> PageSet {
    read_bytes(bytes).unwrap().assembly.arrived().clone()
}

#[test]
fn a_state_is_read_as_it_was_saved_and_empty_groups_take_no_room() {
    let (dir, _) = saved();
    let parsed = read_bytes(&bytes_of(&dir)).unwrap();
    assert_eq!(parsed.header.b3, Some(ContentId::from_bytes([7; 32])));
    assert_eq!((parsed.assembly.size(), parsed.is_damaged), (Some(SIZE), false));
    assert_eq!(parsed.assembly.page_size().get(), 4);
    assert_eq!(parsed.assembly.arrived(), &set(&runs()));
    assert_eq!(bytes_of(&dir).len(), 5 * BLOCK);
    let zeros = bytes_of(&dir).chunks(BLOCK).filter(|block| is_zeros(block)).count();
    assert_eq!(zeros, 2);
}

#[test]
fn a_save_writes_the_changed_groups_in_place_and_a_new_header_replaces_the_file() {
    let (dir, mut open) = saved();
    let before = bytes_of(&dir);
    let more = set(&[runs()[0], runs()[1], PageRange::new(GROUP_PAGES, GROUP_PAGES + 1)]);
    save(dir.path(), &key(), &etag(), &snapshot(&more, Some(&[1])), &mut open).unwrap();
    let after = bytes_of(&dir);
    assert_eq!(held(&after), more);
    let changed = |(at, (one, other)): (usize, (&[u8], &[u8]))| (one != other).then_some(at);
    let blocks = before.chunks(BLOCK).zip(after.chunks(BLOCK));
    assert_eq!(blocks.enumerate().filter_map(changed).collect::<Vec<_>>(), [2]);
    let other = HeldSnapshot { content: None, ..snapshot(&more, None) };
    assert!(open.as_ref().unwrap().fits(&geometry(), snapshot(&more, None).content));
    assert!(!open.as_ref().unwrap().fits(&geometry(), None));
    save(dir.path(), &key(), &etag(), &other, &mut open).unwrap();
    let parsed = read_bytes(&bytes_of(&dir)).unwrap();
    assert_eq!((parsed.header.b3, parsed.assembly.arrived()), (None, &more));
}

#[test]
fn what_is_left_out_is_not_held_and_the_snapshot_is_not_complete() {
    let left_out = [PageRange::new(5, 7), PageRange::new(GROUP_PAGES - 1, GROUP_PAGES + 1)];
    let all = set(&[PageRange::new(0, PAGES)]);
    let snapshot = HeldSnapshot::of_pages(geometry(), &all, &left_out, None);
    let complete =
        HeldSnapshot { is_verified: true, content: self::snapshot(&all, None).content, ..snapshot };
    assert_eq!(complete.complete_content(), None);
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &key(), &etag(), &complete, &mut None).unwrap();
    let held = held(&bytes_of(&dir));
    assert_eq!(held.len(), PAGES - 4);
    assert!(left_out.iter().flat_map(|run| run.iter()).all(|page| !held.contains(page)));
}

#[test]
fn a_damaged_block_costs_its_own_pages_only() {
    let (dir, _) = saved();
    let state = bytes_of(&dir);
    for byte in [BLOCK, BLOCK + 1, 2 * BLOCK - 1] {
        let mut damaged = state.clone();
        damaged[byte] ^= 1;
        let parsed = read_bytes(&damaged).unwrap();
        assert!(parsed.is_damaged);
        assert_eq!(parsed.assembly.arrived(), &set(&runs()[1..]), "byte {byte}");
    }
    // A block at the place of another one, and one of another file.
    let mut moved = state.clone();
    moved.copy_within(BLOCK..2 * BLOCK, 2 * BLOCK);
    assert_eq!(held(&moved), set(&runs()));
    let (other, _) = saved();
    let mut mixed = state;
    mixed[BLOCK..2 * BLOCK].copy_from_slice(&bytes_of(&other)[BLOCK..2 * BLOCK]);
    assert_eq!(held(&mixed), set(&runs()[1..]));
}

#[test]
fn a_state_with_a_damaged_beginning_or_another_length_is_not_read() {
    let (dir, _) = saved();
    let state = bytes_of(&dir);
    for bit in 0..BLOCK * 8 {
        let mut damaged = state[..2 * BLOCK].to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(read_bytes(&damaged).unwrap_err(), Unusable::Mismatch, "bit {bit}");
    }
    for len in [0, 1, 100, BLOCK - 1] {
        assert_eq!(read_bytes(&state[..len]).unwrap_err(), Unusable::Checksum, "{len} bytes");
    }
    for len in [BLOCK, 2 * BLOCK, state.len() - 1] {
        assert_eq!(read_bytes(&state[..len]).unwrap_err(), Unusable::Mismatch, "{len} bytes");
    }
    let longer = [&state[..], &[0]].concat();
    assert_eq!(read_bytes(&longer).unwrap_err(), Unusable::Mismatch);
}

#[test]
fn a_state_of_something_else_is_not_read_though_its_checksums_are_right() {
    let (dir, _) = saved();
    let file = open(dir.path(), false).unwrap().unwrap();
    let other = ObjectKey { server: "head:8889".into(), ..key() };
    let path = ObjectKey { path: RemotePath::decode("b").unwrap(), ..key() };
    for (key, etag, size) in [
        (&other, etag(), SIZE),
        (&path, etag(), SIZE),
        (&key(), Etag::new("v2").unwrap(), SIZE),
        (&key(), etag(), SIZE - 1),
    ] {
        let parsed = parse(&file, key, &etag, size).unwrap();
        assert_eq!(parsed.unwrap_err(), Unusable::Mismatch);
    }
    let header = Header { format: 4, ..read_bytes(&bytes_of(&dir)).unwrap().header };
    assert_eq!(read_bytes(&render(&header).unwrap()).unwrap_err(), Unusable::Mismatch);
}

#[test]
fn a_bit_behind_the_last_page_is_a_mismatch() {
    let (dir, open) = saved();
    let nonce = &open.as_ref().unwrap().header.nonce;
    let mut state = bytes_of(&dir);
    state[4 * BLOCK..].copy_from_slice(&block(nonce, 3, &[0, 0, 0b1_0000]));
    assert_eq!(read_bytes(&state).unwrap_err(), Unusable::Mismatch);
}

/// Bytes of a state in the format before.
fn earlier(format: u32, bits: &[u8]) -> Vec<u8> {
    let header = header(&key(), &etag(), &snapshot(&set(&runs()), None));
    let header = Header { format, size: 80, nonce: String::new(), ..header };
    let body = [&serde_json::to_vec(&header).unwrap()[..], b"\n", bits].concat();
    [&body[..], blake3::hash(&body).as_bytes()].concat()
}

fn read_earlier(bytes: &[u8]) -> Result<Parsed, Unusable> {
    parse(&file(bytes), &key(), &etag(), 80).unwrap()
}

#[test]
fn the_format_before_is_read_and_the_one_without_a_checksum_is_not() {
    let state = earlier(2, b"\xf8\x01\x00");
    let parsed = read_earlier(&state).unwrap();
    assert_eq!((parsed.assembly.arrived().len(), parsed.header_len), (6, None));
    for bit in 0..state.len() * 8 {
        let mut damaged = state.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(read_earlier(&damaged).unwrap_err(), Unusable::Mismatch, "bit {bit}");
    }
    for bits in [&b"\xf8\x01"[..], b"\xf8\x01\x00\x00", b"\xf8\x01\x10"] {
        assert_eq!(read_earlier(&earlier(2, bits)).unwrap_err(), Unusable::Mismatch);
    }
    let header = concat!(
        r#"{"format":1,"server":"head:8888","path":"images/a%20b","#,
        r#""etag":"v1","size":80,"page_size":4}"#,
    );
    let state = [header.as_bytes(), b"\n\xf8\x01\x00"].concat();
    assert_eq!(read_earlier(&state).unwrap_err(), Unusable::NoChecksum);
}

proptest! {
    #[test]
    fn damage_never_makes_a_missing_page_held(
        places in proptest::collection::vec((0..5 * BLOCK, any::<u8>()), 1..20),
        cut in 0..6 * BLOCK,
    ) {
        let (dir, _) = saved();
        let (mut state, held) = (bytes_of(&dir), set(&runs()));
        for (at, byte) in places {
            state[at] = byte;
        }
        state.truncate(cut.max(1));
        if let Ok(parsed) = read_bytes(&state) {
            prop_assert!(parsed.assembly.arrived().missing_ranges().count() > 0);
            for run in held.missing_ranges() {
                let mut pages = run.iter();
                prop_assert!(pages.all(|page| !parsed.assembly.arrived().contains(page)));
            }
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read_bytes(&bytes).is_err());
    }
}
