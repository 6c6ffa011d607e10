//! When a file is filled. docs/SEMANTICS.md, "Filling".

use std::time::Duration;

use bootcast_proto::PageIndex;
use bootcast_proto::wire::{Beacon, Pace};

use super::fixture::{SECOND, beacon, joins};
use super::*;

const PAGE: u32 = 1024;
const MIB: u64 = 1 << 20;
/// 64 MiB in windows of 2 MiB.
const LARGE: File = File { pages: 65_536, page_size: PAGE, interleave: 16, key: None };

/// Answers of servers that differ in what they say of the members.
fn answer_with(file: File, token: u128, members: Option<u64>) -> JoinAnswer {
    let mut answer = file.answer(token);
    answer.extensions.members = members;
    answer
}

/// Opens a file and joins its cast.
fn opened(file: File, members: Option<u64>, now: Instant) -> Receiver {
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
    receiver.await_intent();
    receiver.handle_open();
    let options = receiver.begin_join();
    assert_eq!((options.fill, options.resumes), (Fill::Demand, false));
    receiver.handle_join(&answer_with(file, 1, members), now);
    receiver.handle_timeout(now);
    receiver.actions();
    receiver
}

/// Reads the bytes as a sequential reader does, and stores their pages. Returns how often the
/// receiver wants to join because of that.
fn read(receiver: &mut Receiver, bytes: Range<u64>, now: Instant) -> usize {
    let mut joined = 0;
    for start in bytes.clone().step_by(128 << 10) {
        let part = start..bytes.end.min(start + (128 << 10));
        let wait = receiver.handle_read(&part, now);
        receiver.handle_timeout(now);
        joined += joins(&receiver.actions());
        let pages = receiver.assembly().unwrap().geometry().pages_covering(part);
        receiver.store(pages);
        if let Some(wait) = wait {
            receiver.handle_wait_over(wait);
        }
    }
    joined
}

/// Whether the next join asks for the stream.
fn fills(receiver: &mut Receiver) -> bool {
    receiver.begin_join().fill == Fill::Full
}

#[test]
fn who_reads_the_beginning_and_the_end_gets_what_is_read() {
    let now = Instant::now();
    let mut receiver = opened(LARGE, Some(3), now);
    assert_eq!(read(&mut receiver, 0..7 * MIB, now), 0);
    assert_eq!(read(&mut receiver, 57 * MIB..64 * MIB, now), 0);
    assert_eq!(read(&mut receiver, 0..7 * MIB, now), 0, "a repeated read is none");
    assert!(!fills(&mut receiver));
    assert_eq!(receiver.assembly().unwrap().missing(), 50 * 1024);
}

#[test]
fn who_reads_on_joins_the_stream_at_the_beginning_of_a_window() {
    let now = Instant::now();
    let mut receiver = opened(LARGE, None, now);
    assert_eq!(read(&mut receiver, MIB..9 * MIB - 4096, now), 0);
    assert_eq!(read(&mut receiver, 9 * MIB - 4096..10 * MIB - (128 << 10), now), 0, "mid-window");
    assert_eq!(read(&mut receiver, 10 * MIB - (128 << 10)..11 * MIB, now), 1);
    assert!(receiver.begin_join().resumes && fills(&mut receiver));
    receiver.handle_join(&answer_with(LARGE, 2, None), now);
    receiver.handle_timeout(now);
    let actions = receiver.actions();
    let left = Token::from_random(1);
    assert!(actions.contains(&Action::Leave(left)), "the first membership is left: {actions:?}");
    let named = actions.iter().find_map(|action| match action {
        Action::Report(report) => Some(report.bulk.clone()),
        _ => None,
    });
    assert_eq!(named, Some(vec![(0, 1), (5, 27)]), "windows that are missing, or most of them");
}

#[test]
fn who_reads_here_and_there_gets_the_file_after_16_mib() {
    let now = Instant::now();
    let mut receiver = opened(LARGE, None, now);
    let mut part = |k: u64| read(&mut receiver, k * 3 * MIB..k * 3 * MIB + MIB, now);
    assert_eq!((0..15).map(&mut part).sum::<usize>(), 0);
    assert_eq!(part(15), 1);
}

