use bootcast_proto::Manifest;
use bootcast_proto::manifest::SEGMENT_BYTES;
use proptest::prelude::*;

use super::needed::{CAST_PATIENCE, READER_PATIENCE, REPEAT_PAUSE, STREAM_PATIENCE, UNKNOWN_PAUSE};
use super::requests::ENOUGH_SEGMENTS;
use super::*;

const MS: Duration = Duration::from_millis(1);

/// A file and its manifest.
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) manifest: Manifest,
}

impl File {
    pub(super) fn new(size: u64) -> Self {
        Self::of((0..size).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect())
    }

    pub(super) fn of(bytes: Vec<u8>) -> Self {
        Self { manifest: Manifest::of_content(&bytes), bytes }
    }

    pub(super) fn verification(&self, knows_id: bool) -> Verification {
        let id = knows_id.then(|| self.manifest.id());
        Verification::new(*self.manifest.tree(), id)
    }

    pub(super) fn leaves(&self, segments: &Range<u64>) -> &[Value] {
        let tree = self.manifest.tree();
        let end = tree.leaves_of(segments.end - 1).end;
        &self.manifest.leaves()[range(&(tree.leaves_of(segments.start).start..end))]
    }

    /// Answers every request of the client.
    pub(super) fn answer(&self, verification: &mut Verification, now: Instant) {
        while let Some(request) = verification.poll_request(now) {
            match &request {
                ListRequest::Segments => {
                    verification.handle_id(self.manifest.id()).unwrap();
                    verification.handle_lists(&request, self.manifest.segments(), now).unwrap();
                }
                ListRequest::Leaves(segments) => {
                    let values = self.leaves(segments);
                    verification.handle_lists(&request, values, now).unwrap();
                }
            }
        }
    }
}

/// Runs every check on `stored`. Returns the number of checks.
pub(super) fn check(verification: &mut Verification, stored: &[u8], now: Instant) -> usize {
    let checks = std::iter::from_fn(|| {
        let check = verification.poll_check()?;
        let finding = check.examine(&stored[range(&check.bytes())]);
        verification.handle_checked(&check, &finding, now);
        Some(())
    });
    checks.count()
}

pub(super) fn range(range: &Range<u64>) -> Range<usize> {
    index(range.start)..index(range.end)
}

fn everything(_: &Range<u64>) -> bool {
    true
}

#[test]
fn a_leaf_is_read_when_all_of_its_pages_came_and_its_hash_is_right() {
    let (file, now) = (File::new(100_000), Instant::now());
    let mut verification = file.verification(true);
    let held = |bytes: &Range<u64>| bytes.end <= 40_000;
    verification.handle_arrived(&(0..40_000), held);
    assert!(!verification.has_verified(&(0..1)));
    file.answer(&mut verification, now);
    assert_eq!(check(&mut verification, &file.bytes, now), 1);
    assert!(verification.has_verified(&(0..32_768)));
    assert!(!verification.has_verified(&(32_768..32_769)));
    assert_eq!((verification.contiguous(), verification.verified_bytes()), (32_768, 32_768));
    verification.handle_arrived(&(40_000..100_000), everything);
    check(&mut verification, &file.bytes, now);
    assert!(verification.is_complete() && verification.has_verified(&(0..u64::MAX)));
    assert_eq!(verification.verified_bytes(), 100_000);
}

