//! Decides which bytes to fetch over HTTP next, one request at a time.

use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::limits::RETRY_AFTER_MAX;
use bootcast_proto::{Geometry, PageIndex, PageRange, PageSet};

use super::REQUEST_BACKOFF;

/// Bytes of a request for random readers. After as many bytes, a longer request may be cut short in
/// favour of another reader.
const PIECE: u64 = 1 << 20;
/// Maximum length of a request for sequential data in bytes. Each request is twice as long as the
/// one before, up to this.
const SEQUENTIAL: u64 = 64 << 20;
/// A running request serves a reader that waits for bytes at most this far ahead of it.
const NEAR: u64 = 2 << 20;
/// Fewer held bytes than this between two gaps are fetched again, to save a request.
const JOINED_GAP: u64 = 64 << 10;

/// A request for a part of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Unique among the fetches of the receiver.
    pub id: u64,
    /// Bytes to request: whole pages, not empty.
    pub bytes: Range<u64>,
}

/// Missing pages, and the readers that wait for them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Missing<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) held: &'a PageSet,
    /// Bytes that the longest waiting reader asked for.
    pub(super) oldest: Option<&'a Range<u64>>,
    pub(super) scope: Scope,
}

/// Pages that may be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Pages named by [`Fetches::name`].
    Named,
    /// Also pages that readers wait for.
    Waited,
    /// All missing pages.
    All,
}

/// Request in flight, and where to continue.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    last_id: u64,
    under_way: Option<UnderWay>,
    /// Intended end of the last request.
    last_end: u64,
    /// Length of the last request in bytes.
    last_len: u64,
    /// End of the last read.
    position: u64,
    /// Pages to fetch before all others.
    named: Vec<PageRange>,
    /// Requests in a row that brought nothing.
    failures: u32,
    /// Earliest time of the next request.
    retry_at: Option<Instant>,
}

#[derive(Clone, Debug)]
struct UnderWay {
    id: u64,
    bytes: Range<u64>,
    /// End of the bytes that arrived.
    next: u64,
}

impl Fetches {
    /// Records a read of these bytes, held or not.
    pub(super) fn read(&mut self, bytes: &Range<u64>) {
        self.position = bytes.end;
    }

    /// Requests these pages before everything else.
    pub(super) fn name(&mut self, pages: PageRange) {
        if !pages.is_empty() && !self.named.contains(&pages) {
            self.named.push(pages);
        }
    }

    /// Whether named pages may still be missing.
    pub(super) fn has_named(&self) -> bool {
        !self.named.is_empty()
    }

    /// Drops named pages and the pause. No further request follows the one in flight.
    pub(super) fn clear(&mut self) {
        self.named.clear();
        self.retry_at = None;
        self.failures = 0;
    }

    /// Returns the next request, if something is missing and no pause is running.
    pub(super) fn poll(&mut self, missing: &Missing<'_>, now: Instant) -> Option<Fetch> {
        if self.under_way.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        let within = self.choose(missing)?;
        let offset = missing.geometry.offset(within.start);
        let follows = self.last_len > 0 && (self.last_end..self.last_end + NEAR).contains(&offset);
        let limit = if follows { (self.last_len * 2).clamp(PIECE, SEQUENTIAL) } else { PIECE };
        let bytes = missing.geometry.byte_range(gap(missing, within, limit));
        // An empty request would be repeated for ever, and one behind the end has no answer.
        assert!(
            bytes.start < bytes.end && bytes.end <= missing.geometry.size(),
            "bytes {bytes:?} of a file of {}",
            missing.geometry.size()
        );
        debug_assert!(!missing.held.contains(within.start), "page {} is held", within.start);
        self.last_id += 1;
        (self.last_end, self.last_len) = (bytes.end, limit);
        let next = bytes.start;
        self.under_way = Some(UnderWay { id: self.last_id, bytes: bytes.clone(), next });
        Some(Fetch { id: self.last_id, bytes })
    }

