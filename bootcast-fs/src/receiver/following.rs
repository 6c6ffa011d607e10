//! A file that another process of this machine receives: the *holder*. This one, the *follower*,
//! is no member, and learns what has arrived. docs/SEMANTICS.md, "One copy for several mounts".

use std::ops::Range;
use std::time::Instant;

use bootcast_proto::{ContentId, Geometry, PageRange, PageSet};

use super::verification::ToldLeaves;
use super::{Assembly, Failure, Fill, Receiver, Verify};

/// A file as its holder describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Exact size, and size of the pages.
    pub geometry: Geometry,
    /// Hash of the content, if it is known.
    pub content: Option<ContentId>,
    /// Whether the server has hashes of it.
    pub has_hashes: bool,
}

/// Leaves or pages already reported to one follower.
#[derive(Debug)]
pub struct Told(pub(super) ToldOf);

/// Kinds of what was reported.
#[derive(Debug)]
pub(super) enum ToldOf {
    /// Verified leaves.
    Leaves(ToldLeaves),
    /// Pages that may be read.
    Pages(PageSet),
}

impl Told {
    /// Returns an empty set of leaves.
    pub fn no_leaves() -> Self {
        Self(ToldOf::Leaves(ToldLeaves::default()))
    }

    /// Returns an empty set of pages.
    pub fn no_pages() -> Self {
        Self(ToldOf::Pages(PageSet::new(0)))
    }

    /// Whether it has leaves and not pages.
    pub fn has_leaves(&self) -> bool {
        matches!(self.0, ToldOf::Leaves(_))
    }
}

/// News for a follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Leaves or pages that may be read, in runs. They were not told before.
    Readable(Vec<Range<u64>>),
    /// Something that was told may not be read any more: the follower must begin anew.
    Retracted,
    /// The holder ends, and saves what it has.
    Ending,
    /// The server no longer has the version: nothing more can arrive.
    Gone,
    /// The rest does not arrive here for another reason.
    Failed,
}

/// Adds pages to `told` that are `readable` and were not told. Returns them; `None` if a page that
/// was told is not here any more.
pub(super) fn new_pages(
    told: &mut PageSet,
    assembly: &Assembly,
    readable: impl Fn(&Range<u64>) -> bool,
) -> Option<Vec<Range<u64>>> {
    let (geometry, arrived) = (assembly.geometry(), assembly.arrived());
    if told.pages() != geometry.pages() {
        if !told.is_empty() {
            return None;
        }
        *told = PageSet::new(geometry.pages());
    }
    if told.ranges_without(arrived).next().is_some() {
        return None;
    }
    let mut runs: Vec<Range<u64>> = Vec::new();
    let untold: Vec<_> = arrived.ranges_without(told).collect();
    for page in untold.into_iter().flat_map(PageRange::iter) {
        if !readable(&geometry.byte_range(PageRange::single(page))) {
            continue;
        }
        told.insert(page);
        let at = u64::from(page.0);
        match runs.last_mut().filter(|run| run.end == at) {
            Some(run) => run.end += 1,
            None => runs.push(at..at + 1),
        }
    }
    Some(runs)
}

impl Receiver {
    // The follower.

    /// Follows a holder from now on. Call it before the first open.
    pub fn follow(&mut self) {
        self.session.follow();
    }

    /// Whether it follows a holder, or looks for one.
    pub fn follows(&self) -> bool {
        self.session.follows()
    }

    /// Begins with a file as its holder describes it: nothing of it counts as here. Returns `false`
    /// if the holder has another file.
    pub fn handle_description(&mut self, file: &Description) -> bool {
        let fits = self.content.adopt_description(file);
        if fits {
            self.is_told_pages = false;
            self.session.reopen();
            self.end_if_complete();
        }
        self.assert_invariants();
        fits
    }