#[test]
fn a_wrong_leaf_is_never_read_and_fetched_until_it_is_right() {
    let (file, now) = (File::new(SEGMENT_BYTES + 50_000), Instant::now());
    let mut verification = file.verification(true);
    let mut stored = file.bytes.clone();
    stored[20_000] ^= 1;
    verification.handle_arrived(&(0..file.bytes.len() as u64), everything);
    file.answer(&mut verification, now);
    check(&mut verification, &stored, now);
    assert_eq!(verification.wrong_total(), 1);
    assert!(!verification.has_verified(&(16_384..16_385)) && !verification.is_complete());
    assert_eq!(verification.verified_bytes(), file.bytes.len() as u64 - 16_384);
    let replacement = verification.poll_replacement(now).unwrap();
    assert_eq!(replacement.bytes(), 16_384..32_768);
    assert_eq!(replacement.examine(&stored[16_384..32_768]), (vec![1], vec![]));
    assert!(verification.poll_replacement(now).is_none());
    verification.handle_replaced(&replacement, None, now);
    assert_eq!(verification.refuted(&(0..20_000)), None, "nothing came");
    let replacement = verification.poll_replacement(now + RETRY_PAUSE).unwrap();
    verification.handle_replaced(&replacement, Some(&[1]), now);
    assert_eq!(verification.refuted(&(0..20_000)), Some(Refuted));
    let later = verification.poll_timeout().unwrap();
    verification.handle_timeout(later);
    assert_eq!(verification.refuted(&(0..20_000)), None);
    let replacement = verification.poll_replacement(later).unwrap();
    let right = replacement.examine(&file.bytes[16_384..32_768]);
    assert_eq!(right.0, [0; 0]);
    assert_eq!(right.1.len(), 1);
    verification.handle_replaced(&replacement, Some(&[]), later);
    assert!(verification.is_complete());
}

#[test]
fn wrong_leaves_are_fetched_together_and_those_of_readers_first() {
    let (file, now) = (File::new(SEGMENT_BYTES * 2), Instant::now());
    let mut verification = file.verification(true);
    let stored = vec![0xee; file.bytes.len()];
    verification.handle_arrived(&(0..SEGMENT_BYTES * 2), everything);
    file.answer(&mut verification, now);
    check(&mut verification, &stored, now);
    let reader = SEGMENT_BYTES + 250 * LEAF_BYTES;
    verification.handle_read(&(reader..reader + 1));
    let fetches: Vec<_> =
        std::iter::from_fn(|| verification.poll_replacement(now)).map(|it| it.bytes()).collect();
    let leaves = |first, end| first * LEAF_BYTES..end * LEAF_BYTES;
    let expected = [leaves(506, 512), leaves(0, 64), leaves(64, 128), leaves(128, 192)];
    assert_eq!(fetches, expected, "no more at a time");
}

#[test]
fn a_leaf_that_the_server_fetched_right_for_a_false_list_is_not_believed() {
    let (file, now) = (File::new(SEGMENT_BYTES * 2), Instant::now());
    let mut false_leaves = file.leaves(&(0..1)).to_vec();
    let mut other = file.bytes.clone();
    other[5] ^= 1;
    false_leaves[0] = file.manifest.tree().leaf_value(0, &other[..index(LEAF_BYTES)]);
    let mut verification = file.verification(false);
    verification.handle_arrived(&(0..SEGMENT_BYTES), everything);
    assert_eq!(verification.poll_request(now), Some(ListRequest::Segments));
    let request = verification.poll_request(now).unwrap();
    verification.handle_lists(&request, &false_leaves, now).unwrap();
    check(&mut verification, &file.bytes, now);
    let replacement = verification.poll_replacement(now).unwrap();
    assert!(replacement.examine(&other[..index(LEAF_BYTES)]).0.is_empty());
    verification.handle_id(file.manifest.id()).unwrap();
    verification.handle_lists(&ListRequest::Segments, file.manifest.segments(), now).unwrap();
    file.answer(&mut verification, now);
    check(&mut verification, &other, now);
    verification.handle_replaced(&replacement, Some(&[]), now);
    assert!(!verification.has_verified(&(0..1)), "these are the bytes of the false list");
}

