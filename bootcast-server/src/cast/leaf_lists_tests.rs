//! Leaf lists of casts on a virtual clock.
#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

use std::num::NonZeroU32;

use bootcast_proto::api::Report;
use bootcast_proto::manifest::{ContentTree, LEAF_BYTES, SEGMENT_LEAVES};
use bootcast_proto::{PageSize, Token};
use proptest::prelude::*;

use super::*;
use crate::cast::demand::tests::runs;
use crate::cast::{Cast, CastPolicy, MemberKind, RepairSettings, Sending};

const SECOND: Duration = Duration::from_secs(1);

/// Time that a datagram takes on the wire.
const DATAGRAM: Duration = Duration::from_micros(10);

/// Pages of 2.5 segments.
const PAGES: u32 = 7200;

/// Number of lists of the first two segments, and of the third one.
const LISTS: [usize; 3] = [6, 6, 3];

struct Lab {
    geometry: Geometry,
    cast: Cast,
    budget: u32,
    now: Instant,
    sent: Vec<Sending>,
}

impl Lab {
    fn new(size: u64, page_size: u64) -> Self {
        let now = Instant::now();
        let geometry = Geometry::new(size, PageSize::new(page_size).unwrap()).unwrap();
        let policy = CastPolicy { idle_passes: NonZeroU32::new(5).unwrap(), linger: SECOND };
        let repair = RepairSettings { interleave: 16, repair_port: 9001, lease: 60 * SECOND };
        let cast = Cast::new(&geometry, policy, Some(&repair), now);
        Self { geometry, cast, budget: 44, now, sent: Vec::new() }
    }

    /// A cast with one member that asked for leaf lists.
    fn joined(kind: MemberKind) -> Self {
        let mut lab = Self::new(u64::from(PAGES) * 1456, 1456);
        lab.join(0, kind, true);
        lab
    }

    fn join(&mut self, number: u128, kind: MemberKind, asks: bool) {
        self.cast.handle_join(token(number), kind, self.now);
        if asks {
            self.cast.request_leaves(&token(number));
        }
    }

    fn attach_manifest(&mut self) {
        let tree = ContentTree::new(self.geometry.size());
        let leaves = (0..tree.leaves()).map(|leaf| {
            let mut value = [1; 32];
            value[..8].copy_from_slice(&leaf.to_be_bytes());
            value
        });
        self.cast.handle_manifest(Arc::new(Manifest::new(tree, leaves.collect())), self.now);
    }

    /// Runs the cast until it has nothing to do for `time`, or until so much was sent.
    fn run(&mut self, time: Duration, most: usize) {
        let (end, most) = (self.now + time, self.sent.len().saturating_add(most));
        while self.now < end && self.sent.len() < most {
            self.cast.handle_timeout(self.now);
            let urgent = self.cast.poll_urgent(self.budget, self.now);
            let sending = urgent.or_else(|| self.cast.poll_transmit(self.budget, self.now));
            if let Some(sending) = sending {
                self.now += DATAGRAM * sending.datagrams();
                self.sent.push(sending);
            } else {
                let timers = [self.cast.poll_timeout(), self.cast.poll_transmit_at()];
                let wake = timers.into_iter().flatten().min().unwrap_or(end);
                assert!(wake > self.now, "the driver would spin");
                self.now = wake.min(end);
            }
        }
    }

    fn want(&mut self, now: &[(u32, u32)], later: &[(u32, u32)]) {
        let want = Want { now: runs(now), later: runs(later), ..Want::default() };
        assert!(self.cast.handle_want(&token(0), &want, self.now));
    }

    /// Segments of the lists that were sent, in order.
    fn segments(&self) -> Vec<u32> {
        let lists = self.sent.iter().filter_map(|sending| match sending {
            Sending::LeafList(list) => Some(list.segment()),
            Sending::Pages(_) | Sending::Symbols(_) | Sending::Beacon(_) | Sending::End(_) => None,
        });
        lists.collect()
    }

    fn pages(&self) -> usize {
        let pages = self.sent.iter().map(|sending| match sending {
            Sending::Pages(pages) => pages.len() as usize,
            _ => 0,
        });
        pages.sum()
    }
}

fn token(number: u128) -> Token {
    Token::from_random(number)
}

/// Returns what was sent, without beacons: pages and lists by their segments, repeats left out.
fn outline(lab: &Lab) -> Vec<(&'static str, u32)> {
    let segment = |page: u32| segment_at((u64::from(page) + 1) * 1456 - 1);
    let items = lab.sent.iter().filter_map(|sending| match sending {
        Sending::Pages(pages) => Some(("pages", segment(pages.start.0))),
        Sending::LeafList(list) => Some(("lists", list.segment())),
        Sending::Symbols(_) | Sending::Beacon(_) | Sending::End(_) => None,
    });
    let mut outline: Vec<_> = items.collect();
    outline.dedup();
    outline
}

