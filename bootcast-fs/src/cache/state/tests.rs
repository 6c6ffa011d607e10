//! Which bytes are read as a state.

use bootcast_proto::{PageRange, RemotePath};
use proptest::prelude::*;

use super::*;

const SIZE: u64 = 80;

fn etag() -> Etag {
    Etag::new("v1").unwrap()
}

fn key() -> ObjectKey {
    let path = RemotePath::decode("images/a%20b").unwrap();
    ObjectKey { server: "head:8888".into(), path, etag: Some(etag()), content: None }
}

/// Bytes of a state of 20 pages, of which 3 to 8 are held.
fn state() -> Vec<u8> {
    let geometry = Geometry::new(SIZE, PageSize::new(4).unwrap()).unwrap();
    let mut held = PageSet::new(geometry.pages());
    held.insert_range(PageRange::new(3, 9));
    let content = Some(ContentId::from_bytes([7; 32]));
    render(&key(), &etag(), &HeldSnapshot { geometry, held, content, is_verified: false }).unwrap()
}

fn read(bytes: &[u8]) -> Result<Restored, Unusable> {
    parse(bytes, &key(), &etag(), SIZE)
}

#[test]
fn a_state_is_read_as_it_was_saved() {
    let Restored { assembly, content } = read(&state()).unwrap();
    assert_eq!(content, Some(ContentId::from_bytes([7; 32])));
    assert_eq!(assembly.size(), Some(SIZE));
    assert_eq!(assembly.page_size().get(), 4);
    assert!(assembly.holds(&(12..36)));
    assert_eq!(assembly.arrived().len(), 6);
}

#[test]
fn a_state_with_any_bit_flipped_is_not_read() {
    let state = state();
    for bit in 0..state.len() * 8 {
        let mut damaged = state.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(read(&damaged).unwrap_err(), Unusable::Checksum, "bit {bit}");
    }
}

#[test]
fn a_state_cut_to_any_length_is_not_read() {
    let state = state();
    for len in 0..state.len() {
        assert_eq!(read(&state[..len]).unwrap_err(), Unusable::Checksum, "{len} bytes");
    }
}

#[test]
fn a_state_with_bytes_after_its_end_is_not_read() {
    let state = state();
    for more in [&[0][..], &[0; 32], &state] {
        assert_eq!(read(&[&state, more].concat()).unwrap_err(), Unusable::Checksum);
    }
}

#[test]
fn a_state_of_the_format_without_a_checksum_is_not_read() {
    let header = concat!(
        r#"{"format":1,"server":"head:8888","path":"images/a%20b","#,
        r#""etag":"v1","size":80,"page_size":4}"#,
    );
    let state = [header.as_bytes(), b"\n\xf8\x01\x00"].concat();
    assert_eq!(read(&state).unwrap_err(), Unusable::NoChecksum);
}

/// Appends the checksum of `body`.
fn with_checksum(body: &[u8]) -> Vec<u8> {
    [body, blake3::hash(body).as_bytes()].concat()
}

#[test]
fn a_state_of_something_else_is_not_read_though_its_checksum_is_right() {
    let state = state();
    let others = [
        parse(&state, &ObjectKey { server: "head:8889".into(), ..key() }, &etag(), SIZE),
        parse(
            &state,
            &ObjectKey { path: RemotePath::decode("b").unwrap(), ..key() },
            &etag(),
            SIZE,
        ),
        parse(&state, &key(), &Etag::new("v2").unwrap(), SIZE),
        parse(&state, &key(), &etag(), SIZE - 1),
    ];
    for other in others {
        assert_eq!(other.unwrap_err(), Unusable::Mismatch);
    }
    let body = checked(&state).unwrap();
    for format in [b'1', b'3'] {
        let mut other = body.to_vec();
        assert_eq!(&other[..11], br#"{"format":2"#);
        other[10] = format;
        assert_eq!(read(&with_checksum(&other)).unwrap_err(), Unusable::Mismatch);
    }
    // One byte too few or too many for the pages, and a page beyond the last one.
    let beyond = [&body[..body.len() - 1], &[0b1_0000]].concat();
    for body in [&body[..body.len() - 1], &[body, &[0]].concat(), &beyond, b"", b"\n"] {
        assert_eq!(read(&with_checksum(body)).unwrap_err(), Unusable::Mismatch);
    }
}

/// Bytes that look like a state to different degrees.
fn any_state() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |len| proptest::collection::vec(any::<u8>(), len);
    let header = (0u32..4, 0..200u64, 0..20u32).prop_map(|(format, size, page_size)| {
        let header = Header {
            format,
            server: key().server,
            path: key().path.encode(),
            etag: etag(),
            b3: None,
            size,
            page_size,
        };
        [&serde_json::to_vec(&header).unwrap()[..], b"\n"].concat()
    });
    let exact = (Just(state()), 0..200usize, bytes(0..8)).prop_map(|(mut state, at, bytes)| {
        for (place, byte) in state.iter_mut().skip(at).zip(bytes) {
            *place = byte;
        }
        state
    });
    prop_oneof![
        bytes(0..300),
        (header, bytes(0..80)).prop_map(|(header, rest)| [header, rest].concat()),
        exact,
    ]
}

proptest! {
    #[test]
    fn no_bytes_without_a_right_checksum_are_read_as_held_pages(
        bytes in any_state(), size in prop_oneof![Just(SIZE), 0..200u64],
    ) {
        let held = parse(&bytes, &key(), &etag(), size).map(|it| it.assembly.arrived().len());
        if held.is_ok_and(|held| held > 0) {
            let (body, checksum) = bytes.split_at(bytes.len() - 32);
            prop_assert!(blake3::hash(body) == *checksum);
        }
    }
}