#[test]
fn a_list_without_the_value_of_a_leaf_is_requested_again_when_that_arrives() {
    let (file, now) = (File::new(SEGMENT_BYTES), Instant::now());
    let mut values = file.leaves(&(0..1)).to_vec();
    values[3] = UNKNOWN;
    let mut verification = file.verification(false);
    let gap = 3 * LEAF_BYTES..4 * LEAF_BYTES;
    verification.handle_arrived(&(0..SEGMENT_BYTES), |bytes| *bytes != gap);
    assert_eq!(verification.poll_request(now), Some(ListRequest::Segments));
    let request = verification.poll_request(now).unwrap();
    verification.handle_lists(&request, &values, now).unwrap();
    check(&mut verification, &file.bytes, now);
    assert!(verification.has_verified(&(0..gap.start)));
    assert!(verification.has_verified(&(gap.end..SEGMENT_BYTES)));
    verification.handle_arrived(&gap, everything);
    assert_eq!(verification.wrong_total(), 0);
    assert_eq!(verification.poll_request(now), None);
    let later = now + UNKNOWN_PAUSE;
    assert_eq!(verification.poll_request(later), Some(ListRequest::Leaves(0..1)));
    verification.handle_lists(&request, file.leaves(&(0..1)), later).unwrap();
    check(&mut verification, &file.bytes, later);
    assert!(verification.has_verified(&(0..SEGMENT_BYTES)));
}

#[test]
fn leaves_that_go_on_arriving_do_not_put_off_the_list_that_a_reader_needs() {
    let (file, now) = (File::new(SEGMENT_BYTES * 2), Instant::now());
    let mut verification = file.verification(true);
    verification.set_lists_in_cast(true);
    file.answer(&mut verification, now);
    verification.handle_read(&(0..SEGMENT_BYTES));
    for leaf in 0..5 {
        let bytes = leaf * LEAF_BYTES..(leaf + 1) * LEAF_BYTES;
        verification.handle_arrived(&bytes, |range| *range == bytes);
        let later = now + READER_PATIENCE.mul_f64(f64::from(u8::try_from(leaf).unwrap()) / 5.0);
        assert_eq!(verification.poll_request(later), None);
    }
    let due = verification.poll_request(now + READER_PATIENCE);
    assert_eq!(due, Some(ListRequest::Leaves(0..1)));
}

#[test]
fn the_value_of_a_small_file_is_its_content_id_and_no_list_is_requested() {
    for size in [0, 1, LEAF_BYTES] {
        let (file, now) = (File::new(size), Instant::now());
        let mut verification = file.verification(true);
        verification.handle_arrived(&(0..size), everything);
        check(&mut verification, &file.bytes, now);
        assert!(verification.is_complete(), "{size}");
        assert_eq!(verification.poll_request(now), None, "{size}");
    }
}

#[test]
fn before_the_content_id_is_known_lists_of_the_server_count_for_now() {
    let (file, now) = (File::new(SEGMENT_BYTES * 2), Instant::now());
    let mut verification = file.verification(false);
    verification.handle_arrived(&(0..SEGMENT_BYTES), everything);
    assert_eq!(verification.poll_request(now), Some(ListRequest::Segments));
    verification.handle_request_failed(&ListRequest::Segments, Duration::ZERO, now);
    assert_eq!(verification.poll_request(now), Some(ListRequest::Leaves(0..1)));
    verification.handle_lists(&ListRequest::Leaves(0..1), file.leaves(&(0..1)), now).unwrap();
    check(&mut verification, &file.bytes, now);
    assert!(verification.has_verified(&(0..SEGMENT_BYTES)));
    verification.handle_arrived(&(0..SEGMENT_BYTES * 2), everything);
    file.answer(&mut verification, now);
    check(&mut verification, &file.bytes, now);
    assert!(!verification.is_complete(), "the content id proves nothing yet");
    file.answer(&mut verification, now);
    assert!(verification.is_complete(), "it is requested at once when nothing else is missing");
}

#[test]
fn when_only_the_content_id_is_missing_it_is_requested_soon() {
    let (file, mut now) = (File::new(SEGMENT_BYTES + 1), Instant::now());
    let mut verification = file.verification(false);
    verification.handle_arrived(&(0..SEGMENT_BYTES + 1), everything);
    let mut pause = Duration::ZERO;
    for _ in 0..8 {
        while let Some(request) = verification.poll_request(now) {
            let values = match &request {
                ListRequest::Segments => &[][..],
                ListRequest::Leaves(segments) => file.leaves(segments),
            };
            verification.handle_lists(&request, values, now).unwrap();
        }
        let next = verification.poll_timeout().unwrap();
        (pause, now) = (next - now, next);
    }
    assert!(pause >= 2 * Duration::from_secs(1), "the server hashes the file: {pause:?}");
    assert_eq!(verification.poll_request(now), Some(ListRequest::Segments));
    verification.handle_lists(&ListRequest::Segments, &[], now).unwrap();
    assert_eq!(verification.poll_request(now), None);
    check(&mut verification, &file.bytes, now);
    assert!(!verification.is_complete());
    file.answer(&mut verification, now);
    assert!(verification.is_complete());
}

