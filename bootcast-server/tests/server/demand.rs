//! Demand over HTTP, and the datagrams that answer it. docs/PROTOCOL.md, "Demand".

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use bootcast_proto::wire::Layout;
use bootcast_proto::{JoinAnswer, PageIndex};
use socket2::{Domain, Socket, Type};

use crate::http::{Response, post, request};
use crate::process::{DEADLINE, Server, wait_for};

const PAGE: usize = 1456;

pub(crate) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 31 % 253).unwrap()).collect()
}

/// A member that receives only the pages that it demands, and its socket.
pub(crate) struct Member {
    pub(crate) answer: JoinAnswer,
    socket: UdpSocket,
}

impl Member {
    fn join(server: &Server, path: &str) -> Self {
        Self::join_with(server, path, &[])
    }

    /// Joins with more headers.
    pub(crate) fn join_with(server: &Server, path: &str, more: &[(&str, &str)]) -> Self {
        let headers = [&[("X-BOOTCAST", "1"), ("X-BOOTCAST-FILL", "demand")], more].concat();
        let response = request(server.address(), "GET", &format!("/join/{path}"), &headers);
        assert_eq!(response.status, 200, "{}", response.text());
        let answer = JoinAnswer::parse(response.text()).unwrap();
        let unbound = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        unbound.set_reuse_address(true).unwrap();
        unbound.bind(&SocketAddr::from(answer.connect).into()).unwrap();
        let socket = UdpSocket::from(unbound);
        socket.join_multicast_v4(answer.connect.ip(), &Ipv4Addr::LOCALHOST).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { answer, socket }
    }

    pub(crate) fn want(&self, server: &Server, path: &str, body: &str) -> Response {
        let token = Some(self.answer.token.as_str());
        post(server.address(), &format!("/want/{path}"), token, body)
    }

    /// Receives `count` pages and returns their numbers, counted from 1. Asserts that their bytes
    /// are those of `content`.
    pub(crate) fn receive(&self, count: usize, content: &[u8]) -> Vec<u32> {
        let mut datagram = vec![0; 65_536];
        let mut receive = || {
            let len = self.socket.recv(&mut datagram).expect("a datagram within the deadline");
            let page = Layout::Base.decode(&datagram[..len], self.answer.pages).unwrap();
            let PageIndex(index) = page.index;
            let start = index as usize * PAGE;
            assert!(page.payload == &content[start..content.len().min(start + PAGE)], "{index}");
            index + 1
        };
        (0..count).map(|_| receive()).collect()
    }
}

