//! Confinement: nothing outside the served directory is served, and names may have any bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use bootcast_proto::api::{Kind, Meta};
use bootcast_proto::path::encode_name;
use tempfile::TempDir;

use crate::process::{Server, wait_for};

fn meta(server: &Server, path: &str) -> Meta {
    let response = server.get(&format!("/meta/{path}"));
    assert_eq!(response.status, 200, "{path}: {}", response.text());
    serde_json::from_slice(&response.body).unwrap()
}

#[test]
fn a_path_that_leads_out_is_refused_in_every_encoding() {
    let server = Server::start(&[]);
    for endpoint in ["join", "file", "meta"] {
        for path in ["..", "../etc/passwd", "a/../../b", "%2e%2e/etc/passwd", "%2fetc/passwd"] {
            let response = server.get(&format!("/{endpoint}/{path}"));
            assert_eq!(response.status, 400, "{endpoint} {path}");
        }
        let absolute = server.get(&format!("/{endpoint}//etc/passwd"));
        assert_eq!(absolute.status, 404, "{endpoint}");
    }
}

#[test]
fn a_symbolic_link_that_leads_out_is_listed_but_not_followed() {
    let outside = TempDir::new().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let server = Server::start(&[]);
    let dir = server.dir.path();
    symlink(outside.path().join("secret"), dir.join("absolute")).unwrap();
    symlink("../../../../../../../etc/passwd", dir.join("climbing")).unwrap();
    symlink(outside.path(), dir.join("directory")).unwrap();
    symlink("/proc/self/root", dir.join("magic")).unwrap();
    symlink("loop", dir.join("loop")).unwrap();
    for name in ["absolute", "climbing", "directory/secret", "magic/etc/passwd", "loop"] {
        for endpoint in ["join", "file"] {
            let response = server.get(&format!("/{endpoint}/{name}"));
            assert_eq!(response.status, 403, "{endpoint} {name}");
        }
    }
    assert_eq!(server.get("/meta/directory/secret").status, 403);
    let link = meta(&server, "climbing");
    assert_eq!(link.attributes.kind, Kind::Symlink);
    assert!(link.attributes.target.unwrap().ends_with("etc%2Fpasswd"));
}

#[test]
fn a_symbolic_link_within_the_directory_is_followed() {
    let server = Server::start(&[]);
    std::fs::create_dir(server.dir.path().join("sub")).unwrap();
    server.write("sub/file", b"bytes");
    symlink("sub/../sub/file", server.dir.path().join("link")).unwrap();
    symlink("sub", server.dir.path().join("sub-link")).unwrap();
    assert_eq!(server.get("/file/link").text(), "bytes");
    assert_eq!(server.get("/file/sub-link/file").text(), "bytes");
    assert!(server.get("/join/link").text().contains("SIZE=5\n"));
}

#[test]
fn a_pipe_is_listed_but_never_opened() {
    let server = Server::start(&[]);
    let pipe = server.dir.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    // A server that opened the pipe would wait for a writer for ever.
    assert_eq!(server.get("/join/pipe").status, 400);
    assert_eq!(server.get("/file/pipe").status, 400);
    assert_eq!(meta(&server, "pipe").attributes.kind, Kind::Other);
}

#[test]
fn a_name_of_any_bytes_is_listed_and_served() {
    let server = Server::start(&[]);
    let names: [&[u8]; 6] =
        [b"\xff\xfe", b"a b", b"100%", b"what?", b"new\nline", "gr\u{fc}n".as_bytes()];
    for name in names {
        std::fs::write(server.dir.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let entries = meta(&server, "").entries.unwrap();
    for name in names {
        let encoded = encode_name(name);
        assert!(entries.iter().any(|entry| entry.name == encoded), "{encoded}");
        assert_eq!(server.get(&format!("/file/{encoded}")).body, name, "{encoded}");
        assert_eq!(server.get(&format!("/join/{encoded}")).status, 200, "{encoded}");
    }
}

#[test]
fn the_etag_of_a_listing_changes_only_with_its_entries() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    let first = meta(&server, "");
    assert_eq!(meta(&server, ""), first);
    let etag = first.attributes.etag.unwrap().to_header();
    let known = [("If-None-Match", etag.as_str())];
    let again = crate::http::request(server.address(), "GET", "/meta/", &known);
    assert_eq!((again.status, again.body.len()), (304, 0));
    // This changes attributes of an entry, but not the directory itself.
    server.write("file", b"more bytes");
    wait_for("a new listing, when the cached one is too old", || {
        let answer = crate::http::request(server.address(), "GET", "/meta/", &known);
        (answer.status == 200).then_some(())
    });
}

#[test]
fn a_directory_without_its_entries_has_an_etag_of_its_own() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    std::fs::create_dir(server.dir.path().join("sub")).unwrap();
    let alone = meta(&server, "?entries=0");
    assert_eq!((alone.attributes.kind, alone.entries), (Kind::Directory, None));
    let listed = meta(&server, "");
    assert_eq!(listed.entries.map(|entries| entries.len()), Some(2));
    assert_ne!(listed.attributes.etag, alone.attributes.etag);
    let etag = alone.attributes.etag.unwrap().to_header();
    let known = |path| {
        crate::http::request(server.address(), "GET", path, &[("If-None-Match", etag.as_str())])
    };
    assert_eq!(known("/meta/").status, 200);
    let again = known("/meta/?entries=0");
    assert_eq!((again.status, again.body.len()), (304, 0));
    // A change of an entry's attributes does not change the directory's own.
    server.write("file", b"more bytes");
    assert_eq!(known("/meta/?x=1&entries=0").status, 304);
    let (one, other) = (server.dir.path().join("file"), server.dir.path().join("other"));
    // Two changes within one tick of the kernel's clock may leave the same time.
    let is_noticed = (0..100).any(|_| {
        std::fs::rename(&one, &other).unwrap();
        std::fs::rename(&other, &one).unwrap();
        known("/meta/?entries=0").status == 200
    });
    assert!(is_noticed);
}

#[test]
fn a_file_has_the_same_attributes_with_and_without_entries() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    symlink("file", server.dir.path().join("link")).unwrap();
    for path in ["file", "link"] {
        assert_eq!(meta(&server, path), meta(&server, &format!("{path}?entries=0")), "{path}");
    }
}