#[test]
fn a_file_without_room_in_the_cache_is_not_filled_whatever_is_read() {
    let now = Instant::now();
    let mut receiver = opened(LARGE, None, now);
    receiver.stop_filling();
    assert_eq!(read(&mut receiver, 0..32 * MIB, now), 0);
    assert!(!fills(&mut receiver));
}

#[test]
fn among_many_a_mib_is_enough() {
    let now = Instant::now();
    let mut receiver = opened(LARGE, Some(4), now);
    assert_eq!(read(&mut receiver, 0..MIB - 4096, now), 0);
    assert_eq!(read(&mut receiver, MIB - 4096..MIB, now), 1);
    assert!(fills(&mut receiver));
}

#[test]
fn the_stream_of_many_others_is_joined_and_that_of_one_is_waited_for() {
    for (members, joins) in [(3, 1), (1, 0)] {
        let now = Instant::now();
        let mut receiver = opened(LARGE, Some(1), now);
        let beacon = Beacon { members, ..beacon(1, 2048, Pace::default()) };
        receiver.receive_repair(&beacon.encode(), now);
        assert_eq!(read(&mut receiver, 0..MIB, now), joins, "{members} others");
        // The stream is about to bring this.
        receiver.handle_read(&(3 * MIB..3 * MIB + 4096), now).unwrap();
        receiver.handle_timeout(now);
        let wanted = receiver.actions().iter().any(|action| match action {
            Action::Want(want) => want.now.iter().any(|run| run.start >= PageIndex(3072)),
            _ => false,
        });
        assert!(!wanted, "{members} others");
    }
}

#[test]
fn a_file_that_stays_open_is_filled_after_30_s() {
    let now = Instant::now();
    let mut receiver = opened(LARGE, None, now);
    receiver.handle_timeout(now + 100 * SECOND);
    assert_eq!(joins(&receiver.actions()), 0, "nobody has read it");
    read(&mut receiver, 0..4096, now);
    let due = now + Duration::from_secs(30);
    receiver.handle_timeout(now + Duration::from_millis(29_999));
    assert_eq!(joins(&receiver.actions()), 0);
    assert!(receiver.poll_timeout().unwrap() <= due);
    receiver.handle_timeout(due);
    assert_eq!(joins(&receiver.actions()), 1);

    let mut closed = opened(LARGE, None, now);
    read(&mut closed, 0..4096, now);
    closed.handle_close(now + SECOND);
    closed.handle_open();
    closed.handle_timeout(due);
    assert_eq!(joins(&closed.actions()), 0, "it was closed");
}

#[test]
fn the_rest_of_a_small_file_is_demanded_once_half_of_it_was_read() {
    let small = File { pages: 2000, ..LARGE };
    let now = Instant::now();
    let mut receiver = opened(small, None, now);
    let read_in_parts = |receiver: &mut Receiver, bytes: Range<u64>| {
        let wait = receiver.handle_read(&bytes, now);
        receiver.store(PageRange::new(
            u32::try_from(bytes.start / 1024).unwrap(),
            u32::try_from(bytes.end / 1024).unwrap(),
        ));
        if let Some(wait) = wait {
            receiver.handle_wait_over(wait);
        }
        receiver.handle_timeout(now);
        receiver.actions()
    };
    let is_ahead = |action: &Action| match action {
        Action::Want(want) => want.now.iter().any(|run| run.end > PageIndex(1100)),
        _ => false,
    };
    let before = read_in_parts(&mut receiver, 0..999 * 1024);
    assert!(!before.iter().any(is_ahead), "{before:?}");
    let after = read_in_parts(&mut receiver, 999 * 1024..1000 * 1024);
    let later = now + SECOND;
    receiver.handle_timeout(later);
    let all: Vec<_> = after.into_iter().chain(receiver.actions()).collect();
    assert!(all.iter().any(is_ahead) && joins(&all) == 0, "{all:?}");
}

#[test]
fn a_server_without_demand_sends_everything_at_once() {
    let now = Instant::now();
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
    receiver.await_intent();
    receiver.handle_open();
    assert_eq!(joins(&receiver.actions()), 1);
    receiver.begin_join();
    receiver.handle_join(&answer(1, "v1"), now);
    receiver.handle_timeout(now);
    assert_eq!((receiver.fill(), joins(&receiver.actions())), (Fill::Full, 0));
}