    /// Chooses the pages of the next request: named pages, then what a reader waits for, then what
    /// follows the last read, then the start of the file.
    fn choose(&mut self, missing: &Missing<'_>) -> Option<PageRange> {
        let Missing { geometry, held, .. } = missing;
        let clip = |pages: PageRange| {
            let end = pages.end.0.min(geometry.pages());
            PageRange::new(pages.start.0.min(end), end)
        };
        self.named.retain(|pages| held.first_missing(clip(*pages)).is_some());
        if let Some(named) = self.named.first().map(|pages| clip(*pages)) {
            let start = held.first_missing(named)?;
            return Some(PageRange { start, end: named.end });
        }
        if missing.scope == Scope::Named {
            return None;
        }
        let waited = missing.oldest.and_then(|bytes| first_missing(geometry, held, bytes.clone()));
        if missing.scope == Scope::Waited {
            // Up to the end of the awaited read: nobody wants what follows.
            let end = geometry.pages_covering(missing.oldest?.clone()).end;
            return Some(PageRange { start: waited?, end });
        }
        let start = waited
            .or_else(|| first_missing(geometry, held, self.position..geometry.size()))
            .or_else(|| held.first_missing(geometry.all()))?;
        Some(PageRange { start, end: geometry.all().end })
    }

    /// Handles that everything before `next` of this request is stored. Returns `false` if the
    /// request should end.
    pub(super) fn came(&mut self, id: u64, next: u64, missing: &Missing<'_>) -> bool {
        let Some(fetch) = self.under_way.as_mut().filter(|fetch| fetch.id == id) else {
            return false;
        };
        fetch.next = next.clamp(fetch.next, fetch.bytes.end);
        if fetch.next > fetch.bytes.start {
            self.failures = 0;
        }
        let Some(oldest) = missing.oldest.filter(|_| fetch.next - fetch.bytes.start >= PIECE)
        else {
            return true;
        };
        let waits_for = first_missing(missing.geometry, missing.held, oldest.clone());
        waits_for.is_none_or(|page| {
            let offset = missing.geometry.offset(page);
            let ahead = fetch.next.saturating_sub(u64::from(missing.geometry.page_size().get()));
            (ahead..fetch.next + NEAR).contains(&offset)
        })
    }

    /// Ends the request. `failed` holds the pause that the server asked for after an error.
    pub(super) fn ended(&mut self, id: u64, failed: Option<Duration>, now: Instant) {
        let Some(fetch) = self.under_way.take_if(|fetch| fetch.id == id) else { return };
        self.last_end = fetch.next;
        debug_assert!((fetch.bytes.start..=fetch.bytes.end).contains(&fetch.next), "{fetch:?}");
        let brought = fetch.next > fetch.bytes.start;
        if failed.is_none() && brought {
            return;
        }
        let pause = REQUEST_BACKOFF.pause(self.failures);
        let wish = failed.unwrap_or_default().min(RETRY_AFTER_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + pause.max(wish));
    }

    /// Number of requests in a row that brought nothing.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Runs what is due: after a pause there may be a request.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.retry_at = self.retry_at.filter(|at| now < *at);
    }

    /// When [`Self::poll`] may return a request again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.retry_at
    }
}

fn first_missing(geometry: &Geometry, held: &PageSet, bytes: Range<u64>) -> Option<PageIndex> {
    held.first_missing(geometry.pages_covering(bytes))
}

/// Gap that starts with the first page of `within`, which is missing. Includes following gaps with
/// little between them. At most `limit` bytes, but at least a page.
fn gap(missing: &Missing<'_>, within: PageRange, limit: u64) -> PageRange {
    let page_size = u64::from(missing.geometry.page_size().get());
    let start = within.start;
    let longest = u32::try_from((limit / page_size).max(1)).unwrap_or(u32::MAX);
    let bridge = u32::try_from(JOINED_GAP / page_size).unwrap_or(u32::MAX);
    let end = start.0.saturating_add(longest).min(within.end.0);
    let mut reached = start.0 + 1;
    let missing = (reached..end).filter(|page| !missing.held.contains(PageIndex(*page)));
    for page in missing {
        if page - reached >= bridge {
            break;
        }
        reached = page + 1;
    }
    PageRange::new(start.0, reached)
}

#[cfg(test)]
#[path = "fetches_tests.rs"]
mod tests;