#[test]
fn lists_go_ahead_of_their_segment_and_again_behind_it() {
    let mut lab = Lab::joined(MemberKind::Extended);
    lab.attach_manifest();
    lab.run(SECOND, usize::MAX);
    let expected = [
        ("lists", 0),
        ("pages", 0),
        ("lists", 0),
        ("lists", 1),
        ("pages", 1),
        ("lists", 1),
        ("lists", 2),
        ("pages", 2),
        ("lists", 2),
    ];
    assert_eq!(outline(&lab), expected);
    for (segment, lists) in (0..).zip(LISTS) {
        let sent = lab.segments().iter().filter(|it| **it == segment).count();
        assert_eq!(sent, 2 * lists, "lists of segment {segment}");
    }
    assert_eq!(lab.pages(), PAGES as usize);
}

#[test]
fn nothing_is_sent_that_no_member_of_the_repair_channel_asked_for() {
    let mut lab = Lab::new(u64::from(PAGES) * 1456, 1456);
    lab.join(0, MemberKind::Extended, false);
    lab.join(1, MemberKind::Plain, true);
    lab.attach_manifest();
    lab.run(SECOND / 2, 30);
    assert_eq!(lab.segments(), [0; 0]);
    lab.join(2, MemberKind::Extended, true);
    lab.run(SECOND / 2, 10);
    assert_eq!(lab.segments(), [0; 6]);
    lab.cast.handle_leave(&token(2), lab.now);
    lab.run(SECOND / 2, 400);
    assert_eq!(lab.segments(), [0; 6], "the last member that asked has left");
}

#[test]
fn a_member_that_hears_no_repair_channel_gets_no_lists() {
    for report in [
        Report { unicast: true, ..Report::default() },
        Report { stream_only: true, ..Report::default() },
    ] {
        let mut lab = Lab::joined(MemberKind::Extended);
        lab.attach_manifest();
        assert!(lab.cast.handle_report(&token(0), &report, lab.now));
        lab.run(SECOND, usize::MAX);
        assert_eq!(lab.segments(), [0; 0], "{report:?}");
    }
}

#[test]
fn a_manifest_that_comes_late_brings_the_lists_of_what_went_by_once() {
    let mut lab = Lab::joined(MemberKind::Extended);
    lab.run(SECOND, 80);
    assert!(lab.pages() > 2900, "the stream is in the second segment");
    let before = lab.sent.len();
    lab.attach_manifest();
    lab.run(SECOND, usize::MAX);
    let count = |segment| lab.segments().iter().filter(|it| **it == segment).count();
    assert_eq!([count(0), count(1), count(2)], [6, 12, 6]);
    let late = lab.sent[before..].windows(2).filter(|two| {
        two.iter().all(|it| matches!(it, Sending::LeafList(list) if list.segment() == 0))
    });
    assert_eq!(late.count(), 0, "batches of pages go out between late lists");
}

#[test]
fn late_lists_that_remain_go_out_when_the_stream_rests() {
    let mut lab = Lab::joined(MemberKind::Extended);
    lab.run(SECOND, usize::MAX);
    lab.attach_manifest();
    lab.run(SECOND, usize::MAX);
    assert_eq!(lab.segments().len(), LISTS.iter().sum::<usize>());
}

#[test]
fn the_stream_rests_behind_a_last_page_that_is_shorter_than_the_others() {
    let mut lab = Lab::new(SEGMENT_BYTES, 1456);
    lab.join(0, MemberKind::Extended, true);
    lab.attach_manifest();
    lab.run(SECOND, usize::MAX);
    assert_eq!(lab.segments().len(), 2 * LISTS[0]);
    assert_eq!(lab.pages(), lab.geometry.pages() as usize);
}

#[test]
fn a_later_join_brings_the_lists_again_with_the_pages() {
    let mut lab = Lab::joined(MemberKind::Extended);
    lab.attach_manifest();
    lab.run(SECOND, usize::MAX);
    lab.sent.clear();
    lab.join(1, MemberKind::Extended, false);
    lab.run(SECOND, usize::MAX);
    assert_eq!(lab.segments().len(), 2 * LISTS.iter().sum::<usize>());
}

#[test]
fn a_want_brings_lists_ahead_of_its_pages_and_not_again_within_a_second() {
    let mut lab = Lab::joined(MemberKind::Demand);
    lab.attach_manifest();
    lab.want(&[(3000, 12)], &[]);
    assert_eq!(lab.cast.urgent_pages(), 12 + 6);
    lab.run(SECOND / 10, usize::MAX);
    assert_eq!(outline(&lab), [("lists", 1), ("pages", 1)]);
    lab.want(&[(3100, 12)], &[]);
    lab.run(SECOND / 10, usize::MAX);
    assert_eq!(lab.segments(), [1; 6]);
    lab.run(SECOND, usize::MAX);
    lab.want(&[(3200, 12)], &[]);
    lab.run(SECOND / 10, usize::MAX);
    assert_eq!(lab.segments(), [1; 12]);
}

