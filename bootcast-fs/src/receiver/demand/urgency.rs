//! Decides whether a waiting read's page is worth a demand, which costs everybody's time, or will
//! arrive anyway. docs/SEMANTICS.md, "Filling".

use std::time::{Duration, Instant};

use bootcast_proto::PageIndex;

use super::super::reads::Access;
use super::{DemandView, Fill};

/// A random reader waits for the stream at most this long.
const SOON: Duration = Duration::from_millis(10);
/// A sequential reader waits for the stream at most this long.
const SOON_ENOUGH: Duration = Duration::from_millis(200);
/// A page this late after its expected time counts as lost.
const GRACE: Duration = Duration::from_millis(5);
/// Longest wait without a demand, for random and for sequential readers.
const ENOUGH: Duration = Duration::from_millis(50);
const LONG_ENOUGH: Duration = Duration::from_secs(1);
/// A stream this close, in pages, is not overtaken by a demand for a while, however slow it is.
const NEAR: u32 = 256;
const NEAR_ENOUGH: Duration = Duration::from_secs(10);
/// Time between two looks at a page that repair or the stream should bring.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Decision about a missing page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    Ask,
    LookAgain(Duration),
}

/// Inputs of a decision about a waiting read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment<'a> {
    pub(super) fill: Fill,
    pub(super) access: Access,
    pub(super) since: Instant,
    pub(super) view: DemandView<'a>,
    pub(super) now: Instant,
}

impl Moment<'_> {
    /// Decides about a missing page.
    pub(super) fn urgency(&self, page: PageIndex) -> Urgency {
        let waited = self.now.saturating_duration_since(self.since);
        // Of a stream that runs for others, a reader by demand knows only if it may join it later.
        let follows = self.fill == Fill::Full || self.view.stream.is_running(self.now);
        match (follows, self.access) {
            (false, _) => Urgency::Ask,
            (true, Access::Random) => self.of_random(page, waited),
            (true, Access::Following | Access::Continuing) => self.of_onward(page, waited),
        }
    }

    fn of_random(&self, page: PageIndex, waited: Duration) -> Urgency {
        match self.view.stream.eta(page, self.now) {
            Some(eta) if eta <= SOON && waited < ENOUGH => Urgency::LookAgain(eta + GRACE),
            _ => Urgency::Ask,
        }
    }

    fn of_onward(&self, page: PageIndex, waited: Duration) -> Urgency {
        let stream = self.view.stream;
        let is_near = stream.pages_before(page, self.now).is_some_and(|before| before < NEAR);
        if (is_near && waited < NEAR_ENOUGH)
            || (waited < LONG_ENOUGH && self.is_taken_care_of(page))
        {
            return Urgency::LookAgain(LOOK_PERIOD);
        }
        match stream.eta(page, self.now) {
            Some(eta) if eta <= SOON_ENOUGH && waited < LONG_ENOUGH => {
                Urgency::LookAgain(eta.max(GRACE) + GRACE)
            }
            _ => Urgency::Ask,
        }
    }

    /// Whether the stream is in the page's window, or has passed it so that repair brings the page.
    fn is_taken_care_of(&self, page: PageIndex) -> bool {
        let Some(blocks) = self.view.blocks else { return false };
        let window = blocks.layout().window_of(page);
        let is_at = |at| blocks.layout().window_of(at) == window;
        blocks.is_closed(page) || self.view.stream.position().is_some_and(is_at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::patience::{MARGIN_MIN, PATIENCE_MAX};
    use super::super::{OVERDUE, WINDOW};
    use super::*;

    #[test]
    fn the_numbers_of_the_page_are_these() {
        // docs/SEMANTICS.md, "Filling".
        let page = include_str!("../../../../docs/SEMANTICS.md");
        let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!([LONG_ENOUGH, PATIENCE_MAX, NEAR_ENOUGH / 10], [Duration::from_secs(1); 3]);
        for told in [
            format!(
                "unless the stream brings them within {} ms. What did not come {} ms later is \
                 demanded",
                SOON.as_millis(),
                ENOUGH.as_millis()
            ),
            format!("pages that the stream will not reach within {} ms", SOON_ENOUGH.as_millis()),
            "After a second it demands all the same.".to_owned(),
            format!("within {NEAR} pages, are not demanded for ten seconds"),
            format!(
                "pages ahead are announced: as many as the server can send within the time that \
                 pages take to come, at least {} and at most {}",
                WINDOW.start(),
                WINDOW.end()
            ),
            format!(
                "overdue by what pages took before, {} ms at least, then after twice that, up to \
                 a second",
                MARGIN_MIN.as_millis()
            ),
            format!("did not come within {} ms and two more demands", OVERDUE.as_millis()),
        ] {
            assert!(page.contains(&told), "{told}");
        }
    }
}
