//! Tests `bootcast get` over loopback against servers that misbehave on purpose.
//!
//! The package `tests` has the end-to-end tests with the real server.
#![expect(clippy::unwrap_used, reason = "a helper that cannot do its work fails the test")]

mod server;

use std::fs;
use std::io::Read;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bootcast_proto::manifest::{HEADER_CONTENT_ID, Manifest};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, kill_process};
use server::{
    Carousel, NO_ANSWER, PAGE_SIZE, ScriptedServer, join_answer, partial_response, response,
};
use tempfile::TempDir;

const ETAG: &str = "ETag: \"v1\"\r\n";

/// Returns a group for one test alone, because tests run in parallel.
fn group(number: u8) -> SocketAddrV4 {
    SocketAddrV4::new([239, 255, 77, number].into(), 9077)
}

fn get(dir: &Path, args: &[&str]) -> Command {
    // A test run in the background may have signals ignored, and children inherit that.
    let mut command = Command::new("env");
    command.args(["--default-signal", env!("CARGO_BIN_EXE_bootcast")]);
    command.current_dir(dir).env_remove("BOOTCAST_INTERFACE");
    command.args(["get", "--interface", "lo"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(dir: &TempDir, args: &[&str]) -> Output {
    get(dir.path(), args).output().unwrap()
}

/// Returns the exit code and the only line on standard error.
fn exit_and_message(output: &Output) -> (Option<i32>, String) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(text.lines().count() <= 1, "{text}");
    (output.status.code(), text)
}

/// Returns the names in `dir`, also hidden ones.
fn names(dir: &TempDir) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into()).collect()
}

#[expect(clippy::disallowed_methods, reason = "a deadline for a condition of another process")]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Returns whether the kernel lists a socket of this machine as a member of the group.
fn is_subscribed(group: SocketAddrV4) -> bool {
    let address = u32::from_ne_bytes(group.ip().octets());
    let groups = fs::read_to_string("/proc/net/igmp").unwrap();
    groups.contains(&format!("{address:08X}"))
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_broken_unicast_fetch_resumes_at_the_first_missing_byte() {
    let dir = tempfile::tempdir().unwrap();
    let whole = format!("Content-Length: 10\r\n{ETAG}");
    let rest = format!("{ETAG}Content-Range: bytes 4-9/10\r\n");
    let server = ScriptedServer::start([
        ("file", partial_response("200 OK", &whole, "0123")),
        ("file", response("206 Partial Content", &rest, "456789")),
    ]);
    let output = run(&dir, &["--unicast", &server.url("image")]);
    assert_eq!(exit_and_message(&output), (Some(0), String::new()));
    assert_eq!(fs::read(dir.path().join("image")).unwrap(), b"0123456789");
    let second = &server.requests("file")[1];
    assert_eq!(second.header("range"), Some("bytes=4-"));
    assert_eq!(second.header("if-range"), Some("\"v1\""));
}

/// Starts a server that sends the beginning of version 1 first, and the whole of version 2 after
/// it.
fn changing_server() -> ScriptedServer {
    let first = format!("Content-Length: 10\r\n{ETAG}");
    let second = || response("200 OK", "ETag: \"v2\"\r\n", "ABCDEFGHIJ");
    ScriptedServer::start([
        ("file", partial_response("200 OK", &first, "0123")),
        ("file", second()),
        ("file", second()),
    ])
}

#[test]
fn a_changed_file_is_fetched_again_and_versions_never_mix() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(&dir, &["--unicast", &changing_server().url("image")]);
    assert_eq!(exit_and_message(&output), (Some(0), String::new()));
    assert_eq!(fs::read(dir.path().join("image")).unwrap(), b"ABCDEFGHIJ");
}

