//! Members that hear nothing, and those that do again, on a virtual clock.
#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use std::time::Duration;

use bootcast_proto::api::Report;
use bootcast_proto::join::Extensions;
use bootcast_proto::wire::{Beacon, Level, Pace, end_datagram};
use bootcast_proto::{JoinAnswer, PageRange, Share, Token, WindowIndex};

use super::super::rescue::MAX_CONTRADICTIONS;
use super::super::*;
use super::fixture::{File, MS, SECOND, SERVER, Shorthand, TIMING, beacon, joins};

/// In windows of 128 pages.
const PAGES: u32 = 4000;
const PAGE: u32 = 1000;
const FILE: File = File { pages: PAGES, page_size: PAGE, interleave: 1, key: None };

fn answer(token: u128) -> JoinAnswer {
    FILE.answer(token)
}

struct Member {
    receiver: Receiver,
    now: Instant,
    /// As the beacons tell it.
    panel_interval_ms: u16,
}

impl Member {
    fn joined(mode: UnicastMode, answer: &JoinAnswer) -> Self {
        let now = Instant::now();
        let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
        receiver.set_unicast(mode);
        receiver.handle_open();
        assert_eq!(receiver.poll_action(), Some(Action::Join));
        receiver.handle_join(answer, now);
        Self { receiver, now, panel_interval_ms: 0 }
    }

    /// One that heard nothing, fetches, and told the server.
    fn fetching() -> Self {
        let mut member = Self::joined(UnicastMode::Auto, &answer(1));
        member.actions();
        let reports = reports(&member.pass(2 * SECOND));
        assert_eq!(reports.len(), 1);
        assert!(reports[0].unicast && reports[0].bulk.is_empty() && reports[0].needs.is_empty());
        member.receiver.answer_report(Ok(()), member.now);
        member
    }

    fn actions(&mut self) -> Vec<Action> {
        self.receiver.actions()
    }

    /// Lets this time pass, and whatever is due in it happen.
    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = self.actions();
        while let Some(due) = self.receiver.poll_timeout().filter(|due| *due <= end) {
            assert!(due >= self.now || !actions.is_empty(), "due in the past for nothing");
            self.now = due.max(self.now);
            self.receiver.handle_timeout(self.now);
            actions.extend(self.actions());
            assert!(actions.len() < 1000, "{actions:?}");
        }
        self.now = end;
        actions
    }

    fn page(&mut self, page: u32) {
        self.receiver.receive(&FILE.page(page, &[7; PAGE as usize]), self.now);
    }

    fn fetch(&mut self) -> Option<Fetch> {
        self.receiver.poll_fetch(None, self.now)
    }

    /// All of a fetch comes.
    fn bring(&mut self, fetch: &Fetch) -> bool {
        let pages = fetch.bytes.start / u64::from(PAGE)..fetch.bytes.end / u64::from(PAGE);
        let page = |page| u32::try_from(page).unwrap();
        self.receiver.store(PageRange::new(page(pages.start), page(pages.end)));
        let goes_on = self.receiver.handle_fetched(fetch.id, fetch.bytes.end, None);
        self.receiver.handle_fetch_end(fetch.id, Ok(()), self.now);
        goes_on
    }
}

fn reports(actions: &[Action]) -> Vec<Report> {
    let report = |action: &Action| match action {
        Action::Report(report) => Some(report.clone()),
        _ => None,
    };
    actions.iter().filter_map(report).collect()
}

#[test]
fn who_hears_nothing_for_a_second_fetches_all_of_the_file_and_leaves() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    member.pass(999 * MS);
    assert_eq!((member.fetch(), member.receiver.reception()), (None, Reception::Unknown));
    member.pass(MS);
    assert_eq!(member.receiver.reception(), Reception::Unicast);
    while let Some(fetch) = member.fetch() {
        member.bring(&fetch);
    }
    assert!(member.receiver.is_complete());
    assert!(member.actions().contains(&Action::Leave(Token::from_random(1))));
}

#[test]
fn who_hears_something_in_time_fetches_nothing() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    member.pass(999 * MS);
    member.page(0);
    let actions = member.pass(SECOND);
    assert_eq!((member.fetch(), reports(&actions)), (None, Vec::new()));
    assert_eq!(member.receiver.reception(), Reception::Multicast);
}

