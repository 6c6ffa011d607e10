#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use std::net::SocketAddr;
use std::time::Duration;

use bootcast_proto::api::Report;
use bootcast_proto::fec::{self, Engine, RepairIndex};
use bootcast_proto::wire::{Beacon, Level, Pace, end_datagram, symbol_header};
use bootcast_proto::{JoinAnswer, Layout, PageIndex, PageRange, Share, WindowIndex};
use proptest::prelude::*;

use super::super::session::REJOIN_SPREAD;
use super::super::*;
use super::fixture::{File, SERVER, Shorthand, TIMING, beacon};

const BEACON_INTERVAL: Duration = Duration::from_millis(25);
/// In one window of three blocks, of 100 pages each.
const PAGES: u32 = 300;
const PAGE: u32 = 4;
const FILE: File = File { pages: PAGES, page_size: PAGE, interleave: 16, key: None };

fn answer(token: u128) -> JoinAnswer {
    FILE.answer(token)
}

/// A member, its clock, and the number of its last beacon.
struct Member {
    receiver: Receiver,
    now: Instant,
    number: u32,
    pace: Pace,
}

impl Member {
    fn new() -> Self {
        let now = Instant::now();
        let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
        receiver.handle_open();
        receiver.handle_join(&answer(1), now);
        let mut member = Self { receiver, now, number: 0, pace: Pace::default() };
        member.actions();
        member
    }

    /// A member that has heard all pages but these go by.
    fn lacking(missing: &[u32]) -> Self {
        let mut member = Self::new();
        (0..PAGES).filter(|page| !missing.contains(page)).for_each(|page| member.page(page));
        member
    }

    fn actions(&mut self) -> Vec<Action> {
        self.receiver.actions()
    }

    fn page(&mut self, page: u32) {
        self.receiver.receive(&FILE.page(page, &page.to_be_bytes()), self.now);
    }

    fn symbol(&mut self, block: u32, number: usize, promised: u8) {
        let symbol = FILE.symbol(block, number, promised, &[0; PAGE as usize]);
        self.receiver.receive_repair(&symbol, self.now);
    }

    /// The next beacon: where the stream is, and the levels of all blocks.
    fn beacon(&mut self, position: u32, sent: u8, promised: u8) {
        self.now += BEACON_INTERVAL;
        self.number += 1;
        let windows = vec![(WindowIndex(0), vec![Level { sent, promised }; 3])];
        let beacon = Beacon { windows, ..beacon(self.number, position, self.pace) };
        let bytes = beacon.encode();
        let arrival = self.receiver.handle_repair_datagram(SERVER, &bytes, self.now);
        assert_eq!(arrival, RepairArrival::Nothing);
    }

    /// What is done before the next beacon would come.
    fn actions_until_next_beacon(&mut self) -> Vec<Action> {
        let end = self.now + BEACON_INTERVAL;
        while let Some(due) = self.receiver.poll_timeout().filter(|due| *due < end) {
            self.now = due;
            self.receiver.handle_timeout(due);
        }
        self.actions()
    }
}

/// A part of docs/PROTOCOL.md below this heading.
fn quoted(heading: &str) -> &'static str {
    let page = include_str!("../../../../docs/PROTOCOL.md");
    page.split("\n## ")
        .flat_map(|section| section.split("\n### "))
        .find(|part| part.starts_with(heading))
        .unwrap()
}