#[test]
fn a_stream_of_a_changed_file_fails_after_its_first_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(&dir, &["--unicast", &changing_server().url("image"), "-O", "-"]);
    let (code, text) = exit_and_message(&output);
    assert_eq!(code, Some(7), "{text}");
    assert!(text.contains("after 4 bytes"), "{text}");
    assert_eq!(output.stdout, b"0123");
}

#[test]
fn refusals_have_their_exit_codes_and_leave_no_file() {
    for (status, code) in
        [("404 Not Found", 5), ("403 Forbidden", 6), ("503 Service Unavailable", 6)]
    {
        let dir = tempfile::tempdir().unwrap();
        let server = ScriptedServer::start([("file", response(status, "", "because\n"))]);
        let (found, text) = exit_and_message(&run(&dir, &["--unicast", &server.url("image")]));
        assert_eq!(found, Some(code), "{text}");
        assert_eq!(text, "bootcast: /image: because\n");
        assert_eq!(names(&dir), [""; 0].map(PathBuf::from));
    }
}

#[test]
fn a_hash_that_is_none_or_cannot_be_proven_has_its_exit_code_and_leaves_no_file() {
    let meta = r#"{"kind":"file","size":3,"mode":420,"mtime":0,"mtime_ns":0,"etag":"v1"}"#;
    let meta = response("200 OK", ETAG, meta);
    let server = |answer: String| {
        let answers = [("meta", meta.clone()), ("manifest", answer)];
        ScriptedServer::start(answers.into_iter().cycle().take(40))
    };
    let (hash, other) =
        ("0".repeat(64), format!("{ETAG}{HEADER_CONTENT_ID}: {}\r\n", "1".repeat(64)));
    for (hash, answer, code, told) in [
        ("0123", response("404 Not Found", "", ""), 1, "64 hexadecimal digits"),
        (&hash, response("404 Not Found", "", "none\n"), 5, "/image: none"),
        (&hash, response("500 Internal Server Error", "", "bad disk\n"), 4, "no proof"),
        (&hash, response("503 Service Unavailable", "", "hashing\n"), 4, "no proof"),
        (&hash, response("200 OK", &other, ""), 6, "does not fit the size"),
        (&hash, response("200 OK", &other, &"x".repeat(32)), 8, "not the content that --b3 names"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let server = server(answer);
        let args = ["--unicast", "-t", "1", "--b3", hash, &server.url("image")];
        let output = run(&dir, &args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}: {text}");
        assert!(text.contains(told), "{told}: {text}");
        assert_eq!(names(&dir), [""; 0].map(PathBuf::from));
    }
}

#[test]
fn a_cast_without_datagrams_times_out_with_advice_and_a_leave() {
    let dir = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start([("join", join_answer(group(1), "t1", 250, "v1"))]);
    let (code, text) = exit_and_message(&run(&dir, &["--timeout", "0.3", &server.url("image")]));
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("firewall") && text.contains("--unicast"), "{text}");
    assert_eq!(server.requests("leave")[0].header("x-token"), Some("t1"));
    assert!(names(&dir).is_empty());
}

#[test]
fn a_signal_leaves_the_cast_and_keeps_the_old_file() {
    for (sent, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("image"), "old").unwrap();
        let server = ScriptedServer::start([("join", join_answer(group(2), "t1", 250, "v1"))]);
        let child = get(dir.path(), &[&server.url("image")]).spawn().unwrap();
        wait_until("the group is subscribed", || is_subscribed(group(2)));
        signal(&child, sent);
        let output = child.wait_with_output().unwrap();
        assert_eq!(exit_and_message(&output).0, Some(code));
        assert_eq!(server.requests("leave").len(), 1);
        assert_eq!(names(&dir), [PathBuf::from("image")]);
        assert_eq!(fs::read(dir.path().join("image")).unwrap(), b"old");
    }
}

