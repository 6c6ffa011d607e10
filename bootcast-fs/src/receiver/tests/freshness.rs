//! Strangers send old datagrams again, and a member forges new ones. docs/PROTOCOL.md, "What counts
//! as news".
#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use std::net::SocketAddr;
use std::time::Duration;

use bootcast_proto::api::Report;
use bootcast_proto::wire::{Beacon, Level, Pace, end_datagram};
use bootcast_proto::{DatagramKey, JoinAnswer, PageRange, Share, WindowIndex};

use super::super::*;
use super::fixture::{File, MS, SECOND, SERVER, Shorthand, TIMING, beacon, joins};

/// In one window of three blocks, of 100 pages each.
const PAGES: u32 = 300;
const PAGE: u32 = 4;

fn file() -> File {
    let key = Some(DatagramKey::from_random([7; 32]));
    File { pages: PAGES, page_size: PAGE, interleave: 16, key }
}

fn answer(token: u128) -> JoinAnswer {
    file().answer(token)
}

/// A member, its clock, and what beacons say of the rate.
struct Member {
    receiver: Receiver,
    now: Instant,
    pace: Pace,
}

impl Member {
    fn joined(mode: UnicastMode, fill: Fill) -> Self {
        Self::seeded(mode, fill, 1)
    }

    fn seeded(mode: UnicastMode, fill: Fill, seed: u64) -> Self {
        let now = Instant::now();
        let mut receiver = Receiver::new(Pin::default(), None, TIMING, seed).with_fill(fill);
        receiver.set_unicast(mode);
        receiver.handle_open();
        receiver.handle_join(&answer(1), now);
        let pace = Pace { panel: Share::ALL, interval_ms: 100, ..Pace::default() };
        let mut member = Self { receiver, now, pace };
        member.pass(Duration::ZERO);
        member
    }

    fn new() -> Self {
        Self::joined(UnicastMode::Never, Fill::Full)
    }

    /// Lets this time pass, and whatever is due in it happen.
    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = self.receiver.actions();
        while let Some(due) = self.receiver.poll_timeout().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            self.receiver.handle_timeout(self.now);
            actions.extend(self.receiver.actions());
            assert!(actions.len() < 100, "{actions:?}");
        }
        self.now = end;
        actions
    }

    /// A datagram from any port of the server's address.
    fn data(&mut self, page: u32, is_stored: bool) {
        let bytes = file().page(page, &page.to_be_bytes());
        let from = SocketAddr::new(SERVER.ip(), 4242);
        if let Arrival::New(page) = self.receiver.handle_datagram(from, &bytes, self.now)
            && is_stored
        {
            self.receiver.store(PageRange::single(page.index));
        }
    }

    fn pages(&mut self, pages: impl IntoIterator<Item = u32>) {
        pages.into_iter().for_each(|page| self.data(page, true));
    }

    fn symbol(&mut self, block: u32, number: usize, promised: u8) {
        let symbol = file().symbol(block, number, promised, &[0; PAGE as usize]);
        self.receiver.receive_repair(&symbol, self.now);
    }

    fn beacon(&mut self, number: u32, position: u32, level: Level) {
        let windows = vec![(WindowIndex(0), vec![level; 3])];
        let beacon = Beacon { windows, ..beacon(number, position, self.pace) };
        self.receiver.receive_repair(&file().sealed(beacon.encode()), self.now);
    }

    fn end(&mut self, next: u32) {
        self.receiver.receive_repair(&file().sealed(end_datagram(Some(next))), self.now);
    }
}

fn reports(actions: &[Action]) -> Vec<&Report> {
    let mut reports = Vec::new();
    for action in actions {
        if let Action::Report(report) = action {
            reports.push(report);
        }
    }
    reports
}

const NOTHING_SENT: Level = Level { sent: 0, promised: 0 };

#[test]
fn old_datagrams_of_every_kind_are_silence() {
    let mut member = Member::new();
    member.pages(0..200);
    member.symbol(2, 0, 1);
    (5..10).for_each(|number| member.beacon(number, 200, NOTHING_SENT));
    for _ in 0..TIMING.silence.as_millis() / 100 - 1 {
        assert_eq!(joins(&member.pass(100 * MS)), 0);
        member.pages(0..200);
        member.symbol(2, 0, 1);
        (0..10).for_each(|number| member.beacon(number, 0, NOTHING_SENT));
        (0..10).for_each(|number| member.end(number));
    }
    assert_eq!(joins(&member.pass(100 * MS)), 1);
}

#[test]
fn the_end_is_believed_from_another_address_if_its_tag_is_right() {
    let elsewhere = "192.0.2.77:4242".parse().unwrap();
    for (is_tagged, next, rejoins) in [(true, 6, 1), (false, 6, 0), (true, 5, 0)] {
        let mut member = Member::new();
        let mut answer = answer(1);
        answer.extensions.source = Some(SERVER.ip());
        member.receiver.handle_join(&answer, member.now);
        member.pages(0..20);
        member.beacon(5, 20, NOTHING_SENT);
        let mut end = file().sealed(end_datagram(Some(next)));
        end[15] ^= u8::from(!is_tagged);
        member.receiver.handle_repair_datagram(elsewhere, &end, member.now);
        assert_eq!(joins(&member.pass(500 * MS)), rejoins, "{is_tagged} {next}");
    }
}

