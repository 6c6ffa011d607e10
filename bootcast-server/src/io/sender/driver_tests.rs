//! Tests the driver by its commands, over loopback.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::sync::Arc;

use bootcast_proto::api::Want;
use bootcast_proto::{Geometry, Layout, PageSize, RemotePath, Token};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::super::SourceAddress;
use super::*;
use crate::cast::MemberKind;
use crate::cast::RepairSettings;
use crate::cast::{CastPolicy, CeilingSource, GroupPool};
use crate::io::reading::faults;
use crate::io::socket::SocketConfig;
use crate::source::{OpenFile, Source};

/// A driver that sends nothing, because its loop does not run.
struct Lab {
    dir: TempDir,
    driver: Driver,
    tokens: u128,
}

impl Lab {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(repair: Option<RepairSettings>) -> Self {
        let dir = TempDir::new().unwrap();
        let any_group = Ipv4Addr::new(239, 254, 18, 0);
        let interface = interface::resolve(Some(&"lo".parse().unwrap()), any_group).unwrap();
        let rate = "1mbit".parse().unwrap();
        let config = SenderConfig {
            source: Arc::new(Source::new(dir.path()).unwrap()),
            source_address: SourceAddress::new(interface.address),
            interface,
            interface_name: None,
            any_group,
            socket: SocketConfig { ttl: 1, datagram_len: 1472, rate },
            page_size: page_size(),
            layout: Layout::Base,
            keys: None,
        };
        let settings = Settings {
            repair,
            rate,
            rate_source: CeilingSource::Operator,
            batch_pages: 1,
            data_port: 9000,
            max_casts: 1000,
            policy: CastPolicy { idle_passes: NonZeroU32::MIN, linger: Duration::from_secs(60) },
            groups: GroupPool::new("239.254.18.0/22".parse().unwrap()).unwrap(),
        };
        let socket = MulticastSocket::open(&config.interface, &config.socket).unwrap();
        Self { dir, driver: Driver::new(config, settings, socket), tokens: 0 }
    }

    /// Replaces this file by another one.
    fn replace(&self, name: &str) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, name).unwrap();
        std::fs::rename(new, self.dir.path().join(name)).unwrap();
    }

    fn open(&self, name: &str) -> OpenFile {
        self.driver.config.source.open(&path(name)).unwrap()
    }

    fn join(&mut self, name: &str, open: OpenFile) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.join_with(name, open, reply);
        answer
    }

    fn join_with(&mut self, name: &str, open: OpenFile, reply: Reply) {
        self.join_as(MemberKind::Plain, name, open, reply);
    }

    fn join_as(&mut self, kind: MemberKind, name: &str, open: OpenFile, reply: Reply) {
        self.tokens += 1;
        let command = Command::Join {
            kind,
            path: path(name),
            etag: open.etag(),
            geometry: Geometry::new(open.version.size(), page_size()).unwrap(),
            open,
            token: Token::from_random(self.tokens),
            reply,
        };
        assert!(self.driver.carry_out(command).is_continue());
    }

    /// A cast of a file of so many pages, with one member.
    fn cast_of(&mut self, kind: MemberKind, pages: usize) -> CastId {
        std::fs::write(self.dir.path().join("file"), vec![7; pages * 1456]).unwrap();
        let open = self.open("file");
        let (reply, mut answer) = oneshot::channel();
        self.join_as(kind, "file", open, reply);
        answer.try_recv().unwrap().unwrap().cast
    }

    /// Sends what is due, as the loop does, until `condition` holds.
    fn run_until(&mut self, condition: impl Fn(&Status) -> bool) {
        while !condition(&self.driver.status(Instant::now())) {
            self.driver.scheduler.handle_timeout(Instant::now());
            self.driver.send_burst();
            self.driver.clean_up();
        }
    }

    fn casts(&self) -> Vec<CastStatus> {
        self.driver.status(Instant::now()).casts
    }
}

type Reply = oneshot::Sender<Result<crate::cast::Joined, JoinError>>;
type Answer = oneshot::Receiver<Result<crate::cast::Joined, JoinError>>;

const SECOND: Duration = Duration::from_secs(1);

fn page_size() -> PageSize {
    PageSize::new(1456).unwrap()
}

fn path(name: &str) -> RemotePath {
    RemotePath::decode(name).unwrap()
}

