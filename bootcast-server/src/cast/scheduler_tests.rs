//! The scheduler on a virtual clock.
#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

use std::num::NonZeroU32;

use bootcast_proto::api::{Report, Want};
use bootcast_proto::limits::{HOLD, SHORT_HOLD};
use bootcast_proto::wire::Beacon;
use bootcast_proto::{PageSize, Share};
use proptest::prelude::*;

use super::*;

#[path = "scheduler/budget_tests.rs"]
mod budget;
#[path = "scheduler/demand_tests.rs"]
mod demand;
#[path = "scheduler/taken_tests.rs"]
mod taken;
#[path = "scheduler/waiting_tests.rs"]
mod waiting;

const BATCH: u32 = 8;

/// A client of a host that has no other.
fn newcomer(token: Token, kind: MemberKind) -> Newcomer {
    let number = u32::from_str_radix(&token.as_str()[24..], 16).unwrap();
    newcomer_of(number, token, kind)
}

fn newcomer_of(host: u32, token: Token, kind: MemberKind) -> Newcomer {
    Newcomer { token, kind, principal: std::net::IpAddr::from(host.to_be_bytes()).into() }
}

struct Lab {
    scheduler: Scheduler,
    now: Instant,
    /// Everything sent, with its time and its bytes on the wire.
    sent: Vec<(Instant, Transmit, u64)>,
    tokens: u128,
}

impl Lab {
    fn new(rate: &str, groups: &str, max_casts: usize) -> Self {
        let settings = Settings {
            rate: rate.parse().unwrap(),
            rate_source: CeilingSource::Operator,
            batch_pages: BATCH,
            data_port: 9000,
            max_casts,
            policy: CastPolicy {
                idle_passes: NonZeroU32::new(5).unwrap(),
                linger: Duration::from_millis(500),
            },
            plain: PlainTrust::Limited,
            groups: GroupPool::new(groups.parse().unwrap()).unwrap(),
            repair: None,
        };
        let now = Instant::now();
        let scheduler = Scheduler::new(settings, page_size().wire_len(), now);
        Self { scheduler, now, sent: Vec::new(), tokens: 0 }
    }

    fn join(&mut self, path: &str, etag: &str, size: u64) -> Result<(Joined, Token), JoinRefusal> {
        self.join_as(path, etag, size, MemberKind::Plain)
    }

    fn join_as(
        &mut self,
        path: &str,
        etag: &str,
        size: u64,
        kind: MemberKind,
    ) -> Result<(Joined, Token), JoinRefusal> {
        self.tokens += 1;
        let token = Token::from_random(self.tokens);
        let etag = Etag::new(etag).unwrap();
        let geometry = Geometry::new(size, page_size()).unwrap();
        let joined = self.scheduler.handle_join(
            &name(path),
            &etag,
            geometry,
            newcomer(token.clone(), kind),
            self.now,
        )?;
        Ok((joined, token))
    }

    /// Drives the scheduler for `time`, as the driver does.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.scheduler.handle_timeout(self.now);
            let mut before = self.scheduler.totals().bytes_sent;
            while let Some(transmit) = self.scheduler.poll_transmit(self.now) {
                let total = self.scheduler.totals().bytes_sent;
                self.sent.push((self.now, transmit, total - before));
                before = total;
            }
            let wake = self.scheduler.poll_timeout().unwrap_or(end);
            assert!(wake > self.now, "the driver would spin");
            self.now = wake.min(end);
        }
    }

    fn ended_casts(&mut self) -> Vec<(CastId, EndReason)> {
        std::iter::from_fn(|| self.scheduler.poll_event())
            .filter_map(|event| match event {
                Event::Ended(Ended { cast, reason, .. }) => Some((cast, reason)),
                Event::Profile(..) | Event::BudgetUsedUp(..) | Event::RationUsedUp(..) => None,
            })
            .collect()
    }

    fn pages_of(&self, cast: CastId) -> u32 {
        self.sent
            .iter()
            .filter(|(_, it, _)| it.cast == cast)
            .map(|(_, it, _)| pages_in(it).len())
            .sum()
    }
}

/// Returns the pages of a transmit. Only pages are sent to plain members.
fn pages_in(transmit: &Transmit) -> PageRange {
    match transmit.content {
        Sending::Pages(pages) => pages,
        _ => panic!("{transmit:?}"),
    }
}

fn page_size() -> PageSize {
    PageSize::new(1456).unwrap()
}

