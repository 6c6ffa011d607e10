//! How many symbols a window gets before anybody asks.

use std::collections::VecDeque;
use std::time::Instant;

use bootcast_proto::WindowIndex;

use super::levels::Levels;

/// More is never sent unasked: half of what the pages themselves take.
const MOST: u32 = 64;

/// A window whose reports are still under way.
#[derive(Debug)]
struct Watched {
    window: WindowIndex,
    /// Symbols that its blocks got unasked.
    given: u32,
    settled_at: Instant,
}

/// Follows the needs that are reported. Begins with none: the first window of a clean network costs nothing.
#[derive(Debug, Default)]
pub(super) struct Redundancy {
    symbols: u32,
    /// In the order of the stream.
    watched: VecDeque<Watched>,
}

impl Redundancy {
    /// For each block of a window.
    pub(super) fn symbols(&self) -> u32 {
        self.symbols
    }

    /// Looks at the needs of this window once they are known.
    pub(super) fn watch(&mut self, window: WindowIndex, settled_at: Instant) {
        self.watched.push_back(Watched { window, given: self.symbols, settled_at });
    }

    /// Follows the windows whose needs are known by now.
    pub(super) fn learn(&mut self, levels: &Levels, now: Instant) {
        while self.watched.front().is_some_and(|it| it.settled_at <= now)
            && let Some(watched) = self.watched.pop_front()
        {
            self.follow(&watched, levels);
        }
    }

    fn follow(&mut self, watched: &Watched, levels: &Levels) {
        let mut promised: Vec<u32> = levels.promised_in(watched.window).collect();
        promised.sort_unstable();
        let more = promised.iter().filter(|&&promised| promised > watched.given).count();
        if more * 10 > promised.len() * 9 {
            // What all but a tenth need: one more than they got, at least.
            let needed = promised[promised.len() / 10];
            self.symbols = self.symbols.max(needed.min(MOST));
        } else if more * 2 < promised.len() && watched.given == self.symbols {
            self.symbols = self.symbols.saturating_sub(1);
        }
    }
}
