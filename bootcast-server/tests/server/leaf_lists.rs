//! Leaf lists in the cast, and the known part of a manifest. docs/PROTOCOL.md, "Leaf lists" and
//! "Manifest".

use std::net::UdpSocket;

use bootcast_proto::JoinAnswer;
use bootcast_proto::manifest::{
    ContentTree, HEADER_CONTENT_ID, LEAF_BYTES, SEGMENT_BYTES, SEGMENT_LEAVES, Value,
};
use bootcast_proto::wire::{LeafList, RepairDatagram, RepairError};

use crate::http::Response;
use crate::process::{Server, wait_for};
use crate::repair::{join, join_with, listen};

/// Size of a file of three segments, the last of which has two leaves.
const SIZE: u64 = 2 * SEGMENT_BYTES + LEAF_BYTES + 1;

fn start() -> (Server, Vec<u8>) {
    let server = Server::start(&["--rate", "400mbit"]);
    let content: Vec<u8> =
        (0..SIZE).map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]).collect();
    server.write("file", &content);
    (server, content)
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

fn values(response: &Response) -> Vec<Value> {
    response.body.as_chunks().0.to_vec()
}

/// Receives lists until the values of all leaves are here, and returns them.
fn receive_lists(channel: &UdpSocket, answer: &JoinAnswer) -> Vec<Value> {
    let tree = ContentTree::new(SIZE);
    let key = answer.extensions.key.unwrap();
    let mut leaves = vec![None; index(tree.leaves())];
    let mut datagram = vec![0; 65_536];
    while leaves.contains(&None) {
        let len = channel.recv(&mut datagram).expect("a datagram within the deadline");
        let datagram = &datagram[..len];
        assert!(key.is_genuine(datagram), "a list has a tag");
        let list = match LeafList::decode(datagram) {
            Ok(list) => list,
            Err(RepairError::Kind) => continue,
            Err(error) => panic!("{error}"),
        };
        let (range, values) = list.in_file(&tree).unwrap();
        for (leaf, value) in range.zip(values) {
            leaves[index(leaf)] = Some(*value);
        }
    }
    leaves.into_iter().flatten().collect()
}

/// Asserts that these are the values of the leaves of this content.
fn assert_proven(content: &[u8], leaves: &[Value]) {
    let tree = ContentTree::new(SIZE);
    let segments = leaves.chunks(index(SEGMENT_LEAVES)).zip(0..);
    let segments: Vec<_> = segments.map(|(own, at)| tree.segment_value(at, own)).collect();
    assert_eq!(tree.content_id(&segments).as_bytes(), blake3::hash(content).as_bytes());
}

#[test]
fn a_cast_of_a_known_file_brings_the_values_of_all_leaves() {
    let (server, content) = start();
    assert_eq!(server.get("/manifest/file").status, 200);
    let answer = join_with(&server, "file", &[("X-BOOTCAST-LEAVES", "1")]);
    assert!(answer.extensions.content_id.is_some());
    let leaves = receive_lists(&listen(&answer), &answer);
    assert_proven(&content, &leaves);
}

#[test]
fn a_first_cast_brings_the_values_as_soon_as_the_file_is_hashed() {
    let (server, content) = start();
    let answer = join_with(&server, "file", &[("X-BOOTCAST-LEAVES", "1")]);
    assert_eq!(answer.extensions.content_id, None, "nobody has asked for its hash");
    let leaves = receive_lists(&listen(&answer), &answer);
    assert_proven(&content, &leaves);
    let again = join(&server, "file");
    assert_eq!(again.extensions.content_id.unwrap().as_bytes(), blake3::hash(&content).as_bytes());
}

#[test]
fn a_cast_without_a_member_that_asked_for_values_has_none() {
    let (server, _) = start();
    assert_eq!(server.get("/manifest/file").status, 200);
    let answer = join(&server, "file");
    let (channel, layout) = (listen(&answer), answer.block_layout().unwrap());
    let mut datagram = vec![0; 65_536];
    loop {
        let len = channel.recv(&mut datagram).expect("a datagram within the deadline");
        match RepairDatagram::decode(&datagram[..len], layout, answer.page_size.get()).unwrap() {
            RepairDatagram::LeafList(list) => panic!("{list:?}"),
            RepairDatagram::Beacon(beacon) if beacon.position.0 == answer.pages => break,
            _ => {}
        }
    }
}

#[test]
fn the_known_part_of_a_manifest_comes_at_once_and_grows_to_all_of_it() {
    let (server, content) = start();
    let tree = ContentTree::new(SIZE);
    let known = |query: &str| server.get(&format!("/manifest/file?{query}"));
    let top = wait_for("the content id", || {
        let top = known("known=1");
        assert_eq!((top.status, top.header("etag").is_some()), (200, true));
        assert!(values(&top).len() <= 3);
        let id = top.header(HEADER_CONTENT_ID).map(ToOwned::to_owned);
        id.map(|_| top)
    });
    assert_eq!(top.body, server.get("/manifest/file").body);
    assert_eq!(tree.content_id(&values(&top)).as_bytes(), blake3::hash(&content).as_bytes());
    let last = known("segments=2-9&known=1");
    assert_eq!(values(&last).len(), 2);
    assert_eq!(last.body, known("known=1&segments=2-9").body);
    let none = known("segments=3-3&known=1");
    assert_eq!(none.status, 404, "{}", none.text());
}

#[test]
fn the_leaf_values_of_a_segment_far_behind_come_while_the_file_is_hashed() {
    let server = Server::start(&[]);
    // It takes minutes to hash.
    let size: u64 = 1 << 40;
    std::fs::File::create(server.dir.path().join("huge")).unwrap().set_len(size).unwrap();
    let tree = ContentTree::new(size);
    let segment = tree.segments() - 3;
    let known =
        server.get(&format!("/manifest/huge?known=1&segments={segment}-{}", tree.segments()));
    assert_eq!((known.status, known.header(HEADER_CONTENT_ID)), (200, None));
    let leaves = tree.leaves_of(segment);
    let zeros = vec![0; index(LEAF_BYTES)];
    let expected: Vec<_> =
        (leaves.start..tree.leaves()).map(|leaf| tree.leaf_value(leaf, &zeros)).collect();
    assert!(values(&known) == expected, "three segments");
    let unfinished = server.get("/manifest/huge");
    assert_eq!(unfinished.status, 503, "{}", unfinished.text());
}