#[test]
fn a_stream_begins_before_the_file_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..=255).cycle().take(5 * PAGE_SIZE + 1).collect();
    let server =
        ScriptedServer::start([("join", join_answer(group(3), "t1", content.len(), "v1"))]);
    // The pages after page 2 cannot be written before it arrives.
    let whole = Arc::new(AtomicBool::new(false));
    let is_whole = whole.clone();
    let _cast = Carousel::start(group(3), &content, move |page| {
        page != 2 || is_whole.load(Ordering::Acquire)
    });
    let mut child = get(dir.path(), &[&server.url("image"), "-O", "-"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut prefix = vec![0; 2 * PAGE_SIZE];
    stdout.read_exact(&mut prefix).unwrap();
    assert_eq!(prefix, content[..2 * PAGE_SIZE]);
    whole.store(true, Ordering::Release);
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert!(rest == content[2 * PAGE_SIZE..]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(server.requests("leave").len(), 1);
}

/// Starts a server that has `content` for one fetch over HTTP.
fn server_with(content: &str) -> ScriptedServer {
    ScriptedServer::start([("file", response("200 OK", ETAG, content))])
}

#[test]
fn a_pipe_in_non_blocking_mode_gets_all_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let content = "0123456789abcdef".repeat(1 << 16);
    let server = server_with(&content);
    let (mut reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let mut command = get(dir.path(), &["--unicast", &server.url("image"), "-O", "-"]);
    let mut child = command.stdout(writer.try_clone().unwrap()).spawn().unwrap();
    let is_full = || {
        let mut writable = [PollFd::new(&writer, PollFlags::OUT)];
        rustix::event::poll(&mut writable, Some(&Timespec::default())).unwrap() == 0
    };
    wait_until("the pipe is full", is_full);
    // Otherwise its reader would wait for more.
    drop((command, writer));
    let mut written = String::new();
    reader.read_to_string(&mut written).unwrap();
    assert!(written == content);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_open_descriptor_is_written_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let bootcast = env!("CARGO_BIN_EXE_bootcast");
    for name in ["/dev/fd/3", "/proc/self/fd/3", "/dev/stdout"] {
        let server = server_with("content");
        let script = "{ printf before, >&3; \"$0\" get --unicast \"$1\" -O \"$2\" >&3; \
             printf ,after >&3; } 3>out";
        let mut shell = Command::new("sh");
        shell.current_dir(&dir).args(["-c", script, bootcast, &server.url("image"), name]);
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        let written = fs::read_to_string(dir.path().join("out")).unwrap();
        assert_eq!(written, "before,content,after", "{name}");
    }
}

#[test]
fn a_closed_pipe_ends_the_command_silently() {
    let dir = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start([("join", join_answer(group(4), "t1", 250, "v1"))]);
    let mut child = get(dir.path(), &[&server.url("image"), "-O", "-"]).spawn().unwrap();
    drop(child.stdout.take());
    let _carousel = Carousel::start(group(4), &[7; 250], |_| true);
    let output = child.wait_with_output().unwrap();
    assert_eq!(exit_and_message(&output), (Some(141), String::new()));
    assert_eq!(server.requests("leave").len(), 1);
}

#[test]
fn without_a_temporary_directory_the_spool_is_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start([("join", join_answer(group(5), "t1", 250, "v1"))]);
    let _carousel = Carousel::start(group(5), &[7; 250], |_| true);
    let mut command = get(dir.path(), &[&server.url("image"), "-O", "-"]);
    let output = command.env("TMPDIR", "/nonexistent").output().unwrap();
    assert_eq!(exit_and_message(&output), (Some(0), String::new()));
    assert_eq!(output.stdout, [7; 250]);
}

#[test]
fn a_new_version_in_a_later_join_is_fetched_from_the_beginning() {
    let dir = tempfile::tempdir().unwrap();
    // The first cast is silent. The HTTP fetch and the second join find another version.
    let joins = [(6, "t1", "v1"), (7, "t2", "v2"), (7, "t3", "v2")];
    let joins =
        joins.map(|(number, token, etag)| ("join", join_answer(group(number), token, 250, etag)));
    let file = response("200 OK", "ETag: \"v2\"\r\n", &"\u{2}".repeat(250));
    let server =
        ScriptedServer::start(joins.into_iter().chain([("file", file.clone()), ("file", file)]));
    let _new = Carousel::start(group(7), &[2; 250], |_| true);
    let output = run(&dir, &[&server.url("image")]);
    assert_eq!(exit_and_message(&output), (Some(0), String::new()));
    assert_eq!(fs::read(dir.path().join("image")).unwrap(), [2; 250]);
    let left: Vec<_> = server.requests("leave");
    let mut left: Vec<_> = left.iter().filter_map(|leave| leave.header("x-token")).collect();
    left.sort_unstable();
    assert_eq!(left, ["t1", "t2", "t3"]);
}

#[test]
fn duplicate_pages_are_no_progress() {
    let dir = tempfile::tempdir().unwrap();
    let joins =
        || ["t1", "t2", "t3"].map(|token| ("join", join_answer(group(8), token, 250, "v1")));
    let _first_page_only = Carousel::start(group(8), &[7; 250], |page| page == 0);
    for output in [&["-O", "image"][..], &["-O", "-"], &["--range", "0-", "-O", "-"]] {
        let server = ScriptedServer::start(joins());
        let url = server.url("image");
        let (code, text) = exit_and_message(&run(&dir, &[&["-t", "0.5", &url], output].concat()));
        assert_eq!(code, Some(4), "{output:?}: {text}");
        assert!(text.contains("nothing new"), "{output:?}: {text}");
        assert!(names(&dir).is_empty());
    }
}

#[test]
fn connections_without_new_bytes_are_no_progress() {
    let dir = tempfile::tempdir().unwrap();
    let first = partial_response("200 OK", &format!("Content-Length: 10\r\n{ETAG}"), "0123");
    let rest = format!("Content-Length: 6\r\nContent-Range: bytes 4-9/10\r\n{ETAG}");
    let empty = partial_response("206 Partial Content", &rest, "");
    let script = std::iter::once(first).chain(std::iter::repeat_n(empty, 100));
    let server = ScriptedServer::start(script.map(|answer| ("file", answer)));
    let (code, text) =
        exit_and_message(&run(&dir, &["--unicast", "-t", "0.5", &server.url("image")]));
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("closes each connection at byte 4"), "{text}");
    assert!(names(&dir).is_empty());
}