fn name(path: &str) -> RemotePath {
    RemotePath::decode(path).unwrap()
}

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_second_join_of_the_same_version_becomes_a_member_of_the_running_cast() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    let (first, _) = lab.join("a", "v1", MIB).unwrap();
    lab.run(HOLD + Duration::from_millis(20));
    let sent = lab.sent.len();
    let (second, _) = lab.join("a", "v1", MIB).unwrap();
    assert!(first.has_started_cast && !second.has_started_cast);
    assert_eq!((first.cast, first.group), (second.cast, second.group));
    lab.run(Duration::from_millis(5));
    assert_eq!(pages_in(&lab.sent[sent].1).start, pages_in(&lab.sent[sent - 1].1).end);
}

#[test]
fn a_join_of_another_version_ends_the_outdated_cast_and_starts_one_in_another_group() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    let (old, token) = lab.join("a", "v1", MIB).unwrap();
    let (new, _) = lab.join("a", "v2", MIB).unwrap();
    assert_eq!(lab.ended_casts(), [(old.cast, EndReason::FileChanged)]);
    assert!(new.has_started_cast && new.group != old.group);
    assert_eq!(lab.scheduler.handle_leave(&name("a"), &token, lab.now), None);
}

#[test]
fn a_leave_is_valid_only_for_the_path_of_its_join() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    let (a, token) = lab.join("a", "v1", MIB).unwrap();
    lab.join("b", "v1", MIB).unwrap();
    assert_eq!(lab.scheduler.handle_leave(&name("b"), &token, lab.now), None);
    assert_eq!(lab.scheduler.handle_leave(&name("a"), &token, lab.now), Some(a.cast));
    assert_eq!(lab.scheduler.handle_leave(&name("a"), &token, lab.now), None);
    assert_eq!(lab.scheduler.totals().leaves, 1);
}

#[test]
fn a_join_beyond_the_limits_is_refused_until_a_cast_ends() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 1);
    let (a, _) = lab.join("a", "v1", MIB).unwrap();
    assert_eq!(lab.join("b", "v1", MIB).unwrap_err(), JoinRefusal::TooManyCasts);
    lab.scheduler.handle_end(a.cast, EndReason::FileChanged, lab.now);
    assert!(lab.join("b", "v1", MIB).is_ok());

    let mut lab = Lab::new("100mbit", "239.255.0.0/31", 9);
    let (a, _) = lab.join("a", "v1", MIB).unwrap();
    lab.join("b", "v1", MIB).unwrap();
    assert_eq!(lab.join("c", "v1", MIB).unwrap_err(), JoinRefusal::NoGroup);
    lab.scheduler.handle_end(a.cast, EndReason::FileChanged, lab.now);
    assert_eq!(lab.join("c", "v1", MIB).unwrap_err(), JoinRefusal::NoGroup);
    lab.now += 10 * SECOND;
    assert_eq!(lab.join("c", "v1", MIB).unwrap().0.group, a.group);
}

#[test]
fn a_cast_ends_after_its_idle_passes_and_sends_no_further_page() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    let (cast, _) = lab.join("a", "v1", MIB).unwrap();
    lab.run(3 * SECOND);
    assert_eq!(lab.ended_casts(), [(cast.cast, EndReason::IdlePasses)]);
    assert_eq!(lab.pages_of(cast.cast), 5 * 721);
    assert_eq!(lab.scheduler.poll_timeout(), None);
}

#[test]
fn a_stop_ends_every_cast() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    lab.join("a", "v1", MIB).unwrap();
    lab.join("b", "v1", MIB).unwrap();
    lab.scheduler.handle_stop(lab.now);
    assert!(lab.ended_casts().iter().all(|(_, reason)| *reason == EndReason::Stopped));
    assert_eq!(lab.scheduler.casts().count(), 0);
    assert_eq!(lab.scheduler.poll_transmit(lab.now), None);
}

#[test]
fn the_whole_rate_is_used_while_there_is_something_to_send() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    lab.join("a", "v1", 100 * MIB).unwrap();
    lab.run(HOLD + SECOND);
    let sent = lab.scheduler.totals().bytes_sent;
    assert!((12_400_000..=12_600_000).contains(&sent), "{sent} bytes in a second at 100 Mbit/s");
}

