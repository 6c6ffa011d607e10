//! Decides when to ask the server for pages that readers wait for. docs/PROTOCOL.md, "Demand";
//! docs/SEMANTICS.md, "Filling".

mod asked;
mod patience;
mod urgency;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Range, RangeInclusive};
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::limits::{WANT_LATER_RUNS, WANT_PAGES, WANT_RUNS};
use bootcast_proto::{Geometry, PageIndex, PageRange, PageSet};

use super::reads::{Access, Runs};
use super::repair::Repair;
use super::stream_position::StreamPosition;
use asked::AskedPages;
use urgency::{Moment, Urgency};

/// Pause before a page is demanded again that could not be stored.
const NOT_STORED_PAUSE: Duration = Duration::from_millis(100);

/// Time for which demands gather after a request, unless every demanded page has arrived.
const GATHER: Duration = Duration::from_millis(1);
/// Most requests in flight.
const MAX_REQUESTS: usize = 4;
/// Most pages demanded at a time; further ones wait.
const MAX_PAGES: usize = WANT_PAGES as usize;
/// When to look again if there is no room.
const CROWDED: Duration = Duration::from_millis(20);
/// Fewest and most pages announced ahead of a sequential reader.
const WINDOW: RangeInclusive<u32> = 64..=256;

/// After a random read, others will probably follow within this time.
const HURRY: Duration = Duration::from_millis(20);
/// A page that was demanded more than twice, for at least this long, is fetched over HTTP.
const OVERDUE: Duration = Duration::from_millis(250);

/// Which pages of an open file arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    /// All pages.
    #[default]
    Full,
    /// Pages that readers wait for.
    Demand,
}

/// Identifies a waiting read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaitId(u64);

/// State of the pages that decisions depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct DemandView<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) arrived: &'a PageSet,
    pub(super) stream: &'a StreamPosition,
    /// Blocks of the present cast, if it has repair.
    pub(super) blocks: Option<&'a Repair>,
}

/// Demands of one membership after the other.
///
/// A waiting read is examined until all its missing pages are demanded; [`urgency`] decides when. A
/// demanded page is demanded again when it was lost, until it arrives or no read waits for it:
/// [`asked`].
#[derive(Debug, Default)]
pub(super) struct Demand {
    fill: Fill,
    /// Whether the server supports demand.
    is_supported: bool,
    runs: Runs,
    last_id: u64,
    waits: BTreeMap<WaitId, Wait>,
    /// When to examine each waiting read.
    looks: BTreeSet<(Instant, WaitId)>,
    asked: AskedPages,
    later: VecDeque<PageRange>,
    /// Pages that do not arrive by multicast.
    overdue: Vec<PageIndex>,
    /// Request to send now.
    ready: Option<Want>,
    last_sent: Option<Instant>,
    /// When a random read began to wait.
    random_at: Option<Instant>,
    /// Unanswered requests, with the position of their pages in the order of demands, if they have
    /// any.
    under_way: Vec<(Want, Option<u64>)>,
}

/// A waiting read.
#[derive(Debug)]
struct Wait {
    bytes: Range<u64>,
    pages: PageRange,
    access: Access,
    since: Instant,
    look_at: Option<Instant>,
}

impl Demand {
    pub(super) fn set_fill(&mut self, fill: Fill) {
        self.fill = fill;
    }

    pub(super) fn fill(&self) -> Fill {
        self.fill
    }

