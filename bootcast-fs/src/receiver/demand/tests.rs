#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use std::collections::BTreeMap;

use bootcast_proto::{BitRate, PageSize};
use proptest::prelude::*;

use super::*;

const PAGES: u32 = 100_000;
const PAGE: u64 = 1456;
const RATE: u64 = 200_000_000;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A membership and what it holds.
struct Member {
    demand: Demand,
    geometry: Geometry,
    held: PageSet,
    stream: StreamPosition,
    now: Instant,
    /// What the server says of its queue.
    queue: Duration,
}

impl Member {
    fn new(fill: Fill) -> Self {
        let page_size = PageSize::new(PAGE).unwrap();
        let geometry = Geometry::all_full(PAGES, page_size);
        let now = Instant::now();
        let rate = BitRate::from_bits_per_second(RATE);
        let stream = StreamPosition::new(PAGES, page_size, rate, now);
        let mut demand = Demand::default();
        demand.set_fill(fill);
        demand.begin(true, &geometry, now);
        Self { demand, geometry, held: PageSet::new(PAGES), stream, now, queue: Duration::ZERO }
    }

    fn view<'a>(
        geometry: &'a Geometry,
        arrived: &'a PageSet,
        stream: &'a StreamPosition,
    ) -> DemandView<'a> {
        DemandView { geometry, arrived, stream, blocks: None }
    }

    /// Reads `count` pages from `first`, counted from 0; waits where they are not here.
    fn read(&mut self, first: u32, count: u32) -> Option<WaitId> {
        let bytes = u64::from(first) * PAGE..u64::from(first + count) * PAGE;
        let view = Self::view(&self.geometry, &self.held, &self.stream);
        let access = self.demand.record_read(&bytes, Some(view));
        let waits = !self.held.contains_all(PageRange::new(first, first + count));
        waits.then(|| self.demand.begin_wait(&bytes, access, Some(&self.geometry), self.now))
    }

    /// What is asked for at this moment, without what it tells of the path. The answer comes at
    /// once.
    fn ask(&mut self) -> Want {
        let want = self.ask_whole().unwrap_or_default();
        Want { now: want.now, later: want.later, ..Want::default() }
    }

    fn ask_whole(&mut self) -> Option<Want> {
        let view = Self::view(&self.geometry, &self.held, &self.stream);
        self.demand.lose_late(self.now);
        self.demand.handle_timeout(view, self.now);
        let want = self.demand.poll_want()?;
        self.demand.answered(&want, Some(self.queue));
        Some(want)
    }

    /// What is asked for in the time until then, by when, in milliseconds.
    fn watch(&mut self, time: Duration) -> Vec<(u128, Want)> {
        let (start, end) = (self.now, self.now + time);
        let mut wants = Vec::new();
        loop {
            let want = self.ask();
            if want != Want::default() {
                wants.push(((self.now - start).as_millis(), want));
            }
            match self.demand.poll_timeout() {
                Some(next) if next <= end => self.now = next.max(self.now),
                _ => break,
            }
        }
        self.now = end;
        wants
    }

    fn beacon(&mut self, position: u32) {
        self.stream.beacon(PageIndex(position), self.now);
    }

    /// The datagram of a page comes, and is stored.
    fn come(&mut self, page: u32) {
        self.demand.came(PageIndex(page), self.now);
        self.store(page, 1);
    }

    /// A page far away comes after this time: that is what is known of the path then.
    fn path_takes(&mut self, time: Duration) {
        self.read(PAGES - 1, 1).unwrap();
        self.ask();
        self.now += time;
        self.come(PAGES - 1);
        self.now += ms(1);
    }

    fn store(&mut self, first: u32, count: u32) {
        let pages = PageRange::new(first, first + count);
        self.held.insert_range(pages);
        self.demand.stored(pages);
    }

    /// Drops pages, because there is no room for them.
    fn drop(&mut self, first: u32, count: u32) {
        let pages = PageRange::new(first, first + count);
        self.held.remove_range(pages);
        self.demand.handle_dropped(pages, self.now);
    }
}

/// Converts pairs of a message: a first page, counted from 1, and a number of pages.
fn runs(pairs: &[(u32, u32)]) -> Vec<PageRange> {
    pairs.iter().copied().map(PageRange::from).collect()
}

fn now(pairs: &[(u32, u32)]) -> Want {
    Want { now: runs(pairs), ..Want::default() }
}