#[test]
fn demanded_pages_and_no_others_arrive_in_the_order_of_the_demand() {
    let server = Server::start(&["--rate", "100mbit"]);
    let content = bytes(1_000_000);
    server.write("file", &content);
    let member = Member::join(&server, "file");
    let body = r#"{"later":[[5,1]],"now":[[600,3],[17,2],[687,99]]}"#;
    let answer = member.want(&server, "file", body);
    assert_eq!((answer.status, answer.body.len()), (204, 0), "{}", answer.text());
    let queue: u64 = answer.header("x-bootcast-queue").unwrap().parse().unwrap();
    assert!((1..100_000).contains(&queue), "{queue} us for six pages");
    assert_eq!(member.receive(7, &content), [600, 601, 602, 17, 18, 687, 5]);
    // Other pages, if any were sent, would arrive before these.
    assert_eq!(member.want(&server, "file", r#"{"now":[[1,2]]}"#).status, 204);
    assert_eq!(member.receive(2, &content), [1, 2]);
    let status = server.status();
    let cast = &status.casts[0];
    assert_eq!((cast.members, cast.demanded, cast.pages_sent), (1, 9, 9));
    assert_eq!((cast.passes, cast.symbols_sent, status.totals.demanded), (0, 0, 9));
    // Only pages that are sent are read from the file.
    assert_eq!(status.totals.bytes_read, 9 * 1456 - (1456 - 1_000_000 % 1456));
}

#[test]
fn a_demand_member_leaves_like_every_other() {
    let server = Server::start(&["--rate", "100mbit"]);
    server.write("file", &bytes(100_000));
    let member = Member::join(&server, "file");
    let token = [("X-TOKEN", member.answer.token.as_str())];
    assert_eq!(request(server.address(), "GET", "/leave/file", &token).status, 204);
    assert_eq!(member.want(&server, "file", "{}").status, 404);
    wait_for("the end of the cast", || server.status().casts.is_empty().then_some(()));
    let is_logged = || server.log().contains("reason=last member left").then_some(());
    wait_for("the end in the log", is_logged);
}

#[test]
fn a_malformed_demand_is_refused_with_its_status() {
    let server = Server::start(&["--rate", "1mbit"]);
    server.write("file", &bytes(300_000));
    let extended = Member::join(&server, "file");
    let plain = JoinAnswer::parse(server.get("/join/file").text()).unwrap();
    let (extended, plain) = (extended.answer.token.as_str(), plain.token.as_str());
    let huge = format!("{{}}{}", " ".repeat(16 << 10));
    for (path, token, body, status) in [
        ("file", Some(extended), "{}", 204),
        ("file", None, "{}", 400),
        ("file", Some(extended), "", 400),
        ("file", Some(extended), r#"{"now":[[1]]}"#, 400),
        ("file", Some(extended), r#"{"now":[[-1,1]]}"#, 400),
        ("file", Some(extended), r#"{"now":[[4294967296,1]]}"#, 400),
        ("file", Some(extended), r#"{"later":"all"}"#, 400),
        ("file", Some(extended), &huge, 413),
        ("file", Some(plain), "{}", 404),
        ("file", Some("0123"), "{}", 404),
        ("file", Some("\u{e9}"), "{}", 404),
        ("other", Some(extended), "{}", 404),
        ("%zz", Some(extended), "{}", 400),
    ] {
        let response = post(server.address(), &format!("/want/{path}"), token, body);
        assert_eq!(response.status, status, "{path} {token:?}: {}", response.text());
        assert_eq!(response.text().lines().count(), usize::from(status != 204));
    }
    assert_eq!(server.get("/want/file").status, 405);
}

/// A connection that posts demands and waits for each answer.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(server: &Server) -> Self {
        let stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    fn want(&mut self, path: &str, token: &str, body: &str) {
        let length = body.len();
        let request = format!(
            "POST /want/{path} HTTP/1.1\r\nhost: x\r\nx-token: {token}\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(line.starts_with("HTTP/1.1 204"), "{line}");
        while line != "\r\n" {
            line.clear();
            assert_ne!(self.0.by_ref().read_line(&mut line).unwrap(), 0, "the answer is cut off");
        }
    }
}

#[test]
fn a_member_that_demands_everything_again_and_again_does_not_starve_another() {
    // The modest member is silent during the requests, which take minutes on a busy core.
    let server = Server::start(&["--rate", "100mbit", "--lease", "1h"]);
    // A hundred pages fewer than 32 bits can number.
    let file = std::fs::File::create(server.dir.path().join("sparse")).unwrap();
    file.set_len((u64::from(u32::MAX) - 100) * PAGE as u64).unwrap();
    let (greedy, modest) = (Member::join(&server, "sparse"), Member::join(&server, "sparse"));
    let pairs = vec!["[1,4294967295]"; 1000].join(",");
    let body = format!(r#"{{"now":[{pairs}]}}"#);
    let mut connection = Connection::open(&server);
    for _ in 0..10_000 {
        connection.want("sparse", greedy.answer.token.as_str(), &body);
    }
    let wanted = u32::MAX - 100;
    let body = format!(r#"{{"now":[[{wanted},9]]}}"#);
    modest.socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut datagram = vec![0; 65_536];
    let mut receive = || {
        let len = modest.socket.recv(&mut datagram).ok()?;
        let page = Layout::Base.decode(&datagram[..len], modest.answer.pages).unwrap();
        Some(page.index == PageIndex(wanted - 1))
    };
    // Repeats the demand as a client does, because the socket is full of the other member's pages.
    wait_for("the page of the modest member", || {
        assert_eq!(modest.want(&server, "sparse", &body).status, 204);
        std::iter::from_fn(&mut receive).any(|it| it).then_some(())
    });
    assert_eq!(server.status().casts[0].members, 2);
}
