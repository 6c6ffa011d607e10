//! `--prehash`: files that are hashed before anybody asks for it.

use std::time::SystemTime;

use bootcast_server::source::OpenFile;

use crate::process::{Server, wait_for};
use crate::state_dir::{ABC, joined_hash, kept};

/// Line of the log after all files were hashed.
const DONE: &str = "--prehash: all files are hashed";

/// Restarts a server with the file `abc`, and waits until the new one has hashed all files ahead.
fn prehashed(server: Server, args: &[&str]) -> Server {
    server.write("file", b"abc");
    // A walk passes over files that were written a moment ago.
    wait_for("a stable version", || {
        let open = OpenFile::open_local(&server.dir.path().join("file")).unwrap();
        open.version.unstable_for(SystemTime::now()).is_none().then_some(())
    });
    let server = server.restart_with(&[&["--prehash"], args].concat());
    wait_for("the end of the first walk", || server.log().contains(DONE).then_some(()));
    server
}

#[test]
fn with_prehash_a_join_is_told_the_hash_of_a_file_that_nobody_asked_for() {
    let server = prehashed(Server::start(&[]), &[]);
    assert_eq!(kept(server.state_dir.path()).len(), 1);
    assert_eq!(joined_hash(&server, "file").as_deref(), Some(ABC));
    let log = server.log();
    assert!(log.contains("files=1 bytes=3 known=0 failed=0"), "{log}");
    assert_eq!(log.matches("--prehash").count(), 2, "one line at the start, one at the end: {log}");
    let server = server.restart_with(&["--prehash"]);
    wait_for("the end of the first walk", || server.log().contains(DONE).then_some(()));
    assert!(server.log().contains("files=0 bytes=0 known=1 failed=0"), "{}", server.log());
}

#[test]
fn prehash_works_without_a_usable_state_directory_with_one_more_line_in_the_log() {
    // Root may write to any directory, but not into a file.
    let server = prehashed(Server::start(&[]), &["--state-dir", "/proc/version"]);
    assert_eq!(joined_hash(&server, "file").as_deref(), Some(ABC));
    let log = server.log();
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert_eq!(log.matches("choose a directory with --state-dir").count(), 1, "{log}");
}
