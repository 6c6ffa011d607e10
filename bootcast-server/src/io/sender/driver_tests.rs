//! Tests the driver through its commands, over loopback.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::sync::Arc;

use bootcast_proto::api::{CastStatus, Report, Status, Want, WantBody};
use bootcast_proto::{Geometry, Layout, PageSize, RemotePath, Token};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::super::{Join, JoinError, SourceAddress};
use super::*;
use crate::cast::{CastPolicy, CeilingSource, GroupPool, MemberKind, PlainTrust, RepairSettings};
use crate::io::identity::Identity;
use crate::io::manifests::Manifests;
use crate::io::reader::faults::{Faults, FaultySource, Hang};
use crate::io::reader::source::{FileSource, PageSource};
use crate::io::socket::SocketConfig;
use crate::io::threads::ThreadWatch;
use crate::source::{Source, Version};

/// A driver and its served directory. The loop does not run: tests call its steps.
struct Fixture {
    dir: TempDir,
    driver: Driver,
    commands: Receiver<Command>,
    /// Faults of the files that are opened from now on.
    faults: Faults,
    tokens: u128,
}

impl Fixture {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(repair: Option<RepairSettings>) -> Self {
        let dir = TempDir::new().unwrap();
        let any_group = Ipv4Addr::new(239, 254, 18, 0);
        let source = Source::new(dir.path()).unwrap();
        let interface = interface::resolve(Some(&"lo".parse().unwrap()), any_group).unwrap();
        let rate = "1mbit".parse().unwrap();
        let config = SenderConfig {
            identity: Identity::new(source.into(), Manifests::new(None)),
            source_address: SourceAddress::new(interface.address),
            interface,
            interface_name: None,
            any_group,
            socket: SocketConfig { ttl: 1, datagram_len: 1472, rate },
            page_size: page_size(),
            layout: Layout::Base,
            keys: None,
            profiles: tokio::sync::mpsc::unbounded_channel().0,
        };
        let settings = Settings {
            repair,
            rate,
            rate_source: CeilingSource::Operator,
            batch_pages: 1,
            data_port: 9000,
            max_casts: 1000,
            policy: CastPolicy { idle_passes: NonZeroU32::MIN, linger: Duration::from_secs(60) },
            plain: PlainTrust::Limited,
            groups: GroupPool::new("239.254.18.0/22".parse().unwrap()).unwrap(),
        };
        let socket = MulticastSocket::open(&config.interface, &config.socket).unwrap();
        let stage = Stage::start(ThreadWatch::new().0).unwrap();
        let (outcomes, commands) = mpsc::channel();
        // Other tests send to the same groups.
        let groups = GroupWatch::new(socket.own_sender(&config.interface).unwrap());
        let driver = Driver::new(config, settings, socket, stage, groups, outcomes);
        Self { dir, driver, commands, faults: Faults::default(), tokens: 0 }
    }

    /// Replaces this file by a new one, or creates it.
    fn replace(&self, name: &str) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, name).unwrap();
        std::fs::rename(new, self.dir.path().join(name)).unwrap();
    }

    fn open(&self, name: &str) -> Arc<dyn PageSource> {
        let open = self.driver.config.identity.open(&path(name)).unwrap();
        let inner = Arc::new(FileSource::from(open));
        Arc::new(FaultySource { inner, faults: self.faults.clone() })
    }

    fn join(&mut self, name: &str, source: Arc<dyn PageSource>) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.execute_join(MemberKind::Plain, name, source, None, reply);
        answer
    }

    fn execute_join(
        &mut self,
        kind: MemberKind,
        name: &str,
        source: Arc<dyn PageSource>,
        newer_than: Option<Version>,
        reply: Reply,
    ) {
        self.tokens += 1;
        let version = source.version();
        let token = Token::from_random(self.tokens);
        let command = Command::Join {
            etag: version.etag(),
            geometry: Geometry::new(version.size(), page_size()).unwrap(),
            join: Join {
                kind,
                path: path(name),
                source,
                token,
                principal: std::net::IpAddr::from([192, 0, 2, 1]).into(),
                newer_than,
                wants_leaves: false,
                profile: None,
            },
            reply,
        };
        assert!(self.driver.execute(command).is_continue());
    }

    /// Starts a cast of a file of `pages` pages, with one member.
    fn start_cast(&mut self, kind: MemberKind, pages: usize) -> CastId {
        std::fs::write(self.dir.path().join("file"), vec![7; pages * 1456]).unwrap();
        let open = self.open("file");
        let (reply, mut answer) = oneshot::channel();
        self.execute_join(kind, "file", open, None, reply);
        answer.try_recv().unwrap().unwrap().cast
    }

    /// Waits for a command and executes it.
    fn execute_next(&mut self) {
        let command = self.commands.recv_timeout(DEADLINE).unwrap();
        assert!(self.driver.execute(command).is_continue());
    }

    /// Sends as the loop does until `condition` holds.
    fn run_until(&mut self, condition: impl Fn(&Status) -> bool) {
        while !condition(&self.driver.status(Instant::now())) {
            self.driver.scheduler.handle_timeout(Instant::now());
            let next = match self.driver.send_burst() {
                // The condition may hold already.
                Next::WaitForCommand => Next::WaitUntil(Instant::now() + TICK),
                next => next,
            };
            self.driver.remove_ended_casts();
            assert!(self.driver.handle_commands(&self.commands, &next).is_continue());
        }
    }

    fn casts(&self) -> Vec<CastStatus> {
        self.driver.status(Instant::now()).casts
    }
}