#[test]
fn connections_lost_for_the_same_reason_are_logged_once() {
    let dir = tempfile::tempdir().unwrap();
    // Each connection brings one byte, so that the client reconnects at once.
    let byte = |at: usize| {
        let range =
            format!("Content-Length: {}\r\nContent-Range: bytes {at}-9/10\r\n{ETAG}", 10 - at);
        let status = if at == 0 { "200 OK" } else { "206 Partial Content" };
        ("file", partial_response(status, &range, "7"))
    };
    let server = ScriptedServer::start((0..10).map(byte));
    let output = run(&dir, &["--unicast", "-v", &server.url("image")]);
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert_eq!(server.requests("file").len(), 10);
    assert_eq!(log.matches("connection lost").count(), 1, "{log}");
}

#[test]
fn a_server_that_never_answers_times_out() {
    let dir = tempfile::tempdir().unwrap();
    for mode in [&[][..], &["--unicast"], &["--range", "0-9"]] {
        let silent = ["meta", "join", "file"].map(|endpoint| (endpoint, NO_ANSWER.to_owned()));
        let server = ScriptedServer::start(silent);
        let url = server.url("image");
        let (code, text) = exit_and_message(&run(&dir, &[&["-t", "0.5", &url], mode].concat()));
        assert_eq!(code, Some(4), "{mode:?}: {text}");
        assert!(names(&dir).is_empty());
    }
}

