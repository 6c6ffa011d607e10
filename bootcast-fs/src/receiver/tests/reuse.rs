//! An older version of the file is at hand. docs/PROTOCOL.md, "Members that have a part of the
//! file".

use bootcast_proto::Manifest;
use bootcast_proto::manifest::{LEAF_BYTES, SEGMENT_BYTES, SEGMENT_LEAVES};

use super::*;
use crate::receiver::tests::fixture::SECOND;

const PAGE: u32 = 1456;

/// Two versions of a file, and a receiver of the newer one.
struct Versions {
    older: Vec<u8>,
    new: Vec<u8>,
    /// Manifests of both.
    manifests: [Manifest; 2],
    receiver: Receiver,
    now: Instant,
}

impl Versions {
    /// Joins the newer version, of which these leaves are other ones.
    fn join(changed: impl Iterator<Item = usize>) -> Self {
        let older: Vec<u8> = (0..2 * SEGMENT_BYTES + 5).map(|at| (at % 251) as u8).collect();
        let mut new = older.clone();
        changed.for_each(|leaf| new[leaf * (16 << 10)] ^= 1);
        let manifests = [Manifest::of_content(&older), Manifest::of_content(&new)];
        let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
        receiver.set_verify(Verify::Leaf);
        receiver.handle_older();
        receiver.handle_open();
        let mut versions = Self { older, new, manifests, receiver, now: Instant::now() };
        assert_eq!(versions.receiver.begin_join().fill, Fill::Demand);
        versions.receiver.handle_join(&versions.answer(1), versions.now);
        assert!(versions.receiver.is_confirmed());
        versions
    }

    fn answer(&self, token: u128) -> JoinAnswer {
        let pages = u32::try_from(self.new.len()).unwrap().div_ceil(PAGE);
        let file = File { pages, page_size: PAGE, interleave: 1, key: None };
        let mut answer = file.answer(token);
        answer.extensions.size = Some(self.new.len() as u64);
        answer.extensions.content_id = Some(self.manifests[1].id());
        answer.extensions.leaf_bytes = Some(LEAF_BYTES);
        answer
    }

    /// Answers requests for hashes, and copies what is equal. Returns the other actions.
    fn work(&mut self) -> Vec<Action> {
        let (receiver, now, mut others) = (&mut self.receiver, self.now, Vec::new());
        loop {
            receiver.handle_timeout(now);
            let actions = receiver.actions();
            for action in &actions {
                let Action::Lists(request) = action else {
                    others.push(action.clone());
                    continue;
                };
                let values = match request {
                    ListRequest::Segments => self.manifests[1].segments(),
                    ListRequest::Leaves(segments) => leaves(&self.manifests[1], segments),
                };
                receiver.handle_lists(request, Some(self.manifests[1].id()), values, now);
            }
            let mut has_worked = !actions.is_empty();
            while let Some(piece) = receiver.poll_piece() {
                has_worked = true;
                let values = leaves(&self.manifests[0], &(piece.segment()..piece.segment() + 1));
                if piece.values().is_none() {
                    let equal = Some(values).filter(|values| piece.is_equal(values));
                    receiver.handle_compared(&piece, equal, now);
                    continue;
                }
                for run in piece.equal_leaves(values) {
                    let bytes = run.bytes();
                    let at = |at: u64| usize::try_from(at).unwrap();
                    let wrong = run.wrong_leaves(&self.older[at(bytes.start)..at(bytes.end)]);
                    receiver.handle_reused(&run, &wrong);
                }
                receiver.handle_piece_over(&piece, now);
            }
            while let Some(check) = receiver.poll_check() {
                has_worked = true;
                let bytes = check.bytes();
                let at = |at: u64| usize::try_from(at).unwrap();
                let finding = check.examine(&self.new[at(bytes.start)..at(bytes.end)]);
                receiver.handle_check_result(&check, &finding, now);
            }
            if !has_worked {
                return others;
            }
        }
    }

    /// Pages of the newer version that are not here.
    fn missing(&self) -> Vec<PageRange> {
        self.receiver.assembly().unwrap().arrived().missing_ranges().collect()
    }
}

fn leaves<'a>(
    manifest: &'a Manifest,
    segments: &Range<u64>,
) -> &'a [bootcast_proto::manifest::Value] {
    let end = manifest.tree().leaves_of(segments.end - 1).end;
    let at = |leaf: u64| usize::try_from(leaf).unwrap();
    &manifest.leaves()[at(segments.start * SEGMENT_LEAVES)..at(end)]
}

