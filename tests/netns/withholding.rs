//! A proxy before the server that withholds hashes, so that a test decides when a client can verify
//! what arrived.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bootcast_proto::DEFAULT_PORT;
use harness::Lab;
use harness::lab::HEAD_ADDRESS;

/// Port of the proxy, at the address of the server: datagrams of the cast must come from there.
const PORT: u16 = 8889;

/// State that the threads of the proxy share.
#[derive(Default)]
struct State {
    /// Whether hashes are let through.
    is_open: AtomicBool,
    /// Whether the proxy ends.
    is_over: AtomicBool,
}

/// The proxy. It answers 503 to requests for hashes until [`Self::open`], and forwards all others.
pub(crate) struct HashGate<'lab> {
    lab: &'lab Lab,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl<'lab> HashGate<'lab> {
    /// Starts the proxy.
    pub(crate) fn start(lab: &'lab Lab) -> Self {
        let state = Arc::new(State::default());
        let shared = state.clone();
        // A thread begins in the network namespace of the one that starts it.
        let thread = lab.head().enter(|| {
            let listener = TcpListener::bind((HEAD_ADDRESS, PORT)).unwrap();
            std::thread::spawn(move || accept(&listener, &shared))
        });
        Self { lab, state, thread: Some(thread) }
    }

    /// Returns the source to mount.
    pub(crate) fn source() -> String {
        format!("{HEAD_ADDRESS}:{PORT}:/")
    }

    /// Lets hashes through.
    pub(crate) fn open(&self) {
        self.state.is_open.store(true, Ordering::Relaxed);
    }
}

impl Drop for HashGate<'_> {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = self.lab.head().enter(|| TcpStream::connect((HEAD_ADDRESS, PORT)));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for client in listener.incoming().flatten() {
        if state.is_over.load(Ordering::Relaxed) {
            break;
        }
        let state = state.clone();
        // Ends with the connection. The client repeats what failed.
        std::thread::spawn(move || answer(client, &state));
    }
}

/// Answers the only request of a connection.
fn answer(mut client: TcpStream, state: &State) -> io::Result<()> {
    let mut request = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if request.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    if head.starts_with("GET /manifest/") && !state.is_open.load(Ordering::Relaxed) {
        let refusal = "HTTP/1.1 503 Withheld\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        return client.write_all(refusal.as_bytes());
    }
    let length = head.to_ascii_lowercase().lines().find_map(|line| {
        line.strip_prefix("content-length:").and_then(|length| length.trim().parse().ok())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    request.read_exact(&mut body)?;
    let mut server = TcpStream::connect((HEAD_ADDRESS, DEFAULT_PORT))?;
    write!(server, "{}\r\nconnection: close\r\n\r\n", head.trim_end())?;
    server.write_all(&body)?;
    io::copy(&mut server, &mut client).map(|_| ())
}
