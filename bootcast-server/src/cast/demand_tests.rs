//! Demand queues on a virtual clock.
#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

use std::collections::{BTreeMap, BTreeSet};

use bootcast_proto::Token;
use bootcast_proto::limits::WANT_PAGES;
use proptest::prelude::*;

use super::queue::{PRINCIPAL_PAGES, QUEUE_PAGES};
use super::*;

const BATCH: u32 = 44;

fn token(number: u128) -> Token {
    Token::from_random(number)
}

/// Converts pairs of a message: a first page, counted from 1, and a number of pages.
pub(in crate::cast) fn runs(pairs: &[(u32, u32)]) -> Vec<PageRange> {
    pairs.iter().copied().map(PageRange::from).collect()
}

fn now_pages(pairs: &[(u32, u32)]) -> Want {
    Want { now: runs(pairs), ..Want::default() }
}

fn later_pages(pairs: &[(u32, u32)]) -> Want {
    Want { later: runs(pairs), ..Want::default() }
}

/// Formats a number of at least 1000 with a comma between thousands.
fn with_comma(number: u64) -> String {
    format!("{},{:03}", number / 1000, number % 1000)
}

#[test]
fn the_limits_are_those_of_the_protocol() {
    // docs/PROTOCOL.md, "Demand".
    let page = include_str!("../../../docs/PROTOCOL.md");
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    let pairs = with_comma(u64::try_from(WANT_RUNS_READ).unwrap());
    assert_eq!(HISTORY, Duration::from_millis(500), "half a second");
    for limit in [
        format!("at most {} pages in either queue", with_comma(QUEUE_PAGES.into())),
        format!("of one member {}", with_comma(WANT_PAGES.into())),
        format!("of one host {}", with_comma(PRINCIPAL_PAGES.into())),
        format!("{pairs} pairs of either kind of a request"),
        format!(
            "`delay_us` ago ({} ms where that is 0, {} ms at most)",
            DEFAULT_DELAY.as_millis(),
            MAX_DELAY.as_millis()
        ),
    ] {
        assert!(page.contains(&limit), "{limit}");
    }
}

/// Sends everything. Returns the runs in the order of sending, as first page, counted from 1 as on
/// the wire, and number of pages.
fn drain(demand: &mut Demand, now: Instant) -> Vec<(u32, u32)> {
    let mut runs = Vec::new();
    while let Some(run) = demand.poll_urgent(BATCH, now).or_else(|| demand.poll_later(BATCH, now)) {
        runs.push((run.start.0 + 1, run.len()));
    }
    runs
}

#[test]
fn pages_go_out_in_the_order_of_the_requests_and_later_ones_last() {
    let start = Instant::now();
    let mut demand = Demand::new(10_000);
    demand.handle_want(&token(1), &later_pages(&[(1, 2)]), start);
    demand.handle_want(&token(1), &now_pages(&[(500, 3), (20, 1)]), start);
    demand.handle_want(&token(2), &now_pages(&[(300, 2)]), start);
    assert_eq!(drain(&mut demand, start), [(500, 3), (20, 1), (300, 2), (1, 2)]);
    assert_eq!((demand.urgent_since(), demand.later_since()), (None, None));
    assert_eq!(demand.pages_sent(), 8);
}

#[test]
fn a_page_goes_out_once_for_all_members_that_demand_it() {
    let start = Instant::now();
    let mut demand = Demand::new(100);
    demand.handle_want(&token(1), &now_pages(&[(10, 10)]), start);
    demand.handle_want(&token(2), &now_pages(&[(5, 10), (10, 10)]), start);
    demand.handle_want(&token(2), &later_pages(&[(1, 30)]), start);
    let runs = drain(&mut demand, start);
    assert_eq!(runs, [(10, 10), (5, 5), (1, 4), (20, 11)]);
}

#[test]
fn an_urgent_page_leaves_the_queue_of_later_pages() {
    let start = Instant::now();
    let mut demand = Demand::new(100);
    demand.handle_want(&token(1), &later_pages(&[(1, 50)]), start);
    demand.handle_want(&token(2), &now_pages(&[(30, 2)]), start);
    assert_eq!(drain(&mut demand, start), [(30, 2), (1, 29), (32, 19)]);
}

#[test]
fn consecutive_pages_of_several_requests_go_out_in_one_run() {
    let start = Instant::now();
    let mut demand = Demand::new(1000);
    let pairs: Vec<_> = (1..=100).map(|page| (page, 1)).collect();
    demand.handle_want(&token(1), &now_pages(&pairs), start);
    demand.handle_want(&token(2), &now_pages(&[(101, 10)]), start);
    assert_eq!(demand.next_urgent(BATCH), BATCH);
    assert_eq!(drain(&mut demand, start), [(1, 44), (45, 44), (89, 22)]);
}

