//! Content ids and manifests: what proves a file to a client that knows its hash.

use bootcast_proto::PageHash;
use bootcast_proto::manifest::{
    ContentId, ContentTree, HEADER_CONTENT_ID, LEAF_BYTES, SEGMENT_BYTES, Value,
};

use crate::http::Response;
use crate::process::Server;

fn bytes(len: u64) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]).collect()
}

fn values(response: &Response) -> Vec<Value> {
    assert_eq!(response.body.len() % 32, 0);
    response.body.chunks(32).map(|value| value.try_into().unwrap()).collect()
}

fn content_id(response: &Response) -> ContentId {
    response.header(HEADER_CONTENT_ID).unwrap().parse().unwrap()
}

#[test]
fn the_lists_prove_every_leaf_by_the_hash_of_the_file() {
    let server = Server::start(&[]);
    let content = bytes(2 * SEGMENT_BYTES + LEAF_BYTES + 1);
    server.write("file", &content);
    let top = server.get("/manifest/file");
    assert_eq!(top.status, 200);
    assert_eq!(top.header("etag"), server.get("/file/file").header("etag"));
    let id = content_id(&top);
    assert_eq!(id.as_bytes(), blake3::hash(&content).as_bytes());
    let (tree, segments) = (ContentTree::new(content.len() as u64), values(&top));
    assert_eq!(tree.content_id(&segments), id);

    let all = values(&server.get("/manifest/file?segments=0-99"));
    let last = values(&server.get("/manifest/file?segments=2-2"));
    assert_eq!((all.len(), last.len()), (514, 2));
    assert_eq!(all[512..], last);
    for segment in 0..3 {
        let leaves = tree.leaves_of(segment);
        let index = |number: u64| usize::try_from(number).unwrap();
        let own = &all[index(leaves.start)..index(leaves.end)];
        assert_eq!(tree.segment_value(segment, own), segments[index(segment)]);
        for (leaf, value) in leaves.zip(own) {
            let range = tree.leaf(leaf);
            let part = &content[index(range.start)..index(range.end)];
            assert_eq!(tree.leaf_value(leaf, part), *value);
        }
    }
}

#[test]
fn the_worked_example_of_the_protocol() {
    let server = Server::start(&[]);
    server.write("abc", b"abc");
    let id = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
    assert!(!server.get("/join/abc").text().contains("\nB3="), "not known yet");
    for query in ["", "?segments=0-0"] {
        let response = server.get(&format!("/manifest/abc{query}"));
        assert_eq!(response.header(HEADER_CONTENT_ID), Some(id));
        assert_eq!(values(&response), [*id.parse::<ContentId>().unwrap().as_bytes()]);
    }
    assert!(server.get("/join/abc").text().contains(&format!("\nB3={id}\n")));
    server.write("abc", b"abd");
    assert!(!server.get("/join/abc").text().contains("\nB3="), "another version");
    assert_ne!(server.get("/manifest/abc").header(HEADER_CONTENT_ID), Some(id));
}

#[test]
fn an_empty_file_has_an_id_and_no_values() {
    let server = Server::start(&[]);
    server.write("empty", b"");
    let top = server.get("/manifest/empty");
    assert_eq!((top.status, top.body.len()), (200, 0));
    assert_eq!(content_id(&top).as_bytes(), blake3::hash(b"").as_bytes());
}

#[test]
fn page_hashes_are_those_of_the_pages_of_any_size() {
    let server = Server::start(&[]);
    let content: Vec<u8> = (0..=250).cycle().take(5_000_000).collect();
    server.write("file", &content);
    let file = server.get("/file/file");
    let hashes = |pages: &str, size: usize| {
        let answer = server.get(&format!("/manifest/file?pages={pages}&size={size}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("etag"), file.header("etag"));
        PageHash::divide(&answer.body).unwrap()
    };
    let expected = |size: usize| content.chunks(size).map(PageHash::of).collect::<Vec<_>>();
    let all = expected(1456);
    assert_eq!(hashes("0-99", 1456), all[..100]);
    assert_eq!(hashes("3400-18446744073709551614", 1456), all[3400..], "up to the end");
    assert_eq!(hashes("100-3400", 1456), all[100..100 + 2048], "no more than one answer has");
    let large = expected(65_000);
    assert_eq!(hashes("1-76", 65_000), large[1..65], "no more bytes than one answer has");
}

#[test]
fn what_has_no_manifest_is_refused_with_a_reason() {
    let server = Server::start(&[]);
    std::fs::create_dir(server.dir.path().join("dir")).unwrap();
    server.write("dir/file", b"abc");
    for (path, status, reason) in [
        ("none", 404, "no such file"),
        ("dir", 400, "not a regular file"),
        ("dir/file?segments=1-1", 404, "the file has 1 of them"),
        ("dir/file?segments=1-0", 400, "send ?segments=FIRST-LAST"),
        ("dir/file?segments=-1", 400, "send ?segments=FIRST-LAST"),
        ("dir/file?segments=0-18446744073709551616", 400, "send ?segments=FIRST-LAST"),
        ("dir/file?pages=0-0", 400, "send ?pages=FIRST-LAST&size=BYTES"),
        ("dir/file?pages=0-0&size=0", 400, "send ?pages=FIRST-LAST&size=BYTES"),
        ("dir/file?pages=1-0&size=1456", 400, "send ?pages=FIRST-LAST&size=BYTES"),
        ("dir/file?pages=1-1&size=1456", 404, "the file has 1 of this size"),
    ] {
        let response = server.get(&format!("/manifest/{path}"));
        assert_eq!(response.status, status, "{path}");
        assert!(response.text().contains(reason), "{path}: {}", response.text());
    }
}
