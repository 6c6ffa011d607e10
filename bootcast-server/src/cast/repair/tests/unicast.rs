//! Casts with members that fetch the file over HTTP.

use super::*;

impl Lab {
    /// Sends a report that says whether the member fetches the file.
    fn report_unicast(&mut self, member: usize, unicast: bool) {
        let report = Report { unicast, ..Report::default() };
        assert!(self.cast.handle_report(&token(member), &report, self.now));
    }

    /// A cast with one member, which fetches the file since before the end of the stream.
    fn deaf() -> Self {
        let mut lab = Self::joined(&[MemberKind::Extended]);
        lab.run(SHORT_HOLD + DATAGRAM * 300);
        lab.report_unicast(0, true);
        lab.sent.clear();
        lab
    }
}

#[test]
fn a_cast_of_deaf_members_sends_a_beacon_and_16_pages_every_5_s() {
    let mut lab = Lab::deaf();
    lab.run(SECOND * 4);
    assert_eq!(lab.sent, []);
    lab.run(SECOND * 27);
    assert_eq!(lab.sent.len(), 18);
    assert_eq!(lab.beacons().len(), 6);
    assert!(lab.beacons().iter().all(|(_, beacon)| beacon.members == 0));
    assert_eq!((lab.cast.members(), lab.cast.unicast_members()), (1, 1));
    let pages = lab.pages();
    assert_eq!(pages.len(), 6 * 16);
    // From the end of the file, in bursts of eight.
    assert_eq!(pages[..8], (PAGES - 8..PAGES).collect::<Vec<_>>());
    assert_eq!(pages[8..16], (PAGES - 16..PAGES - 8).collect::<Vec<_>>());
}

#[test]
fn a_member_without_progress_is_sent_at_most_two_files_more() {
    let mut lab = Lab::joined(&[MemberKind::Extended]);
    for _ in 0..200 {
        lab.run(SECOND / 5);
        lab.report(&[], &[(0, 4)]);
    }
    let sent = lab.pages().len() + lab.symbols().len();
    assert!(sent <= 4 * PAGES as usize, "{sent} datagrams of a file of {PAGES} pages");
    assert_eq!(lab.cast.members(), 1);
    // With progress it is served like any other member.
    lab.sent.clear();
    let report = Report { bulk: vec![(0, 4)], useful: 9, ..Report::default() };
    assert!(lab.cast.handle_report(&token(0), &report, lab.now));
    lab.run(SECOND / 10);
    assert_eq!(lab.pages().len(), PAGES as usize);
}

#[test]
fn reports_without_needs_do_not_keep_fill_symbols_going() {
    let mut lab = Lab::joined(&[MemberKind::Extended]);
    for _ in 0..60 {
        lab.run(SECOND);
        lab.report(&[], &[]);
    }
    let sent = lab.pages().len() + lab.symbols().len();
    assert!(sent < 2 * PAGES as usize, "{sent} datagrams of a file of {PAGES} pages");
}

#[test]
fn a_member_that_receives_only_the_stream_gets_pages_and_no_symbols() {
    let mut lab = Lab::joined(&[MemberKind::Extended]);
    let stream_only = |bulk: &[(u32, u32)], useful| Report {
        bulk: bulk.to_vec(),
        stream_only: true,
        useful,
        ..Report::default()
    };
    lab.run(SHORT_HOLD + DATAGRAM * 300);
    assert!(lab.cast.handle_report(&token(0), &stream_only(&[], 300), lab.now));
    lab.run(SECOND * 10);
    assert_eq!((lab.pages().len(), lab.symbols().len()), (PAGES as usize, 0));
    assert!(lab.cast.handle_report(&token(0), &stream_only(&[(1, 1)], 2000), lab.now));
    lab.sent.clear();
    lab.run(SECOND);
    assert_eq!(lab.pages(), window(1));
}

#[test]
fn a_resuming_member_is_sent_what_its_report_asks_for() {
    let mut lab = Lab::joined(&[MemberKind::Resuming]);
    lab.report(&[(0, 1)], &[(2, 1)]);
    lab.run(SHORT_HOLD + SECOND / 50);
    assert_eq!((lab.pages(), &lab.blocks()[..1]), (window(2), &[0][..]));
}

#[test]
fn deferred_windows_that_the_stream_sends_meanwhile_are_not_sent_again() {
    let mut lab = Lab::joined(&[MemberKind::Extended, MemberKind::Resuming]);
    assert!(lab.cast.handle_report(
        &token(1),
        &Report { bulk: vec![(0, 4)], ..Report::default() },
        lab.now
    ));
    lab.run(SECOND * 2);
    assert_eq!(lab.pages().len(), PAGES as usize);
}

#[test]
fn the_lease_of_a_deaf_member_expires() {
    let mut lab = Lab::deaf();
    for _ in 0..3 {
        lab.run(SECOND * 40);
        lab.report_unicast(0, true);
        assert_eq!(lab.cast.end_reason(), None);
    }
    lab.run(LEASE * 2);
    assert_eq!(lab.cast.end_reason(), Some(EndReason::LeasesExpired));
}

#[test]
fn a_member_that_is_back_to_multicast_gets_what_its_report_asks_for() {
    let mut lab = Lab::deaf();
    lab.run(SECOND * 3);
    lab.report(&[(0, 1)], &[(1, 2)]);
    assert_eq!(lab.cast.unicast_members(), 0);
    lab.run(SECOND / 20);
    assert_eq!(lab.blocks(), [0]);
    assert_eq!(lab.pages(), (WINDOW..WINDOW * 3).collect::<Vec<_>>());
}

#[test]
fn the_other_members_are_served_as_without_the_deaf_one() {
    let mut lab = Lab::joined(&[MemberKind::Extended; 2]);
    lab.report_unicast(1, true);
    lab.run(SHORT_HOLD + SECOND / 20);
    assert_eq!(lab.pages().len(), PAGES as usize);
    assert!(lab.beacons().iter().all(|(_, beacon)| beacon.members == 1));
    // With the last member that listens, all sending ends.
    assert!(lab.cast.handle_leave(&token(0), lab.now));
    lab.sent.clear();
    lab.run(SECOND);
    assert!(lab.sent.len() <= 1, "{:?}", lab.sent);
    assert_eq!(lab.cast.members(), 1);
}

#[test]
fn a_plain_member_beside_a_deaf_one_gets_its_carousel() {
    let mut lab = Lab::joined(&[MemberKind::Extended, MemberKind::Plain]);
    lab.report_unicast(0, true);
    lab.run(SHORT_HOLD + SECOND / 5);
    assert!(lab.pages().len() > PAGES as usize, "a second pass");
    assert_eq!((lab.symbols().len(), lab.beacons().len()), (0, 0));
}

#[test]
fn a_deaf_member_can_leave() {
    let mut lab = Lab::deaf();
    assert!(lab.cast.handle_leave(&token(0), lab.now));
    assert_eq!((lab.cast.members(), lab.cast.unicast_members()), (0, 0));
    lab.run(SECOND * 2);
    assert_eq!(lab.cast.end_reason(), Some(EndReason::LastLeave));
}
