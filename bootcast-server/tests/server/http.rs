//! HTTP requests written byte by byte, so that paths are sent exactly as written.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::process::{DEADLINE, Server};

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        fields.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|it| it.1)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Sends a request on a new connection.
pub(crate) fn request(
    server: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Response {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.extend([*name, ": ", *value, "\r\n"]);
    }
    text.push_str("\r\n");
    raw(server, &text)
}

/// Posts a report with this token.
pub(crate) fn report(server: SocketAddr, path: &str, token: Option<&str>, body: &str) -> Response {
    post(server, &format!("/report/{path}"), token, body)
}

/// Posts a body with this token.
pub(crate) fn post(server: SocketAddr, path: &str, token: Option<&str>, body: &str) -> Response {
    let token = token.map_or_else(String::new, |token| format!("X-TOKEN: {token}\r\n"));
    let length = body.len();
    raw(
        server,
        &format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{token}\
             content-length: {length}\r\n\r\n{body}"
        ),
    )
}

/// Sends the text on a new connection, and reads the answer up to its end.
pub(crate) fn raw(server: SocketAddr, text: &str) -> Response {
    exchange(TcpStream::connect(server).unwrap(), text)
}

/// Requests a file from this address, as a small one.
pub(crate) fn request_small(server: SocketAddr, from: [u8; 4], path: &str) -> Response {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&server.into()).unwrap();
    let headers = "host: x\r\nconnection: close\r\nX-BOOTCAST-SMALL: 1";
    exchange(socket.into(), &format!("GET {path} HTTP/1.1\r\n{headers}\r\n\r\n"))
}

fn exchange(mut stream: TcpStream, text: &str) -> Response {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a complete head");
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { status, head, body: answer[end + 4..].to_vec() }
}

#[test]
fn every_error_has_its_status_and_one_line_of_text() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    std::fs::create_dir(server.dir.path().join("sub")).unwrap();
    let endless = format!("/file/{}", "a/".repeat(20_000));
    for (method, path, status) in [
        ("GET", endless.as_str(), 400),
        ("GET", "/join/nope", 404),
        ("GET", "/join/file/below", 404),
        ("GET", "/join/sub", 400),
        ("GET", "/join/", 400),
        ("GET", "/join/%", 400),
        ("GET", "/join/%zz", 400),
        ("GET", "/join/a%00b", 400),
        ("GET", "/meta/nope", 404),
        ("GET", "/file/sub", 400),
        ("GET", "/", 404),
        ("GET", "/elsewhere", 404),
        ("PUT", "/join/file", 405),
        ("PUT", "/file/file", 405),
        ("DELETE", "/status", 405),
    ] {
        let response = request(server.address(), method, path, &[]);
        assert_eq!(response.status, status, "{method} {path}: {}", response.text());
        assert_eq!(response.text().lines().count(), 1, "{method} {path}");
        assert_eq!(response.header("allow").is_some(), status == 405, "{method} {path}");
    }
    assert_eq!(server.status().totals.joins, 0);
}

#[test]
fn a_head_request_joins_nothing() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    let response = request(server.address(), "HEAD", "/join/file", &[]);
    assert_eq!((response.status, response.header("allow")), (405, Some("GET,POST")));
    assert_eq!(server.status().totals.joins, 0);
}

#[test]
fn a_web_page_in_a_browser_changes_nothing() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    for header in [
        ("Origin", "http://elsewhere.example"),
        ("Origin", "null"),
        ("Referer", "http://head:8888/file/page.html"),
        ("Sec-Fetch-Mode", "no-cors"),
        ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ] {
        for (method, path) in [
            ("GET", "/join/file"),
            ("POST", "/join/file"),
            ("GET", "/join//file"),
            ("GET", "/leave/file"),
            ("POST", "/report/file"),
            ("POST", "/want/file"),
        ] {
            let response = request(server.address(), method, path, &[header]);
            assert_eq!(response.status, 403, "{method} {path} {header:?}");
            assert_eq!(response.text().lines().count(), 1, "{method} {path} {header:?}");
        }
        let response = request(server.address(), "GET", "/file/file", &[header]);
        assert_eq!(response.text(), "bytes", "{header:?}");
    }
    assert_eq!(server.status().totals.joins, 0);
}

