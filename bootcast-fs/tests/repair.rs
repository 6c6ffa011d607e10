//! Tests the receive thread with a server that loses pages and repairs them, over multicast on the
//! loopback interface.
#![expect(clippy::disallowed_methods, reason = "a test has a clock")]
#![expect(clippy::unwrap_used, reason = "a helper that cannot do its work fails the test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bootcast_fs::cache::{Cache, ObjectKey};
use bootcast_fs::io::{Control, Intake, IntakeConfig};
use bootcast_fs::object::Object;
use bootcast_fs::receiver::{Fill, Timing};
use bootcast_proto::api::Report;
use bootcast_proto::fec::{self, Engine, RepairIndex};
use bootcast_proto::join::Extensions;
use bootcast_proto::wire::{Beacon, Level, symbol_header};
use bootcast_proto::{
    BlockIndex, BlockLayout, Etag, Geometry, JoinAnswer, Layout, PageIndex, PageSize, RemotePath,
    Share, Token, WindowIndex,
};

const DEADLINE: Duration = Duration::from_secs(20);
const SIZE: u32 = 1456 * 400 + 99;
/// Pages whose number ends in this digit are lost.
const LOST_DIGIT: u32 = 4;

/// A server of one file that loses a tenth of its pages.
struct Server {
    bytes: Vec<u8>,
    geometry: Geometry,
    layout: BlockLayout,
    pages_to: SocketAddrV4,
    repair_to: SocketAddrV4,
    socket: UdpSocket,
    recorded: Mutex<Recorded>,
}

/// Requests of the client.
#[derive(Default)]
struct Recorded {
    /// First lines of the requests.
    requests: Vec<String>,
    /// The last report.
    report: Option<Report>,
}

impl Server {
    fn new() -> Self {
        let byte = |at: u32| at.wrapping_mul(0x9e37_79b1).to_be_bytes()[0];
        let socket = socket2::Socket::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        socket.set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
        let geometry = Geometry::new(SIZE.into(), PageSize::new(1456).unwrap()).unwrap();
        let group = Ipv4Addr::new(239, 255, 77, 1);
        Self {
            bytes: (0..SIZE).map(byte).collect(),
            geometry,
            layout: BlockLayout::new(geometry.pages(), 2).unwrap(),
            pages_to: SocketAddrV4::new(group, free_port()),
            repair_to: SocketAddrV4::new(group, free_port()),
            socket: socket.into(),
            recorded: Mutex::default(),
        }
    }

    fn page(&self, page: PageIndex) -> &[u8] {
        let start = usize::try_from(self.geometry.offset(page)).unwrap();
        &self.bytes[start..start + self.geometry.page_len(page).unwrap() as usize]
    }

    fn lost(&self) -> u64 {
        self.geometry.all().iter().filter(|page| page.0 % 10 == LOST_DIGIT).count() as u64
    }

    fn send_pages(&self) {
        for page in self.geometry.all().iter().filter(|page| page.0 % 10 != LOST_DIGIT) {
            let header = Layout::Base.header(page, self.geometry.pages(), self.page(page));
            let datagram = [&header[..], self.page(page)].concat();
            self.socket.send_to(&datagram, self.pages_to).unwrap();
        }
    }

    /// Sends a beacon of a resting stream without promises.
    fn send_beacon(&self, number: u32) {
        let windows = (0..self.layout.windows()).map(WindowIndex);
        let levels = |window| vec![Level::default(); self.layout.blocks_of(window).len()];
        let beacon = Beacon {
            number,
            position: self.geometry.all().end,
            members: 1,
            permit: Share::ALL,
            spread_ms: 10,
            pace: bootcast_proto::wire::Pace::default(),
            windows: windows.map(|window| (window, levels(window))).collect(),
        };
        self.socket.send_to(&beacon.encode(), self.repair_to).unwrap();
    }

