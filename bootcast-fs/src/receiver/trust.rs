//! Decides how long a member believes beacons. docs/PROTOCOL.md, "What counts as news".

use std::time::{Duration, Instant};

/// Time without progress after which a member takes what beacons say for false.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same once this has brought something.
const SHORT_PATIENCE: Duration = Duration::from_secs(5);

/// Trust in the beacons of one membership. Another member may forge them.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// When a new page or a useful symbol last arrived, or trust was last lost.
    since: Option<Instant>,
    /// Whether trust was lost in this membership.
    was_lost: bool,
    /// Whether something arrived since.
    has_progressed: bool,
}

impl Trust {
    /// Starts a membership.
    pub(super) fn begin(&mut self, now: Instant) {
        *self = Self { since: Some(now), ..Self::default() };
    }

    /// Handles a new page or a useful symbol.
    pub(super) fn progressed(&mut self, now: Instant) {
        self.since = Some(now);
        self.has_progressed = true;
    }

    /// When trust is lost, unless something arrives before.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        let is_short = self.was_lost && self.has_progressed;
        let patience = if is_short { SHORT_PATIENCE } else { PATIENCE };
        self.since.map(|since| since + patience)
    }

    /// Loses trust if it is time. Returns whether it did.
    pub(super) fn lose_if_due(&mut self, now: Instant) -> bool {
        let is_due = self.ends_at().is_some_and(|at| at <= now);
        if is_due {
            *self = Self { since: Some(now), was_lost: true, has_progressed: false };
            debug_assert!(self.ends_at() > Some(now), "trust is lost again at once");
        }
        is_due
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    #[test]
    fn trust_is_lost_sooner_where_that_has_brought_something() {
        let mut trust = Trust::default();
        let now = Instant::now();
        trust.begin(now);
        trust.progressed(now);
        assert!(!trust.lose_if_due(now + PATIENCE / 2) && trust.lose_if_due(now + PATIENCE));
        let now = now + PATIENCE;
        assert_eq!(trust.ends_at(), Some(now + PATIENCE));
        trust.progressed(now);
        assert_eq!(trust.ends_at(), Some(now + SHORT_PATIENCE));
        assert!(trust.lose_if_due(now + SHORT_PATIENCE));
        assert_eq!(trust.ends_at(), Some(now + SHORT_PATIENCE + PATIENCE));
    }
}
