//! Files over plain HTTP, requested as by wget and curl.

use crate::http::{request, request_small};
use crate::process::Server;

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
}

#[test]
fn a_whole_file_has_its_length_etag_and_date() {
    let server = Server::start(&[]);
    let content = bytes(1_000_001);
    server.write("file", &content);
    let whole = server.get("/file/file");
    assert_eq!(whole.status, 200);
    assert!(whole.body == content);
    assert_eq!(whole.header("content-length"), Some("1000001"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert!(whole.header("last-modified").is_some_and(|date| date.ends_with("GMT")));
    let head = request(server.address(), "HEAD", "/file/file", &[]);
    assert_eq!((head.status, head.body.len()), (200, 0));
    for field in ["content-length", "etag", "last-modified", "content-type"] {
        assert_eq!(head.header(field), whole.header(field), "{field}");
    }
}

#[test]
fn a_range_is_answered_with_its_part() {
    let server = Server::start(&[]);
    let content = bytes(600_000);
    server.write("file", &content);
    for (range, status, content_range, part) in [
        ("bytes=0-0", 206, Some("bytes 0-0/600000"), 0..1),
        ("bytes=599999-", 206, Some("bytes 599999-599999/600000"), 599_999..600_000),
        ("bytes=262143-262145", 206, Some("bytes 262143-262145/600000"), 262_143..262_146),
        ("bytes=-600001", 206, Some("bytes 0-599999/600000"), 0..600_000),
        ("bytes=600000-", 416, Some("bytes */600000"), 0..0),
        ("bytes=0-1,5-6", 200, None, 0..600_000),
        ("pages=0-1", 200, None, 0..600_000),
    ] {
        let response = request(server.address(), "GET", "/file/file", &[("Range", range)]);
        assert_eq!(response.status, status, "{range}");
        assert_eq!(response.header("content-range"), content_range, "{range}");
        assert!(response.body == content[part], "{range}");
    }
}

#[test]
fn a_known_version_is_not_modified_and_a_range_of_an_old_one_gives_the_whole_file() {
    let server = Server::start(&[]);
    server.write("file", b"first version");
    let etag = server.get("/file/file").header("etag").unwrap().to_owned();
    let known = request(server.address(), "GET", "/file/file", &[("If-None-Match", &etag)]);
    assert_eq!((known.status, known.body.len()), (304, 0));
    server.write("file", b"second version");
    let resumed = [("Range", "bytes=6-"), ("If-Range", etag.as_str())];
    let response = request(server.address(), "GET", "/file/file", &resumed);
    assert_eq!((response.status, response.text()), (200, "second version"));
}

#[test]
fn an_empty_file_is_served() {
    let server = Server::start(&[]);
    server.write("empty", b"");
    let response = server.get("/file/empty");
    assert_eq!((response.status, response.header("content-length")), (200, Some("0")));
}

#[test]
fn the_etag_survives_a_restart_and_equals_that_of_join_and_listing() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    let etag = server.get("/file/file").header("etag").unwrap().trim_matches('"').to_owned();
    assert!(server.get("/join/file").text().contains(&format!("\nETAG={etag}\n")));
    assert!(server.get("/meta/").text().contains(&etag));
    let dir = server.dir.path().to_str().unwrap();
    let restarted = Server::start(&["--dir", dir]);
    assert_eq!(restarted.get("/file/file").header("etag"), Some(format!("\"{etag}\"").as_str()));
}

#[test]
fn a_small_file_comes_with_its_content_id_and_a_second_host_is_told_to_join() {
    let server = Server::start(&[]);
    let (one, other) = ([127, 0, 0, 1], [127, 0, 0, 2]);
    for (name, len) in [("a", 1), ("b", 65_536)] {
        let content = bytes(len);
        server.write(name, &content);
        let path = format!("/file/{name}");
        let answer = request_small(server.address(), one, &path);
        assert_eq!(answer.status, 200, "{name}");
        assert!(answer.body == content, "{name}");
        let id = blake3::hash(&content).to_hex();
        assert_eq!(answer.header("x-bootcast-b3"), Some(id.as_str()), "{name}");
        assert_eq!(answer.header("etag"), server.get(&path).header("etag"), "{name}");
    }
    server.write("empty", b"");
    let empty = request_small(server.address(), one, "/file/empty");
    assert_eq!((empty.status, empty.header("x-bootcast-b3")), (200, None));
    server.write("large", &bytes(65_537));
    assert_eq!(request_small(server.address(), one, "/file/large").status, 409);
    assert_eq!(request_small(server.address(), one, "/file/missing").status, 404);

    // More than a second may pass between two requests on a busy machine, but not each time.
    let refused = (0..20).any(|k| {
        let path = format!("/file/small{k}");
        server.write(&format!("small{k}"), b"small");
        assert_eq!(request_small(server.address(), one, &path).status, 200, "{path}");
        request_small(server.address(), other, &path).status == 409
    });
    assert!(refused, "every host gets the file");
}