    /// Bytes that were read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.runs.total()
    }

    /// Bytes that the last reader has read one after another.
    pub(super) fn newest_run(&self) -> Range<u64> {
        self.runs.newest()
    }

    /// Whether the server supports demand.
    pub(super) fn is_supported(&self) -> bool {
        self.is_supported
    }

    /// Starts a membership: everything is demanded again, if the server supports demand.
    pub(super) fn begin(&mut self, is_supported: bool, geometry: &Geometry, now: Instant) {
        self.is_supported = is_supported;
        self.asked.clear();
        self.overdue.clear();
        self.later.clear();
        self.ready = None;
        self.under_way.clear();
        self.looks.clear();
        for (id, wait) in &mut self.waits {
            wait.pages = geometry.pages_covering(wait.bytes.clone());
            wait.look_at = Some(now);
            self.looks.insert((now, *id));
        }
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        debug_assert!(
            self.looks.len() <= self.waits.len(),
            "a read is examined that waits no more"
        );
        debug_assert!(self.later.len() <= WANT_LATER_RUNS, "announced runs would accumulate");
        debug_assert!(self.under_way.len() <= MAX_REQUESTS, "too many requests are in flight");
        debug_assert!(
            self.ready.as_ref().is_none_or(|want| {
                self.under_way.last().is_some_and(|(newest, _)| newest == want)
            }),
            "the answer to the request to send would not be recognised"
        );
    }

    /// Records a read, whether it waits or not. Announces what its reader will probably read next.
    pub(super) fn record_read(
        &mut self,
        bytes: &Range<u64>,
        view: Option<DemandView<'_>>,
    ) -> Access {
        let access = self.runs.record(bytes);
        let announces =
            access == Access::Continuing && self.fill == Fill::Demand && self.is_supported;
        let Some(view) = view.filter(|_| announces) else { return access };
        // Number of pages that the server can send until demanded pages arrive.
        let ahead = view.stream.pages_in(self.asked.usual().unwrap_or_default());
        let ahead = ahead.clamp(*WINDOW.start(), *WINDOW.end());
        let window = u64::from(ahead) * u64::from(view.geometry.page_size().get());
        let pages = view.geometry.pages_covering(self.runs.announce(window));
        let missing = missing(view.arrived, pages).filter(|page| !self.asked.contains(*page));
        for run in runs(missing) {
            if self.later.len() == WANT_LATER_RUNS {
                self.later.pop_front();
            }
            self.later.push_back(run);
        }
        access
    }

    /// Starts the wait of a read. If the geometry is unknown, [`Self::begin`] adds its pages later.
    pub(super) fn begin_wait(
        &mut self,
        bytes: &Range<u64>,
        access: Access,
        geometry: Option<&Geometry>,
        now: Instant,
    ) -> WaitId {
        if access == Access::Random {
            self.random_at = Some(now);
        }
        self.last_id += 1;
        let id = WaitId(self.last_id);
        let pages = geometry.map(|geometry| geometry.pages_covering(bytes.clone()));
        let (bytes, pages) = (bytes.clone(), pages.unwrap_or_default());
        self.waits.insert(id, Wait { bytes, pages, access, since: now, look_at: Some(now) });
        self.looks.insert((now, id));
        id
    }

    /// Ends the wait of a read. Pages that no other read waits for are no longer demanded.
    pub(super) fn end_wait(&mut self, id: WaitId) {
        let Some(wait) = self.waits.remove(&id) else { return };
        if let Some(at) = wait.look_at {
            self.looks.remove(&(at, id));
        }
        let left: Vec<_> = self.asked.within(wait.pages).collect();
        if left.is_empty() {
            return;
        }
        let mut others: Vec<_> = self.waits.values().map(|other| other.pages).collect();
        others.retain(|it| it.start < wait.pages.end && wait.pages.start < it.end);
        others.sort_unstable_by_key(|it| it.start);
        // Pages ascend, and so do the ranges: `wanted_until` is the end of all ranges that begin
        // before the page.
        let (mut others, mut wanted_until) = (others.into_iter().peekable(), PageIndex(0));
        for page in left {
            while let Some(other) = others.next_if(|it| it.start <= page) {
                wanted_until = wanted_until.max(other.end);
            }
            if wanted_until <= page {
                self.asked.forget(page);
            }
        }
    }

    /// Declares overdue pages lost. Call it only after all received datagrams were handled.
    pub(super) fn lose_late(&mut self, now: Instant) {
        self.asked.lose_late(now);
    }

    /// Handles the datagram of a page.
    pub(super) fn came(&mut self, page: PageIndex, now: Instant) {
        self.asked.came(page, now);
    }

    /// Handles pages that arrived.
    pub(super) fn stored(&mut self, pages: PageRange) {
        let came: Vec<_> = self.asked.within(pages).collect();
        for page in came {
            self.asked.forget(page);
        }
        self.asked.all_stored();
    }

    /// Handles pages that came and could not be stored: they are demanded again after a while.
    pub(super) fn handle_not_stored(&mut self, pages: PageRange, now: Instant) {
        let came: Vec<_> = self.asked.within(pages).collect();
        for page in came {
            self.asked.ask_again(page, now + NOT_STORED_PAUSE);
        }
    }

    /// Demands dropped pages again for waiting reads: a read of several pages may have counted them
    /// as arrived.
    pub(super) fn handle_dropped(&mut self, pages: PageRange, now: Instant) {
        for (id, wait) in &mut self.waits {
            if wait.pages.start < pages.end && pages.start < wait.pages.end {
                if let Some(at) = wait.look_at.replace(now) {
                    self.looks.remove(&(at, *id));
                }
                self.looks.insert((now, *id));
            }
        }
        self.assert_invariants();
    }

    /// Whether a random reader waits, so that the time of each page matters.
    pub(super) fn is_hurried(&self, now: Instant) -> bool {
        self.random_at.is_some_and(|at| now < at + HURRY)
    }

    /// Whether this page was demanded and has not arrived.
    pub(super) fn is_asked(&self, page: PageIndex) -> bool {
        self.asked.was_asked_for(page)
    }

    /// Whether a request is unanswered.
    pub(super) fn is_waiting(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Runs what is due, while a member.
    pub(super) fn handle_timeout(&mut self, view: DemandView<'_>, now: Instant) {
        if !self.is_supported {
            return;
        }
        while let Some(&(at, id)) = self.looks.first().filter(|(at, _)| *at <= now) {
            self.looks.remove(&(at, id));
            self.look(id, view, now);
        }
        let begins = self.last_sent.is_none() && !self.later.is_empty();
        // Readers have waited for the lost pages already, and no answer can be overtaken.
        let hurries = self.under_way.is_empty() && self.asked.is_losing(now);
        let asks = begins || hurries || self.ask_at().is_some_and(|at| at <= now);
        if asks && self.under_way.len() < MAX_REQUESTS && self.ready.is_none() {
            self.gather(now);
        }
        self.assert_invariants();
    }

    /// When to send the next request; may lie in the past. A reader with one read at a time must
    /// not wait for others.
    fn ask_at(&self) -> Option<Instant> {
        let gathered = self.last_sent.map(|sent| sent + GATHER);
        let due = self.asked.poll_timeout().map(|due| match gathered {
            Some(gathered) if due < gathered && self.asked.is_owed() => gathered,
            _ => due,
        });
        let later = gathered.filter(|_| !self.later.is_empty());
        [due, later].into_iter().flatten().min()
    }

    /// Demands the urgent pages of a read, and schedules the next look at the others.
    fn look(&mut self, id: WaitId, view: DemandView<'_>, now: Instant) {
        let Some(wait) = self.waits.get_mut(&id) else { return };
        let moment = Moment { fill: self.fill, access: wait.access, since: wait.since, view, now };
        wait.look_at = None;
        for page in missing(view.arrived, wait.pages) {
            if self.asked.contains(page) {
                continue;
            }
            let urgency = if self.asked.len() < MAX_PAGES {
                moment.urgency(page)
            } else {
                Urgency::LookAgain(CROWDED)
            };
            match urgency {
                Urgency::Ask => self.asked.add(page, now),
                Urgency::LookAgain(pause) => {
                    let at = now + pause;
                    wait.look_at = Some(wait.look_at.map_or(at, |earlier| earlier.min(at)));
                }
            }
            if self.asked.len() >= MAX_PAGES && wait.look_at.is_some() {
                break;
            }
        }
        debug_assert!(
            wait.look_at.is_some()
                || missing(view.arrived, wait.pages).all(|page| self.asked.contains(page)),
            "a read waits for pages that nobody asks for"
        );
        self.looks.extend(wait.look_at.map(|at| (at, id)));
    }

    /// Makes a request of the pages whose demand is due.
    fn gather(&mut self, now: Instant) {
        let mut want = Want::default();
        let overdue = &mut self.overdue;
        let first = self.asked.gather(
            now,
            |page| add(&mut want.now, page),
            |page, since, times| {
                if times > 2 && since + OVERDUE <= now {
                    overdue.push(page);
                }
            },
        );
        want.later = self.later.drain(..).collect();
        debug_assert!(
            want.now.len() <= WANT_RUNS && want.later.len() <= WANT_LATER_RUNS,
            "the server would refuse a request of this length"
        );
        if want == Want::default() {
            return;
        }
        want.came = self.asked.last_came();
        let usual = self.asked.usual().unwrap_or_default().as_micros();
        want.delay_us = u32::try_from(usual).unwrap_or(u32::MAX);
        want.late = self.asked.is_late();
        want.lossy = self.asked.is_lossy();
        self.last_sent = Some(now);
        self.under_way.push((want.clone(), first));
        self.ready = Some(want);
    }

    /// Returns a request to send now.
    pub(super) fn poll_want(&mut self) -> Option<Want> {
        self.ready.take()
    }

    /// Returns pages that were demanded repeatedly and did not arrive.
    pub(super) fn take_overdue(&mut self) -> Vec<PageRange> {
        let mut pages = std::mem::take(&mut self.overdue);
        pages.sort_unstable();
        runs(pages.into_iter()).collect()
    }

    /// Handles the end of a request. `queue` is the time until its pages leave the server; `None`
    /// if the request was not answered.
    pub(super) fn answered(&mut self, want: &Want, queue: Option<Duration>) {
        let Some(at) = self.under_way.iter().position(|(it, _)| it == want) else { return };
        let (_, first) = self.under_way.remove(at);
        if let (Some(first), Some(queue)) = (first, queue) {
            self.asked.answered(first, queue);
        }
    }

    /// When [`Self::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if !self.is_supported {
            return None;
        }
        let look = self.looks.first().map(|(at, _)| *at);
        let ask = self.ask_at();
        [look, ask.filter(|_| self.under_way.len() < MAX_REQUESTS)].into_iter().flatten().min()
    }
}

/// Adds a page to the runs of a request. Returns `false` if it does not fit.
pub(super) fn add(runs: &mut Vec<PageRange>, page: PageIndex) -> bool {
    let is_full = runs.len() == WANT_RUNS;
    match runs.last_mut() {
        Some(run) if run.end == page => run.end = PageIndex(page.0 + 1),
        _ if is_full => return false,
        _ => runs.push(PageRange::single(page)),
    }
    true
}

/// Pages of the range that are missing.
pub(super) fn missing(held: &PageSet, pages: PageRange) -> impl Iterator<Item = PageIndex> + '_ {
    let mut rest = pages;
    std::iter::from_fn(move || {
        let page = held.first_missing(rest)?;
        rest.start = PageIndex(page.0 + 1);
        Some(page)
    })
}

/// Groups ascending pages into runs.
fn runs(pages: impl Iterator<Item = PageIndex>) -> impl Iterator<Item = PageRange> {
    let mut pages = pages.peekable();
    std::iter::from_fn(move || {
        let start = pages.next()?;
        let mut end = start.0 + 1;
        while pages.next_if(|page| page.0 == end).is_some() {
            end += 1;
        }
        Some(PageRange::new(start.0, end))
    })
}

#[cfg(test)]
mod tests;
