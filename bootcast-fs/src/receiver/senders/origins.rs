//! Origins of the stored pages of a cast.

use std::collections::VecDeque;

use bootcast_proto::{PageIndex, PageRange};

use super::SenderId;

/// Maximum number of runs of pages: 80 KB. The oldest are forgotten.
const MAX_RUNS: usize = 4096;

/// Number of the newest runs that a page may continue. Each sender has one position or a few.
const RECENT: usize = 8;

/// Origin of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Origin {
    /// In a datagram of this sender.
    Sender(SenderId),
    /// It was rebuilt from symbols.
    Rebuilt,
    /// From elsewhere, or it was forgotten.
    #[default]
    Unknown,
}

/// Origins of pages, in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Origins {
    /// Runs of consecutive pages. Of several with a page, the newest tells where it came from.
    runs: VecDeque<(PageRange, Origin)>,
    /// Origin of the pages without a run.
    first: Origin,
    /// Whether pages without a run may have come from anywhere.
    is_first_forgotten: bool,
}

impl Origins {
    /// Records the only sender so far. Its pages need no runs.
    pub(super) fn set_first(&mut self, sender: SenderId) {
        if !self.is_first_forgotten {
            self.first = Origin::Sender(sender);
        }
    }

    /// Forgets the origin of the pages without a run.
    pub(super) fn forget_first(&mut self) {
        (self.first, self.is_first_forgotten) = (Origin::Unknown, true);
    }

    /// Records the origin of a page that is about to be stored.
    pub(super) fn record(&mut self, page: PageIndex, origin: Origin) {
        for (run, of) in self.runs.iter_mut().rev().take(RECENT) {
            if run.contains(page) {
                if *of == origin {
                    return;
                }
                // In an older run, the page would be hidden by this one.
                break;
            }
            if *of == origin && run.end == page {
                run.end = PageIndex(page.0 + 1);
                return;
            }
        }
        self.runs.push_back((PageRange::single(page), origin));
        if self.runs.len() > MAX_RUNS {
            self.runs.pop_front();
            self.forget_first();
        }
    }

    /// Returns the origin of a page.
    pub(super) fn of(&self, page: PageIndex) -> Origin {
        let newest = self.runs.iter().rev().find(|(run, _)| run.contains(page));
        newest.map_or(self.first, |(_, origin)| *origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Origin = Origin::Sender(SenderId(0));
    const B: Origin = Origin::Sender(SenderId(1));

    fn record(origins: &mut Origins, pages: impl IntoIterator<Item = u32>, origin: Origin) {
        pages.into_iter().for_each(|page| origins.record(PageIndex(page), origin));
    }

    fn of<const N: usize>(origins: &Origins, pages: [u32; N]) -> [Origin; N] {
        pages.map(|page| origins.of(PageIndex(page)))
    }

    #[test]
    fn pages_of_two_senders_in_turn_are_two_runs() {
        let mut origins = Origins::default();
        for page in 0..1000 {
            record(&mut origins, [page], A);
            record(&mut origins, [page + 5000], B);
        }
        assert_eq!(origins.runs.len(), 2);
        assert_eq!(of(&origins, [0, 999, 5000, 5999, 1000]), [A, A, B, B, Origin::Unknown]);
    }

    #[test]
    fn the_newest_origin_of_a_page_counts() {
        let mut origins = Origins::default();
        record(&mut origins, 0..5, A);
        record(&mut origins, [5, 2], B);
        record(&mut origins, [5, 6], A);
        record(&mut origins, [3], Origin::Rebuilt);
        assert_eq!(of(&origins, [1, 2, 3, 4, 5, 6]), [A, B, Origin::Rebuilt, A, A, A]);
    }

    #[test]
    fn what_came_before_the_second_sender_came_from_the_first() {
        let mut origins = Origins::default();
        origins.set_first(SenderId(0));
        record(&mut origins, [7], B);
        assert_eq!(of(&origins, [6, 7]), [A, B]);
    }

    #[test]
    fn the_oldest_runs_are_forgotten() {
        let mut origins = Origins::default();
        origins.set_first(SenderId(0));
        record(&mut origins, (0..2 * 5000).step_by(2), B);
        assert_eq!(origins.runs.len(), MAX_RUNS);
        assert_eq!(of(&origins, [0, 1, 9998]), [Origin::Unknown, Origin::Unknown, B]);
    }
}
