//! What readers wait for, and when to ask the server for it. docs/PROTOCOL.md, "Demand"; docs/SEMANTICS.md, "Filling".

mod urgency;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::{Geometry, PageIndex, PageRange, PageSet};

use super::access::{Access, Runs};
use super::course::Course;
use super::repair::Repair;
use urgency::{Moment, Urgency};

/// For this long after a request wishes gather, unless everything that was asked for has come.
const GATHER: Duration = Duration::from_millis(1);
/// What the server may need to send a page, besides the time that a request takes.
const PATIENCE: Duration = Duration::from_millis(5);
/// The longest pause before a page is asked for again.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Requests under way at a time.
const MAX_REQUESTS: u32 = 4;
/// Pages that are being asked for at a time; what is more waits for its turn. The server keeps no more for one member.
const MAX_PAGES: usize = 4096;
/// Pairs that a request holds at most: 16 KiB are over 700 of the longest.
const MAX_PAIRS: usize = 512;
/// Runs of pages that wait to be asked for as `later`; the oldest is forgotten.
const MAX_LATER: usize = 64;
/// When to look again where there is no room.
const CROWDED: Duration = Duration::from_millis(20);
/// Pages that are announced ahead of a reader who reads on.
const WINDOW: u32 = 64;
/// How much of each new measurement of the time of a request counts.
const SHARE: u32 = 8;
/// One that is by this and more above twice the smoothed time counts as no more.
const OUTLIER: Duration = Duration::from_millis(1);

/// A page that was asked for more than twice, and for so long, does not come by multicast.
const OVERDUE: Duration = Duration::from_millis(250);

/// Which pages arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    /// All of them.
    #[default]
    Full,
    /// Those that readers wait for.
    Demand,
}

/// Names a read that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaitId(u64);

/// What is known of the pages at some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) held: &'a PageSet,
    pub(super) course: &'a Course,
    pub(super) repair: Option<&'a Repair>,
}

/// The wishes of one membership after the other.
///
/// A read that waits is looked at until all its missing pages are asked for; when each is, [`urgency`] says. A page that was asked for is
/// asked for again, ever more seldom, until it comes or nobody waits for it.
#[derive(Debug, Default)]
pub(super) struct Demand {
    fill: Fill,
    /// Whether the server knows of demand.
    is_known: bool,
    runs: Runs,
    last_id: u64,
    waits: BTreeMap<WaitId, Wait>,
    /// When to look at which wait.
    looks: BTreeSet<(Instant, WaitId)>,
    asked: BTreeMap<PageIndex, Asked>,
    /// When to ask for which page of `asked`.
    due: BTreeSet<(Instant, PageIndex)>,
    later: VecDeque<PageRange>,
    /// Pages that do not come.
    overdue: Vec<PageIndex>,
    /// To be sent now.
    ready: Option<Want>,
    last_sent: Option<Instant>,
    under_way: u32,
    /// Smoothed time that a request takes.
    round_trip: Option<Duration>,
}

/// A read that waits.
#[derive(Debug)]
struct Wait {
    bytes: Range<u64>,
    pages: PageRange,
    access: Access,
    since: Instant,
    look_at: Option<Instant>,
}

/// A page that is asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    due: Instant,
    /// Before the next time; `None`: not asked for yet.
    pause: Option<Duration>,
    since: Instant,
    times: u32,
}

impl Demand {
    pub(super) fn set_fill(&mut self, fill: Fill) {
        self.fill = fill;
    }

    pub(super) fn fill(&self) -> Fill {
        self.fill
    }

    /// Whether the server knows of demand.
    pub(super) fn is_known(&self) -> bool {
        self.is_known
    }

    /// A membership begins: everything is to be asked for anew, of a server that knows of demand.
    pub(super) fn begin(&mut self, is_known: bool, geometry: &Geometry, now: Instant) {
        self.is_known = is_known;
        self.asked.clear();
        self.due.clear();
        self.overdue.clear();
        self.later.clear();
        self.ready = None;
        self.under_way = 0;
        self.looks.clear();
        for (id, wait) in &mut self.waits {
            wait.pages = geometry.pages_covering(wait.bytes.clone());
            wait.look_at = Some(now);
            self.looks.insert((now, *id));
        }
    }

