//! Members that hear nothing, and those that do again, on a virtual clock.
#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bootcast_proto::join::Extensions;
use bootcast_proto::{Etag, Layout, PageIndex, PageSize, Token};

use super::super::{Action, Arrival, JoinError, Pin, ReportError, Timing};
use super::*;

const TIMING: Timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 40_000);
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// In windows of 128 pages.
const PAGES: u32 = 4000;
const PAGE: u32 = 1000;

fn answer(token: u128) -> JoinAnswer {
    JoinAnswer {
        connect: "239.255.0.1:9000".parse().unwrap(),
        token: Token::from_random(token),
        pages: PAGES,
        page_size: PageSize::new(PAGE.into()).unwrap(),
        extensions: Extensions {
            size: Some(u64::from(PAGES * PAGE)),
            etag: Some(Etag::new("v1").unwrap()),
            source: Some(SERVER.ip()),
            repair: Some(9001),
            interleave: Some(1),
            lease: Some(60 * SECOND),
            ..Extensions::default()
        },
    }
}

struct Member {
    receiver: Receiver,
    now: Instant,
}

impl Member {
    fn joined(mode: UnicastMode, answer: &JoinAnswer) -> Self {
        let now = Instant::now();
        let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
        receiver.set_unicast(mode);
        receiver.handle_open();
        assert_eq!(receiver.poll_action(), Some(Action::Join));
        receiver.handle_join(answer, now);
        Self { receiver, now }
    }

    /// One that heard nothing, fetches, and told the server.
    fn fetching() -> Self {
        let mut member = Self::joined(UnicastMode::Auto, &answer(1));
        member.actions();
        let reports = reports(&member.pass(2 * SECOND));
        assert_eq!(reports.len(), 1);
        assert!(reports[0].unicast && reports[0].bulk.is_empty() && reports[0].needs.is_empty());
        member.receiver.handle_reported(Ok(()), member.now);
        member
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.receiver.poll_action()).collect()
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
        let payload = [7; PAGE as usize];
        let mut bytes = Layout::Base.header(PageIndex(page), PAGES, &payload).to_vec();
        bytes.extend(payload);
        if let Arrival::New(page) = self.receiver.handle_datagram(SERVER, &bytes, self.now) {
            self.receiver.handle_stored(PageRange::single(page.index));
        }
    }

    fn fetch(&mut self) -> Option<Fetch> {
        self.receiver.poll_fetch(None, self.now)
    }

    /// All of a fetch comes.
    fn bring(&mut self, fetch: &Fetch) -> bool {
        let pages = fetch.bytes.start / u64::from(PAGE)..fetch.bytes.end / u64::from(PAGE);
        let page = |page| u32::try_from(page).unwrap();
        self.receiver.handle_stored(PageRange::new(page(pages.start), page(pages.end)));
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

fn joins(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Join)).count()
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
    member.receiver.presume_no_multicast();
    member.receiver.fetch_now(PageRange::new(0, 10));
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
            member.receiver.handle_reported(Ok(()), member.now);
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
fn a_datagram_ends_the_fetching_and_the_report_asks_for_all_that_is_missing() {
    let mut member = Member::fetching();
    let fetch = member.fetch().unwrap();
    member.page(3999);
    assert_eq!(member.receiver.reception(), Reception::Multicast);
    assert!(!member.bring(&fetch), "the rest comes by multicast");
    assert_eq!(member.fetch(), None);
    let reports = reports(&member.pass(500 * MS));
    assert_eq!(reports.len(), 1);
    assert!(!reports[0].unicast);
    // What is here lies in the first 8 windows: a MiB is 1048 pages. The last window has 32 pages, one of them here.
    assert_eq!(reports[0].bulk, [(8, 24)]);
}

#[test]
fn a_report_that_was_not_heard_is_repeated() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    assert_eq!(reports(&member.pass(SECOND)).len(), 1);
    member.receiver.handle_reported(Err(ReportError::Temporary), member.now);
    let again = reports(&member.pass(3 * SECOND));
    assert_eq!(again.len(), 1);
    assert!(again[0].unicast);
}

#[test]
fn a_member_that_the_server_forgot_joins_again_and_goes_on_fetching() {
    let mut member = Member::fetching();
    let renewal = member.pass(30 * SECOND);
    assert_eq!(reports(&renewal).len(), 1);
    member.receiver.handle_reported(Err(ReportError::UnknownMember), member.now);
    assert_eq!(joins(&member.pass(SECOND)), 1);
    member.receiver.handle_join(&answer(2), member.now);
    assert!(member.fetch().is_some());
    // The new membership gets its second to hear something.
    assert_eq!(reports(&member.pass(900 * MS)), []);
    assert!(reports(&member.pass(200 * MS))[0].unicast);
}

#[test]
fn where_multicast_is_presumed_missing_the_fetching_begins_with_the_join() {
    let mut member = Member::joined(UnicastMode::Auto, &answer(1));
    member.receiver.presume_no_multicast();
    assert!(member.fetch().is_some());
    assert_eq!(reports(&member.pass(900 * MS)), []);
    member.page(0);
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
    member.receiver.fetch_now(PageRange::new(100, 103));
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
