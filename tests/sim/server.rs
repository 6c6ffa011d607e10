//! Drives the real scheduler of the server, and encodes what it sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootcast_fs::receiver::ListRequest;
use bootcast_proto::api::{Report, Want};
use bootcast_proto::join::Extensions;
use bootcast_proto::manifest::{ContentId, LEAF_BYTES, Value};
use bootcast_proto::wire::{HEADER_LEN, REPAIR_HEADER_LEN, end_datagram, symbol_header};
use bootcast_proto::{
    ContentTree, DatagramKey, Etag, Geometry, JoinAnswer, Layout, Manifest, PageRange, PageSize,
    RemotePath, Token,
};
use bootcast_server::cast::{
    CastPolicy, GroupPool, MemberKind, Newcomer, PlainTrust, RepairSettings, Scheduler, Sending,
    Settings, Symbol,
};

use super::audit::{ClientAudit, ServerAudit};
use super::burst::{Burst, Channel};
use super::random::Random;
use super::scenario::Scenario;

/// Address and port that the simulated server sends its datagrams from.
pub(super) const ADDRESS: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 40_000);

/// Settings of the repair channel, as by default in the server.
pub(super) const REPAIR: RepairSettings =
    RepairSettings { interleave: 128, repair_port: 9001, lease: Duration::from_secs(60) };

/// UDP port of the pages.
pub(super) const DATA_PORT: u16 = 9000;

/// Largest number of pages that the scheduler sends at once, as in the server with GSO.
pub(super) const BATCH: u32 = 44;
const _: () = assert!(BATCH as usize <= Burst::MAX);

/// Made-up value of each leaf.
pub(super) const LEAF_VALUE: Value = [1; 32];

/// Numbers of datagrams that the server sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Pages of the file.
    pub(super) pages: u64,
    /// Repair symbols.
    pub(super) symbols: u64,
    /// Beacons.
    pub(super) beacons: u64,
    /// Leaf lists.
    pub(super) lists: u64,
}

/// A server that casts one file.
#[derive(Debug)]
pub(super) struct Server {
    scheduler: Scheduler,
    path: RemotePath,
    etag: Etag,
    geometry: Geometry,
    /// Values that leaf lists carry; `None` if nobody asks for them.
    manifest: Option<Arc<Manifest>>,
    /// Key of the datagrams' tags, if they have any.
    key: Option<DatagramKey>,
    random: Random,
    sent: Sent,
    audit: ServerAudit,
}

impl Server {
    /// Creates a server without members.
    pub(super) fn new(scenario: &Scenario, now: Instant) -> Self {
        let page_size = PageSize::for_mtu(1500).expect("room for a page");
        let settings = Settings {
            rate: scenario.rate,
            rate_source: scenario.source,
            batch_pages: BATCH,
            data_port: DATA_PORT,
            max_casts: 1,
            policy: CastPolicy {
                idle_passes: NonZeroU32::new(5).expect("not 0"),
                linger: Duration::from_millis(500),
            },
            plain: PlainTrust::Limited,
            groups: GroupPool::new("239.255.0.0/16".parse().expect("a block")).expect("multicast"),
            repair: Some(REPAIR),
        };
        let size = u64::from(scenario.pages) * u64::from(page_size.get());
        let geometry = Geometry::new(size, page_size).expect("pages that u32 counts");
        Self {
            scheduler: Scheduler::new(settings, page_size.wire_len(), now),
            path: RemotePath::decode("file").expect("a path"),
            etag: Etag::new("v1").expect("a version"),
            geometry,
            manifest: scenario.leaf_lists.then(|| manifest(size)),
            key: scenario.key(),
            random: Random::new(scenario.seed, 1),
            sent: Sent::default(),
            audit: ServerAudit::new(geometry, scenario.rate, now),
        }
    }

    /// Handles a join. Returns `None` if the server refuses it; the client then tries again.
    pub(super) fn join(&mut self, plain: bool, now: Instant) -> Option<JoinAnswer> {
        let kind = if plain { MemberKind::Plain } else { MemberKind::Extended };
        let number = self.random.wide();
        // Each client is a host of its own.
        let host = Ipv6Addr::from_bits(number).into();
        self.admit(Token::from_random(number), kind, host, now)
    }

    /// Does the same as [`Self::join`] for a client of this host.
    pub(super) fn join_as(
        &mut self,
        kind: MemberKind,
        host: IpAddr,
        now: Instant,
    ) -> Option<JoinAnswer> {
        let token = Token::from_random(self.random.wide());
        self.admit(token, kind, host, now)
    }

    fn admit(
        &mut self,
        token: Token,
        kind: MemberKind,
        host: IpAddr,
        now: Instant,
    ) -> Option<JoinAnswer> {
        let plain = kind == MemberKind::Plain;
        let newcomer = Newcomer { token: token.clone(), kind, principal: host.into() };
        let joined = self
            .scheduler
            .handle_join(&self.path, &self.etag, self.geometry, newcomer, now)
            .ok()?;
        if let Some(manifest) = &self.manifest {
            self.scheduler.request_leaves(joined.cast, &token);
            self.scheduler.handle_manifest(&self.path, &self.etag, Arc::clone(manifest), now);
        }
        Some(JoinAnswer {
            connect: joined.group,
            token,
            pages: self.geometry.pages(),
            page_size: self.geometry.page_size(),
            extensions: if plain { Extensions::default() } else { self.extensions() },
        })
    }

