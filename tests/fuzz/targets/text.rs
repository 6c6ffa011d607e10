//! Decoders of text and JSON that both ends share.

use bootcast_proto::api::{Meta, Report, Status, Want, WantBody};
use bootcast_proto::bundle::{BundleIndex, BundleInfo};
use bootcast_proto::path::decode_segment;
use bootcast_proto::space::Space;
use bootcast_proto::unreadable::{decode_bytes, decode_pages, encode_bytes};
use bootcast_proto::{
    BitRate, ContentId, DatagramKey, Etag, Geometry, JoinAnswer, PageSize, Profile, RemotePath,
    Token, ZeroMap,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::input::Input;

/// Parses the answer to a join.
pub(super) fn join_answer(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(answer) = JoinAnswer::parse(text) else { return };
    let again = JoinAnswer::parse(&answer.encode());
    assert_eq!(again.as_ref(), Ok(&answer));
    let _ = (answer.geometry(), answer.block_layout());
}

/// Parses every kind of JSON body. What is parsed is written, and parsed again.
pub(super) fn meta(bytes: &[u8]) {
    twice::<Meta>(bytes);
    twice::<Report>(bytes);
    twice::<Want>(bytes);
    twice::<WantBody>(bytes);
    twice::<Status>(bytes);
    twice::<BundleInfo>(bytes);
    twice::<BundleIndex>(bytes);
}

fn twice<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return };
    let text = serde_json::to_vec(&value).expect("what was parsed can be written");
    let again = serde_json::from_slice::<T>(&text);
    assert_eq!(again.ok().as_ref(), Some(&value));
}

/// Parses values of headers.
pub(super) fn headers(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Some(space) = Space::decode(text) {
        assert_eq!(Space::decode(&space.encode()), Some(space));
    }
    for run in decode_pages(text) {
        assert!(run.start <= run.end, "{run:?}");
    }
    if let Some(range) = decode_bytes(text) {
        assert!(range.start < range.end, "{range:?}");
        assert_eq!(encode_bytes(&range).as_deref().and_then(decode_bytes), Some(range));
    }
    let _ = (Token::parse(text), Etag::new(text), text.parse::<DatagramKey>());
    if let Ok(etag) = Etag::from_header(text) {
        assert_eq!(Etag::from_header(&etag.to_header()).as_ref(), Ok(&etag));
    }
    if let Ok(id) = text.parse::<ContentId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Ok(name) = decode_segment(text)
        && let Ok(path) = RemotePath::root().join(&name)
    {
        assert_eq!(RemotePath::decode(&path.encode()).as_ref(), Ok(&path));
    }
}

/// Reads the zero map of a file, and takes its pages.
pub(super) fn zero_map(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (leaves, cut) = (u64::from(input.u16()), input.mostly_small(16_384));
    let page_size = PageSize::new(u64::from(input.u16()));
    let Some(map) = ZeroMap::from_bytes(leaves, input.rest()) else { return };
    let size = (leaves * 16_384).saturating_sub(u64::from(cut) % 16_384);
    let Some(geometry) = page_size.ok().and_then(|it| Geometry::new(size, it).ok()) else { return };
    for run in map.runs() {
        assert!(run.end <= leaves, "{run:?} of {leaves}");
        let pages = map.pages_in(&run, &geometry);
        assert!(pages.end.0 <= geometry.pages(), "{pages:?} of {}", geometry.pages());
    }
    let _ = map.pages(&geometry);
}

/// Parses a profile.
pub(super) fn profile(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok((id, profile)) = Profile::parse(text) else { return };
    let again = Profile::parse(&profile.encode(&id));
    assert!(again == Ok((id, profile.clone())), "{text}");
    for run in profile.runs() {
        let bytes = profile.bytes_of(run);
        assert!(bytes.end <= profile.size(), "{bytes:?} of {}", profile.size());
    }
    let _ = (profile.len(), profile.bytes());
}

/// Parses arguments of the command line.
pub(super) fn arguments(bytes: &[u8]) {
    bootcast_fs::fuzz::arguments(bytes);
    bootcast_fs::fuzz::pins(bytes);
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(rate) = text.parse::<BitRate>() {
        assert_eq!(rate.to_string().parse(), Ok(rate), "{text}");
    }
    if let Ok(groups) = text.parse() {
        let _ = bootcast_server::cast::GroupPool::new(groups);
    }
}
