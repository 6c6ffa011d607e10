//! A scripted HTTP server that records its requests, and a sender of pages.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bootcast_proto::{Layout, PageIndex};
use socket2::{Domain, Protocol, Socket, Type};

/// A request: its first line, and its headers in lower case.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    headers: Vec<String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn is(&self, endpoint: &str) -> bool {
        self.line.starts_with(&format!("GET /{endpoint}/"))
    }
}

/// Answer in a script: keeps the connection open and sends nothing.
pub(crate) const NO_ANSWER: &str = "";

/// Server that answers the requests to each endpoint in the order of a script, and then with 404.
pub(crate) struct ScriptedServer {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl ScriptedServer {
    /// Starts the server. `script` has pairs of an endpoint and a response.
    pub(crate) fn start<B: Into<Vec<u8>>>(
        script: impl IntoIterator<Item = (&'static str, B)>,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let script = script.into_iter().map(|(endpoint, answer)| (endpoint, answer.into()));
        let mut script: VecDeque<(_, Vec<u8>)> = script.collect();
        let log = seen.clone();
        thread::spawn(move || {
            let mut unanswered = Vec::new();
            for connection in listener.incoming() {
                // A client that disconnected does not matter.
                let Ok(mut connection) = connection else { continue };
                let Some(request) = read_request(&connection) else { continue };
                let at = script.iter().position(|(endpoint, _)| request.is(endpoint));
                let answer = at.and_then(|at| script.remove(at)).map(|(_, answer)| answer);
                log.lock().unwrap().push(request);
                if answer.as_deref() == Some(NO_ANSWER.as_bytes()) {
                    unanswered.push(connection);
                    continue;
                }
                let answer = answer.unwrap_or_else(|| response("404 Not Found", "", "no\n").into());
                let _ = connection.write_all(&answer);
            }
        });
        Self { port, seen }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// Returns the requests to `endpoint` so far.
    pub(crate) fn requests(&self, endpoint: &str) -> Vec<Request> {
        self.seen.lock().unwrap().iter().filter(|request| request.is(endpoint)).cloned().collect()
    }
}

fn read_request(connection: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(connection).lines().map_while(Result::ok);
    let line = lines.next()?;
    let headers = lines.take_while(|line| !line.is_empty()).map(|line| line.to_ascii_lowercase());
    Some(Request { line, headers: headers.collect() })
}

/// Returns a response that ends its connection. Each of `headers` ends with CRLF.
pub(crate) fn response(status: &str, headers: &str, body: &str) -> String {
    let len = body.len();
    partial_response(status, &format!("Content-Length: {len}\r\n{headers}"), body)
}

/// Returns a response whose `Content-Length` may exceed its body.
pub(crate) fn partial_response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n{body}")
}

/// Returns the answer of a server with extensions to a join.
pub(crate) fn join_answer(group: SocketAddrV4, token: &str, size: usize, etag: &str) -> String {
    let pages = size.div_ceil(PAGE_SIZE);
    let body = format!(
        "CONNECT={group}\nTOKEN={token}\nPAGES={pages}\nPAGESIZE={PAGE_SIZE}\nSIZE={size}\n\
         ETAG={etag}\n\n"
    );
    response("200 OK", "", &body)
}

/// Bytes of a page.
pub(crate) const PAGE_SIZE: usize = 100;

/// Sender of pages to a group on the loopback interface, in passes until it is dropped.
pub(crate) struct Carousel {
    stop: Arc<AtomicBool>,
}

impl Carousel {
    /// Starts sending `content`. Each pass has the pages for which `wanted` returns true.
    pub(crate) fn start(
        group: SocketAddrV4,
        content: &[u8],
        wanted: impl Fn(usize) -> bool + Send + 'static,
    ) -> Self {
        let socket = loopback_socket();
        let datagrams: Vec<Vec<u8>> = content
            .chunks(PAGE_SIZE)
            .enumerate()
            .map(|(page, bytes)| {
                let page = PageIndex(u32::try_from(page).unwrap());
                [&Layout::Base.header(page, 0, bytes)[..], bytes].concat()
            })
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for (_, datagram) in datagrams.iter().enumerate().filter(|(page, _)| wanted(*page))
                {
                    socket.send_to(datagram, group).unwrap();
                }
                // The pace of a pass; no test depends on it.
                thread::park_timeout(Duration::from_millis(5));
            }
        });
        Self { stop }
    }
}

impl Drop for Carousel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn loopback_socket() -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
    socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    socket.into()
}