#[test]
fn a_version_that_is_gone_before_its_id_is_known_stays_readable_if_all_of_it_was_checked() {
    let (file, now) = (File::new(SEGMENT_BYTES * 2), Instant::now());
    let mut verification = file.verification(false);
    verification.handle_arrived(&(0..SEGMENT_BYTES * 2), everything);
    assert!(!verification.accept_unproven(), "nothing was checked");
    assert_eq!(verification.poll_request(now), Some(ListRequest::Segments));
    verification.handle_request_failed(&ListRequest::Segments, Duration::ZERO, now);
    assert_eq!(verification.poll_request(now), Some(ListRequest::Leaves(0..2)));
    let leaves = ListRequest::Leaves(0..2);
    verification.handle_lists(&leaves, file.leaves(&(0..2)), now).unwrap();
    check(&mut verification, &file.bytes, now);
    assert!(!verification.is_complete());
    assert!(verification.accept_unproven() && verification.is_complete());
    assert_eq!(verification.poll_request(now + 9 * STREAM_PATIENCE), None);
}

#[test]
fn what_was_verified_against_a_false_list_is_checked_again() {
    let (file, now) = (File::new(SEGMENT_BYTES * 2), Instant::now());
    let mut other = File::new(SEGMENT_BYTES * 2);
    other.bytes[5] ^= 1;
    let mut leaves = file.manifest.leaves().to_vec();
    leaves[0] = file.manifest.tree().leaf_value(0, &other.bytes[..index(LEAF_BYTES)]);
    let mut verification = file.verification(false);
    verification.handle_arrived(&(0..SEGMENT_BYTES), everything);
    assert_eq!(verification.poll_request(now), Some(ListRequest::Segments));
    let request = verification.poll_request(now).unwrap();
    verification.handle_lists(&request, &leaves[..256], now).unwrap();
    check(&mut verification, &other.bytes, now);
    assert!(verification.has_verified(&(0..SEGMENT_BYTES)));
    verification.handle_id(file.manifest.id()).unwrap();
    verification.handle_lists(&ListRequest::Segments, file.manifest.segments(), now).unwrap();
    assert!(!verification.has_verified(&(0..1)));
    file.answer(&mut verification, now);
    check(&mut verification, &other.bytes, now);
    assert!(!verification.has_verified(&(0..1)) && verification.has_verified(&(16_384..99_999)));
    assert_eq!(verification.wrong_total(), 1);
}

#[test]
fn lists_of_another_content_are_refused() {
    let (file, other) = (File::new(SEGMENT_BYTES * 2), File::new(SEGMENT_BYTES * 2 - 1));
    let (mut verification, now) = (file.verification(true), Instant::now());
    assert_eq!(
        verification.handle_id(other.manifest.id()),
        Err(ListsError::OtherContent(other.manifest.id()))
    );
    verification.handle_arrived(&(0..SEGMENT_BYTES), everything);
    let mut answer = |expected, values: &[Value]| {
        let request = verification.poll_request(now).unwrap();
        assert_eq!(request, expected);
        verification.handle_lists(&request, values, now)
    };
    let (two, leaves) = ([[1; 32], [2; 32]], file.leaves(&(1..2)));
    assert_eq!(answer(ListRequest::Segments, &two), Err(ListsError::Contradiction));
    assert_eq!(answer(ListRequest::Segments, &two[..1]), Err(ListsError::Length));
    assert_eq!(answer(ListRequest::Segments, file.manifest.segments()), Ok(()));
    assert_eq!(answer(ListRequest::Leaves(0..1), leaves), Err(ListsError::Contradiction));
    assert_eq!(answer(ListRequest::Leaves(0..1), &leaves[1..]), Err(ListsError::Length));
}