/// The datagrams of which a text shows hex dumps.
fn dumps(text: &str) -> Vec<Vec<u8>> {
    let mut datagrams: Vec<Vec<u8>> = Vec::new();
    for line in text.lines() {
        let Some((offset, rest)) = line.trim_start().split_once("  ") else { continue };
        let is_offset = offset.len() == 4 && line.starts_with("    ");
        let Some(offset) = usize::from_str_radix(offset, 16).ok().filter(|_| is_offset) else {
            continue;
        };
        if offset == 0 {
            datagrams.push(Vec::new());
        }
        let datagram = datagrams.last_mut().unwrap();
        assert_eq!(datagram.len(), offset, "{line}");
        let bytes = rest.split("   ").next().unwrap().split_whitespace();
        datagram.extend(bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    datagrams
}

/// The only report of these actions.
fn report(actions: &[Action]) -> &Report {
    match actions {
        [Action::Report(report)] => report,
        other => panic!("expected a report, got {other:?}"),
    }
}

#[test]
fn a_member_of_a_repaired_cast_hears_both_ports() {
    let now = Instant::now();
    let place = |answer: &JoinAnswer| {
        let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
        receiver.handle_open();
        receiver.handle_join(answer, now);
        receiver.actions().into_iter().find_map(|action| match action {
            Action::Subscribe(Subscription { repair, .. }) => Some(repair),
            _ => None,
        })
    };
    assert_eq!(place(&answer(1)), Some(Some("239.255.0.1:9001".parse().unwrap())));
    let mut plain = answer(1);
    plain.extensions.interleave = None;
    assert_eq!(place(&plain), Some(None));
}

#[test]
fn what_is_lacking_is_reported_once_the_stream_has_passed() {
    let mut member = Member::lacking(&[0, 3, 7]);
    member.beacon(200, 0, 0);
    assert_eq!(member.actions_until_next_beacon(), []);
    member.beacon(PAGES, 0, 0);
    let actions = member.actions_until_next_beacon();
    assert_eq!(report(&actions).needs, [(0, 2), (1, 1)]);
}

#[test]
fn a_member_of_the_panel_tells_what_came_between_beacons_though_it_lacks_nothing() {
    let mut member = Member::new();
    member.pace = Pace { sent: 5, panel: Share::ALL, interval_ms: 20, ..Pace::default() };
    member.beacon(5, 0, 0);
    (5..9).for_each(|page| member.page(page));
    member.symbol(0, 0, 1);
    member.receiver.handle_drops(2);
    member.pace.sent = 13;
    member.beacon(12, 1, 1);
    let actions = member.actions_until_next_beacon();
    let Report { sent, received, drops, .. } = *report(&actions);
    assert_eq!((sent, received, drops), (8, 5, 2));
    assert!(report(&actions).needs.is_empty() && report(&actions).bulk.is_empty());
    member.beacon(12, 1, 1);
    assert_eq!(member.actions_until_next_beacon(), [], "one is out");
    member.receiver.answer_report(Err(ReportError::UnknownMember), member.now);
    member.now += REJOIN_SPREAD;
    member.receiver.handle_timeout(member.now);
    assert_eq!(member.actions(), [Action::Join]);
}

#[test]
fn the_answer_to_a_report_of_a_former_membership_is_ignored() {
    let mut member = Member::lacking(&[0]);
    member.beacon(PAGES, 0, 0);
    member.beacon(PAGES, 0, 0);
    assert!(matches!(member.actions_until_next_beacon()[..], [Action::Report(_)]));
    member.receiver.handle_join(&answer(2), member.now);
    member.actions();
    let former = Token::from_random(1);
    let forgotten = Err(ReportError::UnknownMember);
    member.receiver.handle_report_answer(&former, forgotten, member.now);
    member.receiver.handle_timeout(member.now + REJOIN_SPREAD);
    assert!(!member.actions().contains(&Action::Join));
}

/// Symbol 0 of block 0 arrives: its round.
fn symbol_round(member: &mut Member) -> Round {
    let symbol = FILE.symbol(0, 0, 1, &[0; PAGE as usize]);
    match member.receiver.handle_repair_datagram(SERVER, &symbol, member.now) {
        RepairArrival::Symbol { round, .. } => round,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_handed_out_for_other_blocks_does_not_count() {
    let (block, number) = (BlockIndex(0), RepairIndex::new(0).unwrap());
    let mut member = Member::lacking(&[0]);
    let round = symbol_round(&mut member);
    member.receiver.handle_symbol_stored(block, number, round);
    let plan = member.receiver.decode_plan(block).unwrap();
    // The server restarts, and divides the same pages into other blocks.
    let mut other = answer(2);
    other.extensions.interleave = Some(1);
    member.receiver.handle_join(&other, member.now);
    member.receiver.handle_symbol_stored(block, number, round);
    assert_eq!(member.receiver.decode_plan(block), None, "the symbol is of other pages");
    assert!(!member.receiver.confirms(&plan));
    let round = symbol_round(&mut member);
    member.receiver.handle_symbol_stored(block, number, round);
    member.receiver.handle_symbols_lost(&plan);
    assert!(member.receiver.decode_plan(block).is_some(), "the lost symbols are of other pages");
}

#[test]
fn a_page_that_was_handed_out_before_another_join_does_not_count() {
    let mut member = Member::lacking(&[0]);
    let epoch = member.receiver.epoch();
    member.receiver.handle_join(&answer(2), member.now);
    member.receiver.handle_stored(PageRange::new(0, 1), epoch);
    assert!(!member.receiver.is_complete());
    member.receiver.store(PageRange::new(0, 1));
    assert!(member.receiver.is_complete());
}

#[test]
fn a_member_does_what_the_worked_dialogue_of_the_protocol_says() {
    const PAGE_SIZE: u64 = 48;
    let dialogue = quoted("A worked dialogue");
    let [beacon, symbol, _end]: [Vec<u8>; 3] = dumps(dialogue).try_into().unwrap();
    let lines: Vec<_> = dialogue.lines().map(str::trim_start).collect();
    let answer = JoinAnswer::parse(&lines.join("\n")).unwrap();
    let geometry = answer.geometry().unwrap();
    let content: Vec<u8> = (0..geometry.size()).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let page = |page: u32| {
        let start = u64::from(page) * PAGE_SIZE;
        let end = (start + PAGE_SIZE).min(geometry.size());
        &content[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()]
    };

    let mut now = Instant::now();
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
    receiver.handle_open();
    receiver.handle_join(&answer, now);
    let hear = |receiver: &mut Receiver, bytes: &[u8], now| {
        let arrival = receiver.handle_repair_datagram(SERVER, bytes, now);
        if let RepairArrival::Symbol { block, number, round, .. } = arrival {
            receiver.handle_symbol_stored(block, number, round);
        }
        assert!(!matches!(arrival, RepairArrival::Bad(_)), "{arrival:?}");
    };
    // The rebuilt pages of a block, if it can be rebuilt; `payload` are its symbols' bytes.
    let rebuild = |receiver: &mut Receiver, payloads: &[&[u8]]| -> Vec<u32> {
        let Some(block) = receiver.poll_decodable() else { return Vec::new() };
        let plan = receiver.decode_plan(block).unwrap();
        let symbols: Vec<_> = plan.symbols.iter().copied().zip(payloads.iter().copied()).collect();
        let missing: Vec<_> = plan.missing.iter().map(|(at, _)| *at).collect();
        let present: Vec<_> =
            plan.present.iter().map(|(at, number)| (*at, page(number.0))).collect();
        let rebuilt =
            fec::decode(Engine::best(), payloads[0].len(), &missing, &present, &symbols).unwrap();
        for ((_, number), bytes) in plan.missing.iter().zip(&rebuilt) {
            assert_eq!(bytes, page(number.0), "page {number}");
            receiver.store(PageRange::single(*number));
        }
        plan.missing.iter().map(|(_, number)| number.0 + 1).collect()
    };
    let symbol_of = |block: u32, number: usize| {
        let layout = answer.block_layout().unwrap();
        let sources = layout.pages_in(BlockIndex(block)).map(|(at, number)| (at, page(number.0)));
        let mut payload = vec![0; 48];
        fec::encode(Engine::best(), RepairIndex::new(number).unwrap(), sources, &mut payload);
        payload
    };
    let datagram = |block: u32, number: usize, promised: u8| {
        let header = symbol_header(BlockIndex(block), RepairIndex::new(number).unwrap(), promised);
        [&header[..], &symbol_of(block, number)].concat()
    };

    let begin = Beacon {
        number: 0,
        position: PageIndex(0),
        members: 2,
        permit: Share::ALL,
        spread_ms: 2,
        pace: Pace::default(),
        windows: Vec::new(),
    };
    hear(&mut receiver, &begin.encode(), now);
    for number in (0..answer.pages).filter(|number| ![1, 257, 261].contains(number)) {
        let header = Layout::Base.header(PageIndex(number), answer.pages, page(number));
        let bytes = [&header[..], page(number)].concat();
        let Arrival::New(new) = receiver.handle_datagram(SERVER, &bytes, now) else { panic!() };
        receiver.store(PageRange::single(new.index));
    }
    for (block, number, promised) in [(0, 0, 1), (1, 0, 1), (2, 0, 1), (0, 1, 2)] {
        hear(&mut receiver, &datagram(block, number, promised), now);
    }
    assert_eq!(rebuild(&mut receiver, &[&symbol_of(1, 0)]), [2]);

    hear(&mut receiver, &beacon, now);
    let due = receiver.poll_timeout().unwrap();
    assert!(due <= now + Duration::from_millis(2));
    now = due;
    receiver.handle_timeout(now);
    let actions = receiver.actions();
    let Some(Action::Report(report)) = actions.last() else { panic!("{actions:?}") };
    let body = serde_json::to_string(report).unwrap();
    assert!(lines.contains(&body.as_str()), "{body}");
    receiver.answer_report(Ok(()), now);

    let others = datagram(3, 2, 3);
    for bytes in [&symbol, &others] {
        assert_eq!(rebuild(&mut receiver, &[]), [0; 0]);
        hear(&mut receiver, bytes, now);
    }
    assert_eq!(rebuild(&mut receiver, &[&symbol[16..], &others[16..]]), [258, 262]);
    let actions = receiver.actions();
    assert_eq!(actions, [Action::Unsubscribe, Action::Leave(answer.token)]);
}

#[test]
fn what_the_newest_beacon_promises_is_not_reported() {
    let mut member = Member::lacking(&[0]);
    member.beacon(PAGES, 0, 0);
    member.beacon(PAGES, 0, 1);
    assert_eq!(member.actions_until_next_beacon(), []);
}

#[test]
fn while_the_server_has_promises_to_keep_for_long_nothing_more_is_asked_for() {
    let mut member = Member::lacking(&[0, 3]);
    member.pace.rate_kbps = 1;
    for _ in 0..4 {
        member.beacon(PAGES, 0, 1);
        assert_eq!(member.actions_until_next_beacon(), []);
    }
    member.beacon(PAGES, 1, 1);
    assert_eq!(report(&member.actions_until_next_beacon()).needs, [(0, 3)]);
}

#[test]
fn a_beacon_that_was_overtaken_is_dropped() {
    let mut member = Member::lacking(&[0]);
    member.number = 5;
    member.beacon(100, 0, 0);
    member.number = 4;
    member.beacon(PAGES, 0, 0);
    assert_eq!(member.actions_until_next_beacon(), []);
}

#[test]
fn a_report_that_is_taken_is_not_repeated_while_its_promise_is_kept() {
    let mut member = Member::lacking(&[0]);
    member.beacon(PAGES, 0, 0);
    report(&member.actions_until_next_beacon());
    member.receiver.answer_report(Ok(()), member.now);
    member.beacon(PAGES, 0, 1);
    member.symbol(0, 0, 1);
    assert_eq!(member.actions_until_next_beacon(), []);
    assert_eq!(member.receiver.poll_decodable(), Some(BlockIndex(0)));
    member.receiver.store(PageRange::new(0, 1));
    assert!(member.receiver.is_complete());
}

#[test]
fn windows_that_are_asked_for_are_not_asked_for_again_before_they_came() {
    let missing: Vec<u32> = (0..150).collect();
    let mut member = Member::lacking(&missing);
    member.beacon(PAGES, 0, 0);
    assert_eq!(report(&member.actions_until_next_beacon()).bulk, [(0, 1)]);
    member.receiver.answer_report(Ok(()), member.now);
    for position in [PAGES, PAGES, 10, 200] {
        member.beacon(position, 0, 0);
        assert_eq!(member.actions_until_next_beacon(), []);
    }
    member.beacon(PAGES, 0, 0);
    assert_eq!(report(&member.actions_until_next_beacon()).bulk, [(0, 1)]);
}

#[test]
fn a_report_that_is_lost_is_sent_again() {
    let mut member = Member::lacking(&[0]);
    member.beacon(PAGES, 0, 0);
    report(&member.actions_until_next_beacon());
    member.receiver.answer_report(Err(ReportError::Temporary), member.now);
    let start = member.now;
    while member.now < start + Duration::from_millis(1100) {
        member.beacon(PAGES, 0, 0);
        if let [Action::Report(report)] = &member.actions_until_next_beacon()[..] {
            assert_eq!(report.needs, [(0, 1)]);
            return;
        }
    }
    panic!("not sent again");
}

#[test]
fn a_server_that_forgot_the_member_or_ended_the_cast_is_joined_again_soon() {
    let forgotten = |member: &mut Member| {
        member.beacon(PAGES, 0, 0);
        report(&member.actions_until_next_beacon());
        member.receiver.answer_report(Err(ReportError::UnknownMember), member.now);
    };
    let ended = |member: &mut Member| {
        member.beacon(0, 0, 0);
        member.receiver.handle_repair_datagram(SERVER, &end_datagram(None), member.now);
    };
    for event in [&forgotten as &dyn Fn(&mut Member), &ended] {
        let mut member = Member::lacking(&[0]);
        event(&mut member);
        let due = member.receiver.poll_timeout().unwrap();
        assert!(due <= member.now + REJOIN_SPREAD);
        member.receiver.handle_timeout(due);
        assert_eq!(member.actions(), [Action::Join]);
    }
}

#[test]
fn a_member_that_lacks_nothing_yet_renews_its_lease_with_a_report_without_needs() {
    let mut member = Member::new();
    let start = member.now;
    let lease = Duration::from_secs(60);
    while member.now < start + lease / 2 {
        // A page a second: who gets nothing new distrusts the beacons.
        member.page(member.number / 40);
        member.beacon(10, 0, 0);
        let actions = member.actions_until_next_beacon();
        if !actions.is_empty() {
            let Report { needs, bulk, .. } = report(&actions);
            assert!(needs.is_empty() && bulk.is_empty(), "{actions:?}");
            return;
        }
    }
    panic!("not renewed");
}

#[test]
fn beacons_and_symbols_alone_keep_a_member_from_joining_again() {
    let mut member = Member::new();
    let start = member.now;
    while member.now < start + 2 * TIMING.silence {
        member.beacon(10, 0, 0);
        assert_eq!(member.actions_until_next_beacon(), []);
    }
    member.now += TIMING.silence;
    member.receiver.handle_timeout(member.now);
    assert_eq!(member.actions(), [Action::Join]);
}

#[test]
fn symbols_outlive_the_membership_while_the_blocks_stay_the_same() {
    for (interleave, expected) in [(16, Some(BlockIndex(0))), (1, None)] {
        let mut member = Member::lacking(&[0, 3]);
        member.symbol(0, 0, 1);
        let mut again = answer(2);
        again.extensions.interleave = Some(interleave);
        member.receiver.handle_join(&again, member.now);
        member.symbol(0, 5, 6);
        assert_eq!(member.receiver.poll_decodable(), expected, "{interleave}");
    }
}

#[test]
fn a_plan_of_other_blocks_or_of_pages_that_came_is_not_confirmed() {
    let planned = || {
        let mut member = Member::lacking(&[0, 3]);
        member.symbol(0, 0, 1);
        member.symbol(0, 1, 2);
        let plan = member.receiver.decode_plan(BlockIndex(0)).unwrap();
        assert!(member.receiver.confirms(&plan));
        (member, plan)
    };
    let (mut member, plan) = planned();
    member.page(3);
    assert!(!member.receiver.confirms(&plan));
    let (mut member, plan) = planned();
    let mut again = answer(2);
    again.extensions.interleave = Some(1);
    member.receiver.handle_join(&again, member.now);
    assert!(!member.receiver.confirms(&plan));
}

#[test]
fn a_store_that_lost_data_leaves_no_block_to_rebuild_from_it() {
    let mut member = Member::lacking(&[0]);
    member.symbol(0, 0, 1);
    assert!(member.receiver.has_decodable());
    member.receiver.handle_store_lost("the disk is broken".into());
    // The answer to a join that was on its way.
    member.receiver.handle_join(&answer(2), member.now);
    assert!(!member.receiver.has_decodable());
}

#[test]
fn only_pages_that_no_block_needs_any_more_are_settled() {
    let mut member = Member::lacking(&[0]);
    assert_eq!(member.receiver.settled(), 0);
    member.page(0);
    assert_eq!(member.receiver.settled(), u64::from(PAGES * PAGE));
    // Two windows of two blocks, a page of the second is missing.
    let mut member = Member::new();
    let mut again = answer(2);
    again.extensions.interleave = Some(1);
    member.receiver.handle_join(&again, member.now);
    (0..PAGES).filter(|page| *page != 200).for_each(|page| member.page(page));
    assert_eq!(member.receiver.settled(), u64::from(128 * PAGE));
}

#[test]
fn datagrams_that_are_none_are_counted() {
    let mut member = Member::new();
    let now = member.now;
    let receiver = &mut member.receiver;
    assert!(matches!(
        receiver.handle_repair_datagram(SERVER, &[9; 20], now),
        RepairArrival::Bad(_)
    ));
    let stranger = SocketAddr::from(([192, 0, 2, 66], SERVER.port()));
    let end = end_datagram(None);
    assert!(matches!(receiver.handle_repair_datagram(stranger, &end, now), RepairArrival::Bad(_)));
    assert_eq!((receiver.counters().bad, receiver.counters().strangers), (1, 1));
    assert!(receiver.is_member());
}

proptest! {
    #[test]
    fn no_datagrams_upset_a_member(
        datagrams in proptest::collection::vec(
            (0u8..5, proptest::collection::vec(any::<u8>(), 15..40), any::<bool>()), 0..60,
        ),
    ) {
        let mut member = Member::lacking(&[0, 1, 2]);
        for (kind, mut bytes, low) in datagrams {
            bytes[0] = kind;
            // Otherwise hardly any block exists.
            if low {
                bytes[4..8].copy_from_slice(&[0, 0, 0, kind]);
            }
            member.receiver.receive_repair(&bytes, member.now);
            member.actions_until_next_beacon();
        }
        while let Some(block) = member.receiver.poll_decodable() {
            prop_assert!(member.receiver.decode_plan(block).is_some());
        }
    }
}
