//! Tells the server's pages from forged ones by their hashes, where senders cannot be told apart.
//! docs/PROTOCOL.md, "Senders that forge".

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bootcast_proto::page_hash::{PageHash, pages_per_answer};
use bootcast_proto::{Geometry, PageIndex, PageRange, PageSize};

use super::retry::Retry;

/// Maximum number of pages in a group, whose hashes are requested together: 16 KiB of them.
const GROUP_PAGES: u32 = 1024;

/// Number of groups whose hashes are requested ahead: some 40 ms at 1 Gbit/s.
const GROUPS_AHEAD: u32 = 3;

/// Maximum number of groups whose hashes are kept: 1 MiB.
const MAX_GROUPS: usize = 64;

/// Maximum number of requests in flight.
const REQUESTS: usize = 4;

/// Maximum number of requests in one membership, for each group of the file.
const REQUESTS_PER_GROUP: u64 = 4;

/// Number of failures in a row after which no more hashes are requested.
const MAX_FAILURES: u32 = 5;

/// A request for the hashes of pages of this size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashRequest {
    /// Pages of one group.
    pub pages: PageRange,
    /// Size of a full page.
    pub size: PageSize,
}

/// Result of comparing a page with its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the server's.
    Right,
    /// It is another one.
    Wrong,
    /// Its hash is not known yet.
    Unknown,
}

/// Hashes of the pages that are about to arrive.
#[derive(Debug, Default)]
pub(super) struct PageHashes {
    /// Geometry of the file while pages are compared.
    geometry: Option<Geometry>,
    known: BTreeMap<u32, Vec<PageHash>>,
    /// Known groups, oldest first.
    order: VecDeque<u32>,
    /// Groups to request.
    needed: BTreeSet<u32>,
    /// Groups that are being requested.
    requested: BTreeSet<u32>,
    /// Number of requests in this membership.
    requests: u64,
    retry: Retry,
    failures: u32,
}

impl PageHashes {
    /// Starts a membership: pages are taken as they come.
    pub(super) fn begin(&mut self) {
        *self = Self::default();
    }

    /// Compares pages from now on, unless that was given up. Returns whether it just began.
    pub(super) fn start(&mut self, geometry: Geometry) -> bool {
        let begins = self.geometry.is_none() && !self.is_given_up(&geometry);
        if begins {
            self.geometry = Some(geometry);
        }
        begins
    }

    /// Takes pages as they come from now on.
    pub(super) fn stop(&mut self) {
        self.geometry = None;
        self.needed.clear();
    }

    /// Whether pages are compared.
    pub(super) fn is_on(&self) -> bool {
        self.geometry.is_some()
    }

    fn is_given_up(&self, geometry: &Geometry) -> bool {
        let groups = u64::from(geometry.pages().div_ceil(group_pages(geometry.page_size())));
        self.failures >= MAX_FAILURES || self.requests >= REQUESTS_PER_GROUP * groups
    }

    /// Compares a page with its hash. Needs the hashes of its group and of those after it, as far
    /// as `is_missing` says that pages of them are.
    pub(super) fn check(
        &mut self,
        page: PageIndex,
        payload: &[u8],
        is_missing: impl Fn(PageRange) -> bool,
    ) -> Verdict {
        let Some(geometry) = self.geometry else { return Verdict::Right };
        let group = page.0 / group_pages(geometry.page_size());
        for ahead in group..=group.saturating_add(GROUPS_AHEAD) {
            let pages = pages_of(ahead, &geometry);
            let is_asked = self.known.contains_key(&ahead) || self.requested.contains(&ahead);
            if !pages.is_empty() && !is_asked && is_missing(pages) {
                self.needed.insert(ahead);
            }
        }
        self.compare(page, payload)
    }

    /// Compares a page with its hash.
    pub(super) fn compare(&self, page: PageIndex, payload: &[u8]) -> Verdict {
        let Some(geometry) = &self.geometry else { return Verdict::Right };
        let group = page.0 / group_pages(geometry.page_size());
        let Some(hashes) = self.known.get(&group) else { return Verdict::Unknown };
        let at = page.0 - pages_of(group, geometry).start.0;
        let is_right = hashes.get(at as usize) == Some(&PageHash::of(payload));
        if is_right { Verdict::Right } else { Verdict::Wrong }
    }

