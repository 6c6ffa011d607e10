//! A mount, and a server whose bundle does not come.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::thread;

use bootcast_proto::bundle::{BUNDLE_PREFIX, BundleIndex, BundledFile, HEADER_BUNDLES};
use bootcast_proto::manifest::HEADER_CONTENT_ID;
use bootcast_proto::{ContentId, Token};
use tokio::runtime::Handle;

use super::*;
use crate::fs::{FsConfig, plain};
use crate::io::{Control, Intake, IntakeConfig, InterfaceChoice};
use crate::journal::Journal;
use crate::receiver::{Timing, UnicastMode};

/// Number of files in the directory.
const FILES: usize = 8;

/// Bytes of every file.
const FILE: [u8; 100] = [7; 100];

/// Bytes of a page of the bundle.
const PAGE: usize = 100;

/// What the server sends of the bundle.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// Nothing: the request is not answered.
    Nothing,
    /// The index. Further requests are not answered.
    Index,
    /// The index. Further requests are refused.
    IndexAndRefusal,
}

/// A server of a directory `d` of small files, and of their bundle.
#[derive(Clone)]
struct Server {
    sent: Sent,
    /// Whether other hosts want the files.
    is_wanted: bool,
    index: Vec<u8>,
    seen: Arc<Mutex<Vec<String>>>,
    unanswered: Arc<Mutex<Vec<TcpStream>>>,
}

impl Server {
    fn new(sent: Sent, is_wanted: bool) -> Self {
        let file = |k: usize| BundledFile {
            name: k.to_string(),
            etag: etag(),
            size: FILE.len() as u64,
            b3: Some(ContentId::of_content(&FILE)),
        };
        let index = BundleIndex { files: (0..FILES).map(file).collect() };
        let mut index = serde_json::to_vec(&index).unwrap();
        index.resize(index.len().next_multiple_of(PAGE), b' ');
        Self { sent, is_wanted, index, seen: Arc::default(), unanswered: Arc::default() }
    }

    /// Starts the server, and returns its URL.
    fn start(&self) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let this = self.clone();
        thread::spawn(move || {
            for connection in listener.incoming() {
                this.answer(connection.unwrap());
            }
        });
        url
    }

    fn answer(&self, mut connection: TcpStream) {
        let mut lines = BufReader::new(&connection).lines().map_while(Result::ok);
        let Some(line) = lines.next() else { return };
        lines.take_while(|line| !line.is_empty()).for_each(drop);
        let path = line.split(' ').nth(1).unwrap().to_owned();
        let size = self.index.len() + FILES * FILE.len();
        let earlier = self.count(&path);
        self.seen.lock().unwrap().push(path.clone());
        let id = ContentId::of_content(&FILE);
        let small = format!("ETag: \"v1\"\r\n{HEADER_BUNDLES}: 1\r\n{HEADER_CONTENT_ID}: {id}\r\n");
        let (status, headers, len, body) = if path.starts_with("/bundle/") {
            let index = self.index.len();
            let body = format!(
                r#"{{"name":"{BUNDLE_PREFIX}1","etag":"v1","size":{size},"index":{index}}}"#
            );
            ("200 OK", String::new(), body.len(), body.into_bytes())
        } else if path.starts_with("/join/") {
            let token = Token::from_random(1);
            let body = format!(
                "CONNECT=239.255.0.1:9000\nTOKEN={}\nPAGES={}\nPAGESIZE={PAGE}\nSIZE={size}\n\
                 ETAG=v1\n",
                token.as_str(),
                size / PAGE
            );
            ("200 OK", String::new(), body.len(), body.into_bytes())
        } else if !path.contains(BUNDLE_PREFIX) && self.is_wanted {
            ("409 Conflict", small, 0, Vec::new())
        } else if !path.contains(BUNDLE_PREFIX) {
            ("200 OK", small, FILE.len(), FILE.to_vec())
        } else if path.starts_with("/file/") && earlier == 0 && self.sent != Sent::Nothing {
            ("200 OK", small, size, self.index.clone())
        } else if path.starts_with("/file/") && self.sent != Sent::IndexAndRefusal {
            self.unanswered.lock().unwrap().push(connection);
            return;
        } else {
            ("403 Forbidden", String::new(), 0, Vec::new())
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {len}\r\n\r\n"
        );
        // Fails if the client has gone away.
        let _ = connection.write_all(&[head.as_bytes(), &body].concat());
    }

    /// Returns the number of requests whose paths begin so.
    fn count(&self, path: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen.starts_with(path)).count()
    }

    /// Mounts the directory, and opens files until the bundle was asked for.
    async fn mount(&self) -> Arc<Fs> {
        let control = Control::new(&self.start()).unwrap();
        let interface = InterfaceChoice::default();
        let intake =
            IntakeConfig { control: control.clone(), interface, runtime: Handle::current() };
        let config = FsConfig {
            uid: 0,
            gid: 0,
            umask: 0,
            attr_ttl: Duration::ZERO,
            wait_limit: None,
            timing: Timing { linger: Duration::from_secs(3600), silence: Duration::from_secs(2) },
            unicast: UnicastMode::Always,
            fill: FillPolicy::AtOpen,
            verify: Verify::Tag,
            pins: None,
            only: None,
        };
        let fs = Arc::new(Fs::new(
            config,
            control,
            Cache::Memory,
            Intake::start(intake).unwrap(),
            RemotePath::root(),
            plain::directory_attributes(),
            Arc::new(Journal::disabled()),
        ));
        for k in 0..if self.is_wanted { 3 } else { 8 } {
            open(&fs, k).await;
        }
        wait_until("the bundle is asked for", || self.count("/bundle/") == 1).await;
        fs
    }
}

