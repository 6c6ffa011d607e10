#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use std::time::Duration;

use bootcast_proto::join::Extensions;
use bootcast_proto::{JoinAnswer, Layout, PageIndex, PageRange};

use super::super::*;
use super::fixture::{File, SERVER, Shorthand, TIMING};

const PAGES: u32 = 1000;
const FILE: File = File { pages: PAGES, page_size: 4, interleave: 1, key: None };

/// What is to be done, wants without what they tell of the path.
fn actions(receiver: &mut Receiver, now: Instant) -> Vec<Action> {
    let plain = |action| match action {
        Action::Want(want) => {
            Action::Want(Want { now: want.now, later: want.later, ..Want::default() })
        }
        other => other,
    };
    whole_actions(receiver, now).into_iter().map(plain).collect()
}

fn whole_actions(receiver: &mut Receiver, now: Instant) -> Vec<Action> {
    receiver.handle_timeout(now);
    receiver.actions()
}

fn joined(now: Instant) -> Receiver {
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1).with_fill(Fill::Demand);
    receiver.handle_open();
    receiver.handle_join(&FILE.answer(1), now);
    actions(&mut receiver, now);
    receiver
}

fn feed(receiver: &mut Receiver, page: u32, now: Instant) {
    receiver.receive(&FILE.page(page, b"page"), now);
}

fn want(pairs: &[(u32, u32)]) -> Action {
    Action::Want(Want {
        now: pairs.iter().copied().map(PageRange::from).collect(),
        ..Want::default()
    })
}

#[test]
fn who_wants_what_is_read_listens_to_no_repair_and_asks_for_what_is_read() {
    let now = Instant::now();
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1).with_fill(Fill::Demand);
    receiver.handle_open();
    receiver.handle_join(&FILE.answer(1), now);
    let begun = actions(&mut receiver, now);
    assert!(matches!(&begun[1], Action::Subscribe(to) if to.repair.is_none()), "{begun:?}");
    assert!(receiver.handle_read(&(40..44), now).is_some());
    assert_eq!(actions(&mut receiver, now), [want(&[(11, 1)])]);
    feed(&mut receiver, 10, now);
    assert_eq!(receiver.handle_read(&(40..44), now), None);
    assert_eq!(actions(&mut receiver, now), []);
}

#[test]
fn only_who_holds_nothing_and_wants_what_is_read_asks_for_the_profile() {
    let now = Instant::now();
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1).with_fill(Fill::Demand);
    assert!(!receiver.begin_join().wants_profile, "a program that reads one part");
    receiver.request_profile();
    receiver.handle_open();
    assert!(receiver.begin_join().wants_profile);
    receiver.handle_join(&FILE.answer(1), now);
    actions(&mut receiver, now);
    feed(&mut receiver, 10, now);
    assert!(!receiver.begin_join().wants_profile, "it holds a page");
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
    receiver.request_profile();
    assert!(!receiver.begin_join().wants_profile, "the stream brings everything");
}

#[test]
fn a_member_asks_as_the_worked_want_of_the_protocol_says() {
    let page = include_str!("../../../../docs/PROTOCOL.md");
    let part = |heading| page.split("\n### ").find(|part| part.starts_with(heading)).unwrap();
    let dedented = |text: &str| text.lines().map(str::trim_start).collect::<Vec<_>>().join("\n");
    let answer = JoinAnswer::parse(&dedented(part("A worked dialogue"))).unwrap();
    let example = dedented(part("A worked want"));
    let bodies: Vec<_> = example.lines().filter(|line| line.starts_with('{')).collect();
    let ms = Duration::from_millis;

    let mut now = Instant::now();
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1).with_fill(Fill::Demand);
    receiver.handle_open();
    receiver.handle_join(&answer, now);
    let wanted = |receiver: &mut Receiver, now| match &whole_actions(receiver, now)[..] {
        [.., Action::Want(want)] => Some(want.clone()),
        _ => None,
    };
    let json = |want: &Want| serde_json::to_string(want).unwrap();
    let come = |receiver: &mut Receiver, number: u32, now| {
        let payload = [0; 48];
        let header = Layout::Base.header(PageIndex(number - 1), answer.pages, &payload);
        let bytes = [&header[..], &payload].concat();
        assert!(matches!(receiver.handle_datagram(SERVER, &bytes, now), Arrival::New(_)));
        receiver.store(PageRange::single(PageIndex(number - 1)));
    };
    // An earlier page tells how long they take.
    receiver.handle_read(&(0..48), now).unwrap();
    let want = wanted(&mut receiver, now).unwrap();
    now += ms(2);
    receiver.handle_wanted(&answer.token, &want, Ok(Duration::ZERO), now);
    come(&mut receiver, 1, now);

    now += ms(1000);
    receiver.handle_read(&(9600..9750), now).unwrap();
    let want = wanted(&mut receiver, now).unwrap();
    assert_eq!(json(&want), bodies[0]);
    receiver.handle_wanted(&answer.token, &want, Ok(ms(1)), now + ms(1));
    now += ms(3);
    for number in [201, 202] {
        come(&mut receiver, number, now);
    }
    assert_eq!(wanted(&mut receiver, now), None);
    come(&mut receiver, 204, now);
    let want = wanted(&mut receiver, now).unwrap();
    assert_eq!(json(&want), bodies[1]);
    receiver.handle_wanted(&answer.token, &want, Ok(ms(1)), now + ms(2));
    assert_eq!(wanted(&mut receiver, now + ms(10)), None);
    let third = wanted(&mut receiver, now + ms(11)).unwrap();
    assert_eq!(third, Want { late: true, ..want });
    come(&mut receiver, 203, now + ms(11));
    assert!(receiver.holds(&(9600..9750)));
    assert_eq!(wanted(&mut receiver, now + ms(500)), None);
}