#[test]
fn an_answer_that_was_sent_before_the_content_id_was_known_may_come_after_it() {
    for size in [100_000, SEGMENT_BYTES * 2] {
        let (file, now) = (File::new(size), Instant::now());
        let mut verification = file.verification(false);
        verification.handle_arrived(&(0..size), everything);
        let segments = verification.poll_request(now).unwrap();
        let leaves = verification.poll_request(now).unwrap();
        assert_eq!(segments, ListRequest::Segments);
        verification.handle_id(file.manifest.id()).unwrap();
        // The server had hashed nothing, and could not read a leaf at first.
        assert_eq!(verification.handle_early_lists(&segments, &[UNKNOWN], now), Ok(()));
        let mut values = file.leaves(&(0..1)).to_vec();
        values[3] = UNKNOWN;
        assert_eq!(verification.handle_early_lists(&leaves, &values, now), Ok(()));
        for step in 0..10 {
            let now = now + UNKNOWN_PAUSE * step;
            file.answer(&mut verification, now);
            check(&mut verification, &file.bytes, now);
        }
        assert!(verification.is_complete());
    }
}

#[test]
fn a_list_in_the_cast_is_used_when_all_parts_came_and_none_is_forged() {
    let (file, now) = (File::new(SEGMENT_BYTES * 2), Instant::now());
    let mut verification = file.verification(true);
    verification.set_lists_in_cast(true);
    let leaves = file.leaves(&(0..1));
    assert!(verification.handle_cast_leaves(0, 0, &leaves[..200]));
    assert!(!verification.handle_cast_leaves(0, 0, &leaves[..200]), "nothing new");
    assert!(!verification.handle_cast_leaves(2, 0, &leaves[..1]), "no such segment");
    assert!(!verification.handle_cast_leaves(0, 200, leaves), "too many values");
    assert!(verification.handle_cast_leaves(0, 200, &[[7; 32]; 56]));
    verification.handle_arrived(&(0..SEGMENT_BYTES), everything);
    assert_eq!(verification.poll_request(now), Some(ListRequest::Segments));
    verification.handle_lists(&ListRequest::Segments, file.manifest.segments(), now).unwrap();
    assert_eq!(check(&mut verification, &file.bytes, now), 0, "a forged list");
    for first in (0..256).step_by(32) {
        let values = &leaves[first..first + 32];
        assert!(verification.handle_cast_leaves(0, first as u64, values));
    }
    assert_eq!(verification.poll_request(now + 999 * MS), None, "the list came");
    check(&mut verification, &file.bytes, now);
    assert!(verification.has_verified(&(0..SEGMENT_BYTES)));
}

#[test]
fn a_list_that_was_lost_in_the_cast_is_requested_when_the_stream_has_passed() {
    let (file, now) = (File::new(SEGMENT_BYTES * 40), Instant::now());
    let mut verification = file.verification(true);
    verification.set_lists_in_cast(true);
    file.answer(&mut verification, now);
    verification.handle_arrived(&(0..SEGMENT_BYTES), everything);
    assert_eq!(verification.poll_request(now + CAST_PATIENCE), None, "the second copy may come");
    verification.handle_arrived(&(0..SEGMENT_BYTES * 20 + LEAF_BYTES), everything);
    assert_eq!(verification.poll_request(now + CAST_PATIENCE), None);
    let due = now + 2 * CAST_PATIENCE;
    assert_eq!(verification.poll_timeout(), Some(due));
    assert_eq!(verification.poll_request(due), Some(ListRequest::Leaves(0..16)));
    assert_eq!(verification.poll_request(due), Some(ListRequest::Leaves(16..20)));
    assert_eq!(verification.poll_request(due), None);
    verification.handle_request_failed(&ListRequest::Leaves(0..16), Duration::ZERO, due);
    let again = verification.poll_timeout().unwrap();
    assert_eq!(verification.poll_request(again), Some(ListRequest::Leaves(0..16)));
    let stuck = now + CAST_PATIENCE + STREAM_PATIENCE;
    assert_eq!(verification.poll_request(stuck), Some(ListRequest::Leaves(20..21)));
}

