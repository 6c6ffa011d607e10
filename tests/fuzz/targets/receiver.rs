//! A client whose server, network and forgers may send anything in any order.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bootcast_fs::receiver::{
    Action, Arrival, FetchError, Fill, Finding, JoinError, Pin, Receiver, RepairArrival,
    ReportError, Timing, UnicastMode, Verify,
};
use bootcast_proto::api::{Report, Want};
use bootcast_proto::join::Extensions;
use bootcast_proto::manifest::LEAF_BYTES;
use bootcast_proto::wire::{HEADER_LEN, LeafSpan, REPAIR_HEADER_LEN, end_datagram, symbol_header};
use bootcast_proto::{
    BlockIndex, DatagramKey, Etag, Geometry, JoinAnswer, Layout, Manifest, PageHash, PageIndex,
    PageRange, PageSize, Token, ZeroMap,
};

use super::input::Input;

/// First moment of every run.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Bytes of a page.
const PAGE: u16 = 64;
/// Largest number of steps of a run.
const MAX_STEPS: usize = 400;
/// Largest number of pages that a server states.
const MAX_PAGES: u32 = 1 << 20;
/// Largest size of the file.
const MAX_SIZE: usize = 200_000;

/// One client, and what it was asked to do.
struct Client<'a> {
    receiver: Receiver,
    file: Vec<u8>,
    manifest: Manifest,
    geometry: Geometry,
    now: Instant,
    opens: u32,
    reports: Vec<Report>,
    wants: Vec<Want>,
    actions: Vec<Action>,
    input: Input<'a>,
}

/// Opens a file, and then does what the bytes say.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let size = input.mostly_small(40_000) as usize % MAX_SIZE;
    let file: Vec<_> = (0..size).map(|at| u8::from(at / 16_384 % 3 != 1) * 7).collect();
    let page_size = PageSize::new(PAGE.into()).expect("even");
    let options = input.u8();
    let timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
    let mut receiver = Receiver::new(Pin::default(), None, timing, 7);
    if options & 1 == 1 {
        receiver.set_verify(Verify::Leaf);
    }
    if options & 2 == 2 {
        receiver = receiver.with_fill(Fill::Demand);
        receiver.request_profile();
    }
    let modes = [UnicastMode::Never, UnicastMode::Auto, UnicastMode::Always];
    receiver.set_unicast(modes[usize::from(options >> 2) % 3]);
    receiver.handle_open();
    let mut client = Client {
        receiver,
        manifest: Manifest::of_content(&file),
        geometry: Geometry::new(size as u64, page_size).expect("few pages"),
        file,
        now: *START,
        opens: 1,
        reports: Vec::new(),
        wants: Vec::new(),
        actions: Vec::new(),
        input,
    };
    client.take_actions();
    for _ in 0..MAX_STEPS {
        if client.input.is_empty() {
            break;
        }
        client.step();
        client.take_actions();
    }
}