    /// Returns the next request; `None` if there is none, or too many are in flight.
    pub(super) fn poll_request(&mut self, now: Instant) -> Option<HashRequest> {
        let geometry = self.geometry?;
        if self.requested.len() >= REQUESTS || !self.retry.is_due(now) {
            return None;
        }
        if self.is_given_up(&geometry) {
            self.stop();
            return None;
        }
        let group = self.needed.pop_first()?;
        let is_new = self.requested.insert(group);
        assert!(is_new, "the hashes of group {group} are requested twice");
        self.requests += 1;
        Some(HashRequest { pages: pages_of(group, &geometry), size: geometry.page_size() })
    }

    /// Handles the answer to a request: the hash of each page, in order. `None`: it failed.
    pub(super) fn handle_answer(
        &mut self,
        request: &HashRequest,
        hashes: Option<Vec<PageHash>>,
        now: Instant,
    ) {
        let group = request.pages.start.0 / group_pages(request.size);
        let is_asked = self.requested.remove(&group);
        let is_of_use = self.geometry.is_some_and(|it| it.page_size() == request.size);
        if !is_asked || !is_of_use {
            // The membership that asked is over, or pages are not compared any more.
            return;
        }
        if let Some(hashes) = hashes.filter(|it| it.len() == request.pages.len() as usize) {
            (self.failures, self.retry) = (0, Retry::default());
            self.keep(group, hashes);
        } else {
            self.failures += 1;
            self.retry.failed(Duration::ZERO, now);
        }
    }

    fn keep(&mut self, group: u32, hashes: Vec<PageHash>) {
        if self.known.insert(group, hashes).is_none() {
            self.order.push_back(group);
        }
        if self.known.len() > MAX_GROUPS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        debug_assert_eq!(self.known.len(), self.order.len(), "each group has one place");
        assert!(self.known.len() <= MAX_GROUPS, "hashes of {} groups", self.known.len());
    }
}

/// Number of pages in a group: no more than one answer has.
fn group_pages(size: PageSize) -> u32 {
    GROUP_PAGES.min(pages_per_answer(size))
}