#[test]
fn never_is_never() {
    let mut member = Member::joined(UnicastMode::Never, &answer(1));
    let actions = member.pass(10 * SECOND);
    member.receiver.presume_no_multicast(true, member.now);
    member.receiver.rescue.fetch_now(PageRange::new(0, 10));
    assert_eq!((member.fetch(), reports(&actions)), (None, Vec::new()));
    assert!(joins(&actions) > 0);
}

#[test]
fn always_fetches_at_once_says_so_and_listens_to_nothing() {
    let mut member = Member::joined(UnicastMode::Always, &answer(1));
    assert!(member.fetch().is_some());
    let actions = member.pass(MS);
    assert!(reports(&actions)[0].unicast);
    assert!(!actions.iter().any(|action| matches!(action, Action::Subscribe(_))), "{actions:?}");
    assert_eq!(member.receiver.reception(), Reception::Unknown);
}

#[test]
fn a_plain_server_has_nothing_to_fetch_from() {
    for mode in [UnicastMode::Auto, UnicastMode::Always] {
        let plain = JoinAnswer { extensions: Extensions::default(), ..answer(1) };
        let mut member = Member::joined(mode, &plain);
        let actions = member.pass(3 * SECOND);
        assert!(actions.iter().any(|action| matches!(action, Action::Subscribe(_))));
        assert_eq!((member.fetch(), joins(&actions)), (None, 1));
    }
}

#[test]
fn a_client_that_fetches_stays_a_member_without_joining_again() {
    let mut member = Member::fetching();
    let mut renewals = 0;
    for _ in 0..600 {
        let actions = member.pass(SECOND);
        assert_eq!(joins(&actions), 0);
        for report in reports(&actions) {
            assert!(report.unicast);
            renewals += 1;
            member.receiver.answer_report(Ok(()), member.now);
        }
    }
    assert!((20..40).contains(&renewals), "{renewals} renewals of a minute's lease in ten minutes");
}

#[test]
fn it_enters_its_group_anew_now_and_then() {
    let mut member = Member::fetching();
    let actions = member.pass(61 * SECOND);
    let entered: Vec<_> = actions
        .iter()
        .filter(|action| matches!(action, Action::Subscribe(_) | Action::Unsubscribe))
        .collect();
    assert!(matches!(entered[..], [Action::Unsubscribe, Action::Subscribe(_)]), "{entered:?}");
}

#[test]
fn without_a_lease_nobody_is_told_and_the_join_is_repeated_each_minute() {
    let mut unheard = answer(1);
    unheard.extensions.lease = None;
    let mut member = Member::joined(UnicastMode::Auto, &unheard);
    let actions = member.pass(50 * SECOND);
    assert_eq!((reports(&actions), joins(&actions)), (Vec::new(), 0));
    assert!(member.fetch().is_some());
    assert_eq!(joins(&member.pass(15 * SECOND)), 1);
}

#[test]
fn pages_in_a_row_end_the_fetching_and_the_report_asks_for_all_that_is_missing() {
    let mut member = Member::fetching();
    let fetch = member.fetch().unwrap();
    (3992..3999).for_each(|page| member.page(page));
    assert_eq!(member.receiver.reception(), Reception::Unicast, "that may be an accident");
    member.page(3999);
    assert_eq!(member.receiver.reception(), Reception::Multicast);
    assert!(!member.bring(&fetch), "the rest comes by multicast");
    assert_eq!(member.fetch(), None);
    let reports = reports(&member.pass(500 * MS));
    assert_eq!(reports.len(), 1);
    assert!(!reports[0].unicast);
    // What is here lies in the first 8 windows: a MiB is 1048 pages. The last window has 32 pages,
    // eight of them here.
    assert_eq!(reports[0].bulk, [(8, 24)]);
}

#[test]
fn promises_from_before_the_return_to_multicast_do_not_count() {
    // docs/PROTOCOL.md, "When a client is deaf".
    let mut member = Member::fetching();
    let fetch = member.fetch().unwrap();
    let promise = Level { sent: 0, promised: 128 };
    let windows = vec![(WindowIndex(8), vec![promise])];
    let pace = Pace { sent: 0, rate_kbps: 100_000, panel: Share::NONE, interval_ms: 0 };
    let beacon = Beacon { windows, ..beacon(1, PAGES / 2, pace) };
    member.receiver.handle_repair_datagram(SERVER, &beacon.encode(), member.now);
    (3992..4000).for_each(|page| member.page(page));
    member.bring(&fetch);
    let reports = reports(&member.pass(500 * MS));
    assert_eq!(reports[0].bulk, [(8, 24)], "window 8 as well");
}

