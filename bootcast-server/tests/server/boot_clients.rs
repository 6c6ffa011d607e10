//! HTTP as boot firmware, small tools and old clients speak it. docs/PROTOCOL.md, "HTTP".

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use rustix::fs::{AtFlags, CWD, Timestamps, utimensat};
use rustix::time::Timespec;
use tempfile::TempDir;

use crate::http::{raw, request};
use crate::process::{DEADLINE, Server, wait_for};

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Reads everything up to the end of the connection.
fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn contains(answer: &[u8], text: &str) -> bool {
    answer.windows(text.len()).any(|it| it == text.as_bytes())
}

#[test]
fn names_of_headers_begin_with_capitals() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    let stream = connect(server.address());
    (&stream).write_all(b"GET /file/file HTTP/1.0\r\n\r\n").unwrap();
    let answer = rest(&stream);
    for header in ["Content-Length: 5", "Accept-Ranges: bytes", "Last-Modified: ", "Content-Type"] {
        assert!(contains(&answer, &format!("\r\n{header}")), "{header}");
    }
}

#[test]
fn every_answer_states_its_length_and_head_the_same_as_get() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    server.write("empty", b"");
    for path in ["/file/file", "/file/empty", "/file/none", "/meta/", "/meta/file", "/", "/status"]
    {
        let get = request(server.address(), "GET", path, &[]);
        let length = get.body.len().to_string();
        assert_eq!(get.header("content-length"), Some(length.as_str()), "{path}");
        assert_eq!(get.header("transfer-encoding"), None, "{path}");
        let head = request(server.address(), "HEAD", path, &[]);
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        // The numbers of the status change.
        if path != "/status" {
            assert_eq!(head.header("content-length"), Some(length.as_str()), "{path}");
        }
    }
}

#[test]
fn http_1_0_is_answered_and_keeps_a_connection_if_asked_to() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    let once = connect(server.address());
    (&once).write_all(b"GET /file/file HTTP/1.0\r\n\r\n").unwrap();
    let answer = rest(&once);
    assert!(answer.starts_with(b"HTTP/1.0 200 OK\r\n") && answer.ends_with(b"\r\n\r\nbytes"));

    let mut kept = connect(server.address());
    for _ in 0..3 {
        kept.write_all(b"GET /file/file HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nbytes") {
            let mut byte = [0];
            kept.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        assert!(contains(&answer, "\r\nConnection: keep-alive\r\n"));
    }
}