#[test]
fn the_limits_are_those_of_the_protocol() {
    // docs/PROTOCOL.md, "How a client asks".
    let page = include_str!("../../../../docs/PROTOCOL.md");
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!((MAX_REQUESTS, GATHER), (4, ms(1)));
    assert_eq!((asked::QUICK_TIMES, patience::PATIENCE_MAX), (3, ms(1000)));
    for told in [
        format!("at least {} ms more than the smoothed", patience::MARGIN_MIN.as_millis()),
        format!("Before the first measurement it is {} ms.", patience::FIRST.as_millis()),
        format!("`lossy` until {} pages", asked::LOSSY_PAGES),
        "At most four requests are under way at a time, at least 1 ms apart unless".to_owned(),
        format!(
            "at most {WANT_RUNS} pairs of `now` and {WANT_LATER_RUNS} of `later` in a request, \
             {MAX_PAGES} pages"
        ),
    ] {
        assert!(page.contains(&told), "{told}");
    }
}

#[test]
fn a_read_that_waits_is_asked_for_at_once_and_then_ever_more_seldom() {
    let mut member = Member::new(Fill::Demand);
    member.read(500, 3).unwrap();
    let times: Vec<_> = member
        .watch(ms(4000))
        .into_iter()
        .map(|(at, want)| {
            assert_eq!(want, now(&[(501, 3)]));
            at
        })
        .collect();
    // Nothing is known of the path yet; each later pause is twice the one before, up to a second.
    assert_eq!(times, [0, 20, 60, 140, 300, 620, 1260, 2260, 3260]);
}

#[test]
fn pages_that_are_dropped_while_a_read_waits_for_others_are_asked_for_again() {
    let mut member = Member::new(Fill::Demand);
    member.read(500, 3).unwrap();
    assert_eq!(member.ask(), now(&[(501, 3)]));
    member.store(500, 2);
    member.watch(ms(4000));
    member.drop(500, 1);
    let asked: Vec<_> = member.watch(ms(4000)).into_iter().flat_map(|(_, it)| it.now).collect();
    assert!(asked.iter().any(|run| run.contains(PageIndex(500))), "{asked:?}");
    assert!(!asked.iter().any(|run| run.contains(PageIndex(501))), "{asked:?}");
}

#[test]
fn what_waits_in_the_queue_of_the_server_is_not_asked_for_again() {
    let mut member = Member::new(Fill::Demand);
    member.path_takes(ms(2));
    member.queue = ms(300);
    member.read(500, 90).unwrap();
    assert_eq!(member.ask(), now(&[(501, 90)]));
    // The page before it in the queue comes now and then, 20 ms late in the end.
    assert_eq!(member.watch(ms(301)), []);
    for page in 500..590 {
        member.come(page);
        assert_eq!(member.watch(ms(5)), [], "after page {page}");
    }
    assert!(!member.demand.is_waiting());
}

#[test]
fn a_page_is_lost_when_patience_ends_that_began_when_it_was_out() {
    let mut member = Member::new(Fill::Demand);
    member.path_takes(ms(2));
    member.queue = ms(40);
    member.read(500, 1).unwrap();
    // 40 ms of queue, and a patience of 2 + 4 * 1 ms that doubles.
    let times: Vec<_> = member.watch(ms(150)).into_iter().map(|(at, _)| at).collect();
    assert_eq!(times, [0, 46, 98]);
}

#[test]
fn a_page_that_was_overtaken_is_asked_for_at_once_and_tells_what_came() {
    let mut member = Member::new(Fill::Demand);
    member.path_takes(ms(2));
    member.read(500, 4).unwrap();
    assert_eq!(member.ask(), now(&[(501, 4)]));
    member.now += ms(2);
    member.come(500);
    assert_eq!(member.ask(), Want::default(), "the others may come yet");
    member.come(502);
    let want = member.ask_whole().unwrap();
    assert_eq!((&want.now[..], want.came, want.lossy), (&runs(&[(502, 1)])[..], 503, true));
    // Pages of the first request say nothing of the second.
    member.come(503);
    assert_eq!(member.watch(ms(1)), []);
    member.come(501);
    assert!(!member.demand.is_waiting());
}