#[test]
fn a_hanging_request_for_attributes_does_not_delay_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let join = join_answer(group(9), "t1", 250, "v1");
    let server = ScriptedServer::start([("meta", NO_ANSWER.to_owned()), ("join", join)]);
    let _carousel = Carousel::start(group(9), &[7; 250], |_| true);
    let output = run(&dir, &[&server.url("image")]);
    assert_eq!(exit_and_message(&output), (Some(0), String::new()));
    assert_eq!(fs::read(dir.path().join("image")).unwrap(), [7; 250]);
    assert_eq!(server.requests("meta").len(), 1);
}

#[test]
fn ls_requests_no_listing_from_a_server_that_hangs() {
    let server = ScriptedServer::start([("meta", NO_ANSWER.to_owned())]);
    let ls =
        Command::new(env!("CARGO_BIN_EXE_bootcast")).args(["ls", &server.url("images")]).output();
    let (code, text) = exit_and_message(&ls.unwrap());
    assert_eq!(code, Some(3), "{text}");
    let requests: Vec<_> = server.requests("meta").into_iter().map(|it| it.line).collect();
    assert_eq!(requests, ["GET /meta/images?entries=0 HTTP/1.1"]);
}

#[test]
fn a_directory_is_reported_even_if_the_join_gets_404() {
    let dir = tempfile::tempdir().unwrap();
    let meta = r#"{"kind":"directory","size":0,"mode":493,"mtime":0,"mtime_ns":0,"entries":[]}"#;
    let server = ScriptedServer::start([("meta", response("200 OK", "", meta))]);
    let (code, text) = exit_and_message(&run(&dir, &[&server.url("images")]));
    assert_eq!(code, Some(6), "{text}");
    assert!(text.contains("is a directory"), "{text}");
}

#[test]
fn a_refused_connection_is_an_error_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (url, hash) = ("http://127.0.0.1:1/image", "0".repeat(64));
    for args in [&[url][..], &["--unicast", url], &["--b3", &hash, url]] {
        let (code, text) = exit_and_message(&run(&dir, args));
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains("refused"), "{text}");
    }
}

/// Starts a server with a right manifest of `content`, which sends `body` as the file.
fn server_with_manifest(content: &[u8], body: &[u8]) -> (ScriptedServer, String) {
    let manifest = Manifest::of_content(content);
    let id = manifest.id().to_string();
    let answer = |body: &[u8]| {
        let headers = format!("ETag: \"v1\"\r\n{HEADER_CONTENT_ID}: {id}\r\n");
        let len = body.len();
        let head = partial_response("200 OK", &format!("Content-Length: {len}\r\n{headers}"), "");
        [head.as_bytes(), body].concat()
    };
    let size = content.len();
    let meta =
        format!(r#"{{"kind":"file","size":{size},"mode":420,"mtime":0,"mtime_ns":0,"etag":"v1"}}"#);
    let server = ScriptedServer::start([
        ("meta", answer(meta.as_bytes())),
        ("meta", answer(meta.as_bytes())),
        ("manifest", answer(manifest.segments().as_flattened())),
        ("manifest", answer(manifest.leaves().as_flattened())),
        ("file", answer(body)),
    ]);
    (server, id)
}

#[test]
fn a_pipe_does_not_end_in_success_with_less_or_more_than_the_named_content() {
    let content = vec![b'a'; 2 * 16_384 + 1];
    let longer = [&content[..], b"a"].concat();
    for (body, code, proven) in [
        (&content[..], 0, content.len()),
        (&content[..32_768], 7, 32_768),
        (&content[..20_000], 7, 16_384),
        (&longer[..], 8, 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (server, id) = server_with_manifest(&content, body);
        let output = run(&dir, &["--unicast", "--b3", &id, "-O", "-", &server.url("image")]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{} bytes: {text}", body.len());
        assert!(output.stdout.len() >= proven && content.starts_with(&output.stdout), "{text}");
    }
}