    fn send_symbols(&self, report: &Report) {
        for &(block, need) in &report.needs {
            let block = BlockIndex(block);
            for number in (0..need.into()).filter_map(RepairIndex::new) {
                let sources = self.layout.pages_in(block);
                let sources = sources.map(|(source, page)| (source, self.page(page)));
                let mut symbol = vec![0; 1456];
                fec::encode(Engine::best(), number, sources, &mut symbol);
                let datagram = [&symbol_header(block, number, need)[..], &symbol].concat();
                self.socket.send_to(&datagram, self.repair_to).unwrap();
            }
        }
    }

    fn join_answer(&self) -> JoinAnswer {
        JoinAnswer {
            connect: self.pages_to,
            token: Token::from_random(7),
            pages: self.geometry.pages(),
            page_size: self.geometry.page_size(),
            extensions: Extensions {
                size: Some(SIZE.into()),
                etag: Some(Etag::new("v1").unwrap()),
                repair: Some(self.repair_to.port()),
                interleave: Some(2),
                source: Some(Ipv4Addr::LOCALHOST.into()),
                ..Extensions::default()
            },
        }
    }

    /// Answers the only request of a connection.
    fn answer(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_lowercase());
        }
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body)?;
        self.record(&head, &body);
        let (status, text) = if head[0].starts_with("get /join/") {
            ("200 OK", self.join_answer().encode())
        } else {
            ("204 No Content", String::new())
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        )
    }

    fn record(&self, request: &[String], body: &[u8]) {
        let mut recorded = self.recorded.lock().unwrap();
        if request[0].starts_with("post /report/image ") {
            assert!(request.contains(&format!("x-token: {}", Token::from_random(7))));
            recorded.report = Some(serde_json::from_slice(body).unwrap());
        }
        recorded.requests.push(request[0].clone());
    }

    fn has_request(&self, beginning: &str) -> bool {
        let recorded = self.recorded.lock().unwrap();
        recorded.requests.iter().any(|request| request.starts_with(beginning))
    }
}

fn free_port() -> u16 {
    UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

/// Serves on another thread. Returns the address.
fn serve(server: &Arc<Server>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = server.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = server.answer(&stream);
        }
    });
    address.to_string()
}

/// Creates an open object, and the receive thread that serves it.
fn member(address: &str, runtime: &tokio::runtime::Runtime) -> (Arc<Object>, Intake) {
    let control = Control::new(&format!("http://{address}")).unwrap();
    let interface = "lo".parse().unwrap();
    let config = IntakeConfig { control, interface, runtime: runtime.handle().clone() };
    let intake = Intake::start(config).unwrap();
    let path = RemotePath::decode("image").unwrap();
    let key = ObjectKey { server: address.to_owned(), path, etag: None, content: None };
    let store = Cache::Memory.open(&key).unwrap();
    let timing = Timing { linger: Duration::ZERO, silence: DEADLINE };
    let object = Arc::new(Object::new(key, store, None, timing, Fill::Full, 1));
    object.open();
    intake.attend(&object);
    (object, intake)
}

/// Repeats a step until it returns true.
fn repeat_until(what: &str, mut step: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !step() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn lost_pages_are_reported_and_rebuilt_and_the_member_leaves() {
    let server = Arc::new(Server::new());
    let address = serve(&server);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (object, _intake) = member(&address, &runtime);
    let sent = u64::from(server.geometry.pages()) - server.lost();
    repeat_until("sent pages are missing", || {
        server.send_pages();
        object.snapshot().counters.pages == sent
    });
    let mut numbers = 1..;
    repeat_until("no report", || {
        server.send_beacon(numbers.next().unwrap());
        server.recorded.lock().unwrap().report.is_some()
    });
    let report = server.recorded.lock().unwrap().report.clone().unwrap();
    assert_eq!(report.needs.iter().map(|(_, need)| u64::from(*need)).sum::<u64>(), server.lost());
    repeat_until("not rebuilt", || {
        server.send_symbols(&report);
        object.snapshot().is_complete
    });
    let mut bytes = vec![0; server.bytes.len()];
    object.store().read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == server.bytes, "the bytes differ from the sent ones");
    repeat_until("no leave", || server.has_request("get /leave/image "));
}