#[test]
fn for_a_reader_a_list_is_requested_soon_and_without_a_cast_at_once() {
    let (file, now) = (File::new(SEGMENT_BYTES * 40), Instant::now());
    for is_in_cast in [true, false] {
        let mut verification = file.verification(true);
        verification.set_lists_in_cast(is_in_cast);
        file.answer(&mut verification, now);
        let leaf = SEGMENT_BYTES * 30..SEGMENT_BYTES * 30 + LEAF_BYTES;
        verification.handle_read(&leaf);
        let request = Some(ListRequest::Leaves(30..31));
        if is_in_cast {
            assert_eq!(verification.poll_request(now), None, "the leaf is not here");
            verification.handle_arrived(&leaf, |bytes| *bytes == leaf);
            assert_eq!(verification.poll_request(now), None, "the cast may bring it");
            assert_eq!(verification.poll_request(now + READER_PATIENCE), request);
        } else {
            assert_eq!(verification.poll_request(now), request, "it is requested with the leaf");
        }
    }
}

#[test]
fn a_request_for_a_reader_that_is_not_answered_is_repeated_once() {
    let (file, now) = (File::new(SEGMENT_BYTES * 40), Instant::now());
    let mut verification = file.verification(true);
    file.answer(&mut verification, now);
    verification.handle_read(&(0..9));
    let request = Some(ListRequest::Leaves(0..1));
    assert_eq!(verification.poll_request(now), request);
    assert_eq!(verification.poll_timeout(), Some(now + REPEAT_PAUSE));
    assert_eq!(verification.poll_request(now + REPEAT_PAUSE), request);
    assert_eq!(verification.poll_timeout(), None);
    verification.handle_read(&(0..9));
    assert_eq!(verification.poll_request(now + 10 * REPEAT_PAUSE), None);
    for _ in 0..2 {
        let values = file.leaves(&(0..1));
        verification.handle_lists(request.as_ref().unwrap(), values, now).unwrap();
    }
    assert_eq!(verification.poll_request(now + 10 * REPEAT_PAUSE), None);
    // Nobody waits for this one.
    let bytes = SEGMENT_BYTES..SEGMENT_BYTES + LEAF_BYTES;
    verification.handle_arrived(&bytes, |range| *range == bytes);
    assert_eq!(verification.poll_request(now), Some(ListRequest::Leaves(1..2)));
    assert_eq!(verification.poll_timeout(), None);
}

/// A file of many segments of which only the hashes matter.
fn large_file() -> File {
    let tree = ContentTree::new(SEGMENT_BYTES * 300);
    let leaves = (0..tree.leaves()).map(|leaf| *blake3::hash(&leaf.to_le_bytes()).as_bytes());
    File { bytes: Vec::new(), manifest: Manifest::new(tree, leaves.collect()) }
}

#[test]
fn the_first_reader_of_a_large_file_that_the_cache_kept_does_not_wait_for_other_lists() {
    let (file, now) = (large_file(), Instant::now());
    let mut verification = file.verification(true);
    verification.handle_restored(everything);
    assert_eq!(verification.poll_request(now), Some(ListRequest::Segments));
    let answered = verification.handle_lists(&ListRequest::Segments, file.manifest.segments(), now);
    answered.unwrap();
    assert_eq!(verification.poll_request(now), Some(ListRequest::Leaves(0..16)));
    let leaf = SEGMENT_BYTES * 150..SEGMENT_BYTES * 150 + 1;
    verification.handle_read(&leaf);
    let request = verification.poll_request(now + MS).unwrap();
    assert_eq!(request, ListRequest::Leaves(150..166));
    let values = file.leaves(&(150..166));
    verification.handle_lists(&request, values, now + MS).unwrap();
    assert_eq!(verification.poll_check().unwrap().bytes().start, leaf.start);
}