#[test]
fn a_client_that_shuts_down_its_sending_half_gets_the_whole_answer() {
    let server = Server::start(&[]);
    let large = vec![7; 8 << 20];
    server.write("large", &large);
    for (path, end) in [("file/large", &large[..]), ("join/large", b"\n\n"), ("status", b"}")] {
        for _ in 0..4 {
            let stream = connect(server.address());
            (&stream).write_all(format!("GET /{path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let answer = rest(&stream);
            assert!(answer.starts_with(b"HTTP/1.0 200 OK"), "{path}");
            assert!(answer.ends_with(end), "{path}: {} bytes", answer.len());
        }
    }
}

#[test]
fn the_join_of_a_client_that_closed_its_connection_is_undone() {
    use rustix::process::Signal;
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    server.get("/status");
    // The kernel takes the request while the server is stopped.
    server.signal(Signal::STOP);
    let requests = 20;
    for _ in 0..requests {
        let mut stream = connect(server.address());
        stream.write_all(b"GET /join/file HTTP/1.1\r\nhost: x\r\nX-BOOTCAST: 1\r\n\r\n").unwrap();
    }
    server.signal(Signal::CONT);
    // Its lease would last longer than this test waits.
    wait_for("no member stays", || {
        let status = server.status();
        let members: u32 = status.casts.iter().map(|cast| cast.members).sum();
        (members == 0).then_some(())
    });
}

#[test]
fn empty_names_dots_codes_and_absolute_targets_name_the_same_file() {
    let server = Server::start(&[]);
    std::fs::create_dir(server.dir.path().join("sub")).unwrap();
    server.write("sub/a b", b"bytes");
    for target in [
        "/file/sub/a%20b",
        "//file/sub/a%20b",
        "/./file//sub/.//a%20b",
        "/file/%73%75b/%61%20%62",
        "/file/sub/a%20b/",
        "/file/sub/%2e/a%20b",
        "http://head:8888/file/sub/a%20b",
        "http://head:8888//file/./sub/a%20b?query",
    ] {
        let answer = raw(
            server.address(),
            &format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
        );
        assert_eq!((answer.status, answer.text()), (200, "bytes"), "{target}");
    }
    for (target, status) in [
        ("/file/../sub/a%20b", 400),
        ("/file/sub/%2e%2e/x", 400),
        ("/../file/sub/a%20b", 404),
        ("//", 404),
        ("*", 404),
        ("http://head:8888", 404),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert_eq!(raw(server.address(), &text).status, status, "{target}");
    }
}

#[test]
fn odd_ranges_are_answered_as_rfc_9110_says() {
    let server = Server::start(&[]);
    server.write("file", b"0123456789");
    for (range, status, body) in [
        ("bytes=0-99999999999999999999999999", 206, "0123456789"),
        ("bytes=-99999999999999999999999999", 206, "0123456789"),
        ("bytes=99999999999999999999999999-", 416, ""),
        ("bytes=18446744073709551615-18446744073709551615", 416, ""),
        ("bytes=9-18446744073709551615", 206, "9"),
        ("bytes= 2 - 3 ", 206, "23"),
        ("BYTES=2-3", 206, "23"),
        ("bytes=-0", 416, ""),
        ("bytes=10-", 416, ""),
        ("bytes=3-2", 200, "0123456789"),
        ("bytes=0-1,4-5", 200, "0123456789"),
        ("bytes=0-1,", 200, "0123456789"),
        ("bytes=--1", 200, "0123456789"),
        ("bytes=+1-2", 200, "0123456789"),
        ("bytes=0x1-2", 200, "0123456789"),
        ("bytes=", 200, "0123456789"),
        ("bytes", 200, "0123456789"),
    ] {
        let answer = request(server.address(), "GET", "/file/file", &[("Range", range)]);
        assert_eq!((answer.status, answer.text()), (status, body), "{range}");
        let length = body.len().to_string();
        assert_eq!(answer.header("content-length"), Some(length.as_str()), "{range}");
    }
    let several = [("Range", "bytes=0-1"), ("Range", "bytes=4-5")];
    let answer = request(server.address(), "GET", "/file/file", &several);
    assert_eq!((answer.status, answer.text()), (200, "0123456789"));
}

#[test]
fn files_of_any_date_are_served() {
    // This file system stores all 64 bits of a time.
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let server = Server::start(&["--dir", dir.path().to_str().unwrap()]);
    let newest = "Fri, 31 Dec 9999 23:59:59 GMT";
    let oldest = "Thu, 01 Jan 1970 00:00:00 GMT";
    for (nth, (seconds, date)) in [
        (-1, oldest),
        (i64::MIN, oldest),
        (-253_402_300_800, oldest),
        (253_402_300_799, newest),
        (253_402_300_800, newest),
        (67_768_036_191_694_799, newest),
        (i64::MAX, newest),
    ]
    .into_iter()
    .enumerate()
    {
        // The casts of a file that changes each time would be refused.
        let name = format!("file{nth}");
        let path = dir.path().join(&name);
        std::fs::write(&path, b"bytes").unwrap();
        let time = Timespec { tv_sec: seconds, tv_nsec: 999_999_999 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        let whole = server.get(&format!("/file/{name}"));
        assert_eq!((whole.status, whole.text()), (200, "bytes"), "{seconds}");
        assert_eq!(whole.header("last-modified"), Some(date), "{seconds}");
        let known = [("If-Modified-Since", newest)];
        let answer = request(server.address(), "GET", &format!("/file/{name}"), &known);
        assert_eq!(answer.status, 304, "{seconds}");
        let meta = server.get(&format!("/meta/{name}"));
        assert!(meta.text().contains(&format!("\"mtime\":{seconds},")), "{}", meta.text());
        assert_eq!(server.get(&format!("/join/{name}")).status, 200, "{seconds}");
    }
    for date in ["Fri, 31 Dec 10000 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 GMT", "", "9", "\t"] {
        let answer =
            request(server.address(), "GET", "/file/file0", &[("If-Modified-Since", date)]);
        assert_eq!(answer.status, 200, "{date}");
    }
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
