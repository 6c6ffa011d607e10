//! Where the server's stream is, and which windows it has passed since this member joined.

use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::{BlockLayout, PageIndex, WindowIndex};

/// How long the stream rests before a member that never saw it move since it asked takes that for an answer.
const REST_GRACE: Duration = Duration::from_millis(500);

/// The way of the stream from beacon to beacon.
///
/// Beacons alone tell where it is: they are numbered, and tell what was promised at the same time. A page that overtook
/// others could not be told from one of the next round.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// What the next beacon's way begins from; `None` until the first page or beacon.
    from: Option<PageIndex>,
    /// Seen on its way since this member asked for it last.
    moved: bool,
    /// As of the last beacon.
    had_moved: bool,
    resting_since: Option<Instant>,
}

impl Stream {
    /// A page of the stream came.
    pub(super) fn page(&mut self, page: PageIndex) {
        self.moved = true;
        self.from.get_or_insert(page);
    }

    /// This member asked for windows: a rest that was seen before the stream moves tells nothing of them.
    pub(super) fn asked(&mut self) {
        self.moved = false;
        self.had_moved = false;
        self.resting_since = None;
    }

    /// A beacon says where the stream is. Returns the numbers of the windows that it passed on the way: those that it brought, and
    /// those that it has no mind to bring.
    pub(super) fn beacon(
        &mut self,
        position: PageIndex,
        layout: BlockLayout,
        now: Instant,
    ) -> [Range<u32>; 2] {
        let end = end_of(layout);
        let before = self.from.replace(position).unwrap_or(position);
        let at = |page| layout.window_of(page).0;
        if position >= end {
            let since = *self.resting_since.get_or_insert(now);
            let is_over = self.moved || since + REST_GRACE <= now;
            return if is_over { [0..layout.windows(), 0..0] } else { [0..0, 0..0] };
        }
        self.resting_since = None;
        let start = PageIndex(0);
        let had_moved = std::mem::replace(&mut self.had_moved, self.moved);
        if (before, position, had_moved) == (start, start, true) {
            // All of a small file went by between two beacons, and waits for its next pass.
            return [0..layout.windows(), 0..0];
        }
        self.moved |= position != start;
        if before <= position {
            [at(before)..at(position), 0..0]
        } else if before >= end {
            [0..at(position), 0..0]
        } else {
            [at(before)..layout.windows(), 0..at(position)]
        }
    }
}

/// The page behind the last.
fn end_of(layout: BlockLayout) -> PageIndex {
    layout.pages_of(WindowIndex(layout.windows().saturating_sub(1))).end
}