    fn extensions(&self) -> Extensions {
        let layout = REPAIR.layout(&self.geometry).expect("room for a beacon");
        Extensions {
            size: Some(self.geometry.size()),
            etag: Some(self.etag.clone()),
            rate: Some(self.scheduler.rate()),
            source: Some(ADDRESS.ip()),
            key: self.key,
            repair: Some(REPAIR.repair_port),
            interleave: Some(layout.interleave()),
            lease: Some(REPAIR.lease),
            content_id: self.proof().map(Manifest::id),
            leaf_bytes: self.proof().map(|_| LEAF_BYTES),
            members: None,
        }
    }

    /// The manifest, if receivers verify what they get.
    fn proof(&self) -> Option<&Manifest> {
        self.manifest.as_deref().filter(|_| self.key.is_some())
    }

    /// Returns the values that a client requests.
    pub(super) fn lists(&self, request: &ListRequest) -> Vec<Value> {
        let Some(manifest) = self.proof() else { return Vec::new() };
        match request {
            ListRequest::Segments => manifest.segments().to_vec(),
            ListRequest::Leaves(segments) => {
                let end = manifest.tree().leaves_of(segments.end - 1).end;
                let leaves = manifest.tree().leaves_of(segments.start).start..end;
                let index = |leaf| usize::try_from(leaf).expect("an index");
                manifest.leaves()[index(leaves.start)..index(leaves.end)].to_vec()
            }
        }
    }

    /// Content id, if receivers verify what they get.
    pub(super) fn content_id(&self) -> Option<ContentId> {
        self.proof().map(Manifest::id)
    }

    /// Handles a leave.
    pub(super) fn leave(&mut self, token: &Token, now: Instant) {
        self.scheduler.handle_leave(&self.path, token, now);
    }

    /// Handles a report. Returns `false` if the server does not know the member.
    pub(super) fn report(&mut self, token: &Token, report: &Report, now: Instant) -> bool {
        self.scheduler.handle_report(&self.path, token, report, now)
    }

    /// Handles a demand of a member that states its progress.
    pub(super) fn want(&mut self, token: &Token, want: &Want, useful: u64, now: Instant) {
        self.scheduler.handle_progress(&self.path, token, useful, now);
        self.scheduler.handle_want(&self.path, token, want, now);
    }

    /// Handles due timers, and returns the datagrams to send now.
    pub(super) fn wake(&mut self, now: Instant) -> Vec<Burst> {
        self.scheduler.handle_timeout(now);
        let mut bursts = Vec::new();
        while let Some(transmit) = self.scheduler.poll_transmit(now) {
            let burst = self.encode(&transmit.content).sealed(self.key);
            self.audit.check(&transmit, &burst, now);
            bursts.push(burst);
        }
        self.audit.check_totals(&self.scheduler, self.sent);
        while self.scheduler.poll_event().is_some() {}
        bursts
    }

    /// Time at which [`Self::wake`] must be called next.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.scheduler.poll_timeout()
    }

    /// Checks that a client stored no symbol that was not sent.
    pub(super) fn check_symbols(&self, client: &ClientAudit) {
        self.audit.check_symbols(client);
    }

    /// Whether a cast runs.
    pub(super) fn is_casting(&self) -> bool {
        self.scheduler.casts().next().is_some()
    }

    /// Size and pages of the file.
    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Number of members.
    pub(super) fn members(&self) -> usize {
        self.scheduler.casts().map(|view| view.cast.members()).sum()
    }

    /// Numbers of datagrams sent so far.
    pub(super) fn sent(&self) -> Sent {
        self.sent
    }

    fn encode(&mut self, what: &Sending) -> Burst {
        match what {
            Sending::Pages(pages) => self.pages(*pages),
            Sending::Symbols(symbols) => self.symbols(symbols),
            Sending::Beacon(beacon) => {
                self.sent.beacons += 1;
                let bytes = beacon.encode();
                let mut burst = Burst::new(Channel::Repair, bytes.len());
                burst.push(&bytes, 0);
                burst
            }
            Sending::LeafList(list) => {
                let list =
                    self.scheduler.casts().next().and_then(|it| it.cast.encode_leaf_list(*list));
                let bytes = list.expect("a running cast has the values of its lists");
                self.sent.lists += 1;
                let mut burst = Burst::new(Channel::Repair, bytes.len());
                burst.push(&bytes, 0);
                burst
            }
            Sending::End(next_beacon) => {
                let bytes = end_datagram(Some(*next_beacon));
                let mut burst = Burst::new(Channel::Repair, bytes.len());
                burst.push(&bytes, 0);
                burst
            }
        }
    }

    fn symbols(&mut self, symbols: &[Symbol]) -> Burst {
        let full = self.geometry.page_size().get() as usize;
        let mut burst = Burst::new(Channel::Repair, symbols.len() * (full + REPAIR_HEADER_LEN));
        for Symbol { block, number, promised } in symbols {
            burst.push(&symbol_header(*block, *number, *promised), full);
        }
        self.sent.symbols += symbols.len() as u64;
        burst
    }

    fn pages(&mut self, pages: PageRange) -> Burst {
        let full = self.geometry.page_size().get() as usize;
        let zeros = vec![0; full];
        let mut burst = Burst::new(Channel::Data, pages.len() as usize * (full + HEADER_LEN));
        for page in pages.iter() {
            let len = self.geometry.page_len(page).expect("a page of the file") as usize;
            let header = Layout::Base.header(page, self.geometry.pages(), &zeros[..len]);
            burst.push(&header, len);
        }
        self.sent.pages += u64::from(pages.len());
        burst
    }
}

/// Returns a made-up manifest for a file of `size` bytes.
fn manifest(size: u64) -> Arc<Manifest> {
    let tree = ContentTree::new(size);
    let leaves = (0..tree.leaves()).map(|_| LEAF_VALUE).collect();
    Arc::new(Manifest::new(tree, leaves))
}