#[test]
fn casts_share_the_rate_fairly_whatever_their_size() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    let (large, _) = lab.join("large", "v1", 100 * MIB).unwrap();
    // 403 pages: the last run of every pass has only three pages.
    let (odd, mut last) = lab.join("odd", "v1", 586_000).unwrap();
    lab.run(HOLD);
    lab.join("third", "v1", 100 * MIB).unwrap();
    for _ in 0..20 {
        lab.run(Duration::from_millis(50));
        // Keeps the cast of the small file from ending.
        let (_, token) = lab.join("odd", "v1", 586_000).unwrap();
        lab.scheduler.handle_leave(&name("odd"), &last, lab.now);
        last = token;
    }
    let (large, odd) = (lab.pages_of(large.cast), lab.pages_of(odd.cast));
    assert!(large.abs_diff(odd) < large / 20, "{large} and {odd} pages");
}

#[test]
fn the_share_of_a_cast_grows_with_the_logarithm_of_its_members() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    let (one, _) = lab.join("one", "v1", 100 * MIB).unwrap();
    let (many, _) = lab.join("many", "v1", 100 * MIB).unwrap();
    (1..1024).for_each(|_| drop(lab.join("many", "v1", 100 * MIB).unwrap()));
    lab.run(HOLD + 2 * SECOND);
    let (one, many) = (lab.pages_of(one.cast), lab.pages_of(many.cast));
    assert!(many.abs_diff(11 * one) < one, "{one} and {many} pages");
}

#[test]
fn the_rate_that_a_slow_cast_leaves_goes_to_the_others() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 9);
    let (slow, _) = lab.join("slow", "v1", 100 * MIB).unwrap();
    let (other, _) = lab.join("other", "v1", 100 * MIB).unwrap();
    let running = lab.scheduler.casts.get_mut(&slow.cast).unwrap();
    running.allowance.set_rate("10mbit".parse().unwrap(), lab.now);
    lab.run(HOLD + SECOND);
    let (slow, other) = (lab.pages_of(slow.cast), lab.pages_of(other.cast));
    assert!((800..850).contains(&slow), "{slow}");
    assert!((7200..7500).contains(&other), "{other}");
}

/// Creates a lab whose casts have a repair channel, and its only cast with one extended member.
fn extended() -> (Lab, Joined, Token) {
    extended_of(MIB)
}

/// Creates a lab as [`extended`] does, with a file of `size` bytes.
fn extended_of(size: u64) -> (Lab, Joined, Token) {
    let mut lab = Lab::new("100mbit", "239.255.0.0/31", 9);
    lab.scheduler.settings.repair =
        Some(RepairSettings { interleave: 4, repair_port: 9001, lease: 60 * SECOND });
    let (joined, token) = lab.join_as("a", "v1", size, MemberKind::Extended).unwrap();
    (lab, joined, token)
}