    /// Handles leaves that the holder has stored and verified.
    pub fn handle_told_leaves(&mut self, leaves: &Range<u64>) {
        self.counters.pages += u64::from(self.content.handle_told_leaves(leaves));
        self.end_if_complete();
        self.assert_invariants();
    }

    /// Handles pages that the holder has stored. They are verified here, if leaves are.
    pub fn handle_told_pages(&mut self, pages: &Range<u64>) {
        let Some(all) = self.content.geometry().map(Geometry::all) else { return };
        let page = |at: u64| u32::try_from(at).unwrap_or(u32::MAX).min(all.end.0);
        self.is_told_pages = true;
        let pages = PageRange::new(page(pages.start), page(pages.end).max(page(pages.start)));
        self.handle_stored(pages, self.session.epoch());
    }

    /// Handles bytes that cannot arrive at the holder for now.
    pub fn handle_told_unreadable(&mut self, bytes: &Range<u64>, now: Instant) {
        if let Some(pages) = self.content.geometry().map(|it| it.pages_covering(bytes.clone())) {
            self.handle_unreadable(&[pages], now);
        }
    }

    /// Handles that nothing more arrives at the holder: the server no longer has the version.
    pub fn handle_holder_stale(&mut self) {
        self.fail(Failure::Stale);
    }

    /// Returns the bytes that must be readable at the holder before these are here. `by_pages`: the
    /// holder tells of pages, and of a page only when all of its bytes may be read there.
    pub fn needed_of_holder(&self, bytes: &Range<u64>, by_pages: bool) -> Range<u64> {
        let needed = self.content.needed_for(bytes);
        match self.content.geometry().filter(|_| by_pages) {
            Some(geometry) => geometry.byte_range(geometry.pages_covering(needed)),
            None => needed,
        }
    }

    /// Whether a follower verifies leaves before they are read.
    pub fn verifies_leaves(&self) -> bool {
        self.content.verify() == Verify::Leaf
    }

    /// Takes part in the cast itself. `stored` is what the cache has beside what the holder told,
    /// with the hash of the content.
    pub fn take_over(&mut self, stored: Option<(Assembly, Option<ContentId>)>) {
        if let Some((stored, content)) = stored {
            self.adopt_stored(&stored, content);
        }
        self.session.stop_following();
        self.end_if_complete();
        self.assert_invariants();
    }

    fn adopt_stored(&mut self, stored: &Assembly, content: Option<ContentId>) {
        let own = self.content.geometry().copied();
        let geometry = *stored.geometry();
        let file = Description { geometry, content, has_hashes: content.is_some() };
        let fits = match own {
            Some(own) => own == geometry && self.content.adopt_content(content),
            None => self.content.adopt_description(&file),
        };
        if fits {
            for run in stored.arrived().ranges() {
                self.handle_stored(run, self.session.epoch());
            }
        }
    }

    /// Takes part in the cast itself, and counts everything as missing that the holder told.
    pub fn start_alone(&mut self) {
        self.content.forget_pages();
        self.session.reopen();
        self.session.stop_following();
        self.end_if_complete();
        self.assert_invariants();
    }

    // The holder.

    /// Describes the file to followers; `None` until its size is known.
    pub fn describe(&self) -> Option<Description> {
        self.content.describe()
    }

    /// Whether followers are told of leaves and not of pages, if they verify leaves, too.
    pub fn tells_leaves(&self) -> bool {
        self.content.tells_leaves()
    }

    /// Returns what a follower is to be told.
    pub fn news(&self, told: &mut Told) -> News {
        match self.session.failure() {
            Some(Failure::Stale) => News::Gone,
            Some(_) => News::Failed,
            None => self.content.news(told).map_or(News::Retracted, News::Readable),
        }
    }

    /// Fills the file, because a follower wants all of it.
    pub fn fill_for_followers(&mut self, now: Instant) {
        if self.fill() == Fill::Full || self.reuse.is_asking() {
            return;
        }
        self.show_intent(now);
        self.assert_invariants();
    }
}
