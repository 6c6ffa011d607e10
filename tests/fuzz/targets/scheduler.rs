//! The casts of a server, whose clients may do anything in any order.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bootcast_proto::api::{Report, Want};
use bootcast_proto::{Etag, Geometry, PageIndex, PageRange, PageSize, RemotePath, Token};
use bootcast_server::cast::{
    CastPolicy, CeilingSource, EndReason, GroupPool, MemberKind, Newcomer, PlainTrust,
    RepairSettings, Scheduler, Settings,
};

use super::input::Input;

/// First moment of every run.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Number of the latest joins whose members are named.
const TOKENS: u32 = 8;
/// Largest number of datagrams that are taken in one step.
const MAX_TRANSMITS: u8 = 40;
/// Largest number of steps of a run.
const MAX_STEPS: usize = 400;

/// Two files, and members that join, leave, report, demand and wait.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let page_size = PageSize::new(1456).expect("even");
    let sizes = [input.mostly_small(9_000_000), input.mostly_small(1_000)].map(u64::from);
    let flags = input.u8();
    let has_repair = flags & 1 == 0;
    let plain = match flags >> 1 & 7 {
        0 => PlainTrust::Allow,
        1 => PlainTrust::Deny,
        _ => PlainTrust::Limited,
    };
    let repair = RepairSettings {
        interleave: 1 + u32::from(input.u8() % 20),
        repair_port: 9001,
        lease: Duration::from_secs(60),
    };
    let settings = Settings {
        rate: "50mbit".parse().expect("a rate"),
        rate_source: CeilingSource::Operator,
        batch_pages: 1 + u32::from(input.u8() % 44),
        data_port: 9000,
        max_casts: 4,
        policy: CastPolicy {
            idle_passes: NonZeroU32::new(3).expect("not 0"),
            linger: Duration::from_millis(500),
        },
        plain,
        groups: GroupPool::new("239.255.0.0/24".parse().expect("a block")).expect("multicast"),
        repair: has_repair.then_some(repair),
    };
    let mut now = *START;
    let mut scheduler = Scheduler::new(settings, page_size.wire_len(), now);
    let files = [("a", sizes[0]), ("b", sizes[1])].map(|(name, size)| {
        let path = RemotePath::decode(name).expect("a path");
        (path, Geometry::new(size, page_size).expect("few pages"))
    });
    let mut joins = 0;
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.u8();
        let (path, geometry) = &files[usize::from(step >> 7)];
        let token = Token::from_random(u128::from(joins.max(TOKENS) - input.below(TOKENS)));
        match step & 0x0f {
            0 | 1 => {
                // No token is given twice.
                joins += 1;
                let token = Token::from_random(joins.into());
                let kind = match input.u8() % 3 {
                    0 => MemberKind::Plain,
                    1 => MemberKind::Extended,
                    _ => MemberKind::Demand,
                };
                let host = IpAddr::from(Ipv4Addr::new(10, 0, 0, input.u8() % 4));
                let etag = Etag::new(["v1", "v2"][usize::from(input.u8() == 0)]).expect("an ETag");
                let newcomer = Newcomer { token, kind, principal: host.into() };
                let _ = scheduler.handle_join(path, &etag, *geometry, newcomer, now);
            }
            2 => drop(scheduler.handle_leave(path, &token, now)),
            3 | 4 => drop(scheduler.handle_report(path, &token, &report(&mut input), now)),
            5 => {
                let text = input.take(200);
                if let Ok(report) = serde_json::from_slice(text) {
                    scheduler.handle_report(path, &token, &report, now);
                }
            }
            6 | 7 => drop(scheduler.handle_want(path, &token, &want(&mut input), now)),
            8 => scheduler.handle_progress(path, &token, input.u64(), now),
            9 => {
                let id = scheduler.cast_of(path).map(|view| view.id);
                let pages = pages(&mut input, geometry.pages());
                let end = pages.end.0.min(geometry.pages());
                // The server finds only pages of the file.
                if let Some(id) = id.filter(|_| pages.start.0 < end) {
                    scheduler.handle_unreadable(id, PageRange::new(pages.start.0, end), now);
                }
            }
            10 if input.u8() == 0 => scheduler.handle_end_of_all(EndReason::AddressChanged, now),
            _ => now += Duration::from_micros(u64::from(input.u16()).pow(2) / 64),
        }
        scheduler.handle_timeout(now);
        for _ in 0..input.u8() % MAX_TRANSMITS {
            if scheduler.poll_transmit(now).is_none() {
                break;
            }
        }
        while scheduler.poll_event().is_some() {}
        let _ = (scheduler.poll_timeout(), scheduler.totals());
    }
    scheduler.handle_stop(now);
    while scheduler.poll_transmit(now).is_some() {}
}

fn report(input: &mut Input<'_>) -> Report {
    let (needs, bulk, flags) = (input.u8() % 8, input.u8() % 4, input.u8());
    let counter = |input: &mut Input<'_>| {
        if input.u8() > 250 { input.u64() } else { u64::from(input.u16()) }
    };
    Report {
        needs: (0..needs).map(|_| (input.mostly_small(100), input.u8())).collect(),
        bulk: (0..bulk).map(|_| (input.mostly_small(10), input.mostly_small(10))).collect(),
        sent: counter(input),
        received: counter(input),
        drops: counter(input),
        seen: counter(input),
        unicast: flags & 1 == 1,
        useful: counter(input),
        stream_only: flags & 2 == 2,
        zeros: flags & 4 == 4,
    }
}

fn want(input: &mut Input<'_>) -> Want {
    let (now, later, flags) = (input.u8() % 6, input.u8() % 4, input.u8());
    Want {
        now: (0..now).map(|_| pages(input, 7000)).collect(),
        later: (0..later).map(|_| pages(input, 7000)).collect(),
        came: input.mostly_small(7000),
        delay_us: input.mostly_small(50_000),
        late: flags & 1 == 1,
        lossy: flags & 2 == 2,
    }
}

fn pages(input: &mut Input<'_>, count: u32) -> PageRange {
    let (start, len) = (input.mostly_small(count), input.mostly_small(64));
    PageRange { start: PageIndex(start), end: PageIndex(start.saturating_add(len)) }
}