/// Returns the pages that these actions demand.
fn demanded(actions: &[Action]) -> Vec<PageRange> {
    let wants = actions.iter().filter_map(|action| match action {
        Action::Want(want) => Some(want.now.clone()),
        _ => None,
    });
    wants.flatten().collect()
}

#[test]
fn pages_around_a_leaf_that_changed_are_demanded_and_no_others() {
    let mut versions = Versions::join([100, 300].into_iter());
    let actions = versions.work();
    let leaf = |leaf: u32| (leaf * (16 << 10) / PAGE, ((leaf + 1) * (16 << 10)).div_ceil(PAGE));
    let pages = |(start, end): (u32, u32)| PageRange::new(start, end);
    assert_eq!(versions.missing(), [pages(leaf(100)), pages(leaf(300))]);
    assert_eq!(demanded(&actions), [pages(leaf(100)), pages(leaf(300))]);
    assert_eq!(versions.receiver.counters().reused_leaves, 2 * 256 + 1 - 2);
    assert_eq!(fixture::joins(&actions), 1, "the first one");
}

#[test]
fn a_version_that_changed_nowhere_is_complete_without_a_page() {
    let mut versions = Versions::join(std::iter::empty());
    let actions = versions.work();
    assert!(versions.receiver.is_complete());
    assert!(actions.contains(&Action::Leave(Token::from_random(1))), "{actions:?}");
    assert_eq!(demanded(&actions), []);
}

#[test]
fn a_member_that_lacks_much_joins_the_stream_with_what_it_has() {
    let mut versions = Versions::join(0..200);
    let actions = versions.work();
    assert_eq!((fixture::joins(&actions), demanded(&actions)), (2, Vec::new()));
    let options = versions.receiver.begin_join();
    assert_eq!((options.fill, options.resumes), (Fill::Full, true));
    versions.receiver.handle_join(&versions.answer(2), versions.now);
    let actions = versions.work();
    let asks =
        |action: &Action| matches!(action, Action::Report(report) if !report.bulk.is_empty());
    assert!(actions.iter().any(asks), "{actions:?}");
    assert!(actions.contains(&Action::Leave(Token::from_random(1))), "{actions:?}");
}

#[test]
fn a_server_without_hashes_casts_the_whole_file() {
    let mut versions = Versions::join(std::iter::empty());
    let mut answer = versions.answer(1);
    (answer.extensions.leaf_bytes, answer.extensions.content_id) = (None, None);
    let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
    receiver.set_verify(Verify::Leaf);
    receiver.handle_older();
    receiver.handle_open();
    receiver.begin_join();
    receiver.handle_join(&answer, versions.now);
    versions.receiver = receiver;
    let actions = versions.work();
    assert_eq!(fixture::joins(&actions), 2);
    assert_eq!(versions.receiver.begin_join().fill, Fill::Full);
}

#[test]
fn hashes_that_do_not_come_hold_the_file_up_for_ten_seconds_at_most() {
    let mut versions = Versions::join([5].into_iter());
    versions.receiver.handle_timeout(versions.now);
    versions.receiver.actions();
    versions.receiver.handle_timeout(versions.now + 9 * SECOND);
    assert_eq!(fixture::joins(&versions.receiver.actions()), 0);
    versions.receiver.handle_timeout(versions.now + 10 * SECOND);
    assert_eq!(fixture::joins(&versions.receiver.actions()), 1);
    let options = versions.receiver.begin_join();
    assert_eq!((options.fill, options.resumes), (Fill::Full, false));
}

#[test]
fn what_is_demanded_goes_on_after_another_join() {
    let mut versions = Versions::join([100].into_iter());
    versions.work();
    let token = versions.receiver.token().unwrap().clone();
    versions.receiver.handle_report_answer(&token, Err(ReportError::UnknownMember), versions.now);
    versions.receiver.handle_timeout(versions.now + 60 * SECOND);
    assert_eq!(versions.receiver.begin_join().fill, Fill::Demand);
    versions.now += 60 * SECOND;
    versions.receiver.handle_join(&versions.answer(2), versions.now);
    assert_eq!(demanded(&versions.work()).len(), 1);
}