#[test]
fn a_sent_page_is_not_sent_again_within_the_default_delay() {
    let start = Instant::now();
    let mut demand = Demand::new(100);
    let want = now_pages(&[(10, 10)]);
    demand.handle_want(&token(1), &want, start);
    assert_eq!(drain(&mut demand, start), [(10, 10)]);
    let soon = start + Duration::from_micros(3999);
    demand.on_sent(PageRange::new(11, 13), soon);
    demand.handle_want(&token(1), &want, soon);
    assert_eq!(drain(&mut demand, soon), []);
    let then = start + DEFAULT_DELAY;
    demand.handle_want(&token(1), &want, then);
    assert_eq!(drain(&mut demand, then), [(10, 2), (14, 6)]);
}

#[test]
fn a_sent_page_is_not_sent_again_within_the_delay_of_the_want() {
    let start = Instant::now();
    let mut demand = Demand::new(100);
    demand.handle_want(&token(1), &now_pages(&[(10, 10)]), start);
    assert_eq!(drain(&mut demand, start), [(10, 10)]);
    for (after_us, delay_us, sent_again) in [(800, 900, false), (900, 900, true), (2000, 0, false)]
    {
        let then = start + Duration::from_micros(after_us);
        let mut later = Demand::new(100);
        later.on_sent(PageRange::new(9, 19), start);
        let want = Want { delay_us, came: 10, late: true, ..now_pages(&[(11, 9)]) };
        later.handle_want(&token(1), &want, then);
        assert_eq!(!drain(&mut later, then).is_empty(), sent_again, "{after_us} {delay_us}");
    }
    // A longer delay is cut.
    let then = start + MAX_DELAY;
    let want = Want { delay_us: u32::MAX, late: true, ..now_pages(&[(10, 10)]) };
    demand.handle_want(&token(1), &want, then);
    assert_eq!(drain(&mut demand, then), [(10, 10)]);
}

#[test]
fn pages_sent_before_the_newest_arrival_are_lost_and_those_after_it_in_flight() {
    let start = Instant::now();
    let mut demand = Demand::new(100);
    for run in [PageRange::new(0, 10), PageRange::new(50, 60), PageRange::new(20, 30)] {
        demand.on_sent(run, start);
    }
    let missing = [(3, 2), (53, 4), (22, 2), (80, 1)];
    let want = Want { came: 55, delay_us: 10_000, ..now_pages(&missing) };
    demand.handle_want(&token(1), &want, start);
    assert_eq!(drain(&mut demand, start), [(3, 2), (53, 2), (80, 1)]);
    // They were sent again after page 55, so its arrival says nothing about them.
    demand.handle_want(&token(1), &want, start);
    demand.handle_want(&token(2), &want, start);
    assert_eq!(drain(&mut demand, start), []);
    let unknown = Want { came: 90, delay_us: 10_000, ..now_pages(&[(3, 2)]) };
    demand.handle_want(&token(1), &unknown, start);
    assert_eq!(drain(&mut demand, start), [], "page 90 was not sent recently");
    // While pages arrive, even a short delay does not make pages in flight lost.
    let lagging = Want { came: 55, delay_us: 1000, ..now_pages(&[(22, 2)]) };
    let then = start + HISTORY.mul_f64(0.99);
    demand.handle_want(&token(1), &lagging, then);
    assert_eq!(drain(&mut demand, then), []);
}

#[test]
fn lost_pages_go_out_before_waiting_ones() {
    let start = Instant::now();
    let mut demand = Demand::new(100);
    demand.on_sent(PageRange::new(0, 10), start);
    demand.handle_want(&token(2), &now_pages(&[(50, 10)]), start);
    let want = Want { came: 10, ..now_pages(&[(3, 1), (5, 2), (90, 1)]) };
    demand.handle_want(&token(1), &want, start);
    assert_eq!(drain(&mut demand, start), [(3, 1), (5, 2), (50, 10), (90, 1)]);
}

