//! Casts of members that fetch the file themselves.

use super::*;

impl Lab {
    fn tell_unicast(&mut self, member: usize, unicast: bool) {
        let report = Report { unicast, ..Report::default() };
        assert!(self.cast.handle_report(&token(member), &report, self.now));
    }

    /// One member that fetches the file, since before the stream was through.
    fn deaf() -> Self {
        let mut lab = Self::joined(&[MemberKind::Extended]);
        lab.run(SHORT_HOLD + DATAGRAM * 300);
        lab.tell_unicast(0, true);
        lab.sent.clear();
        lab
    }
}

#[test]
fn a_cast_whose_members_fetch_the_file_sends_a_beacon_and_a_few_pages_now_and_then() {
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
fn a_member_that_reports_and_never_gets_anything_is_sent_two_files_more_and_no_symbols() {
    let mut lab = Lab::joined(&[MemberKind::Extended]);
    for _ in 0..200 {
        lab.run(SECOND / 5);
        lab.report(&[], &[(0, 4)]);
    }
    let sent = lab.pages().len() + lab.symbols().len();
    assert!(sent <= 4 * PAGES as usize, "{sent} datagrams of a file of {PAGES} pages");
    assert_eq!(lab.cast.members(), 1);
    // As soon as something comes there, it is served as any other.
    lab.sent.clear();
    let report = Report { bulk: vec![(0, 4)], useful: 9, ..Report::default() };
    assert!(lab.cast.handle_report(&token(0), &report, lab.now));
    lab.run(SECOND / 10);
    assert_eq!(lab.pages().len(), PAGES as usize);
}

#[test]
fn a_member_that_says_nothing_but_that_it_lives_is_sent_no_symbols_for_ever() {
    let mut lab = Lab::joined(&[MemberKind::Extended]);
    for _ in 0..60 {
        lab.run(SECOND);
        lab.report(&[], &[]);
    }
    let sent = lab.pages().len() + lab.symbols().len();
    assert!(sent < 2 * PAGES as usize, "{sent} datagrams of a file of {PAGES} pages");
}

#[test]
fn a_member_that_hears_the_stream_only_gets_pages_and_no_symbols() {
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
fn a_member_that_resumes_is_sent_what_its_report_asks_for() {
    let mut lab = Lab::joined(&[MemberKind::Resuming]);
    lab.report(&[(0, 1)], &[(2, 1)]);
    lab.run(SHORT_HOLD + SECOND / 50);
    assert_eq!((lab.pages(), &lab.blocks()[..1]), (window(2), &[0][..]));
}

#[test]
fn windows_that_were_kept_back_and_came_meanwhile_are_not_sent_again() {
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
fn its_lease_ends_as_everybodys() {
    let mut lab = Lab::deaf();
    for _ in 0..3 {
        lab.run(SECOND * 40);
        lab.tell_unicast(0, true);
        assert_eq!(lab.cast.ended(), None);
    }
    lab.run(LEASE * 2);
    assert_eq!(lab.cast.ended(), Some(EndReason::LeasesOver));
}

#[test]
fn who_hears_again_gets_what_its_report_asks_for() {
    let mut lab = Lab::deaf();
    lab.run(SECOND * 3);
    lab.report(&[(0, 1)], &[(1, 2)]);
    assert_eq!(lab.cast.unicast_members(), 0);
    lab.run(SECOND / 20);
    assert_eq!(lab.blocks(), [0]);
    assert_eq!(lab.pages(), (WINDOW..WINDOW * 3).collect::<Vec<_>>());
}

#[test]
fn the_others_are_served_as_if_it_were_not_there() {
    let mut lab = Lab::joined(&[MemberKind::Extended; 2]);
    lab.tell_unicast(1, true);
    lab.run(SHORT_HOLD + SECOND / 20);
    assert_eq!(lab.pages().len(), PAGES as usize);
    assert!(lab.beacons().iter().all(|(_, beacon)| beacon.members == 1));
    // With the last of those who listen all sending ends.
    assert!(lab.cast.handle_leave(&token(0), lab.now));
    lab.sent.clear();
    lab.run(SECOND);
    assert!(lab.sent.len() <= 1, "{:?}", lab.sent);
    assert_eq!(lab.cast.members(), 1);
}

#[test]
fn a_plain_member_gets_its_carousel_beside_it() {
    let mut lab = Lab::joined(&[MemberKind::Extended, MemberKind::Plain]);
    lab.tell_unicast(0, true);
    lab.run(SHORT_HOLD + SECOND / 5);
    assert!(lab.pages().len() > PAGES as usize, "a second pass");
    assert_eq!((lab.symbols().len(), lab.beacons().len()), (0, 0));
}

#[test]
fn a_member_that_fetched_leaves_like_any_other() {
    let mut lab = Lab::deaf();
    assert!(lab.cast.handle_leave(&token(0), lab.now));
    assert_eq!((lab.cast.members(), lab.cast.unicast_members()), (0, 0));
    lab.run(SECOND * 2);
    assert_eq!(lab.cast.ended(), Some(EndReason::LastLeave));
}