#[test]
fn a_report_that_was_not_heard_is_repeated() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    assert_eq!(reports(&member.pass(SECOND)).len(), 1);
    member.receiver.answer_report(Err(ReportError::Temporary), member.now);
    let again = reports(&member.pass(3 * SECOND));
    assert_eq!(again.len(), 1);
    assert!(again[0].unicast);
}

#[test]
fn a_member_that_the_server_forgot_joins_again_and_goes_on_fetching() {
    let mut member = Member::fetching();
    let renewal = member.pass(30 * SECOND);
    assert_eq!(reports(&renewal).len(), 1);
    member.receiver.answer_report(Err(ReportError::UnknownMember), member.now);
    assert_eq!(joins(&member.pass(SECOND)), 1);
    member.receiver.handle_join(&answer(2), member.now);
    assert!(member.fetch().is_some());
    // Nothing is known of the new membership but that the last one heard nothing.
    assert!(reports(&member.pass(100 * MS))[0].unicast);
}

#[test]
fn where_multicast_is_presumed_missing_the_fetching_begins_with_the_join() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    member.receiver.presume_no_multicast(false, member.now);
    assert!(member.fetch().is_some());
    assert_eq!(reports(&member.pass(900 * MS)), []);
    (0..8).for_each(|page| member.page(page));
    assert_eq!(member.receiver.reception(), Reception::Multicast);
    assert!(reports(&member.pass(SECOND)).is_empty(), "the server knows it as it is");
}

#[test]
fn a_version_that_http_denies_is_asked_for_by_a_join() {
    let mut member = Member::fetching();
    let fetch = member.fetch().unwrap();
    member.receiver.handle_fetch_end(fetch.id, Err(FetchError::Changed), member.now);
    assert_eq!(joins(&member.pass(10 * MS)), 1);
    let gone = JoinError::NotFound("no such file".into());
    member.receiver.handle_join_error(gone, member.now);
    assert_eq!(member.receiver.failure(), Some(&Failure::Stale));
    assert_eq!(member.fetch(), None);
}

#[test]
fn a_server_that_has_no_files_over_http_after_all_is_not_asked_for_ever() {
    let mut member = Member::fetching();
    let mut token = 1;
    while let Some(fetch) = member.fetch() {
        member.receiver.handle_fetch_end(fetch.id, Err(FetchError::Changed), member.now);
        member.pass(3 * SECOND);
        token += 1;
        assert!(token < 10, "no end of it");
        member.receiver.handle_join(&answer(token), member.now);
    }
    assert_eq!(token, 1 + u128::from(MAX_CONTRADICTIONS));
    assert_eq!(member.receiver.failure(), None);
    member.pass(5 * SECOND);
    assert_eq!(member.fetch(), None);
}

#[test]
fn named_pages_are_fetched_while_multicast_comes() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    member.page(0);
    member.receiver.rescue.fetch_now(PageRange::new(100, 103));
    let fetch = member.fetch().unwrap();
    assert_eq!(fetch.bytes, 100_000..103_000);
    member.bring(&fetch);
    assert_eq!(member.fetch(), None);
}

#[test]
fn a_file_that_is_left_is_fetched_no_more() {
    let mut member = Member::fetching();
    let fetch = member.fetch().unwrap();
    member.receiver.handle_close(member.now);
    member.pass(TIMING.linger);
    assert!(!member.bring(&fetch));
    assert_eq!(member.fetch(), None);
}

impl Member {
    /// The next beacon, by which so many datagrams were sent in all.
    fn beacon(&mut self, number: u32, sent: u64) {
        let interval_ms = self.panel_interval_ms;
        let pace = Pace { sent, rate_kbps: 100_000, panel: Share::ALL, interval_ms };
        let beacon = beacon(number, PAGES / 2, pace);
        self.receiver.handle_repair_datagram(SERVER, &beacon.encode(), self.now);
    }