#[test]
fn a_client_that_went_away_before_the_answer_is_no_member() {
    let mut lab = Lab::new();
    lab.replace("file");
    let (stays, goes) = (lab.open("file"), lab.open("file"));
    let _answer = lab.join("file", stays);
    let (reply, answer) = oneshot::channel();
    drop(answer);
    lab.join_with("file", goes, reply);
    assert_eq!(lab.casts()[0].members, 1);
}

#[test]
fn a_join_that_opened_the_file_before_it_was_replaced_ends_no_cast_of_the_new_one() {
    let mut lab = Lab::new();
    lab.replace("file");
    let (late, old) = (lab.open("file"), lab.open("file"));
    let mut first = lab.join("file", old);
    lab.replace("file");
    let new = lab.open("file");
    let etag = new.etag();
    let mut second = lab.join("file", new);
    let mut third = lab.join("file", late);
    assert!(first.try_recv().unwrap().unwrap().began);
    assert!(second.try_recv().unwrap().unwrap().began);
    assert!(matches!(third.try_recv().unwrap(), Err(JoinError::Outdated)));
    let casts = lab.casts();
    assert_eq!((casts.len(), &casts[0].etag, casts[0].joins), (1, &etag, 1));
}

#[test]
fn the_paths_of_all_casts_are_looked_up_in_a_second_and_few_of_them_at_a_time() {
    let mut lab = Lab::new();
    for number in 0..200 {
        let name = number.to_string();
        lab.replace(&name);
        let open = lab.open(&name);
        lab.join(&name, open);
        std::fs::remove_file(lab.dir.path().join(&name)).unwrap();
    }
    let start = Instant::now();
    let mut most = 0;
    for check in 0..64 {
        let before = lab.casts().len();
        lab.driver.check_versions(start + SECOND * check / 64);
        lab.driver.clean_up();
        most = most.max(before - lab.casts().len());
    }
    assert_eq!(lab.casts().len(), 0);
    assert!(most <= 4, "{most} at a time");
}

fn pages(start: u32, end: u32) -> PageRange {
    PageRange::new(start, end)
}

/// Bytes of pages of 1456 bytes.
fn bytes(start: u64, end: u64) -> std::ops::Range<u64> {
    start * 1456..end * 1456
}

#[test]
fn pages_that_cannot_be_read_are_left_out_and_the_others_are_sent_once() {
    let mut lab = Lab::new();
    let cast = lab.cast_of(MemberKind::Plain, 20);
    faults::set(&[bytes(5, 6), bytes(10, 12)]);
    // The only member says nothing: after one pass it is given up.
    lab.run_until(|status| status.casts.is_empty());
    let totals = lab.driver.status(Instant::now()).totals;
    assert_eq!((totals.casts, totals.pages_sent), (1, 17));
    assert!(lab.driver.scheduler.cast(cast).is_none());
}

#[test]
fn whoever_wants_unreadable_pages_is_told_so_and_the_block_gets_no_symbols() {
    let lease = Duration::from_secs(60);
    let mut lab = Lab::with(Some(RepairSettings { interleave: 1, repair_port: 9001, lease }));
    let cast = lab.cast_of(MemberKind::Extended, 20);
    faults::set(&[bytes(5, 6)]);
    let token = Token::from_random(1);
    let (reply, mut answer) = oneshot::channel();
    let report = Report { needs: vec![(0, 3)], ..Report::default() };
    let told = Command::Report { path: path("file"), token: token.clone(), report, reply };
    assert!(lab.driver.carry_out(told).is_continue());
    assert_eq!(answer.try_recv().unwrap(), Some(vec![]));
    // The symbols that were promised go first, and lead to the page.
    lab.run_until(|status| status.totals.pages_sent >= 19);
    assert_eq!(lab.driver.scheduler.unreadable_in(cast, pages(0, 20)), Some(pages(5, 6)));
    let totals = lab.driver.status(Instant::now()).totals;
    assert_eq!((totals.pages_sent, totals.symbols_sent), (19, 0));
    let (reply, mut answer) = oneshot::channel();
    let want = Want { now: vec![(6, 1), (8, 1)], ..Want::default() };
    let want = WantBody { want, useful: None };
    let wanted = Command::Want { path: path("file"), token, want, reply };
    assert!(lab.driver.carry_out(wanted).is_continue());
    let told = answer.try_recv().unwrap().map(|wanted| wanted.unreadable);
    assert_eq!(told, Some(vec![pages(5, 6)]));
    lab.run_until(|status| status.totals.demanded >= 1);
    assert_eq!(lab.driver.status(Instant::now()).totals.demanded, 1);
    assert_eq!(lab.casts().len(), 1);
}