#[test]
fn old_pages_are_silence_for_a_member_that_waits_for_demanded_ones() {
    let mut member = Member::joined(UnicastMode::Never, Fill::Demand);
    member.pages([1, 2]);
    assert!(member.receiver.handle_read(&(1000..1004), member.now).is_some());
    for _ in 0..TIMING.silence.as_millis() / 100 - 1 {
        assert_eq!(joins(&member.pass(100 * MS)), 0);
        member.pages([1, 2]);
    }
    assert_eq!(joins(&member.pass(100 * MS)), 1);
}

#[test]
fn an_old_page_is_not_named_as_the_last_that_came() {
    let mut member = Member::joined(UnicastMode::Never, Fill::Demand);
    member.pages([1, 2, 3]);
    // In one batch.
    member.data(5, false);
    member.data(1, false);
    member.receiver.store(PageRange::new(5, 6));
    member.receiver.handle_read(&(1000..1004), member.now);
    let actions = member.pass(MS);
    let is_named = |action: &Action| matches!(action, Action::Want(want) if want.came == 6);
    assert!(actions.iter().any(is_named), "{actions:?}");
}

#[test]
fn old_pages_do_not_close_the_repair_channel_and_old_symbols_do_not_open_it() {
    let mut member = Member::new();
    member.pages([0]);
    member.symbol(2, 0, 1);
    member.pages((0..100).map(|_| 0));
    member.pass(3 * SECOND / 2);
    assert!(member.receiver.take_notices().is_empty());
    member.pages(1..40);
    member.pass(900 * MS);
    member.symbol(2, 0, 1);
    member.pass(100 * MS);
    let notices = member.receiver.take_notices();
    let is_lost = |notice: &Notice| matches!(notice.cause, Cause::RepairLost { .. });
    assert!(notices.iter().any(is_lost), "{notices:?}");
}

#[test]
fn old_symbols_and_echoes_of_a_page_are_not_counted_as_received() {
    let mut member = Member::new();
    member.beacon(1, 0, NOTHING_SENT);
    member.pages(0..20);
    member.symbol(2, 0, 1);
    // The server repeats two pages, and a stranger one of them and the symbol, many times.
    member.pages([3, 4]);
    member.pages((0..1000).map(|_| 4));
    (0..1000).for_each(|_| member.symbol(2, 0, 1));
    member.pace.sent = 50;
    member.beacon(2, 20, NOTHING_SENT);
    let actions = member.pass(200 * MS);
    let Report { sent, received, useful, .. } = *reports(&actions)[0];
    assert_eq!((sent, received, useful), (50, 23, 21));
}

#[test]
fn a_page_that_comes_often_in_one_batch_is_news_once() {
    let mut member = Member::joined(UnicastMode::Auto, Fill::Full);
    member.pass(3 * SECOND / 2);
    assert_eq!(member.receiver.reception(), Reception::Unicast);
    (0..100).for_each(|_| member.data(7, false));
    assert_eq!(member.receiver.reception(), Reception::Unicast);
    assert_eq!(member.receiver.useful(), 1);
    (0..8).for_each(|page| member.data(page, true));
    assert_eq!(member.receiver.reception(), Reception::Multicast);
}

#[test]
fn an_end_from_before_the_membership_is_not_believed_while_the_cast_begins() {
    for seed in 0..10 {
        let mut member = Member::seeded(UnicastMode::Never, Fill::Full, seed);
        // The cast lingered at beacon 41, and is held for 100 ms.
        for _ in 0..5 {
            member.end(42);
            assert_eq!(joins(&member.pass(25 * MS)), 0);
        }
        for number in 42..60 {
            member.beacon(number, 0, NOTHING_SENT);
            member.end(42);
            assert_eq!(joins(&member.pass(50 * MS)), 0);
        }
        // With nothing newer it is believed.
        member.end(60);
        assert_eq!(joins(&member.pass(700 * MS)), 1);
    }
}

#[test]
fn a_beacon_from_before_the_end_does_not_take_it_back() {
    let mut member = Member::new();
    member.pages(0..100);
    member.beacon(10, 100, NOTHING_SENT);
    member.end(20);
    for number in 11..20 {
        member.beacon(number, 100, NOTHING_SENT);
    }
    assert_eq!(joins(&member.pass(200 * MS)), 1);
    let mut member = Member::new();
    member.pages(0..100);
    member.beacon(10, 100, NOTHING_SENT);
    member.end(20);
    member.beacon(20, 100, NOTHING_SENT);
    assert_eq!(joins(&member.pass(200 * MS)), 0);
}

#[test]
fn a_member_that_gets_nothing_new_does_not_believe_beacons_for_ever() {
    let forged: [(u32, Level); 2] = [(PAGES, Level { sent: 0, promised: 255 }), (0, NOTHING_SENT)];
    for (position, level) in forged {
        let mut member = Member::new();
        member.pages(1..PAGES);
        let start = member.now;
        let mut asked_at = Vec::new();
        for number in 0..1800 {
            member.beacon(number * 1000, position, level);
            let actions = member.pass(25 * MS);
            assert_eq!(joins(&actions), 0, "beacons are a sign of life");
            for report in reports(&actions) {
                if report.needs == [(0, 1)] {
                    asked_at.push(member.now - start);
                }
            }
            if !reports(&actions).is_empty() {
                member.receiver.answer_report(Ok(()), member.now);
            }
        }
        assert!(asked_at.len() >= 2 && asked_at[0] < 21 * SECOND, "{asked_at:?}");
    }
}