    /// Beacons each 25 ms for this long, ten datagrams before each of them, the first `came` of
    /// which get here; returns what was done.
    fn listen(&mut self, numbers: Range<u32>, came: u32) -> Vec<Action> {
        let mut actions = Vec::new();
        for number in numbers {
            for page in 0..came {
                self.page((number * 10 + page) % (PAGES - 1));
            }
            self.beacon(number, u64::from(number) * 10);
            actions.extend(self.pass(25 * MS));
            if !reports(&actions).is_empty() {
                // Answers come at once; to no question they change nothing.
                self.receiver.answer_report(Ok(()), self.now);
            }
        }
        actions
    }

    fn is_fetching(&self) -> bool {
        self.receiver.reception() == Reception::Unicast
    }

    fn causes(&mut self) -> Vec<(Cause, bool)> {
        self.receiver.take_notices().into_iter().map(|it| (it.cause, it.fetches)).collect()
    }
}

#[test]
fn beacons_do_not_keep_a_member_from_fetching_that_gets_no_page() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    member.listen(1..50, 0);
    assert!(member.is_fetching());
    // The wait for the first page ends at the same time as the proof is in.
    assert_eq!(member.causes().len(), 1);
}

#[test]
fn pages_that_stop_while_beacons_go_on_are_fetched_within_a_second_or_two() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    member.panel_interval_ms = 250;
    let counters = |actions: &[Action]| reports(actions).iter().filter(|it| it.sent > 0).count();
    assert!(counters(&member.listen(1..80, 10)) > 0);
    assert!(!member.is_fetching());
    let told = member.listen(80..130, 0);
    assert!(member.is_fetching());
    assert!(matches!(
        member.causes()[..],
        [(Cause::PagesLost { port: 9000, too_long: None, .. }, true)]
    ));
    let after: Vec<_> = reports(&told);
    assert!(after.iter().any(|report| report.unicast));
    let total =
        reports(&told).iter().filter(|it| it.sent > 800 && it.received * 2 < it.sent).count();
    assert_eq!(total, 0, "what a deaf member counted says nothing of the rate");
}

#[test]
fn a_short_last_page_is_no_multicast() {
    let mut odd = answer(1);
    odd.extensions.size = Some(u64::from(PAGES * PAGE - 900));
    let mut member = Member::joined(UnicastMode::Auto, &odd);
    let short = |member: &mut Member| {
        member.receiver.receive(&FILE.page(PAGES - 1, &[7; 100]), member.now);
    };
    for number in 1..60 {
        short(&mut member);
        member.listen(number..number + 1, 0);
    }
    assert!(member.is_fetching());
    member.causes();
    for number in 60..200 {
        short(&mut member);
        member.listen(number..number + 1, 0);
        assert!(member.is_fetching(), "beacon {number}");
    }
}

#[test]
fn each_relapse_doubles_the_time_before_the_next_return() {
    let mut member = Member::fetching();
    let mut number = 1;
    let mut stays = Vec::new();
    for _ in 0..4 {
        let begun = member.now;
        while member.is_fetching() {
            member.listen(number..number + 1, 10);
            number += 1;
            assert!(member.now < begun + 100 * SECOND);
        }
        stays.push(member.now - begun);
        while !member.is_fetching() {
            member.listen(number..number + 1, 0);
            number += 1;
        }
    }
    assert!(stays[0] < SECOND, "{stays:?}");
    assert!(
        stays[1] >= 2 * SECOND && stays[2] >= 4 * SECOND && stays[3] >= 8 * SECOND,
        "{stays:?}"
    );
    assert!(stays[3] < 10 * SECOND, "{stays:?}");
}

#[test]
fn who_never_fetches_says_why_and_goes_on_waiting() {
    let mut member = Member::joined(UnicastMode::Never, &answer(1));
    let actions = member.listen(1..100, 0);
    assert!(matches!(member.causes()[..], [(Cause::PagesLost { .. }, false), ..]));
    assert_eq!((member.fetch(), joins(&actions)), (None, 0));
}

#[test]
fn a_port_that_cannot_be_listened_to_is_deafness_at_once() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    member.receiver.handle_no_socket(false, "Address already in use", member.now);
    assert!(member.fetch().is_some());
    assert!(reports(&member.pass(10 * MS))[0].unicast);
    assert!(matches!(member.causes()[..], [(Cause::CannotListen { port: 9000, .. }, true)]));
}

