//! Which bytes come next, without any network.
#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use bootcast_proto::PageSize;
use proptest::prelude::*;

use super::*;

const PAGE: u64 = 1024;
const MIB: u64 = 1 << 20;

/// A file, and what is here of it.
struct File {
    geometry: Geometry,
    held: PageSet,
    fetches: Fetches,
    now: Instant,
}

impl File {
    fn new(size: u64) -> Self {
        let geometry = Geometry::new(size, PageSize::new(PAGE).unwrap()).unwrap();
        let held = PageSet::new(geometry.pages());
        Self { geometry, held, fetches: Fetches::default(), now: Instant::now() }
    }

    fn hold(&mut self, bytes: Range<u64>) {
        self.held.insert_range(self.geometry.pages_covering(bytes));
    }

    fn poll(&mut self, oldest: Option<&Range<u64>>, everything: bool) -> Option<Fetch> {
        let scope = if everything { Scope::All } else { Scope::Named };
        let missing = Missing { geometry: &self.geometry, held: &self.held, oldest, scope };
        self.fetches.poll(&missing, self.now)
    }

    fn next(&mut self, oldest: Option<&Range<u64>>) -> Range<u64> {
        self.poll(oldest, true).unwrap().bytes
    }

    /// Bytes of the request come; whether more is wanted.
    fn bring(&mut self, bytes: Range<u64>, oldest: Option<&Range<u64>>) -> bool {
        let id = self.fetches.last_id;
        self.hold(bytes.clone());
        let missing =
            Missing { geometry: &self.geometry, held: &self.held, oldest, scope: Scope::All };
        self.fetches.came(id, bytes.end, &missing)
    }

    fn end(&mut self, failed: Option<Duration>) {
        self.fetches.ended(self.fetches.last_id, failed, self.now);
    }

    /// All of the next request comes.
    fn step(&mut self, oldest: Option<&Range<u64>>) -> Range<u64> {
        let bytes = self.next(oldest);
        self.bring(bytes.clone(), None);
        self.end(None);
        bytes
    }
}

#[test]
fn a_sequential_reader_gets_ever_longer_pieces() {
    let mut file = File::new(300 * MIB);
    let lengths: Vec<u64> = std::iter::repeat_with(|| {
        let bytes = file.step(None);
        (bytes.end - bytes.start) / MIB
    })
    .take(8)
    .collect();
    assert_eq!(lengths, [1, 2, 4, 8, 16, 32, 64, 64]);
}

#[test]
fn who_jumps_gets_short_pieces_and_what_he_waits_for_first() {
    let mut file = File::new(300 * MIB);
    file.step(None);
    file.step(None);
    let jump = 100 * MIB + 5000;
    assert_eq!(file.step(Some(&(jump..jump + 10))), (100 * MIB + 4096)..(101 * MIB + 4096));
    // Then what lies behind the last read, and from the beginning in the end.
    file.fetches.read(&(299 * MIB..299 * MIB + 10));
    assert_eq!(file.step(None), 299 * MIB..300 * MIB);
    assert_eq!(file.next(None).start, 3 * MIB);
}

#[test]
fn a_reader_far_away_ends_a_stream_but_not_a_piece() {
    let mut file = File::new(300 * MIB);
    file.step(None);
    let far = &(200 * MIB..200 * MIB + 4096);
    assert_eq!(file.next(None), MIB..3 * MIB);
    assert!(file.bring(MIB..MIB + 512 * PAGE, Some(far)));
    assert!(!file.bring(MIB + 512 * PAGE..2 * MIB, Some(far)));
    file.end(None);
    assert_eq!(file.next(Some(far)).start, 200 * MIB);
}

#[test]
fn a_reader_just_ahead_waits_for_the_stream() {
    let mut file = File::new(300 * MIB);
    file.step(None);
    file.next(None);
    assert!(file.bring(MIB..2 * MIB, Some(&(2 * MIB + 7..3 * MIB))));
}