#[test]
fn the_last_page_of_a_lossy_want_goes_out_twice_if_no_other_page_waits() {
    let start = Instant::now();
    let mut demand = Demand::new(100);
    let lossy = |pairs: &[(u32, u32)]| Want { lossy: true, ..now_pages(pairs) };
    demand.handle_want(&token(1), &lossy(&[(10, 3), (20, 1)]), start);
    assert_eq!(drain(&mut demand, start), [(10, 3), (20, 1), (20, 1)]);
    demand.handle_want(&token(1), &lossy(&[(30, 3)]), start);
    demand.handle_want(&token(2), &now_pages(&[(40, 2)]), start);
    assert_eq!(drain(&mut demand, start), [(30, 3), (40, 2)]);
    demand.handle_want(&token(1), &lossy(&[(50, 3)]), start);
    demand.clear();
    demand.handle_want(&token(2), &now_pages(&[(60, 2)]), start);
    assert_eq!(drain(&mut demand, start), [(60, 2)]);
    assert_eq!(demand.urgent_pages(), 0);
}

#[test]
fn pages_that_the_stream_sends_leave_the_queues() {
    let start = Instant::now();
    let mut demand = Demand::new(100);
    demand.handle_want(&token(1), &now_pages(&[(1, 10), (50, 2)]), start);
    demand.handle_want(&token(1), &later_pages(&[(20, 10)]), start);
    demand.on_sent(PageRange::new(0, 25), start);
    assert_eq!(drain(&mut demand, start), [(50, 2), (26, 4)]);
    demand.handle_want(&token(1), &now_pages(&[(90, 2)]), start);
    demand.on_sent(PageRange::new(0, 100), start);
    assert_eq!(demand.urgent_since(), None);
}

#[test]
fn pages_that_the_file_does_not_have_do_not_count() {
    let start = Instant::now();
    let mut demand = Demand::new(10);
    let nonsense = [(0, 0), (11, 5), (u32::MAX, u32::MAX), (3, 0), (0, 1)];
    demand.handle_want(&token(1), &now_pages(&nonsense), start);
    assert_eq!(demand.urgent_since(), None);
    demand.handle_want(&token(1), &now_pages(&[(9, u32::MAX), (0, 3)]), start);
    assert_eq!(drain(&mut demand, start), [(9, 2), (1, 2)]);
    let mut empty = Demand::new(0);
    empty.handle_want(&token(1), &now_pages(&[(0, 9), (1, u32::MAX)]), start);
    assert_eq!(empty.urgent_since(), None);
}

#[test]
fn a_member_that_demands_everything_leaves_room_for_the_others() {
    let start = Instant::now();
    let mut demand = Demand::new(u32::MAX);
    let everything = now_pages(&vec![(1, u32::MAX); 3000]);
    for _ in 0..100 {
        demand.handle_want(&token(1), &everything, start);
    }
    demand.handle_want(&token(2), &now_pages(&[(4_000_000_000, 7)]), start);
    let runs = drain(&mut demand, start);
    let pages: u32 = runs.iter().map(|(_, pages)| pages).sum();
    assert_eq!((pages, runs.last()), (WANT_PAGES + 7, Some(&(4_000_000_000, 7))));
}

#[test]
fn the_queues_are_bounded_for_any_number_of_members_and_become_empty() {
    let start = Instant::now();
    let mut demand = Demand::new(u32::MAX);
    let scattered = |from: u32| -> Vec<_> { (0..1000).map(|at| (from + at * 2, 1)).collect() };
    for member in 0..200u32 {
        let pairs = scattered(1 + member * 2000);
        let want = Want { now: runs(&pairs), later: runs(&pairs), ..Want::default() };
        demand.handle_want(&token(member.into()), &want, start);
    }
    assert_eq!(demand.urgent.requested_pages, QUEUE_PAGES);
    assert_eq!(drain(&mut demand, start).len(), 2 * QUEUE_PAGES as usize);
    for queue in [&demand.urgent, &demand.later] {
        assert!(queue.is_empty());
    }
    assert!(demand.sent_pages.runs.len() <= MAX_HISTORY_RUNS);
}