type Reply = oneshot::Sender<Result<crate::cast::Joined, JoinError>>;
type Answer = oneshot::Receiver<Result<crate::cast::Joined, JoinError>>;

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(1);
const DEADLINE: Duration = Duration::from_secs(30);

fn page_size() -> PageSize {
    PageSize::new(1456).unwrap()
}

fn path(name: &str) -> RemotePath {
    RemotePath::decode(name).unwrap()
}

#[test]
fn a_client_that_disconnected_before_the_answer_is_no_member() {
    let mut fixture = Fixture::new();
    fixture.replace("file");
    let (stays, goes) = (fixture.open("file"), fixture.open("file"));
    let _answer = fixture.join("file", stays);
    let (reply, answer) = oneshot::channel();
    drop(answer);
    fixture.execute_join(MemberKind::Plain, "file", goes, None, reply);
    assert_eq!(fixture.casts()[0].members, 1);
}

#[test]
fn a_join_with_the_replaced_version_does_not_end_the_cast_of_the_new_one() {
    let mut fixture = Fixture::new();
    fixture.replace("file");
    let (late, old) = (fixture.open("file"), fixture.open("file"));
    let mut first = fixture.join("file", old);
    assert!(first.try_recv().unwrap().unwrap().has_started_cast);
    fixture.replace("file");
    let new = fixture.open("file");
    let etag = new.version().etag();
    // Which of the two versions is the newer one is certain only after the file is opened again.
    let mut second = fixture.join("file", Arc::clone(&new));
    let Err(JoinError::Outdated { running }) = second.try_recv().unwrap() else {
        panic!("the cast of the replaced version cannot be told from a newer one")
    };
    assert_eq!(running, late.version());
    let (reply, mut second) = oneshot::channel();
    fixture.execute_join(MemberKind::Plain, "file", new, Some(running), reply);
    assert!(second.try_recv().unwrap().unwrap().has_started_cast);
    let mut third = fixture.join("file", late);
    assert!(matches!(third.try_recv().unwrap(), Err(JoinError::Outdated { .. })));
    let casts = fixture.casts();
    assert_eq!((casts.len(), &casts[0].etag, casts[0].joins), (1, &etag, 1));
}

#[test]
fn every_path_is_checked_within_a_second_and_few_at_a_time() {
    let mut fixture = Fixture::new();
    for number in 0..200 {
        let name = number.to_string();
        fixture.replace(&name);
        let open = fixture.open(&name);
        fixture.join(&name, open);
        // The first pages were read.
        fixture.execute_next();
        std::fs::remove_file(fixture.dir.path().join(&name)).unwrap();
    }
    let start = Instant::now();
    let mut most = 0;
    // A name that leads nowhere must be missing twice: the file may be renamed and come back.
    for check in 0..128 {
        if check == 50 {
            assert_eq!(fixture.casts().len(), 200, "each was checked once");
        }
        let before = fixture.casts().len();
        fixture.driver.check_versions(start + SECOND * check / 64);
        while fixture.driver.readers.values().any(|reader| reader.is_checked) {
            fixture.execute_next();
        }
        most = most.max(before - fixture.casts().len());
    }
    assert_eq!(fixture.casts().len(), 0);
    assert!(most <= 4, "{most} at a time");
}

#[test]
fn a_cast_whose_file_hangs_is_passed_over_and_goes_on_later() {
    let mut fixture = Fixture::new();
    for name in ["hung", "fine"] {
        std::fs::write(fixture.dir.path().join(name), vec![7; 100 * 1456]).unwrap();
    }
    let switch = Arc::new(Hang::default());
    switch.set(true);
    fixture.faults.hang = Arc::clone(&switch);
    let hung = fixture.open("hung");
    fixture.join("hung", hung);
    fixture.faults = Faults::default();
    let fine = fixture.open("fine");
    fixture.join("fine", fine);
    // Each cast has a plain and silent member, and ends after one pass.
    fixture.run_until(|status| status.casts.len() == 1);
    let status = fixture.driver.status(Instant::now());
    assert_eq!((status.totals.pages_sent, status.casts[0].pages_sent), (100, 0));
    switch.set(false);
    fixture.run_until(|status| status.casts.is_empty());
    let totals = fixture.driver.status(Instant::now()).totals;
    assert_eq!((totals.casts, totals.pages_sent, totals.bytes_read), (2, 200, 2 * 100 * 1456));
}

