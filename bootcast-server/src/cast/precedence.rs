//! Priority that does not starve the rest.

/// While both have something to send, the prioritised side gets this many times the rest's share:
/// nine tenths of the total.
const SHARE: u64 = 9;

/// Counts how far the prioritised side is ahead of the rest. Both count in the same unit, whichever
/// it is.
#[derive(Debug, Default)]
pub(super) struct Precedence {
    ahead: u64,
}

impl Precedence {
    /// Whether it is the rest's turn to send about `turn`.
    pub(super) fn is_used_up(&self, turn: u64) -> bool {
        self.ahead >= SHARE.saturating_mul(turn)
    }

    /// Counts `amount` sent by the prioritised side. The lead is capped at what makes up one
    /// `turn`, so that time in which the rest had nothing to send does not add up.
    pub(super) fn on_first(&mut self, amount: u64, turn: u64) {
        self.ahead = self.ahead.saturating_add(amount).min(SHARE.saturating_mul(turn));
    }

    /// Counts `amount` sent by the rest.
    pub(super) fn on_others(&mut self, amount: u64) {
        self.ahead = self.ahead.saturating_sub(SHARE.saturating_mul(amount));
    }

    /// Ends the rest's turn early because it has nothing to send.
    pub(super) fn on_nobody_else(&mut self) {
        self.ahead = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_second_gets_a_tenth_however_long_it_wanted_nothing() {
        let mut precedence = Precedence::default();
        precedence.on_first(1_000_000, 8);
        let (mut first, mut others) = (0, 0);
        for _ in 0..1000 {
            if precedence.is_used_up(8) {
                others += 8;
                precedence.on_others(8);
            } else {
                first += 1;
                precedence.on_first(1, 8);
            }
        }
        assert!(first / 9 <= others && others <= first / 9 + 16, "{first} and {others}");
    }
}
