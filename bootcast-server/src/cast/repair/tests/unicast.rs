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
fn a_cast_whose_members_fetch_the_file_sends_a_beacon_now_and_then_and_nothing_else() {
    let mut lab = Lab::deaf();
    lab.run(SECOND * 4);
    assert_eq!(lab.sent, []);
    lab.run(SECOND * 27);
    assert_eq!(lab.sent.len(), 6);
    assert_eq!(lab.beacons().len(), 6);
    assert!(lab.beacons().iter().all(|(_, beacon)| beacon.members == 0));
    assert_eq!((lab.cast.members(), lab.cast.unicast_members()), (1, 1));
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