#[test]
fn lists_of_a_large_file_that_the_cache_kept_are_requested_as_it_is_checked() {
    let (file, now) = (large_file(), Instant::now());
    let mut verification = file.verification(true);
    verification.handle_restored(everything);
    let mut rounds = 0;
    while !verification.is_complete() {
        file.answer(&mut verification, now);
        assert!(verification.ready.len() < ENOUGH_SEGMENTS + 16, "{}", verification.ready.len());
        assert_eq!(verification.poll_timeout(), None, "nothing is due before the checks");
        // Readers need not wait for them.
        let last = SEGMENT_BYTES * 299;
        verification.handle_read(&(last..last + 1));
        file.answer(&mut verification, now);
        while let Some(check) = verification.poll_check() {
            verification.handle_checked(&check, &Finding::Wrong(Vec::new()), now);
        }
        assert!(verification.has_verified(&(last..last + 1)));
        rounds += 1;
    }
    assert!((4..=5).contains(&rounds), "{rounds}");
}

#[test]
fn readers_are_served_before_the_stream() {
    let (file, now) = (File::new(SEGMENT_BYTES), Instant::now());
    let mut verification = file.verification(true);
    file.answer(&mut verification, now);
    assert!(verification.handle_cast_leaves(0, 0, file.leaves(&(0..1))));
    verification.handle_read(&(200 * LEAF_BYTES..200 * LEAF_BYTES + 9));
    verification.handle_arrived(&(0..SEGMENT_BYTES), everything);
    assert_eq!(verification.poll_check().unwrap().bytes().start, 200 * LEAF_BYTES);
    assert_eq!(verification.poll_check().unwrap().bytes().start, 0);
}

#[test]
fn of_many_leaf_lists_those_that_nothing_needs_are_forgotten_and_requested_again() {
    let (file, now) = (File::new(3 * SEGMENT_BYTES), Instant::now());
    let mut verification = file.verification(true);
    verification.lists.set_most(1);
    let mut held = Vec::new();
    let mut arrive = |verification: &mut Verification, leaf: u64| {
        held.push(leaf);
        let holds = |it: &Range<u64>| {
            (it.start / LEAF_BYTES..it.end.div_ceil(LEAF_BYTES)).all(|leaf| held.contains(&leaf))
        };
        verification.handle_arrived(&(leaf * LEAF_BYTES..(leaf + 1) * LEAF_BYTES), holds);
        file.answer(verification, now);
        assert_eq!(check(verification, &file.bytes, now), 1, "leaf {leaf}");
        let known = (0..3).filter(|segment| verification.lists.values(*segment).is_some());
        known.collect::<Vec<_>>()
    };
    assert_eq!(arrive(&mut verification, 0), [0]);
    assert_eq!(arrive(&mut verification, SEGMENT_LEAVES), [1]);
    // A leaf that a reader waits for has not come.
    verification.handle_read(&(LEAF_BYTES..LEAF_BYTES + 1));
    assert_eq!(arrive(&mut verification, 2 * SEGMENT_LEAVES), [0], "a reader needs it soon");
    assert_eq!(arrive(&mut verification, 2 * SEGMENT_LEAVES + 1), [0]);
    assert_eq!(arrive(&mut verification, 1), [0]);
    assert_eq!(arrive(&mut verification, SEGMENT_LEAVES + 1), [1]);
}