/// Returns the pages of a group; none behind the end of the file.
fn pages_of(group: u32, geometry: &Geometry) -> PageRange {
    let size = group_pages(geometry.page_size());
    let at = |group: u32| group.saturating_mul(size).min(geometry.pages());
    PageRange::new(at(group), at(group.saturating_add(1)))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    const PAGE: [u8; 1456] = [7; 1456];

    fn geometry(pages: u64) -> Geometry {
        Geometry::new(pages * 1456, PageSize::new(1456).unwrap()).unwrap()
    }

    fn started(pages: u64) -> PageHashes {
        let mut hashes = PageHashes::default();
        assert!(hashes.start(geometry(pages)));
        hashes
    }

    fn answer(hashes: &mut PageHashes, request: &HashRequest, now: Instant) {
        let right = vec![PageHash::of(&PAGE); request.pages.len() as usize];
        hashes.handle_answer(request, Some(right), now);
    }

    fn all_requests(hashes: &mut PageHashes, now: Instant) -> Vec<HashRequest> {
        std::iter::from_fn(|| hashes.poll_request(now)).collect()
    }

    #[test]
    fn a_page_is_compared_once_the_hashes_of_its_group_are_here() {
        let (mut hashes, now) = (started(2500), Instant::now());
        let page = PageIndex(1030);
        assert_eq!(hashes.check(page, &PAGE, |_| true), Verdict::Unknown);
        let requests = all_requests(&mut hashes, now);
        let pages: Vec<_> = requests.iter().map(|it| (it.pages.start.0, it.pages.end.0)).collect();
        assert_eq!(pages, [(1024, 2048), (2048, 2500)], "from its group to the end of the file");
        assert_eq!(hashes.check(page, &PAGE, |_| true), Verdict::Unknown);
        assert_eq!(hashes.poll_request(now), None, "each group is requested once");
        for request in &requests {
            answer(&mut hashes, request, now);
        }
        assert_eq!(hashes.check(page, &PAGE, |_| true), Verdict::Right);
        assert_eq!(hashes.check(page, &[8; 1456], |_| true), Verdict::Wrong);
        assert_eq!(hashes.check(PageIndex(5), &PAGE, |_| false), Verdict::Unknown);
        assert_eq!(hashes.poll_request(now), None, "nothing of these groups is missing");
    }

    #[test]
    fn pages_are_taken_as_they_come_before_and_after() {
        let mut hashes = PageHashes::default();
        assert_eq!(hashes.check(PageIndex(1), &PAGE, |_| true), Verdict::Right);
        assert_eq!(hashes.poll_request(Instant::now()), None);
        assert!(hashes.start(geometry(9)));
        assert_eq!(hashes.check(PageIndex(1), &PAGE, |_| true), Verdict::Unknown);
        hashes.stop();
        assert_eq!(hashes.check(PageIndex(1), &PAGE, |_| true), Verdict::Right);
        assert_eq!(hashes.poll_request(Instant::now()), None);
    }

    #[test]
    fn requests_and_memory_are_limited() {
        let groups = 200;
        let (mut hashes, now) = (started(groups * u64::from(GROUP_PAGES)), Instant::now());
        let mut requests = 0;
        for group in (0..20).flat_map(|_| 0..u32::try_from(groups).unwrap()) {
            hashes.check(PageIndex(group * GROUP_PAGES), &PAGE, |_| true);
            let due = all_requests(&mut hashes, now);
            assert!(due.len() <= REQUESTS && hashes.known.len() <= MAX_GROUPS);
            requests += due.len() as u64;
            for request in &due {
                answer(&mut hashes, request, now);
            }
        }
        assert_eq!(requests, REQUESTS_PER_GROUP * groups);
        assert!(!hashes.is_on(), "given up");
        let again = hashes.start(geometry(groups * u64::from(GROUP_PAGES)));
        assert!(!again && !hashes.is_on(), "for this membership");
    }

    #[test]
    fn failures_are_followed_by_a_pause_and_five_in_a_row_by_none() {
        let (mut hashes, mut now) = (started(2500), Instant::now());
        let is_missing = |pages: PageRange| pages.start.0 == 0;
        for failure in 1..=MAX_FAILURES {
            assert!(hashes.is_on(), "after {failure} failures");
            hashes.check(PageIndex(0), &PAGE, is_missing);
            now += Duration::from_secs(10);
            let request = hashes.poll_request(now).unwrap();
            let cut_off = (failure % 2 == 0).then(|| vec![PageHash::of(&PAGE); 1023]);
            hashes.handle_answer(&request, cut_off, now);
            hashes.check(PageIndex(0), &PAGE, is_missing);
            assert_eq!(hashes.poll_request(now), None);
        }
        assert_eq!(hashes.poll_request(now + Duration::from_secs(10)), None);
        assert!(!hashes.is_on());
    }

    #[test]
    fn an_answer_that_another_membership_asked_for_does_not_count() {
        let (mut hashes, now) = (started(9), Instant::now());
        hashes.check(PageIndex(0), &PAGE, |_| true);
        let request = hashes.poll_request(now).unwrap();
        hashes.begin();
        assert!(hashes.start(geometry(9)));
        answer(&mut hashes, &request, now);
        assert_eq!(hashes.check(PageIndex(0), &PAGE, |_| true), Verdict::Unknown);
    }

    #[test]
    fn an_answer_that_comes_while_nothing_is_compared_can_be_asked_for_again() {
        let (mut hashes, now) = (started(9), Instant::now());
        hashes.check(PageIndex(0), &PAGE, |_| true);
        let request = hashes.poll_request(now).unwrap();
        hashes.stop();
        answer(&mut hashes, &request, now);
        assert!(hashes.start(geometry(9)));
        assert_eq!(hashes.check(PageIndex(0), &PAGE, |_| true), Verdict::Unknown);
        assert_eq!(hashes.poll_request(now), Some(request));
    }

    #[test]
    fn a_group_of_large_pages_is_no_larger_than_an_answer() {
        let large = Geometry::new(100 << 20, PageSize::new(65_000).unwrap()).unwrap();
        assert_eq!(pages_of(1, &large), PageRange::new(64, 128));
    }
}