    /// A read, whether or not it must wait. What its reader will probably want next is asked for without hurry.
    pub(super) fn note_read(&mut self, bytes: &Range<u64>, view: Option<View<'_>>) -> Access {
        let access = self.runs.note(bytes);
        let announces = access == Access::Continuing && self.fill == Fill::Demand && self.is_known;
        let Some(view) = view.filter(|_| announces) else { return access };
        let window = u64::from(WINDOW) * u64::from(view.geometry.page_size().get());
        let pages = view.geometry.pages_covering(self.runs.announce(window));
        let missing = missing(view.held, pages).filter(|page| !self.asked.contains_key(page));
        for run in runs(missing) {
            if self.later.len() == MAX_LATER {
                self.later.pop_front();
            }
            self.later.push_back(run);
        }
        access
    }

    /// A read begins to wait. Where the geometry is not known yet, [`Self::begin`] will tell its pages.
    pub(super) fn begin_wait(
        &mut self,
        bytes: &Range<u64>,
        access: Access,
        geometry: Option<&Geometry>,
        now: Instant,
    ) -> WaitId {
        self.last_id += 1;
        let id = WaitId(self.last_id);
        let pages = geometry.map(|geometry| geometry.pages_covering(bytes.clone()));
        let (bytes, pages) = (bytes.clone(), pages.unwrap_or_default());
        self.waits.insert(id, Wait { bytes, pages, access, since: now, look_at: Some(now) });
        self.looks.insert((now, id));
        id
    }

    /// A read waits no more. Pages that nobody else waits for are asked for no more.
    pub(super) fn end_wait(&mut self, id: WaitId) {
        let Some(wait) = self.waits.remove(&id) else { return };
        if let Some(at) = wait.look_at {
            self.looks.remove(&(at, id));
        }
        let left = self.asked.range(wait.pages.start..wait.pages.end);
        let left: Vec<_> = left.map(|(page, _)| *page).collect();
        for page in left {
            let is_wanted = |wait: &Wait| wait.pages.start <= page && page < wait.pages.end;
            if !self.waits.values().any(is_wanted) {
                self.forget(page);
            }
        }
    }

    /// These pages came.
    pub(super) fn stored(&mut self, pages: PageRange) {
        while let Some((page, _)) = self.asked.range(pages.start..pages.end).next() {
            let page = *page;
            self.forget(page);
        }
    }

    fn forget(&mut self, page: PageIndex) {
        if let Some(asked) = self.asked.remove(&page) {
            self.due.remove(&(asked.due, page));
        }
    }

    /// Whether this page was asked for and did not come.
    pub(super) fn is_asked(&self, page: PageIndex) -> bool {
        self.asked.get(&page).is_some_and(|asked| asked.pause.is_some())
    }

