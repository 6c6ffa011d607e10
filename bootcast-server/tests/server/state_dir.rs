//! Manifests that outlive a server, and `bootcast-server hash`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bootcast_proto::JoinAnswer;
use bootcast_proto::manifest::HEADER_CONTENT_ID;

use crate::process::{Server, wait_for};

/// Hash of `abc`.
pub(crate) const ABC: &str = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";

/// Hash that the server names in the answer to a join.
pub(crate) fn joined_hash(server: &Server, name: &str) -> Option<String> {
    let answer = server.get(&format!("/join/{name}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    JoinAnswer::parse(answer.text()).unwrap().extensions.content_id.map(|id| id.to_string())
}

/// Hash that `GET /manifest/` names.
fn manifest_hash(server: &Server, name: &str) -> Option<String> {
    server.get(&format!("/manifest/{name}")).header(HEADER_CONTENT_ID).map(ToOwned::to_owned)
}

pub(crate) fn kept(state_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state_dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|it| it == "manifest")).collect()
}

/// Waits until a manifest is kept. The server stores it after it answered the request.
fn wait_kept(server: &Server) -> PathBuf {
    wait_for("a manifest in the state directory", || kept(server.state_dir.path()).pop())
}

/// Runs `bootcast-server hash` with the directories of this server.
fn hash(dir: &Path, state_dir: &Path, paths: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bootcast-server"));
    command.arg("hash").arg("--dir").arg(dir).arg("--state-dir").arg(state_dir).args(paths);
    command.output().unwrap()
}

#[test]
fn a_manifest_survives_a_restart() {
    let server = Server::start(&[]);
    server.write("file", b"abc");
    assert_eq!(joined_hash(&server, "file"), None);
    assert_eq!(manifest_hash(&server, "file").as_deref(), Some(ABC));
    wait_kept(&server);
    // Only a kept manifest can be known without a request for it.
    let server = server.restart();
    assert_eq!(joined_hash(&server, "file").as_deref(), Some(ABC));
    server.write("file", b"abd");
    assert_eq!(joined_hash(&server, "file"), None, "another version");
}

#[test]
fn a_damaged_manifest_is_computed_again_and_replaced() {
    let server = Server::start(&[]);
    server.write("file", b"abc");
    manifest_hash(&server, "file");
    let path = wait_kept(&server);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[60] ^= 1;
    fs::write(&path, &bad).unwrap();
    let server = server.restart();
    assert_eq!(joined_hash(&server, "file"), None);
    wait_for("the reason in the log", || server.log().contains("it is damaged").then_some(()));
    assert_eq!(manifest_hash(&server, "file").as_deref(), Some(ABC));
    wait_for("the replaced manifest", || (fs::read(&path).ok()? == good).then_some(()));
}

#[test]
fn without_a_usable_state_directory_the_server_logs_one_line_and_works() {
    // Root may write to any directory, but not into a file.
    let server = Server::start(&["--state-dir", "/proc/version"]);
    server.write("file", b"abc");
    assert_eq!(manifest_hash(&server, "file").as_deref(), Some(ABC));
    assert_eq!(joined_hash(&server, "file").as_deref(), Some(ABC));
    let log = server.log();
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert_eq!(log.matches("choose a directory with --state-dir").count(), 1, "{log}");
}

#[test]
fn a_server_knows_what_hash_computed_while_it_runs() {
    let server = Server::start(&[]);
    server.write("file", b"abc");
    assert_eq!(joined_hash(&server, "file"), None);
    let output = hash(server.dir.path(), server.state_dir.path(), &["file"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{ABC}  file\n"));
    assert!(output.status.success());
    assert_eq!(joined_hash(&server, "file").as_deref(), Some(ABC));
}

#[test]
fn hash_prints_the_hash_of_each_file_and_a_line_for_each_that_has_none() {
    let dir = tempfile::TempDir::new().unwrap();
    let (served, state_dir) = (dir.path().join("served"), dir.path().join("new/state"));
    fs::create_dir_all(served.join("sub")).unwrap();
    let content: Vec<u8> = (0..5_000_000_u32).map(|at| (at ^ (at >> 8)).to_le_bytes()[0]).collect();
    fs::write(served.join("sub/large"), &content).unwrap();
    fs::write(served.join("empty"), "").unwrap();
    let absolute = served.join("empty").to_str().unwrap().to_owned();
    let _socket = std::os::unix::net::UnixListener::bind(served.join("socket")).unwrap();
    let output = hash(&served, &state_dir, &["sub/large", "none", "socket", "empty", &absolute]);
    let (large, empty) = (blake3::hash(&content), blake3::hash(b""));
    let lines = format!("{large}  sub/large\n{empty}  empty\n{empty}  {absolute}\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), lines);
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "bootcast-server: none: no such file or directory\n\
         bootcast-server: socket: not a regular file\n"
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(kept(&state_dir).len(), 2);
}

#[test]
fn hash_of_a_directory_hashes_the_regular_files_below_it_and_follows_no_link_in_it() {
    let dir = tempfile::TempDir::new().unwrap();
    let (served, state_dir) = (dir.path().join("served"), dir.path().join("state"));
    fs::create_dir_all(served.join("images/b/c")).unwrap();
    for name in ["images/a", "images/b/c/file", "images/c d", "other", "outside"] {
        fs::write(served.join(name), "abc").unwrap();
    }
    symlink("../other", served.join("images/link")).unwrap();
    symlink("..", served.join("images/loop")).unwrap();
    symlink("images", served.join("by-name")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(served.join("images/socket")).unwrap();
    let below = |top: &str| format!("{ABC}  {top}/a\n{ABC}  {top}/b/c/file\n{ABC}  {top}/c d\n");
    for (paths, lines) in [
        (vec!["images"], below("images")),
        (vec!["by-name"], below("by-name")),
        (vec!["./images", "other"], format!("{}{ABC}  other\n", below("./images"))),
        (vec!["images/b", "images/a"], format!("{ABC}  images/b/c/file\n{ABC}  images/a\n")),
    ] {
        let output = hash(&served, &state_dir, &paths);
        assert_eq!(String::from_utf8_lossy(&output.stdout), lines, "{paths:?}");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn hash_needs_no_state_directory() {
    let dir = tempfile::TempDir::new().unwrap();
    fs::write(dir.path().join("file"), "abc").unwrap();
    let output = hash(dir.path(), Path::new("/proc/version"), &["file"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{ABC}  file\n"));
    assert!(output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("--state-dir") && stderr.lines().count() == 1, "{stderr}");
}