#[test]
fn silence_is_normal_while_nothing_is_wanted_and_counts_from_the_first_want() {
    let start = Instant::now();
    let mut receiver = joined(start);
    // Up to half the lease nothing is due.
    assert!(receiver.poll_timeout().unwrap() > start + Duration::from_secs(20));
    let later = start + Duration::from_secs(15);
    assert_eq!(actions(&mut receiver, later), []);
    let wait = receiver.handle_read(&(40..44), later).unwrap();
    assert_eq!(actions(&mut receiver, later), [want(&[(11, 1)])]);
    let silent = later + TIMING.silence;
    let before = later + Duration::from_millis(1999);
    assert!(!actions(&mut receiver, before).contains(&Action::Join));
    assert!(actions(&mut receiver, silent).contains(&Action::Join));
    receiver.handle_join(&FILE.answer(2), silent);
    assert!(actions(&mut receiver, silent).contains(&want(&[(11, 1)])));
    receiver.handle_wait_over(wait);
    assert_eq!(actions(&mut receiver, silent + Duration::from_secs(3)), []);
}

/// Looks after the receiver until `until`, answers its wants, and returns what it does.
fn watch(receiver: &mut Receiver, from: Instant, until: Instant) -> Vec<Action> {
    let mut seen = Vec::new();
    let mut due = Some(from);
    while let Some(now) = due.filter(|at| *at <= until) {
        let done = whole_actions(receiver, now);
        for action in &done {
            let token = receiver.token().unwrap().clone();
            match action {
                Action::Want(want) => {
                    receiver.handle_wanted(&token, want, Ok(Duration::ZERO), now);
                }
                Action::Report(_) => receiver.answer_report(Ok(()), now),
                _ => {}
            }
        }
        seen.extend(done);
        due = receiver.poll_timeout().map(|at| at.max(now));
    }
    seen
}

#[test]
fn a_page_that_does_not_come_though_others_do_is_fetched() {
    let start = Instant::now();
    let mut receiver = joined(start);
    receiver.set_unicast(UnicastMode::Auto);
    receiver.handle_join(&FILE.answer(2), start);
    feed(&mut receiver, 500, start);
    receiver.handle_read(&(40..44), start).unwrap();
    watch(&mut receiver, start, start + Duration::from_millis(249));
    assert_eq!(receiver.poll_fetch(Some(&(40..44)), start), None);
    let later = start + Duration::from_secs(1);
    watch(&mut receiver, start, later);
    let fetch = receiver.poll_fetch(Some(&(40..44)), later).unwrap();
    assert_eq!(fetch.bytes, 40..44);
}