#[test]
fn leaf_lists_are_forgotten_before_the_content_id_is_known_and_compared_with_it_all_the_same() {
    let (file, now) = (File::new(3 * SEGMENT_BYTES), Instant::now());
    let mut other = file.bytes.clone();
    other[5] ^= 1;
    let mut false_leaves = file.leaves(&(0..1)).to_vec();
    false_leaves[0] = file.manifest.tree().leaf_value(0, &other[..index(LEAF_BYTES)]);
    let mut verification = file.verification(false);
    verification.lists.set_most(1);
    let leaf_of = |segment: u64| segment * SEGMENT_BYTES..segment * SEGMENT_BYTES + LEAF_BYTES;
    for segment in 0..3 {
        let leaf = leaf_of(segment);
        verification.handle_arrived(&leaf, |bytes| *bytes == leaf);
        let lists = ListRequest::Leaves(segment..segment + 1);
        while verification.poll_request(now).is_some_and(|request| request != lists) {}
        let right = file.leaves(&(segment..segment + 1));
        let values = if segment == 0 { &false_leaves[..] } else { right };
        verification.handle_early_lists(&lists, values, now).unwrap();
        assert_eq!(check(&mut verification, &other, now), 1);
        assert!(verification.has_verified(&leaf));
        assert!(verification.lists.values(segment.wrapping_sub(1)).is_none(), "not forgotten");
    }

    // Another leaf of segment 1: its list is needed again, and must be the one that was used.
    let leaf = SEGMENT_BYTES + LEAF_BYTES..SEGMENT_BYTES + 2 * LEAF_BYTES;
    verification.handle_arrived(&leaf, |bytes| *bytes == leaf);
    let lists = verification.poll_request(now).unwrap();
    assert_eq!(lists, ListRequest::Leaves(1..2));
    assert!(!verification.handle_stored_lists(&lists, file.leaves(&(2..3)), now));
    assert!(verification.handle_stored_lists(&lists, file.leaves(&(1..2)), now));
    assert_eq!(check(&mut verification, &other, now), 1);

    verification.handle_id(file.manifest.id()).unwrap();
    verification.handle_lists(&ListRequest::Segments, file.manifest.segments(), now).unwrap();
    assert!(!verification.has_verified(&leaf_of(0)), "the list was false");
    assert!(verification.has_verified(&leaf_of(1)) && verification.has_verified(&leaf));
}

#[test]
fn before_the_content_id_is_known_a_second_list_of_a_segment_must_be_the_first_one() {
    let (file, now) = (File::new(3 * SEGMENT_BYTES), Instant::now());
    let mut verification = file.verification(false);
    verification.lists.set_most(0);
    let lists = ListRequest::Leaves(1..2);
    for (values, result) in [(1..2, Ok(())), (2..3, Err(ListsError::Contradiction))] {
        let leaf = (SEGMENT_LEAVES + values.start) * LEAF_BYTES;
        let leaf = leaf..leaf + LEAF_BYTES;
        verification.handle_arrived(&leaf, |bytes| *bytes == leaf);
        while verification.poll_request(now).is_some_and(|request| request != lists) {}
        let values = file.leaves(&values);
        assert_eq!(verification.handle_early_lists(&lists, values, now), result);
        check(&mut verification, &file.bytes, now);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn only_right_bytes_are_verified_whatever_arrives_in_whatever_order(
        size in 1..3 * SEGMENT_BYTES,
        parts in proptest::collection::vec((0u64..1000, 0u64..500), 1..20),
        flips in proptest::collection::vec(0u64..1000, 0..6),
        restores in 0usize..20,
        lists in 0usize..4,
    ) {
        let (file, now) = (File::new(size), Instant::now());
        let mut stored = file.bytes.clone();
        let at = |share: u64| share * size / 1000;
        for flip in flips {
            stored[index(at(flip).min(size - 1))] ^= 1;
        }
        let mut verification = file.verification(true);
        verification.lists.set_most(lists);
        let mut arrived = vec![false; stored.len()];
        for (step, (start, len)) in parts.into_iter().enumerate() {
            let bytes = at(start)..(at(start) + at(len)).min(size);
            arrived[range(&bytes)].fill(true);
            let holds = |it: &Range<u64>| arrived[range(it)].iter().all(|is_here| *is_here);
            if step == restores {
                verification.handle_restored(holds);
            } else {
                verification.handle_arrived(&bytes, holds);
            }
            file.answer(&mut verification, now);
            check(&mut verification, &stored, now);
            let tree = file.manifest.tree();
            for leaf in 0..tree.leaves() {
                let bytes = tree.leaf(leaf);
                let is_right = stored[range(&bytes)] == file.bytes[range(&bytes)];
                prop_assert_eq!(verification.has_verified(&bytes), holds(&bytes) && is_right);
            }
        }
    }
}