#[test]
fn what_was_asked_for_again_and_again_without_success_waits_for_patience() {
    let mut member = Member::new(Fill::Demand);
    member.path_takes(ms(1));
    member.read(100, 1).unwrap();
    let mut asked = 0;
    for page in 1000..1050 {
        member.read(page * 10, 1).unwrap();
        let want = member.ask();
        asked += usize::from(want.now.iter().any(|run| run.start == PageIndex(100)));
        member.now += ms(1);
        member.come(page * 10);
        let again = member.ask();
        asked += usize::from(again.now.iter().any(|run| run.start == PageIndex(100)));
    }
    // Four times by its order; then patience has doubled thrice, and doubles on.
    assert!((4..8).contains(&asked), "{asked} times in 50 ms");
}

#[test]
fn one_of_many_reads_that_ends_leaves_the_pages_of_all_that_overlap_it() {
    let mut member = Member::new(Fill::Demand);
    let ends = member.read(100, 50).unwrap();
    for first in [90, 110, 112, 130] {
        member.read(first, 15).unwrap();
    }
    assert_eq!(member.ask().now, runs(&[(91, 60)]));
    member.demand.end_wait(ends);
    member.now += ms(20);
    assert_eq!(member.ask().now, runs(&[(91, 15), (111, 17), (131, 15)]));
}

#[test]
fn what_comes_within_a_millisecond_goes_out_as_one_and_oldest_first() {
    let mut member = Member::new(Fill::Demand);
    member.read(9000, 1).unwrap();
    assert_eq!(member.ask(), now(&[(9001, 1)]));
    member.now += Duration::from_micros(100);
    member.read(5000, 2).unwrap();
    assert_eq!(member.ask(), Want::default());
    member.now += Duration::from_micros(100);
    member.read(7000, 2).unwrap();
    member.read(40, 1).unwrap();
    assert_eq!(member.ask(), Want::default());
    let due = member.demand.poll_timeout().unwrap();
    assert_eq!(due - member.now, Duration::from_micros(800));
    member.now = due;
    assert_eq!(member.ask(), now(&[(5001, 2), (41, 1), (7001, 2)]));
}

#[test]
fn who_reads_one_thing_after_the_other_does_not_wait_for_company() {
    let mut member = Member::new(Fill::Demand);
    for page in [9000, 500, 7000] {
        member.read(page, 2).unwrap();
        assert_eq!(member.ask(), now(&[(page + 1, 2)]));
        member.now += Duration::from_micros(200);
        member.store(page, 2);
    }
}

#[test]
fn a_page_that_came_is_asked_for_no_more_and_the_others_are() {
    let mut member = Member::new(Fill::Demand);
    member.read(500, 5).unwrap();
    assert_eq!(member.ask(), now(&[(501, 5)]));
    member.store(502, 1);
    member.now += ms(20);
    assert_eq!(member.ask(), now(&[(501, 2), (504, 2)]));
    member.store(500, 5);
    assert!(!member.demand.is_waiting());
    assert_eq!(member.watch(ms(5000)), []);
}

#[test]
fn a_read_that_ended_leaves_only_what_others_wait_for() {
    let mut member = Member::new(Fill::Demand);
    let (one, other) = (member.read(500, 3).unwrap(), member.read(501, 2).unwrap());
    assert_eq!(member.ask(), now(&[(501, 3)]));
    member.demand.end_wait(one);
    member.now += ms(20);
    assert_eq!(member.ask(), now(&[(502, 2)]));
    member.demand.end_wait(other);
    assert_eq!(member.watch(ms(5000)), []);
    assert_eq!(member.demand.poll_timeout(), None);
}

#[test]
fn another_membership_asks_for_everything_anew() {
    let mut member = Member::new(Fill::Demand);
    member.read(500, 3).unwrap();
    member.ask();
    member.demand.begin(true, &member.geometry, member.now);
    member.now += ms(1);
    assert_eq!(member.ask(), now(&[(501, 3)]));
    member.demand.begin(false, &member.geometry, member.now);
    assert_eq!(member.watch(ms(5000)), [], "a plain server is asked for nothing");
}

