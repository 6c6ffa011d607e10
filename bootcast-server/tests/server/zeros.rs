//! Sparse files: the zero map, and the cast without pages of zeros. docs/PROTOCOL.md, "Manifest"
//! and "Pages of zeros".

use std::fs::File;
use std::os::unix::fs::FileExt;

use bootcast_proto::ZeroMap;
use bootcast_proto::manifest::{ContentTree, HEADER_CONTENT_ID, LEAF_BYTES, SEGMENT_BYTES};

use crate::http::report;
use crate::process::{Server, wait_for};
use crate::repair::join_with;

/// Size of a file of holes with some data in it.
const SIZE: u64 = 64 * SEGMENT_BYTES;

/// First and last leaf with data.
const DATA: [u64; 2] = [5, 5000];

/// Starts a server of a sparse file, whose transfer as a whole would take 20 s.
fn start() -> Server {
    let server = Server::start(&["--rate", "100mbit"]);
    let file = File::create(server.dir.path().join("sparse")).unwrap();
    file.set_len(SIZE).unwrap();
    for leaf in DATA {
        file.write_all_at(&[7; 1000], leaf * LEAF_BYTES + 500).unwrap();
    }
    server
}

#[test]
fn the_zero_map_has_a_bit_for_each_leaf_of_zeros() {
    let server = start();
    let known = server.get("/manifest/sparse?known=1&zeros=1");
    assert_eq!(known.status, 200);
    let whole = server.get("/manifest/sparse?zeros=1");
    assert_eq!(whole.status, 200, "{}", whole.text());
    assert_eq!(whole.header("etag"), server.get("/file/sparse").header("etag"));
    assert!(whole.header(HEADER_CONTENT_ID).is_some());
    let map = ZeroMap::from_bytes(ContentTree::new(SIZE).leaves(), &whole.body).unwrap();
    assert_eq!(map.runs().collect::<Vec<_>>(), [0..5, 6..5000, 5001..16_384]);
    assert_eq!(server.get("/manifest/sparse?zeros=1&known=1").body, whole.body);

    let restarted = server.restart();
    assert_eq!(restarted.get("/manifest/sparse?zeros=1").body, whole.body);
}

#[test]
fn a_cast_whose_members_have_the_map_leaves_out_what_it_shows() {
    let server = start();
    assert_eq!(server.get("/manifest/sparse?zeros=1").status, 200);
    let answer = join_with(&server, "sparse", &[("X-BOOTCAST-LEAVES", "1")]);
    let token = Some(answer.token.as_str());
    let accepted = report(server.address(), "sparse", token, r#"{"zeros":true}"#);
    assert_eq!(accepted.status, 204, "{}", accepted.text());
    let cast = wait_for("the stream ends", || {
        let cast = server.status().casts.into_iter().next().expect("it has a member");
        (cast.passes == 1).then_some(cast)
    });
    assert_eq!(cast.zero_pages + cast.pages_sent, u64::from(cast.pages));
    assert!(cast.pages_sent < u64::from(cast.pages) / 10, "{cast:?}");
}