#[test]
fn pages_in_the_page_cache_are_sent_without_the_stage() {
    let mut fixture = Fixture::new();
    let switch = Arc::new(Hang::default());
    switch.set(true);
    fixture.faults = Faults { hang: Arc::clone(&switch), are_cached: true, ..Faults::default() };
    fixture.start_cast(MemberKind::Plain, 100);
    fixture.run_until(|status| status.casts.is_empty());
    let totals = fixture.driver.status(Instant::now()).totals;
    assert_eq!((totals.pages_sent, totals.bytes_read), (100, 100 * 1456));
    switch.set(false);
}

#[test]
fn the_sender_closes_no_file_because_that_may_hang() {
    let mut fixture = Fixture::new();
    let (closed, closings) = mpsc::channel();
    fixture.faults.closed = Some(closed);
    fixture.replace("file");
    let sources: Vec<_> = (0..2).map(|_| fixture.open("file")).collect();
    fixture.replace("file");
    let other = fixture.open("file");
    for source in sources {
        fixture.join("file", source);
    }
    let mut outdated = fixture.join("file", other);
    assert!(matches!(outdated.try_recv().unwrap(), Err(JoinError::Outdated { .. })));
    fixture.execute_next();
    let Fixture { driver, commands, .. } = fixture;
    driver.outcomes.send(Command::Stop).unwrap();
    driver.run(&commands);
    for _ in 0..3 {
        let thread = closings.recv_timeout(DEADLINE).unwrap();
        assert_eq!(thread.as_deref(), Some("reader"));
    }
}

fn pages(start: u32, end: u32) -> PageRange {
    PageRange::new(start, end)
}

/// Returns the bytes of a range of pages of 1456 bytes.
fn bytes(start: u64, end: u64) -> std::ops::Range<u64> {
    start * 1456..end * 1456
}

#[test]
fn pages_that_cannot_be_read_are_left_out_and_the_others_are_sent_once() {
    let mut fixture = Fixture::new();
    *fixture.faults.unreadable.lock().unwrap() = vec![bytes(5, 6), bytes(10, 12)];
    let cast = fixture.start_cast(MemberKind::Plain, 20);
    // The only member is plain and silent: it is forgotten after one pass.
    fixture.run_until(|status| status.casts.is_empty());
    let totals = fixture.driver.status(Instant::now()).totals;
    assert_eq!((totals.casts, totals.pages_sent), (1, 17));
    assert!(fixture.driver.scheduler.cast(cast).is_none());
}

#[test]
fn answers_name_unreadable_pages_and_their_block_gets_no_symbols() {
    let lease = Duration::from_secs(60);
    let mut fixture =
        Fixture::with(Some(RepairSettings { interleave: 1, repair_port: 9001, lease }));
    *fixture.faults.unreadable.lock().unwrap() = vec![bytes(5, 6)];
    let cast = fixture.start_cast(MemberKind::Extended, 20);
    let token = Token::from_random(1);
    let (reply, mut answer) = oneshot::channel();
    let report = Report { needs: vec![(0, 3)], ..Report::default() };
    let command = Command::Report { path: path("file"), token: token.clone(), report, reply };
    assert!(fixture.driver.execute(command).is_continue());
    assert_eq!(answer.try_recv().unwrap(), Some(vec![]));
    // The promised symbols come first: reading their block finds the unreadable page.
    fixture.run_until(|status| status.totals.pages_sent >= 19);
    assert_eq!(fixture.driver.scheduler.unreadable_in(cast, pages(0, 20)), Some(pages(5, 6)));
    let totals = fixture.driver.status(Instant::now()).totals;
    assert_eq!((totals.pages_sent, totals.symbols_sent), (19, 0));
    let (reply, mut answer) = oneshot::channel();
    let want = Want { now: [(6, 1), (8, 1)].map(PageRange::from).to_vec(), ..Want::default() };
    let want = WantBody { want, useful: None };
    let command = Command::Want { path: path("file"), token, want, reply };
    assert!(fixture.driver.execute(command).is_continue());
    let unreadable = answer.try_recv().unwrap().map(|answer| answer.unreadable);
    assert_eq!(unreadable, Some(vec![pages(5, 6)]));
    fixture.run_until(|status| status.totals.demanded >= 1);
    assert_eq!(fixture.driver.status(Instant::now()).totals.demanded, 1);
    assert_eq!(fixture.casts().len(), 1);
}
