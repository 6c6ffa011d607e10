//! A version is its content. docs/SEMANTICS.md, "Versions".

use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use bootcast_proto::JoinAnswer;

use crate::process::{Server, wait_for};

/// Size of a file of five leaves.
const SIZE: usize = 70_000;

fn content(seed: u8) -> Vec<u8> {
    (0..SIZE).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1] ^ seed).collect()
}

/// `ETag` that the server announces in the answer to a join.
fn etag(server: &Server) -> String {
    let answer = server.get("/join/file");
    assert_eq!(answer.status, 200, "{}", answer.text());
    JoinAnswer::parse(answer.text()).unwrap().extensions.etag.unwrap().to_string()
}

/// `ETag`s that `/meta/` shows for the file and in the listing, and that of `/file/`.
fn shown(server: &Server) -> [String; 3] {
    let own: serde_json::Value = serde_json::from_slice(&server.get("/meta/file").body).unwrap();
    let all: serde_json::Value = serde_json::from_slice(&server.get("/meta/").body).unwrap();
    let listed = all["entries"].as_array().unwrap().iter().find(|it| it["name"] == "file");
    let file = server.get("/file/file");
    assert_eq!(file.status, 200, "{}", file.text());
    let header = file.header("etag").unwrap().trim_matches('"').to_owned();
    let text = |value: &serde_json::Value| value["etag"].as_str().unwrap().to_owned();
    [text(&own), text(listed.unwrap()), header]
}

/// Starts a server of one file, the manifest of which is known.
fn start() -> Server {
    let server = Server::start(&[]);
    server.write("file", &content(0));
    assert_eq!(server.get("/manifest/file").status, 200);
    server
}

type Change = fn(&Path);

/// Changes the attributes of a file, but not its content. Each gives another change time.
fn changes() -> [(&'static str, Change); 6] {
    [
        ("chmod", |file| {
            let mode = file.metadata().unwrap().mode();
            fs::set_permissions(file, Permissions::from_mode(mode ^ 0o020)).unwrap();
        }),
        ("chown", |file| {
            std::os::unix::fs::chown(file, None, Some(file.metadata().unwrap().gid())).unwrap();
        }),
        ("ln", |file| {
            let link = file.with_extension("link");
            fs::hard_link(file, &link).unwrap();
            fs::remove_file(&link).unwrap();
        }),
        ("touch", |file| File::open(file).unwrap().set_modified(SystemTime::now()).unwrap()),
        ("mv there and back", |file| {
            let there = file.with_extension("there");
            fs::rename(file, &there).unwrap();
            fs::rename(&there, file).unwrap();
        }),
        ("a copy in its place", |file| {
            let copy = file.with_extension("copy");
            fs::copy(file, &copy).unwrap();
            fs::rename(&copy, file).unwrap();
        }),
    ]
}

#[test]
fn other_attributes_of_the_same_content_are_the_same_version_also_after_a_restart() {
    let mut server = start();
    let first = etag(&server);
    for (what, change) in changes() {
        let file = server.dir.path().join("file");
        let before = file.metadata().unwrap();
        change(&file);
        let after = file.metadata().unwrap();
        let attributes = |it: &fs::Metadata| (it.ino(), it.ctime(), it.ctime_nsec());
        assert_ne!(attributes(&before), attributes(&after), "{what} changes nothing");
        assert_eq!(etag(&server), first, "{what}");
        assert_eq!(shown(&server), [&first[..]; 3], "{what}");
    }
    assert_eq!(server.get("/file/file").body, content(0));
    let alias = |server: &Server| {
        let kept = fs::read_dir(server.state_dir.path()).unwrap();
        kept.filter(|it| it.as_ref().unwrap().path().extension() == Some("alias".as_ref())).count()
    };
    wait_for("the aliases are kept", || (alias(&server) == changes().len()).then_some(()));
    server = server.restart();
    assert_eq!(etag(&server), first);
}

#[test]
fn without_a_manifest_other_attributes_are_another_version() {
    let server = Server::start(&[]);
    server.write("file", &content(0));
    let first = etag(&server);
    changes()[0].1(&server.dir.path().join("file"));
    assert_ne!(etag(&server), first);
}

/// Writes other bytes in place and puts the modification time back.
fn rewrite(file: &Path, bytes: &[u8], offset: u64) {
    let modified = file.metadata().unwrap().modified().unwrap();
    let open = File::options().write(true).open(file).unwrap();
    open.write_all_at(bytes, offset).unwrap();
    open.set_times(FileTimes::new().set_modified(modified)).unwrap();
}

#[test]
fn another_byte_anywhere_is_another_version() {
    let server = start();
    // Not by joins: casts that keep ending are refused.
    let mut last = shown(&server)[0].clone();
    for offset in [0, 16_383, 16_384, 40_000, SIZE as u64 - 1] {
        rewrite(&server.dir.path().join("file"), b"\xee", offset);
        let now = shown(&server)[0].clone();
        assert_ne!(now, last, "{offset}");
        assert_eq!(
            server.get("/file/file").body,
            fs::read(server.dir.path().join("file")).unwrap()
        );
        assert_eq!(server.get("/manifest/file").status, 200);
        assert_eq!(shown(&server), [&now[..]; 3]);
        last = now;
    }
}

#[test]
fn a_file_that_is_touched_during_its_cast_does_not_end_it() {
    let server = Server::start(&["--rate", "1mbit", "--idle-passes", "1000"]);
    server.write("file", &content(0));
    assert_eq!(server.get("/manifest/file").status, 200);
    let first = etag(&server);
    let pages = |server: &Server| server.status().casts.first().map(|it| it.pages_sent);
    for (what, change) in changes() {
        change(&server.dir.path().join("file"));
        let sent = pages(&server).expect("the cast runs");
        wait_for(what, || (pages(&server).expect(what) > sent + 20).then_some(()));
    }
    // More than the cast sends between two checks of the path.
    let sent = pages(&server).expect("the cast runs");
    wait_for("the next checks", || (pages(&server).unwrap() > sent + 200).then_some(()));
    let status = server.status();
    assert_eq!((status.casts[0].etag.as_str(), status.totals.casts), (&first[..], 1));
}