#[test]
fn pages_longer_than_the_mtu_are_fetched_at_once() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    member.receiver.handle_mtu(PAGE + 44, member.now);
    assert_eq!(member.fetch(), None);
    member.receiver.handle_mtu(PAGE + 43, member.now);
    assert!(member.fetch().is_some());
    let too_small = Cause::MtuTooSmall { packet: PAGE + 44, mtu: PAGE + 43 };
    assert_eq!(member.causes(), [(too_small, true)]);
}

#[test]
fn pages_without_beacons_are_received_to_the_end_of_the_stream_and_the_rest_is_fetched() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    for page in (0..PAGES).filter(|page| page % 100 != 0) {
        member.page(page);
        let actions = member.pass(MS);
        assert_eq!(joins(&actions), 0);
        for report in reports(&actions) {
            assert!(report.stream_only && !report.unicast && report.needs.is_empty());
            member.receiver.answer_report(Ok(()), member.now);
        }
    }
    assert!(!member.is_fetching());
    assert_eq!(member.causes(), [(Cause::RepairLost { port: 9001 }, false)]);
    let actions = member.pass(1500 * MS);
    assert!(member.is_fetching() && joins(&actions) == 0);
    assert!(reports(&actions).iter().any(|report| report.unicast));
    let mut fetched = 0;
    while let Some(fetch) = member.fetch() {
        fetched += fetch.bytes.end - fetch.bytes.start;
        member.bring(&fetch);
    }
    assert!(member.receiver.is_complete());
    assert!(fetched > 0);
}

#[test]
fn without_http_what_the_stream_did_not_bring_is_asked_for() {
    let mut member = Member::joined(UnicastMode::Never, &answer(1));
    (1..PAGES).filter(|page| page % 1000 != 0).for_each(|page| member.page(page));
    member.pass(SECOND);
    let actions = member.pass(1500 * MS);
    let wants: Vec<_> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Want(want) => Some(want.later.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(wants[0], [0, 1000, 2000, 3000].map(|page| PageRange::new(page, page + 1)));
    assert_eq!(joins(&actions), 0);
}

#[test]
fn silence_is_fetched_where_the_server_answers_and_joined_again_where_it_does_not() {
    for answers in [true, false] {
        let mut member = Member::joined(UnicastMode::Auto, &answer(1));
        member.listen(1..10, 10);
        let asked = member.pass(1600 * MS);
        assert_eq!(reports(&asked).len(), 1, "is the server there?");
        if answers {
            member.receiver.answer_report(Ok(()), member.now);
        }
        let actions = member.pass(500 * MS);
        assert_eq!((member.is_fetching(), joins(&actions)), (answers, usize::from(!answers)));
    }
}

#[test]
fn an_answer_to_a_report_of_a_membership_that_is_over_changes_nothing() {
    let mut member = Member::fetching();
    assert_eq!(reports(&member.pass(30 * SECOND)).len(), 1);
    member.receiver.handle_join(&answer(2), member.now);
    member.actions();
    let late = Err(ReportError::UnknownMember);
    member.receiver.handle_report_answer(&Token::from_random(1), late, member.now);
    assert_eq!(joins(&member.pass(SECOND)), 0);
}

#[test]
fn an_end_that_is_followed_by_something_newer_or_is_older_is_not_believed() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    let end = |member: &mut Member, next| {
        let end = end_datagram(next);
        member.receiver.handle_repair_datagram(SERVER, &end, member.now);
    };
    // Sent again and again while the cast goes on.
    for number in 1..100 {
        end(&mut member, None);
        end(&mut member, Some(number));
        assert_eq!(joins(&member.listen(number..number + 1, 10)), 0);
    }
    end(&mut member, Some(99));
    assert_eq!(joins(&member.pass(400 * MS)), 0, "beacon 99 came since it was said");
    end(&mut member, Some(100));
    assert_eq!(joins(&member.pass(200 * MS)), 1);
}

#[test]
fn ends_in_a_row_make_no_storm_of_joins() {
    let mut member = Member::joined(UnicastMode::Never, &answer(1));
    let mut token = 1;
    let mut total = 0;
    for _ in 0..300 {
        member.receiver.handle_repair_datagram(SERVER, &end_datagram(None), member.now);
        if joins(&member.pass(200 * MS)) > 0 {
            total += 1;
            token += 1;
            member.receiver.handle_join(&answer(token), member.now);
        }
    }
    assert!(total < 12, "{total} joins in a minute");
}