#[test]
fn a_beacon_states_the_rate_and_the_datagrams_sent_before_it() {
    let (mut lab, _, _) = extended();
    lab.run(SHORT_HOLD + Duration::from_millis(60));
    let (mut pages, mut beacons) = (0, 0);
    for (_, transmit, _) in &lab.sent {
        match &transmit.content {
            Sending::Pages(run) => pages += u64::from(run.len()),
            Sending::Beacon(Beacon { pace, .. }) => {
                beacons += 1;
                assert_eq!((pace.sent, pace.rate_kbps), (pages, 100_000));
                assert_eq!((pace.panel, pace.interval_ms), (Share::ALL, 250));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(beacons >= 2);
}

#[test]
fn a_cast_that_loses_half_continues_at_half_the_rate_and_the_next_one_starts_there() {
    let (mut lab, joined, token) = extended();
    let mut report = Report::default();
    for _ in 0..2 {
        lab.run(HOLD + Duration::from_millis(200));
        report.sent = lab.scheduler.casts[&joined.cast].control.pace(1).sent;
        report.received = report.sent / 2;
        assert!(lab.scheduler.handle_report(&name("a"), &token, &report, lab.now));
    }
    let rate = lab.scheduler.cast(joined.cast).unwrap().rate;
    assert!((40_000_000..60_000_000).contains(&rate.bits_per_second()), "{rate}");
    lab.scheduler.handle_end(joined.cast, EndReason::FileChanged, lab.now);
    let (next, _) = lab.join("b", "v1", MIB).unwrap();
    assert_eq!(lab.scheduler.cast(next.cast).unwrap().rate, rate);
}

#[test]
fn losses_of_a_member_that_nothing_is_sent_for_do_not_slow_the_cast() {
    let (mut lab, joined, deaf) = extended_of(64 * MIB);
    let path = name("a");
    let (other, _) = lab.join_as("a", "v1", 64 * MIB, MemberKind::Extended).unwrap();
    assert_eq!(other.cast, joined.cast);
    let all = Report { bulk: vec![(0, u32::MAX)], ..Report::default() };
    for _ in 0..3 {
        assert!(lab.scheduler.handle_report(&path, &deaf, &all, lab.now));
    }
    assert!(!lab.scheduler.casts[&joined.cast].cast.serves(&deaf));
    let rate = lab.scheduler.cast(joined.cast).unwrap().rate;
    for _ in 0..4 {
        lab.run(HOLD + Duration::from_millis(200));
        let sent = lab.scheduler.casts[&joined.cast].control.pace(1).sent;
        let report = Report { sent, received: sent / 50, ..all.clone() };
        assert!(lab.scheduler.handle_report(&path, &deaf, &report, lab.now));
    }
    assert_eq!(lab.scheduler.cast(joined.cast).unwrap().rate, rate);
}

/// Returns the destinations of the end announcements.
fn end_announcements(lab: &Lab) -> Vec<SocketAddrV4> {
    let ends = lab.sent.iter().filter(|(_, it, _)| matches!(it.content, Sending::End(_)));
    ends.map(|(_, it, _)| it.group).collect()
}

#[test]
fn repair_datagrams_go_to_the_repair_port_and_pages_to_the_data_port() {
    let (mut lab, joined, token) = extended();
    lab.run(SHORT_HOLD + Duration::from_millis(30));
    let report = Report { needs: vec![(1, 3)], ..Report::default() };
    assert!(lab.scheduler.handle_report(&name("a"), &token, &report, lab.now));
    assert!(!lab.scheduler.handle_report(&name("b"), &token, &report, lab.now));
    lab.run(Duration::from_millis(60));
    for (_, transmit, bytes) in &lab.sent {
        let port = if matches!(transmit.content, Sending::Pages(_)) { 9000 } else { 9001 };
        assert_eq!(transmit.group, SocketAddrV4::new(*joined.group.ip(), port));
        assert!(*bytes > 0);
    }
    assert_eq!(lab.scheduler.totals().symbols_sent, 3);
}

#[test]
fn the_end_of_a_cast_is_announced_three_times() {
    let (mut lab, joined, _) = extended();
    lab.run(HOLD + Duration::from_millis(5));
    lab.scheduler.handle_end(joined.cast, EndReason::FileChanged, lab.now);
    assert_eq!(lab.ended_casts(), [(joined.cast, EndReason::FileChanged)]);
    lab.run(SECOND);
    let channel = SocketAddrV4::new(*joined.group.ip(), 9001);
    assert_eq!(end_announcements(&lab), [channel; 3]);
    assert_eq!(lab.scheduler.poll_timeout(), None);
}

#[test]
fn a_join_of_a_lingering_cast_cancels_the_announcements_of_its_end() {
    let (mut lab, joined, token) = extended();
    lab.run(HOLD + Duration::from_millis(5));
    lab.scheduler.handle_leave(&name("a"), &token, lab.now);
    lab.run(Duration::from_millis(5));
    assert_eq!(end_announcements(&lab).len(), 1);
    assert_eq!(lab.join("a", "v1", MIB).unwrap().0.cast, joined.cast);
    lab.run(SECOND / 5);
    assert_eq!(end_announcements(&lab).len(), 1);
}

proptest! {
    #[test]
    fn no_window_carries_more_than_the_rate_and_the_bucket(
        sizes in proptest::collection::vec(0u64..3 * MIB, 1..6),
        gaps_ms in proptest::collection::vec(0u64..200, 6),
        rate_mbit in 1u64..2000,
    ) {
        let rate = BitRate::from_bits_per_second(rate_mbit * 1_000_000).unwrap();
        let mut lab = Lab::new(&rate.to_string(), "239.255.0.0/16", 9);
        for (number, (size, gap)) in sizes.iter().zip(gaps_ms).enumerate() {
            lab.join(&number.to_string(), "v1", *size).unwrap();
            lab.run(Duration::from_millis(gap));
        }
        lab.run(SECOND);
        let batch = u64::from(BATCH) * page_size().wire_len();
        let depth = Duration::from_millis(20).max(rate.time_to_send(batch));
        for start in (0..lab.sent.len()).step_by(1 + lab.sent.len() / 50) {
            let mut total = 0;
            for &(at, _, bytes) in &lab.sent[start..] {
                total += bytes;
                prop_assert!(total <= rate.bytes_in(at - lab.sent[start].0 + depth));
            }
        }
        prop_assert!(lab.sent.iter().all(|(_, it, _)| (1..=BATCH).contains(&pages_in(it).len())));
    }

    #[test]
    fn every_pass_sends_every_page_in_order_however_many_casts_run(
        sizes in proptest::collection::vec(1u64..300_000, 1..5),
    ) {
        let mut lab = Lab::new("1gbit", "239.255.0.0/16", 9);
        let casts: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(number, size)| lab.join(&number.to_string(), "v1", *size).unwrap().0.cast)
            .collect();
        lab.run(5 * SECOND);
        for (cast, size) in casts.into_iter().zip(sizes) {
            let pages = u32::try_from(size.div_ceil(1456)).unwrap();
            let sent: Vec<u32> = lab
                .sent
                .iter()
                .filter(|(_, it, _)| it.cast == cast)
                .flat_map(|(_, it, _)| pages_in(it).iter().map(|page| page.0))
                .collect();
            let five_passes: Vec<u32> = (0..5).flat_map(|_| 0..pages).collect();
            prop_assert_eq!(sent, five_passes);
        }
    }
}

#[test]
fn a_file_that_changes_repeatedly_must_wait_for_its_next_cast() {
    let mut lab = Lab::new("1gbit", "239.254.18.0/24", 10);
    for version in 0..3 {
        let (joined, _) = lab.join("a", &format!("v{version}"), MIB).unwrap();
        lab.scheduler.handle_end(joined.cast, EndReason::FileChanged, lab.now);
    }
    let refused = lab.join("a", "v3", MIB).unwrap_err();
    assert_eq!(refused, JoinRefusal::Backoff { reason: EndReason::FileChanged, after: SECOND });
    lab.join("b", "v0", MIB).expect("another file is not delayed");
    lab.now += SECOND;
    assert!(lab.join("a", "v3", MIB).unwrap().0.has_started_cast);
    lab.join("a", "v3", MIB).expect("a running cast takes more members");
}

#[test]
fn a_cast_that_sent_its_file_to_the_end_clears_the_failures_of_the_path() {
    let mut lab = Lab::new("1gbit", "239.254.18.0/24", 10);
    for version in ["v0", "v1"] {
        let (joined, _) = lab.join("a", version, MIB).unwrap();
        lab.scheduler.handle_end(joined.cast, EndReason::FileChanged, lab.now);
    }
    let (joined, token) = lab.join("a", "v2", MIB).unwrap();
    while lab.pages_of(joined.cast) < 721 {
        lab.run(Duration::from_millis(1));
    }
    assert!(lab.scheduler.handle_leave(&name("a"), &token, lab.now).is_some());
    lab.run(SECOND);
    assert!(lab.ended_casts().contains(&(joined.cast, EndReason::LastLeave)));
    for version in ["v3", "v4"] {
        let (joined, _) = lab.join("a", version, MIB).expect("no pause");
        lab.scheduler.handle_end(joined.cast, EndReason::FileChanged, lab.now);
    }
    assert!(lab.join("a", "v5", MIB).unwrap().0.has_started_cast, "two failures are free again");
}

#[test]
fn one_host_fills_a_quarter_of_the_members_and_of_the_casts() {
    let mut lab = Lab::new("100mbit", "239.255.0.0/16", 100);
    let etag = Etag::new("v1").unwrap();
    let geometry = Geometry::new(5000, page_size()).unwrap();
    let now = lab.now;
    let mut join = |host: u32, number: u128, path: &str| {
        let token = Token::from_random(number);
        let newcomer = newcomer_of(host, token.clone(), MemberKind::Plain);
        lab.scheduler.handle_join(&name(path), &etag, geometry, newcomer, now)
    };
    for number in 0..25 {
        join(1, number, &format!("file{number}")).unwrap();
    }
    assert_eq!(join(1, 25, "file25"), Err(JoinRefusal::TooManyCastsOfHost(25)));
    join(2, 25, "file25").unwrap();
    join(1, 26, "file25").unwrap();

    let share = MAX_MEMBERS as u128 / 4;
    for number in 100..100 + share - 1 {
        join(1, number, "file0").unwrap();
    }
    assert_eq!(join(1, 99, "file0"), Err(JoinRefusal::TooManyOfHost(MAX_MEMBERS / 4)));
    join(2, 99, "file0").unwrap();
    assert!(lab.scheduler.handle_leave(&name("file0"), &Token::from_random(100), now).is_some());
    let newcomer = newcomer_of(1, Token::from_random(100), MemberKind::Plain);
    assert!(lab.scheduler.handle_join(&name("file0"), &etag, geometry, newcomer, now).is_ok());
}