proptest! {
    /// Compares the queues with sets of single pages. Only demanded pages of the file that are not
    /// in flight are sent, and none of them is forgotten.
    #[test]
    fn sends_the_demanded_pages_that_are_not_in_flight(
        pages in 1u32..120,
        steps in proptest::collection::vec(
            (0u8..4, 0u32..130, prop_oneof![0u32..20, Just(u32::MAX)], 0u64..3000), 1..60),
        budget in 1u32..12,
    ) {
        let mut now = Instant::now();
        let mut demand = Demand::new(pages);
        let mut waiting: [BTreeSet<u32>; 2] = Default::default();
        let mut sent_at: BTreeMap<u32, Instant> = BTreeMap::new();
        for (kind, first, count, pause_us) in steps {
            now += Duration::from_micros(pause_us);
            let in_flight = |page: &u32, sent_at: &BTreeMap<u32, Instant>| {
                sent_at.get(page).is_some_and(|at| now < *at + DEFAULT_DELAY)
            };
            let end = u64::from(first) + u64::from(count);
            let demanded: Vec<u32> = (0..pages)
                .filter(|page| (u64::from(first)..end).contains(&u64::from(page + 1)))
                .collect();
            match kind {
                0 => {
                    demand.handle_want(&token(1), &now_pages(&[(first, count)]), now);
                    for page in demanded.into_iter().filter(|page| !in_flight(page, &sent_at)) {
                        waiting[0].insert(page);
                        waiting[1].remove(&page);
                    }
                }
                1 => {
                    demand.handle_want(&token(2), &later_pages(&[(first, count)]), now);
                    let new = demanded.into_iter().filter(|page| !in_flight(page, &sent_at));
                    let new: Vec<_> = new.filter(|page| !waiting[0].contains(page)).collect();
                    waiting[1].extend(new);
                }
                2 => {
                    let end = first.saturating_add(count).min(pages);
                    let run = PageRange::new(first.min(pages), end);
                    demand.on_sent(run, now);
                    for page in run.iter() {
                        for set in &mut waiting {
                            set.remove(&page.0);
                        }
                        sent_at.insert(page.0, now);
                    }
                }
                _ => {
                    let next = demand.next_urgent(budget);
                    let run = demand.poll_urgent(budget, now);
                    prop_assert_eq!(next, run.map_or(0, PageRange::len));
                    let class = usize::from(run.is_none());
                    prop_assert_eq!(run.is_none(), waiting[0].is_empty());
                    let run = run.or_else(|| demand.poll_later(budget, now));
                    prop_assert_eq!(run.is_none(), waiting[class].is_empty());
                    for page in run.into_iter().flat_map(PageRange::iter) {
                        prop_assert!(waiting[class].remove(&page.0));
                        sent_at.insert(page.0, now);
                    }
                    prop_assert!(run.is_none_or(|run| (1..=budget).contains(&run.len())));
                }
            }
            prop_assert_eq!(demand.urgent_since().is_none(), waiting[0].is_empty());
            prop_assert_eq!(demand.later_since().is_none(), waiting[1].is_empty());
        }
        let rest: BTreeSet<u32> = drain(&mut demand, now)
            .into_iter()
            .flat_map(|(first, count)| first - 1..first - 1 + count)
            .collect();
        prop_assert_eq!(rest, &waiting[0] | &waiting[1]);
        prop_assert_eq!(demand.urgent.requested_pages + demand.later.requested_pages, 0);
    }
}

/// A member of a host that has only this one.
fn asker(host: u8, member: u128) -> Asker {
    Asker { token: token(member), principal: Some(std::net::IpAddr::from([10, 0, 0, host]).into()) }
}

#[test]
fn hosts_take_turns_however_much_each_demands() {
    let start = Instant::now();
    let mut demand = Demand::new(100_000);
    for member in 0..8 {
        let first = u32::try_from(member).unwrap() * 4096 + 1;
        demand.handle_want(asker(1, member), &now_pages(&[(first, 4096)]), start);
    }
    assert_eq!(demand.urgent_pages(), PRINCIPAL_PAGES, "its share of the queue");
    demand.handle_want(asker(2, 100), &now_pages(&[(50_000, 2), (60_000, 2)]), start);
    demand.handle_want(asker(3, 101), &now_pages(&[(70_000, 1)]), start);
    let runs = drain(&mut demand, start);
    assert_eq!(runs[..6], [(1, 44), (50_000, 2), (70_000, 1), (45, 44), (60_000, 2), (89, 44)]);
    assert_eq!(runs.iter().map(|(_, pages)| pages).sum::<u32>(), PRINCIPAL_PAGES + 5);
}

#[test]
fn pages_beyond_the_rations_come_last_unless_another_host_demands_them() {
    let start = Instant::now();
    let mut demand = Demand::new(1000);
    demand.handle_idle_want(&asker(1, 1), &now_pages(&[(1, 10)]), start);
    assert_eq!((demand.urgent_since(), demand.idle_since()), (None, Some(start)));
    demand.handle_want(asker(2, 2), &now_pages(&[(4, 2)]), start);
    demand.handle_want(asker(2, 2), &later_pages(&[(9, 1)]), start);
    assert_eq!(drain(&mut demand, start), [(4, 2), (9, 1)]);
    let idle: Vec<_> = std::iter::from_fn(|| demand.poll_idle(BATCH, start)).collect();
    assert_eq!(idle, [PageRange::new(0, 3), PageRange::new(5, 8), PageRange::new(9, 10)]);
    assert_eq!(demand.idle_since(), None);
}