impl Client<'_> {
    fn step(&mut self) {
        let now = self.now;
        match self.input.u8() % 20 {
            0 | 1 => {
                self.receiver.begin_join();
                let answer = self.join_answer();
                self.receiver.handle_join(&answer, now);
            }
            2 => {
                let reason = "fuzz".to_owned();
                let after = Duration::from_secs(self.input.u16().into());
                let error = match self.input.u8() % 8 {
                    0 => JoinError::NotFound(reason),
                    1 => JoinError::Garbled(reason),
                    _ => JoinError::Retry { after, reason },
                };
                self.receiver.handle_join_error(error, now);
            }
            3..=6 => self.handle_page(),
            7..=10 => self.handle_repair(),
            11 => {
                let size = self.geometry.size().max(1);
                let start = u64::from(self.input.mostly_small(40_000)) % size;
                let end = start + 1 + u64::from(self.input.u16()) % (size - start);
                if let Some(wait) = self.receiver.handle_read(&(start..end), now)
                    && self.input.u8() > 200
                {
                    self.receiver.handle_wait_over(wait);
                }
            }
            12 => self.answer_report(),
            13 => self.answer_want(),
            14 => self.fetch(),
            15 => self.answer_action(),
            16 => match self.input.u8() % 8 {
                0 if self.opens > 0 => {
                    self.opens -= 1;
                    self.receiver.handle_close(now);
                }
                0 | 1 => {
                    self.opens += 1;
                    self.receiver.handle_open();
                }
                2 => self.receiver.handle_drops(self.input.u16().into()),
                3 => self.receiver.handle_no_socket(self.input.u8() & 1 == 1, "fuzz", now),
                4 => self.receiver.handle_mtu(self.input.u32(), now),
                5 => self.receiver.handle_version_gone(),
                6 => {
                    let runs = [self.pages()];
                    self.receiver.handle_unreadable(&runs, now);
                }
                _ => drop(self.receiver.take_notices()),
            },
            _ => self.now += Duration::from_micros(u64::from(self.input.u16()).pow(2) / 256),
        }
        self.verify();
        self.rebuild();
        self.receiver.handle_timeout(self.now);
    }

    /// Answers as this server does, in most cases.
    fn join_answer(&mut self) -> JoinAnswer {
        let odd = self.input.u8();
        let has = |bit: u8| odd & 1 << bit == 0;
        let token = Token::from_random(u128::from(self.input.u8()));
        let etag = Etag::new(if has(7) { "v1" } else { "v2" }).expect("an ETag");
        let geometry = self.geometry;
        let (pages, page_size) = if has(6) {
            (geometry.pages(), geometry.page_size())
        } else {
            let size = PageSize::new(u64::from(self.input.u16())).unwrap_or(geometry.page_size());
            // The bits of a file with more pages would take half a GiB.
            (self.input.mostly_small(1000) % MAX_PAGES, size)
        };
        let extensions = Extensions {
            size: (has(5) && has(6)).then_some(geometry.size()),
            etag: has(4).then_some(etag),
            rate: has(3).then(|| "10mbit".parse().expect("a rate")),
            source: Some(address(0).ip()),
            key: has(0).then(key),
            repair: has(1).then_some(9001),
            interleave: has(1).then_some(u32::from(self.input.u8() % 6)),
            lease: has(2).then_some(Duration::from_secs(self.input.u8().into())),
            content_id: has(3).then(|| self.manifest.id()).filter(|_| geometry.size() > 0),
            leaf_bytes: has(2).then_some(LEAF_BYTES),
            members: None,
        };
        let connect = "239.255.0.1:9000".parse().expect("an address");
        // What the text cannot say is not answered.
        let answer = JoinAnswer { connect, token, pages, page_size, extensions };
        JoinAnswer::parse(&answer.encode()).unwrap_or(answer)
    }

    fn handle_page(&mut self) {
        let choice = self.input.u8();
        let index = self.input.mostly_small(self.geometry.pages()).min(u32::MAX - 1);
        let index = PageIndex(index);
        let mut datagram = if choice & 3 == 3 {
            let len = usize::from(self.input.u8());
            self.input.take(len).to_vec()
        } else {
            let bytes = self.geometry.byte_range(PageRange::single(index));
            let range = index_of(bytes.start)..index_of(bytes.end);
            let mut payload = self.file.get(range).unwrap_or_default().to_vec();
            if choice & 0x30 == 0x30 {
                for byte in &mut payload {
                    *byte ^= 1;
                }
            }
            let layout = if choice & 8 == 8 { Layout::Reference } else { Layout::Base };
            let header = layout.header(index, self.geometry.pages(), &payload);
            [&header[..], &payload].concat()
        };
        self.seal(&mut datagram);
        let from = address(choice >> 6);
        if let Arrival::New(page) = self.receiver.handle_datagram(from, &datagram, self.now) {
            let index = page.index;
            self.store(PageRange::single(index));
        }
    }

    fn handle_repair(&mut self) {
        let choice = self.input.u8();
        let mut datagram = match choice & 7 {
            0 => end_datagram((choice & 8 == 8).then(|| self.input.u32())),
            1..=3 => {
                let (block, number) = (self.input.mostly_small(20), self.input.u8());
                let number = bootcast_proto::fec::RepairIndex::new(usize::from(number) % 128);
                let number = number.expect("below 128");
                let header = symbol_header(BlockIndex(block), number, self.input.u8());
                [&header[..], &[7; PAGE as usize]].concat()
            }
            4 => {
                let spans = LeafSpan::all_of(self.manifest.tree(), 0, PAGE.into());
                let nth = usize::from(self.input.u8()) % spans.len().max(1);
                let list = spans.skip(nth).find_map(|span| span.encode(&self.manifest));
                let Some(list) = list else { return };
                list
            }
            _ => {
                let len = usize::from(self.input.u8());
                let mut datagram = vec![0; REPAIR_HEADER_LEN];
                datagram[0] = 1 + choice % 4;
                datagram.extend_from_slice(self.input.take(len));
                datagram
            }
        };
        self.seal(&mut datagram);
        let arrival =
            self.receiver.handle_repair_datagram(address(choice >> 6), &datagram, self.now);
        if let RepairArrival::Symbol { block, number, round, .. } = arrival {
            self.receiver.handle_symbol_stored(block, number, round);
        }
    }

    fn seal(&mut self, datagram: &mut [u8]) {
        if datagram.len() >= HEADER_LEN && self.input.u8() < 230 {
            key().seal(datagram);
        }
    }

    fn store(&mut self, pages: PageRange) {
        self.receiver.handle_stored(pages, self.receiver.epoch());
    }

    fn rebuild(&mut self) {
        while let Some(block) = self.receiver.poll_decodable() {
            let Some(plan) = self.receiver.decode_plan(block) else { continue };
            for (_, page) in plan.missing {
                self.receiver.record_other_pages(PageRange::single(page), true);
                self.store(PageRange::single(page));
            }
        }
    }

    fn verify(&mut self) {
        for _ in 0..4 {
            let Some(check) = self.receiver.poll_check() else { break };
            let finding = if !check.has_leaf_values() {
                Finding::Values(check.leaves().map(|leaf| self.value(leaf)).collect())
            } else if self.input.u8() > 200 {
                Finding::Wrong(check.leaves().take(1).collect())
            } else {
                Finding::Wrong(Vec::new())
            };
            self.receiver.handle_check_result(&check, &finding, self.now);
        }
    }

    fn value(&mut self, leaf: u64) -> [u8; 32] {
        let right = self.manifest.leaves().get(index_of(leaf)).copied();
        if self.input.u8() > 240 { [9; 32] } else { right.unwrap_or_default() }
    }

    fn pages(&mut self) -> PageRange {
        let count = self.geometry.pages();
        let start = self.input.mostly_small(count);
        PageRange::new(start, start.saturating_add(self.input.u8().into()))
    }

    fn answer_report(&mut self) {
        let Some(token) = self.receiver.token().cloned() else { return };
        if self.reports.pop().is_none() {
            return;
        }
        let result = match self.input.u8() {
            0..=10 => Err(ReportError::UnknownMember),
            _ => Ok(()),
        };
        self.receiver.handle_report_answer(&token, result, self.now);
    }

    fn answer_want(&mut self) {
        let (Some(token), Some(want)) = (self.receiver.token().cloned(), self.wants.pop()) else {
            return;
        };
        let result = match self.input.u8() {
            0..=10 => Err(ReportError::UnknownMember),
            queue => Ok(Duration::from_millis(queue.into())),
        };
        self.receiver.handle_wanted(&token, &want, result, self.now);
    }

    fn fetch(&mut self) {
        let Some(fetch) = self.receiver.poll_fetch(None, self.now) else { return };
        let bytes = fetch.bytes.clone();
        let part = bytes.start + u64::from(self.input.u16()) % (bytes.end - bytes.start + 1);
        let geometry = self.receiver.assembly().map(|it| *it.geometry());
        let Some(geometry) = geometry else { return };
        for page in geometry.pages_covering(bytes.start..part).iter() {
            let range = geometry.byte_range(PageRange::single(page));
            if bytes.start <= range.start && range.end <= part {
                self.receiver.record_other_pages(PageRange::single(page), false);
                self.store(PageRange::single(page));
            }
        }
        self.receiver.handle_fetched(fetch.id, part, None);
        let result = match self.input.u8() {
            0..=20 => Err(FetchError::Changed),
            21..=60 => {
                Err(FetchError::Retry { after: Duration::from_secs(self.input.u8().into()) })
            }
            61..=70 => Err(FetchError::Unreadable(bytes)),
            71..=75 => Err(FetchError::Store),
            _ => Ok(()),
        };
        self.receiver.handle_fetch_end(fetch.id, result, self.now);
    }

    /// Answers the oldest request that waits.
    fn answer_action(&mut self) {
        if self.actions.is_empty() {
            return;
        }
        let (choice, now) = (self.input.u8(), self.now);
        let after = Duration::from_secs(u64::from(choice));
        match self.actions.remove(0) {
            Action::ZeroMap if choice > 100 => {
                let leaves = self.manifest.tree().leaves();
                let mut map = ZeroMap::new(leaves);
                (0..leaves).filter(|leaf| leaf % 3 == 1).for_each(|leaf| map.insert(leaf));
                self.receiver.begin_zeros(&map);
                self.receiver.handle_zeros_taken(now);
            }
            Action::ZeroMap => self.receiver.handle_no_zeros(after, now),
            Action::Lists(request) if choice > 60 => {
                let mut values = match &request {
                    bootcast_fs::receiver::ListRequest::Segments => self.manifest.segments(),
                    bootcast_fs::receiver::ListRequest::Leaves(_) => self.manifest.leaves(),
                }
                .to_vec();
                values.truncate(usize::from(self.input.u8()));
                let id = (choice > 90).then(|| self.manifest.id());
                self.receiver.handle_lists(&request, id, &values, now);
            }
            Action::Lists(request) => self.receiver.handle_lists_failed(&request, after, now),
            Action::PageHashes(request) => {
                let count = request.pages.len().min(500) as usize;
                let hash = PageHash::of(&[7; PAGE as usize]);
                let hashes = (choice > 100).then(|| vec![hash; count]);
                self.receiver.handle_page_hashes(&request, hashes, now);
            }
            Action::Replace(leaves) => {
                let wrong = (choice > 100).then_some(&[][..]);
                self.receiver.handle_replaced(&leaves, wrong, now);
            }
            _ => {}
        }
    }

    fn take_actions(&mut self) {
        while let Some(action) = self.receiver.poll_action() {
            match action {
                Action::Report(report) => self.reports.push(report),
                Action::Want(want) => self.wants.push(want),
                Action::ZeroMap | Action::Lists(_) | Action::PageHashes(_) | Action::Replace(_) => {
                    self.actions.push(action);
                }
                Action::Join | Action::Leave(_) | Action::Subscribe(_) | Action::Unsubscribe => {}
            }
        }
        if let Some(want) = self.receiver.poll_want() {
            self.wants.push(want);
        }
        let receiver = &self.receiver;
        let _ = (receiver.poll_timeout(), receiver.settled(), receiver.verified_contiguous());
    }
}

fn key() -> DatagramKey {
    DatagramKey::from_random([7; 32])
}

/// Addresses of the server and of others.
fn address(choice: u8) -> SocketAddr {
    let host = if choice == 3 { 2 } else { 1 };
    (Ipv4Addr::new(192, 0, 2, host), 40_000 + u16::from(choice == 2)).into()
}

fn index_of(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}