#[test]
fn a_want_brings_no_more_lists_than_its_pages_allow() {
    for (now, segments) in [
        (vec![(1, 1), (3000, 1), (6000, 1)], vec![0]),
        (vec![(1, 3), (3000, 2), (6000, 1)], vec![0, 1]),
        (vec![(1, u32::MAX)], vec![0, 1, 2]),
        (vec![(0, 1), (PAGES + 1, 9), (u32::MAX, u32::MAX), (5, 0)], vec![]),
    ] {
        let mut lab = Lab::joined(MemberKind::Demand);
        lab.attach_manifest();
        lab.want(&now, &[]);
        lab.run(SECOND, usize::MAX);
        let mut sent = lab.segments();
        sent.dedup();
        assert_eq!(sent, segments, "{now:?}");
    }
}

#[test]
fn lists_go_out_for_pages_that_a_reader_probably_wants_next() {
    let mut lab = Lab::joined(MemberKind::Demand);
    lab.attach_manifest();
    lab.want(&[], &[(1, 12)]);
    lab.run(SECOND, usize::MAX);
    assert_eq!(outline(&lab), [("lists", 0), ("pages", 0)]);
}

#[test]
fn demand_brings_the_lists_of_a_limited_number_of_segments_a_second() {
    let mut lab = Lab::new(200 * SEGMENT_BYTES, 1456);
    lab.join(0, MemberKind::Demand, true);
    lab.attach_manifest();
    for segment in 0..200 {
        lab.want(&[(1 + segment * 2880, 1)], &[]);
    }
    lab.run(SECOND / 2, usize::MAX);
    assert_eq!(lab.segments().len(), 6 * MAX_RECENT);
    lab.run(SECOND, usize::MAX);
    lab.want(&[(1 + 199 * 2880, 1)], &[]);
    lab.run(SECOND / 2, usize::MAX);
    assert_eq!(lab.segments().len(), 6 * MAX_RECENT + 6);
}

#[test]
fn a_member_that_did_not_ask_gets_no_lists_on_demand() {
    let mut lab = Lab::joined(MemberKind::Demand);
    lab.attach_manifest();
    lab.join(1, MemberKind::Demand, false);
    let want = Want { now: vec![PageRange::from((1, 12))], ..Want::default() };
    assert!(lab.cast.handle_want(&token(1), &want, lab.now));
    lab.run(SECOND, usize::MAX);
    assert_eq!(outline(&lab), [("pages", 0)]);
}

#[test]
fn the_value_of_a_single_leaf_is_the_content_id_and_needs_no_list() {
    let mut lab = Lab::new(LEAF_BYTES, 1456);
    lab.join(0, MemberKind::Extended, true);
    lab.attach_manifest();
    lab.run(SECOND, usize::MAX);
    assert_eq!(lab.segments(), [0; 0]);
}

#[test]
fn the_stream_of_a_file_of_whole_segments_comes_to_rest() {
    let mut lab = Lab::new(2 * SEGMENT_BYTES, 1456);
    lab.join(0, MemberKind::Extended, true);
    lab.attach_manifest();
    lab.run(SECOND, usize::MAX);
    assert_eq!(lab.segments(), [[0; 12], [1; 12]].concat(), "both copies of six lists");
}

#[test]
fn the_limits_are_documented() {
    let protocol = include_str!("../../../docs/PROTOCOL.md");
    for sentence in [
        format!("At most {MAX_RECENT} segments are served so in a second"),
        "of another one for every six\n  pages of `now` and `later`".to_owned(),
        "unless they went out\n  within the last second".to_owned(),
    ] {
        assert!(protocol.contains(&sentence), "{sentence}");
    }
    assert_eq!((RECENT, PAGES_PER_SEGMENT), (SECOND, 6));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn all_lists_of_a_segment_precede_every_page_that_ends_in_it(
        size in 1..5 * SEGMENT_BYTES, page_size in 600u64..9000, budget in 1u32..50,
        second_join in 0usize..3000, is_plain: bool,
    ) {
        let page_size = page_size & !1;
        let mut lab = Lab::new(size, page_size);
        lab.budget = budget;
        lab.join(0, MemberKind::Extended, true);
        lab.attach_manifest();
        lab.run(SECOND / 2, second_join);
        let second = if is_plain { MemberKind::Plain } else { MemberKind::Extended };
        lab.join(1, second, false);
        lab.run(SECOND, usize::MAX);
        let tree = ContentTree::new(size);
        let (mut segment, mut listed) = (None, 0);
        for sending in &lab.sent {
            match sending {
                Sending::LeafList(list) => {
                    let leaves = list.leaves();
                    if leaves.start == tree.leaves_of(list.segment().into()).start {
                        (segment, listed) = (Some(list.segment()), 0);
                    }
                    listed += leaves.end - leaves.start;
                    prop_assert!(listed <= SEGMENT_LEAVES);
                }
                Sending::Pages(pages) if tree.leaves() > 1 => {
                    for page in pages.iter() {
                        let end = ((u64::from(page.0) + 1) * page_size).min(size);
                        let own = segment_at(end - 1);
                        prop_assert_eq!(segment, Some(own), "page {}", page);
                        let leaves = tree.leaves_of(own.into());
                        prop_assert_eq!(listed, leaves.end - leaves.start, "page {}", page);
                    }
                }
                _ => {}
            }
        }
        prop_assert!(lab.pages() >= lab.geometry.pages() as usize);
    }
}