#[test]
fn a_post_joins_and_leaves_as_a_get_does() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    let answer = request(server.address(), "POST", "/join/file", &[]);
    let token = answer.text().lines().find_map(|line| line.strip_prefix("TOKEN=")).unwrap();
    let left = request(server.address(), "POST", "/leave/file", &[("X-TOKEN", token)]);
    assert_eq!((answer.status, left.status), (200, 204));
    let totals = server.status().totals;
    assert_eq!((totals.joins, totals.leaves), (1, 1));
}

#[test]
fn requests_for_names_that_are_not_permitted_get_nothing() {
    let server = Server::start(&["--host", "head,head.example"]);
    server.write("file", b"bytes");
    for (host, status) in [
        ("host: head.example:8888\r\n", 200),
        ("host: 127.0.0.1:8888\r\n", 200),
        ("host: evil.example\r\n", 421),
    ] {
        for path in ["/file/file", "/status", "/meta/", "/join/file"] {
            let text = format!("GET {path} HTTP/1.1\r\n{host}connection: close\r\n\r\n");
            assert_eq!(raw(server.address(), &text).status, status, "{host} {path}");
        }
    }
    let old = raw(server.address(), "GET /file/file HTTP/1.0\r\n\r\n");
    assert_eq!(old.status, 200);
    let absolute = "GET http://evil.example/file/file HTTP/1.1\r\nhost: head\r\n\
                    connection: close\r\n\r\n";
    assert_eq!(raw(server.address(), absolute).status, 421);
}

#[test]
fn a_leave_with_an_unknown_token_changes_nothing() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    server.get("/join/file");
    for token in ["0123456789abcdef", "no token at all", "\u{e9}"] {
        let response = request(server.address(), "GET", "/leave/file", &[("X-TOKEN", token)]);
        assert_eq!((response.status, response.body.len()), (204, 0), "{token}");
    }
    assert_eq!(server.status().totals.leaves, 0);
}

#[test]
fn a_leave_without_a_token_is_refused_without_a_body() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    server.get("/join/file");
    let response = server.get("/leave/file");
    assert_eq!((response.status, response.body.len()), (400, 0));
    assert_eq!(server.status().casts[0].members, 1);
}

#[test]
fn a_query_string_is_ignored() {
    let server = Server::start(&[]);
    server.write("file", b"bytes");
    assert_eq!(server.get("/file/file?x=../y").text(), "bytes");
    assert!(server.get("/join/file?again").text().starts_with("CONNECT="));
}

#[test]
fn a_request_that_is_not_http_is_refused_and_the_server_goes_on() {
    let server = Server::start(&[]);
    for nonsense in ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "GET /join/a b HTTP/1.1\r\n\r\n"] {
        assert_eq!(raw(server.address(), nonsense).status, 400);
    }
    let endless = format!("GET /status HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 17));
    assert_eq!(raw(server.address(), &endless).status, 431);
    assert_eq!(server.get("/status").status, 200);
}

#[test]
fn a_host_with_all_its_connections_open_does_not_block_other_hosts() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let server = Server::start(&[]);
    // All addresses of 127.0.0.0/8 are local.
    let connect = |from: [u8; 4]| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&server.address().into()).unwrap();
        TcpStream::from(socket)
    };
    let _open: Vec<_> = (0..1024).map(|_| connect([127, 0, 0, 2])).collect();
    let mut one_more = connect([127, 0, 0, 2]);
    one_more.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut answer = Vec::new();
    // The connection is reset or closed, both without an answer.
    let _ = one_more.write_all(b"GET /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let _ = one_more.read_to_end(&mut answer);
    assert!(answer.is_empty());
    assert_eq!(server.get("/status").status, 200);
}

#[test]
fn the_error_for_a_file_with_too_many_pages_names_the_option() {
    let server = Server::start(&["--page-size", "2"]);
    let file = std::fs::File::create(server.dir.path().join("sparse")).unwrap();
    file.set_len(2 << 32).unwrap();
    let refused = server.get("/join/sparse");
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("--page-size"), "{}", refused.text());
}