    /// Whether an answer is owed.
    pub(super) fn is_waiting(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Runs what is due, as a member.
    pub(super) fn handle_timeout(&mut self, view: View<'_>, now: Instant) {
        if !self.is_known {
            return;
        }
        while let Some(&(at, id)) = self.looks.first().filter(|(at, _)| *at <= now) {
            self.looks.remove(&(at, id));
            self.look(id, view, now);
        }
        let begins = self.last_sent.is_none() && !self.later.is_empty();
        let asks = begins || self.ask_at().is_some_and(|at| at <= now);
        if asks && self.under_way < MAX_REQUESTS && self.ready.is_none() {
            self.ready = self.gather(now);
            if self.ready.is_some() {
                self.last_sent = Some(now);
                self.under_way += 1;
            }
        }
    }

    /// When to ask next; may have passed. A reader who reads one thing after the other is not to wait for company.
    fn ask_at(&self) -> Option<Instant> {
        let gathered = self.last_sent.map(|sent| sent + GATHER);
        let is_owed = || self.asked.values().any(|asked| asked.pause.is_some());
        let due = self.due.first().map(|&(due, _)| match gathered {
            Some(gathered) if due < gathered && is_owed() => gathered,
            _ => due,
        });
        let later = gathered.filter(|_| !self.later.is_empty());
        [due, later].into_iter().flatten().min()
    }

    /// Asks for what is urgent of a read's pages, and says when to look at the others again.
    fn look(&mut self, id: WaitId, view: View<'_>, now: Instant) {
        let Some(wait) = self.waits.get_mut(&id) else { return };
        let moment = Moment { fill: self.fill, access: wait.access, since: wait.since, view, now };
        wait.look_at = None;
        for page in missing(view.held, wait.pages) {
            if self.asked.contains_key(&page) {
                continue;
            }
            let urgency = if self.asked.len() < MAX_PAGES {
                moment.urgency(page)
            } else {
                Urgency::LookAgain(CROWDED)
            };
            match urgency {
                Urgency::Ask => {
                    self.asked.insert(page, Asked { due: now, pause: None, since: now, times: 0 });
                    self.due.insert((now, page));
                }
                Urgency::LookAgain(pause) => {
                    let at = now + pause;
                    wait.look_at = Some(wait.look_at.map_or(at, |earlier| earlier.min(at)));
                }
            }
            if self.asked.len() >= MAX_PAGES && wait.look_at.is_some() {
                break;
            }
        }
        self.looks.extend(wait.look_at.map(|at| (at, id)));
    }

    /// The pages whose time has come, those that have waited longest first.
    fn gather(&mut self, now: Instant) -> Option<Want> {
        let first = PATIENCE + self.round_trip.unwrap_or_default();
        let mut want = Want::default();
        while let Some(&(due, page)) = self.due.first().filter(|(due, _)| *due <= now) {
            if !add(&mut want.now, page) {
                break;
            }
            self.due.remove(&(due, page));
            let asked = self.asked.get_mut(&page).expect("what is due is asked for");
            let pause = asked.pause.map_or(first, |pause| (pause * 2).min(PAUSE_MAX));
            *asked = Asked {
                due: now + pause,
                pause: Some(pause),
                since: asked.since,
                times: asked.times.saturating_add(1),
            };
            if asked.times > 2 && asked.since + OVERDUE <= now {
                self.overdue.push(page);
            }
            self.due.insert((asked.due, page));
        }
        let later = self.later.drain(..).map(|run| (run.start.0 + 1, run.len()));
        want.later = later.collect();
        (want != Want::default()).then_some(want)
    }

    /// A request that must be sent now.
    pub(super) fn poll_want(&mut self) -> Option<Want> {
        self.ready.take()
    }

    /// Pages that were asked for again and again and did not come.
    pub(super) fn take_overdue(&mut self) -> Vec<PageRange> {
        let mut pages = std::mem::take(&mut self.overdue);
        pages.sort_unstable();
        runs(pages.into_iter()).collect()
    }

    /// A request was answered, or not, after some time.
    pub(super) fn answered(&mut self, after: Option<Duration>) {
        self.under_way = self.under_way.saturating_sub(1);
        if let Some(after) = after {
            // One that had to be sent twice, or waited for a connection, tells little of the next.
            let smoothed = |before: Duration| {
                let after = after.min(before * 2 + OUTLIER);
                (before * (SHARE - 1) + after) / SHARE
            };
            self.round_trip = Some(self.round_trip.map_or(after, smoothed));
        }
    }

    /// When [`Self::handle_timeout`] is due next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if !self.is_known {
            return None;
        }
        let look = self.looks.first().map(|(at, _)| *at);
        let ask = self.ask_at();
        [look, ask.filter(|_| self.under_way < MAX_REQUESTS)].into_iter().flatten().min()
    }
}

/// Adds a page to pairs of first page and count; `false` where it does not fit.
fn add(pairs: &mut Vec<(u32, u32)>, page: PageIndex) -> bool {
    // Datagrams count pages from 1.
    let number = page.0 + 1;
    let is_full = pairs.len() == MAX_PAIRS;
    match pairs.last_mut() {
        Some((first, count)) if *first + *count == number => *count += 1,
        _ if is_full => return false,
        _ => pairs.push((number, 1)),
    }
    true
}

/// The pages of the range that are not held.
fn missing(held: &PageSet, pages: PageRange) -> impl Iterator<Item = PageIndex> + '_ {
    let mut rest = pages;
    std::iter::from_fn(move || {
        let page = held.first_missing(rest)?;
        rest.start = PageIndex(page.0 + 1);
        Some(page)
    })
}

/// Ascending pages as runs.
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
