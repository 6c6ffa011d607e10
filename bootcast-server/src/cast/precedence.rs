//! Priority that does not starve the others.

/// Ratio of the prioritised side's share to the others' while both have something to send. The
/// prioritised side gets nine tenths of the total.
const SHARE_RATIO: u64 = 9;

/// Lead of the prioritised side over the others. The caller chooses the unit: pages or bytes.
#[derive(Debug, Default)]
pub(super) struct Precedence {
    lead: u64,
}

impl Precedence {
    /// Whether the prioritised side must let the others send about `turn` first.
    pub(super) fn must_yield(&self, turn: u64) -> bool {
        self.lead >= SHARE_RATIO.saturating_mul(turn)
    }

    /// Counts `amount` sent by the prioritised side. The lead is capped at one `turn` of the
    /// others, so that they gain nothing from time in which they had nothing to send.
    pub(super) fn on_prioritised_sent(&mut self, amount: u64, turn: u64) {
        self.lead = self.lead.saturating_add(amount).min(SHARE_RATIO.saturating_mul(turn));
    }

    /// Counts `amount` sent by the others.
    pub(super) fn on_others_sent(&mut self, amount: u64) {
        self.lead = self.lead.saturating_sub(SHARE_RATIO.saturating_mul(amount));
    }

    /// Ends the turn of the others early, because they have nothing to send.
    pub(super) fn on_others_idle(&mut self) {
        self.lead = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_others_get_a_tenth_even_after_a_long_time_with_nothing_to_send() {
        let mut precedence = Precedence::default();
        precedence.on_prioritised_sent(1_000_000, 8);
        let (mut prioritised, mut others) = (0, 0);
        for _ in 0..1000 {
            if precedence.must_yield(8) {
                others += 8;
                precedence.on_others_sent(8);
            } else {
                prioritised += 1;
                precedence.on_prioritised_sent(1, 8);
            }
        }
        let fair = prioritised / 9;
        assert!(fair <= others && others <= fair + 16, "{prioritised} and {others}");
    }
}
