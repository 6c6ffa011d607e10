//! How long a demanded page may take before it counts as lost. docs/PROTOCOL.md, "How a client
//! asks".

use std::time::Duration;

use bootcast_proto::Backoff;

/// Patience before anything was measured: the first request opens a connection too.
pub(super) const FIRST: Duration = Duration::from_millis(20);
/// Least margin above the usual time: a machine that is busy is late by as much.
pub(super) const MARGIN_MIN: Duration = Duration::from_millis(3);
/// Longest patience.
pub(super) const PATIENCE_MAX: Duration = Duration::from_secs(1);
/// 1 / this is the weight of a new measurement in the smoothed time (RFC 6298: alpha).
const SMOOTHING: u32 = 8;
/// The same for the variation (RFC 6298: beta).
const VARIATION_SMOOTHING: u32 = 4;
/// The margin above the smoothed time in variations (RFC 6298: K).
const VARIATIONS: u32 = 4;
/// Estimates the time from a want to its page as TCP does its round trip (RFC 6298). The time in
/// the server's queue is not part of it: the server tells that for each want.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Smoothed time and its smoothed variation; `None` before the first measurement.
    estimate: Option<(Duration, Duration)>,
    /// Times that patience ran out since the last measurement: it doubles each time.
    doublings: u32,
}

impl Patience {
    /// A page that was asked for once came after `time`. Of a page that was asked for twice nobody
    /// knows which request it answers (Karn's rule): it is no measurement.
    pub(super) fn measured(&mut self, time: Duration) {
        self.doublings = 0;
        self.estimate = Some(match self.estimate {
            None => (time, time / 2),
            Some((smoothed, variation)) => {
                let deviation = smoothed.abs_diff(time);
                let kept = variation * (VARIATION_SMOOTHING - 1);
                let variation = (kept + deviation) / VARIATION_SMOOTHING;
                ((smoothed * (SMOOTHING - 1) + time) / SMOOTHING, variation)
            }
        });
    }

    /// Nothing came within the patience.
    pub(super) fn ran_out(&mut self) {
        self.doublings = self.doublings.saturating_add(1);
    }

    /// The smoothed time and its margin; `None` before the first measurement.
    fn base(&self) -> Option<Duration> {
        let margin = |variation: Duration| (variation * VARIATIONS).max(MARGIN_MIN);
        self.estimate.map(|(smoothed, variation)| smoothed + margin(variation))
    }

    /// Returns the time until a page that is demanded for the `times`-th time counts as lost, not
    /// counting the server's queue.
    pub(super) fn patience(&self, times: u32) -> Duration {
        debug_assert!(times > 0, "patience with a page that was not demanded");
        let once = self.base().unwrap_or(FIRST);
        let doublings = self.doublings.max(times.saturating_sub(1));
        Backoff::new(once, PATIENCE_MAX).pause(doublings)
    }

    /// Time within which a page usually comes; `None` before the first measurement. It is a little
    /// less than patience: of many members that miss the same page and ask again at about the same
    /// time, the first has it sent for all.
    pub(super) fn usual(&self) -> Option<Duration> {
        self.base().map(|base| base * 3 / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(microseconds: u64) -> Duration {
        Duration::from_micros(microseconds)
    }

    #[test]
    fn the_estimate_follows_rfc_6298() {
        let mut patience = Patience::default();
        assert_eq!((patience.patience(1), patience.usual()), (FIRST, None));
        patience.measured(us(8000));
        assert_eq!(patience.patience(1), us(8000 + 4 * 4000));
        patience.measured(us(16_000));
        // 7/8 of 8 ms and 1/8 of 16 ms; 3/4 of 4 ms and 1/4 of the 8 ms that it was off.
        assert_eq!(patience.patience(1), us(9000 + 4 * 5000));
        assert_eq!(patience.usual(), Some(us(29_000 * 3 / 4)));
    }

    #[test]
    fn a_steady_time_leaves_a_margin_for_a_busy_machine() {
        let mut patience = Patience::default();
        for _ in 0..100 {
            patience.measured(us(300));
        }
        assert_eq!(patience.patience(1), us(300) + MARGIN_MIN);
    }

    #[test]
    fn patience_doubles_until_something_is_measured() {
        let mut patience = Patience::default();
        patience.measured(us(1000));
        assert_eq!(patience.patience(1), us(4000));
        patience.ran_out();
        patience.ran_out();
        assert_eq!(patience.patience(1), us(16_000), "of other pages too");
        assert_eq!(patience.patience(5), us(64_000), "more where this page was asked for often");
        assert_eq!(patience.patience(u32::MAX), PATIENCE_MAX);
        patience.measured(us(1000));
        assert!(patience.patience(1) < us(5000));
    }
}
