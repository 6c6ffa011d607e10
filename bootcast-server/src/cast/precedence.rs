//! Going first without shutting out who comes second.

/// While others wait, who goes first gets this many times what they get: nine tenths of all.
const SHARE: u64 = 9;

/// Counts how far those who go first are ahead of the others, in whatever unit both are counted.
#[derive(Debug, Default)]
pub(super) struct Precedence {
    ahead: u64,
}

impl Precedence {
    /// Whether the others have their turn, of about `turn`.
    pub(super) fn is_used_up(&self, turn: u64) -> bool {
        self.ahead >= SHARE.saturating_mul(turn)
    }

    /// Those who go first got this much. While nobody else wanted anything that does not add up: the others are owed one `turn`.
    pub(super) fn on_first(&mut self, amount: u64, turn: u64) {
        self.ahead = self.ahead.saturating_add(amount).min(SHARE.saturating_mul(turn));
    }

    /// The others got this much.
    pub(super) fn on_others(&mut self, amount: u64) {
        self.ahead = self.ahead.saturating_sub(SHARE.saturating_mul(amount));
    }

    /// None of the others wants its turn.
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
