//! Files for which the cache has no room: their bytes are here for a while only.
//! docs/SEMANTICS.md, "When there is no room".

use std::time::Instant;

use bootcast_proto::PageRange;

use super::{Fill, Receiver, Reuse};

impl Receiver {
    /// Stops filling the file, because the cache has no room for it: from now on only what is read
    /// arrives.
    pub fn stop_filling(&mut self) {
        let was_full = self.fill() == Fill::Full;
        // Readers of the whole file would otherwise have it filled without room for it.
        self.drop_intent();
        self.demand.stop_filling();
        self.reuse = Reuse::Off;
        if was_full && !self.content.has_all_pages() {
            self.repair.discard_blocks();
            // The next join tells the server which pages should come.
            self.session.rest();
            self.session.wake();
        }
        self.assert_invariants();
    }

    /// Fills the file again, because the cache has room for it.
    pub fn resume_filling(&mut self) {
        self.demand.set_fill(Fill::Full);
        if !self.content.has_all_pages() {
            self.session.rest();
            self.session.wake();
        }
        self.assert_invariants();
    }

    /// Handles pages that came and could not be stored. They count as lost.
    pub fn handle_not_stored(&mut self, pages: PageRange, now: Instant) {
        self.in_flight.clear();
        self.demand.handle_not_stored(pages, now);
    }

    /// Marks pages as missing whose bytes are about to be dropped. They are asked for again if a
    /// read waits for them, or when somebody reads them. Returns `false`, and does nothing, while
    /// some are being checked, or others are rebuilt from them.
    pub fn drop_pages(&mut self, pages: PageRange, now: Instant) -> bool {
        let is_dropped = self.repair.blocks().is_none() && self.content.drop_pages(pages);
        if is_dropped {
            self.demand.handle_dropped(pages, now);
        }
        if is_dropped && !self.content.has_all_pages() {
            self.session.reopen();
        }
        self.assert_invariants();
        is_dropped
    }
}