#[test]
fn who_hears_nothing_fetches_what_is_read_and_asks_once_each_time_that_it_listens_anew() {
    let start = Instant::now();
    let mut receiver = joined(start);
    receiver.set_unicast(UnicastMode::Auto);
    receiver.handle_join(&FILE.answer(2), start);
    assert_eq!(receiver.reception(), Reception::Unknown);
    // Silence is normal while nothing is wanted.
    let later = start + Duration::from_secs(10);
    watch(&mut receiver, start, later);
    assert_eq!(receiver.reception(), Reception::Unknown);
    receiver.handle_read(&(40..48), later).unwrap();
    let deaf = later + Duration::from_secs(1);
    let seen = watch(&mut receiver, later, deaf);
    assert!(seen.iter().any(|action| matches!(action, Action::Want(_))), "{seen:?}");
    assert!(seen.iter().any(|action| matches!(action, Action::Report(it) if it.unicast)));
    assert_eq!(receiver.reception(), Reception::Unicast);
    let fetch = receiver.poll_fetch(Some(&(40..48)), deaf).unwrap();
    assert_eq!(fetch.bytes, 40..48);
    let is_want = |action: &&Action| matches!(action, Action::Want(_));
    let minutes = deaf + Duration::from_secs(150);
    let probes = watch(&mut receiver, deaf, minutes);
    assert_eq!(probes.iter().filter(is_want).count(), 2, "{probes:?}");
    feed(&mut receiver, 10, minutes);
    assert_eq!(receiver.reception(), Reception::Multicast);
}

#[test]
fn a_member_that_was_forgotten_joins_again_at_once_and_then_ever_more_seldom() {
    let mut now = Instant::now();
    let mut receiver = joined(now);
    receiver.handle_read(&(40..44), now).unwrap();
    let mut pauses = Vec::new();
    for token in 1..8 {
        assert!(actions(&mut receiver, now).contains(&want(&[(11, 1)])));
        let token_now = receiver.token().unwrap().clone();
        let forgotten = Err(ReportError::UnknownMember);
        receiver.handle_wanted(&token_now, &Want::default(), forgotten, now);
        let due = receiver.poll_timeout().unwrap();
        pauses.push((due - now).as_millis());
        now = due;
        assert_eq!(actions(&mut receiver, now), [Action::Join]);
        receiver.handle_join(&FILE.answer(token + 1), now);
        now += Duration::from_millis(1);
    }
    assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 3200]);
}

#[test]
fn the_answer_of_a_membership_that_is_over_changes_nothing() {
    let now = Instant::now();
    let mut receiver = joined(now);
    receiver.handle_read(&(40..44), now).unwrap();
    actions(&mut receiver, now);
    let (old, forgotten) = (Token::from_random(7), Err(ReportError::UnknownMember));
    receiver.handle_wanted(&old, &Want::default(), forgotten, now);
    assert!(receiver.token().is_some());
}

#[test]
fn a_want_renews_the_lease() {
    let start = Instant::now();
    let mut receiver = joined(start);
    let later = start + Duration::from_secs(20);
    receiver.handle_read(&(40..44), later).unwrap();
    actions(&mut receiver, later);
    feed(&mut receiver, 10, later);
    receiver.handle_wanted(&Token::from_random(1), &Want::default(), Ok(Duration::ZERO), later);
    let reports = |actions: Vec<Action>| actions.iter().any(|it| matches!(it, Action::Report(_)));
    assert!(!reports(actions(&mut receiver, start + Duration::from_secs(31))));
    assert!(reports(actions(&mut receiver, later + Duration::from_secs(31))));
}

#[test]
fn what_others_demanded_is_kept_and_a_file_that_is_complete_so_is_left() {
    let now = Instant::now();
    let mut receiver = joined(now);
    for page in 0..PAGES {
        feed(&mut receiver, page, now);
    }
    let left = Action::Leave(Token::from_random(1));
    assert_eq!(actions(&mut receiver, now), [Action::Unsubscribe, left]);
    assert!(receiver.is_complete());
}

#[test]
fn a_read_that_begins_before_the_join_is_answered_is_asked_for_then() {
    let now = Instant::now();
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1).with_fill(Fill::Demand);
    receiver.handle_open();
    receiver.handle_read(&(40..44), now).unwrap();
    assert_eq!(actions(&mut receiver, now), [Action::Join]);
    receiver.handle_join(&FILE.answer(1), now);
    assert!(actions(&mut receiver, now).contains(&want(&[(11, 1)])));
}

#[test]
fn a_plain_server_is_asked_for_nothing_and_its_silence_counts() {
    let now = Instant::now();
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1).with_fill(Fill::Demand);
    receiver.handle_open();
    let plain = JoinAnswer { extensions: Extensions::default(), ..FILE.answer(1) };
    receiver.handle_join(&plain, now);
    actions(&mut receiver, now);
    receiver.handle_read(&(40..44), now).unwrap();
    assert_eq!(actions(&mut receiver, now), []);
    assert_eq!(actions(&mut receiver, now + TIMING.silence), [Action::Join]);
}