#[test]
fn small_holes_are_bridged_and_large_ones_are_not() {
    let mut file = File::new(MIB);
    file.hold(10 * PAGE..20 * PAGE);
    file.hold(30 * PAGE..200 * PAGE);
    assert_eq!(file.step(None), 0..30 * PAGE);
    assert_eq!(file.step(None), 200 * PAGE..MIB);
    assert_eq!(file.poll(None, true), None);
}

#[test]
fn there_is_one_request_at_a_time() {
    let mut file = File::new(10 * MIB);
    assert!(file.poll(None, true).is_some());
    assert_eq!(file.poll(Some(&(9 * MIB..10 * MIB)), true), None);
    // The end of another one changes nothing.
    file.fetches.ended(77, None, file.now);
    assert_eq!(file.poll(None, true), None);
}

#[test]
fn a_body_that_ends_early_is_gone_on_with_at_once() {
    let mut file = File::new(10 * MIB);
    assert_eq!(file.next(None), 0..MIB);
    file.bring(0..5 * PAGE, None);
    file.end(None);
    assert_eq!(file.fetches.poll_timeout(), None);
    assert_eq!(file.next(None).start, 5 * PAGE);
}

#[test]
fn failures_are_followed_by_growing_pauses_until_bytes_come() {
    let mut file = File::new(10 * MIB);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        file.next(None);
        file.end(Some(Duration::ZERO));
        let at = file.fetches.poll_timeout().unwrap();
        assert_eq!(file.poll(None, true), None);
        pauses.push(at - file.now);
        file.now = at;
        file.fetches.handle_timeout(at);
        assert_eq!(file.fetches.poll_timeout(), None);
    }
    assert!(pauses.is_sorted());
    assert_eq!((pauses[0], pauses[7]), (REQUEST_BACKOFF.first, REQUEST_BACKOFF.longest));
    file.next(None);
    file.bring(0..PAGE, None);
    assert_eq!(file.fetches.failures(), 0);
    file.end(Some(Duration::MAX));
    assert_eq!(file.fetches.poll_timeout(), Some(file.now + RETRY_AFTER_MAX));
}

#[test]
fn a_body_without_a_byte_is_a_failure() {
    let mut file = File::new(10 * MIB);
    file.next(None);
    file.end(None);
    assert!(file.fetches.poll_timeout().is_some());
}

#[test]
fn named_pages_come_first_and_alone_where_nothing_else_is_wanted() {
    let mut file = File::new(10 * MIB);
    file.fetches.name(PageRange::new(5000, 5002));
    file.hold(5001 * PAGE..10 * MIB);
    assert_eq!(file.poll(None, false).unwrap().bytes, 5000 * PAGE..5001 * PAGE);
    file.bring(5000 * PAGE..5001 * PAGE, None);
    file.end(None);
    assert_eq!(file.poll(None, false), None);
    assert!(!file.fetches.has_named());
    assert_eq!(file.next(None).start, 0);
}

#[test]
fn pages_that_the_file_does_not_have_are_forgotten() {
    let mut file = File::new(10 * PAGE);
    file.fetches.name(PageRange::new(10, u32::MAX));
    assert_eq!(file.poll(None, false), None);
    assert!(!file.fetches.has_named());
}

proptest! {
    #[test]
    fn whatever_is_here_all_of_it_comes(
        size in 1..3 * MIB,
        holes in proptest::collection::vec((0..3 * MIB, 0..300_000u64), 0..8),
        reads in proptest::collection::vec(0..3 * MIB, 1..20),
    ) {
        let mut file = File::new(size);
        for (start, len) in holes {
            file.hold(start.min(size)..(start + len).min(size));
        }
        let mut reads = reads.into_iter().cycle();
        for _ in 0..4000 {
            if file.held.is_full() {
                break;
            }
            let start = reads.next().unwrap().min(size - 1);
            let bytes = file.next(Some(&(start..start + 1)));
            prop_assert!(bytes.start.is_multiple_of(PAGE));
            prop_assert!(!bytes.is_empty() && bytes.end <= size);
            prop_assert!(bytes.end.is_multiple_of(PAGE) || bytes.end == size);
            file.bring(bytes, None);
            file.end(None);
        }
        prop_assert!(file.held.is_full());
    }
}