fn etag() -> Etag {
    Etag::new("v1").unwrap()
}

fn path(k: usize) -> RemotePath {
    RemotePath::decode(&format!("d/{k}")).unwrap()
}

async fn open(fs: &Arc<Fs>, k: usize) -> Option<SmallAnswer> {
    fs.small_file(&path(k), &etag(), FILE.len() as u64).await
}

fn found(fs: &Arc<Fs>) -> Found {
    lock(&fs.bundles).find(&path(0), &etag(), now())
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect(what);
}

#[tokio::test]
async fn a_bundle_that_fails_is_given_up_and_not_asked_for_again_at_once() {
    let server = Server::new(Sent::IndexAndRefusal, false);
    let fs = server.mount().await;
    let has_failed = || match found(&fs) {
        Found::In(object, _) => object.snapshot().failure().is_some(),
        Found::Maybe | Found::No => false,
    };
    wait_until("the bundle fails after its index came", has_failed).await;
    for k in 0..FILES {
        assert!(matches!(open(&fs, k).await, Some(SmallAnswer::File(_))), "{k}");
        assert!(matches!(found(&fs), Found::No), "{k}");
    }
    assert_eq!(server.count("/bundle/"), 1);
}

#[tokio::test]
async fn a_bundle_that_does_not_come_is_waited_for_once_by_hosts_that_want_its_files() {
    let server = Server::new(Sent::Index, true);
    let fs = server.mount().await;
    // The last open has waited for it.
    assert!(!server.unanswered.lock().unwrap().is_empty(), "the index came");
    assert!(matches!(found(&fs), Found::No), "other opens do not wait");
}

#[tokio::test]
async fn a_mount_that_ends_leaves_the_cast_of_a_bundle_whose_index_has_not_come() {
    let server = Server::new(Sent::Nothing, false);
    let fs = server.mount().await;
    wait_until("the bundle is fetched", || !server.unanswered.lock().unwrap().is_empty()).await;
    fs.stop(Duration::from_secs(10)).await;
    assert_eq!(server.count("/leave/"), 1);
}