#[test]
fn a_server_that_does_not_answer_is_asked_a_few_times_at_most() {
    let mut member = Member::new(Fill::Demand);
    let mut wants = Vec::new();
    for k in 0..10 {
        member.read(k * 1000, 1).unwrap();
        let view = Member::view(&member.geometry, &member.held, &member.stream);
        member.demand.handle_timeout(view, member.now);
        let want = member.demand.poll_want();
        assert_eq!(want.is_some(), (k as usize) < MAX_REQUESTS);
        wants.extend(want);
        member.now += ms(1);
    }
    member.demand.answered(&wants[1], None);
    // All that gathered meanwhile.
    assert_eq!(member.ask().now, runs(&[4, 5, 6, 7, 8, 9].map(|k| (k * 1000 + 1, 1))));
}

#[test]
fn ahead_of_a_reader_who_reads_on_a_window_is_announced_once() {
    let mut member = Member::new(Fill::Demand);
    member.read(1000, 40).unwrap();
    assert_eq!(member.ask(), now(&[(1001, 40)]));
    member.store(1000, 40);
    member.now += ms(1);
    member.read(1040, 24).unwrap();
    let later = runs(&[(1065, 64)]);
    let first = Want { later, ..now(&[(1041, 24)]) };
    assert_eq!(member.ask(), first);
    member.store(1040, 88);
    member.now += ms(1);
    // All here, and the end of what was announced comes nearer.
    assert_eq!(member.read(1064, 40), None);
    let later = runs(&[(1129, 40)]);
    assert_eq!(member.ask(), Want { later, ..Want::default() });
    member.now += ms(1);
    assert_eq!(member.read(1104, 10), None);
    assert_eq!(member.ask(), Want::default());
}

#[test]
fn ahead_of_a_reader_who_has_read_little_little_is_announced() {
    let mut member = Member::new(Fill::Demand);
    member.read(1000, 10).unwrap();
    member.ask();
    member.store(1000, 10);
    member.now += ms(1);
    member.read(1010, 10).unwrap();
    assert_eq!(member.ask(), Want { later: runs(&[(1021, 20)]), ..now(&[(1011, 10)]) });
}

#[test]
fn a_reader_here_and_there_announces_nothing() {
    let mut member = Member::new(Fill::Demand);
    for first in [5000, 9000, 100, 70_000] {
        member.now += ms(1);
        member.read(first, 3).unwrap();
        assert_eq!(member.ask().later, []);
    }
}

#[test]
fn of_a_full_file_a_page_far_from_the_stream_is_asked_for_at_once() {
    let mut member = Member::new(Fill::Full);
    member.beacon(2000);
    member.read(90_000, 3).unwrap();
    assert_eq!(member.ask(), now(&[(90_001, 3)]));
    member.now += ms(1);
    member.read(1000, 3).unwrap();
    assert_eq!(member.ask(), now(&[(1001, 3)]), "what the stream has passed is far away");
}

#[test]
fn of_a_full_file_a_page_just_before_the_stream_is_waited_for_and_asked_for_when_it_was_lost() {
    let mut member = Member::new(Fill::Full);
    member.beacon(2000);
    // About 6 ms at 16,500 pages a second.
    member.read(2100, 3).unwrap();
    assert_eq!(member.watch(ms(8)), []);
    member.beacon(2150);
    let wants = member.watch(ms(10));
    assert_eq!(wants[0].1, now(&[(2101, 3)]));
    // Where no beacon tells.
    member.read(2250, 3).unwrap();
    let wants = member.watch(ms(60));
    assert!(wants.iter().any(|(_, want)| *want == now(&[(2251, 3)])), "{wants:?}");
}

#[test]
fn before_anything_is_heard_the_beginning_is_waited_for_and_the_end_is_asked_for() {
    let mut member = Member::new(Fill::Full);
    member.read(0, 90).unwrap();
    assert_eq!(member.ask(), Want::default());
    member.read(90_000, 3).unwrap();
    assert_eq!(member.ask(), now(&[(90_001, 3)]));
}

#[test]
fn a_reader_who_keeps_up_with_the_stream_asks_for_nothing() {
    let mut member = Member::new(Fill::Full);
    let mut position = 0;
    member.now += ms(100);
    while position < 20_000 {
        let wait = member.read(position, 90).unwrap();
        member.beacon(position);
        assert_eq!(member.watch(Duration::from_micros(5500)), []);
        member.store(position, 90);
        member.demand.end_wait(wait);
        position += 90;
    }
}

