#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use super::super::tests::fixture::TIMING;
use super::*;

fn token(number: u128) -> Token {
    Token::from_random(number)
}

fn place(host: u8) -> Subscription {
    let connect = SocketAddrV4::new([239, 255, 0, host].into(), 9000);
    Subscription { connect, source: None, repair: None }
}

fn actions(membership: &mut Membership) -> Vec<Action> {
    std::iter::from_fn(|| membership.poll_action()).collect()
}

fn member(now: Instant) -> Membership {
    let mut membership = Membership::new(TIMING, false);
    membership.opened();
    membership.joined(token(1), place(1), now);
    assert_eq!(actions(&mut membership), [Action::Join, Action::Subscribe(place(1))]);
    membership
}

#[test]
fn two_readers_share_one_join() {
    let mut membership = member(Instant::now());
    membership.opened();
    assert_eq!(actions(&mut membership), []);
}

#[test]
fn when_all_is_here_the_leave_goes_out() {
    let mut membership = member(Instant::now());
    membership.end();
    assert_eq!(actions(&mut membership), [Action::Unsubscribe, Action::Leave(token(1))]);
    membership.opened();
    assert_eq!(actions(&mut membership), []);
    assert!(membership.is_idle());
}

#[test]
fn the_last_close_lingers_and_then_leaves() {
    let start = Instant::now();
    let mut membership = member(start);
    membership.closed(start);
    let second = Duration::from_secs(1);
    for elapsed in 1..10 {
        membership.heard(start + second * elapsed);
        membership.handle_timeout(start + second * elapsed);
        assert_eq!(actions(&mut membership), []);
    }
    assert_eq!(membership.poll_timeout(), Some(start + TIMING.linger));
    membership.handle_timeout(start + TIMING.linger);
    assert_eq!(actions(&mut membership), [Action::Unsubscribe, Action::Leave(token(1))]);
}

#[test]
fn an_open_within_the_linger_time_keeps_the_membership() {
    let start = Instant::now();
    let mut membership = member(start);
    membership.closed(start);
    membership.opened();
    membership.heard(start + TIMING.linger);
    membership.handle_timeout(start + TIMING.linger);
    assert_eq!(actions(&mut membership), []);
}

#[test]
fn silence_joins_again_and_gives_the_old_membership_back() {
    let start = Instant::now();
    let mut membership = member(start);
    let later = start + TIMING.silence;
    membership.handle_timeout(later);
    assert_eq!(actions(&mut membership), [Action::Join]);
    membership.joined(token(2), place(2), later);
    assert_eq!(actions(&mut membership), [Action::Subscribe(place(2)), Action::Leave(token(1))]);
}

#[test]
fn who_gets_nothing_new_joins_ever_more_seldom_until_a_page_comes() {
    let mut now = Instant::now();
    let mut membership = member(now);
    let mut pauses = Vec::new();
    for number in 2..10 {
        let due = membership.poll_timeout().unwrap();
        pauses.push(due - now);
        now = due;
        membership.handle_timeout(now);
        membership.joined(token(number), place(1), now);
        actions(&mut membership);
    }
    assert!(pauses.is_sorted());
    assert_eq!((pauses[0], pauses[7]), (TIMING.silence, TIMING.silence * 16));
    membership.heard(now);
    assert_eq!(membership.poll_timeout(), Some(now + TIMING.silence * 16), "nothing new");
    membership.progressed(now);
    assert_eq!(membership.poll_timeout(), Some(now + TIMING.silence));
}

#[test]
fn a_wish_for_an_endless_pause_is_granted_for_half_a_minute() {
    let now = Instant::now();
    let mut membership = Membership::new(TIMING, false);
    membership.opened();
    membership.join_failed(now, Duration::MAX);
    assert_eq!(membership.poll_timeout(), Some(now + RETRY_AFTER_MAX));
}

#[test]
fn a_failed_join_is_repeated_ever_more_slowly_for_ever() {
    let mut now = Instant::now();
    let mut membership = Membership::new(TIMING, false);
    membership.opened();
    let mut pauses = Vec::new();
    for _ in 0..40 {
        assert_eq!(actions(&mut membership), [Action::Join]);
        membership.join_failed(now, Duration::ZERO);
        let next = membership.poll_timeout().unwrap();
        pauses.push(next - now);
        now = next;
        membership.handle_timeout(now);
    }
    assert!(pauses.is_sorted());
    assert_eq!((pauses[0], pauses[39]), (REQUEST_BACKOFF.first, REQUEST_BACKOFF.longest));
}

#[test]
fn a_join_that_is_answered_after_everybody_left_is_given_back() {
    let start = Instant::now();
    let mut membership = Membership::new(Timing { linger: Duration::ZERO, ..TIMING }, false);
    membership.opened();
    membership.closed(start);
    membership.joined(token(1), place(1), start);
    assert_eq!(actions(&mut membership), [Action::Join, Action::Leave(token(1))]);
    assert!(membership.is_idle());
}