#[test]
fn a_stream_that_crawls_is_waited_for_by_those_who_follow_it() {
    let mut member = Member::new(Fill::Full);
    member.read(0, 90).unwrap();
    member.read(90, 90).unwrap();
    for second in 0..3 {
        for step in 0..20 {
            let position = second * 40 + step * 2;
            member.beacon(position);
            assert_eq!(member.watch(ms(50)), []);
            member.store(position, 2);
        }
    }
}

#[test]
fn a_late_reader_who_reads_on_asks_for_what_the_stream_has_passed_before() {
    let mut member = Member::new(Fill::Full);
    member.beacon(50_000);
    member.read(0, 90).unwrap();
    assert_eq!(member.ask(), now(&[(1, 90)]));
}

#[test]
fn who_waited_for_a_second_asks_in_any_case() {
    let mut member = Member::new(Fill::Full);
    member.read(0, 90).unwrap();
    let wants = member.watch(ms(1500));
    assert!(!wants.is_empty(), "no stream was heard of");
}

#[test]
fn no_read_can_ask_for_more_than_there_is_room_for() {
    let mut member = Member::new(Fill::Demand);
    member.read(0, PAGES).unwrap();
    // Every other page is here, so that each is a pair of its own.
    for page in (0..PAGES).step_by(2) {
        member.held.insert(PageIndex(page));
    }
    for _ in 0..300 {
        let want = member.ask();
        assert!(want.now.len() <= WANT_RUNS && member.demand.asked.len() <= MAX_PAGES);
        member.now += ms(1);
    }
}

/// What may happen to a member.
#[derive(Clone, Debug)]
enum Step {
    Read(u32, u32),
    End(usize),
    Store(u32, u32),
    Drop(u32, u32),
    Pass(u64),
    Beacon(u32),
    Rejoin,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u32..2000, 1u32..40).prop_map(|(first, count)| Step::Read(first, count)),
        1 => (0usize..8).prop_map(Step::End),
        3 => (0u32..2000, 1u32..60).prop_map(|(first, count)| Step::Store(first, count)),
        1 => (0u32..2000, 1u32..60).prop_map(|(first, count)| Step::Drop(first, count)),
        4 => (0u64..40).prop_map(Step::Pass),
        1 => (0u32..=PAGES).prop_map(Step::Beacon),
        1 => Just(Step::Rejoin),
    ]
}

/// Asserts that every pair names pages that are missing and that somebody waits for.
fn check(member: &Member, waits: &BTreeMap<WaitId, PageRange>, want: &Want) {
    for page in want.now.iter().flat_map(|run| run.iter()) {
        let is_awaited = waits.values().any(|it| it.contains(page));
        assert!(is_awaited && !member.held.contains(page), "page {page}: {want:?}");
    }
}

proptest! {
    #[test]
    fn only_what_is_waited_for_is_asked_for_and_all_of_it_in_the_end(
        full: bool, steps in proptest::collection::vec(step(), 0..60),
    ) {
        let mut member = Member::new(if full { Fill::Full } else { Fill::Demand });
        let mut waits = BTreeMap::new();
        for step in steps {
            match step {
                Step::Read(first, count) => {
                    let pages = PageRange::new(first, first + count);
                    waits.extend(member.read(first, count).map(|id| (id, pages)));
                }
                Step::End(which) => {
                    if let Some(id) = waits.keys().nth(which).copied() {
                        waits.remove(&id);
                        member.demand.end_wait(id);
                    }
                }
                Step::Store(first, count) => {
                    member.store(first, count);
                    let held = &member.held;
                    for (id, _) in waits.extract_if(.., |_, pages| held.contains_all(*pages)) {
                        member.demand.end_wait(id);
                    }
                }
                Step::Drop(first, count) => member.drop(first, count),
                Step::Pass(time) => {
                    for (_, want) in member.watch(ms(time)) {
                        check(&member, &waits, &want);
                    }
                }
                Step::Beacon(position) => member.beacon(position),
                Step::Rejoin => {
                    let Member { demand, geometry, now, .. } = &mut member;
                    demand.begin(true, geometry, *now);
                }
            }
        }
        // Whatever the rules are: no page stays away for long without being asked for.
        let mut asked = PageSet::new(PAGES);
        for (_, want) in member.watch(ms(12_000)) {
            check(&member, &waits, &want);
            for run in want.now {
                asked.insert_range(run);
            }
        }
        for page in waits.values().flat_map(|pages| pages.iter()) {
            prop_assert!(asked.contains(page) || member.held.contains(page), "{page:?}");
        }
    }
}
