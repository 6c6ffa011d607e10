//! Estimates where the server's stream is, and when it will send a page.

use std::time::{Duration, Instant};

use bootcast_proto::limits::SHORT_HOLD;
use bootcast_proto::{BitRate, PageIndex, PageSize};

/// Age at which a position is too old to use.
const BELIEVED: Duration = Duration::from_secs(1);
/// Pages per second assumed if the server states no rate; also the minimum.
const GUESS: f64 = 1000.0;
const SLOWEST: f64 = 1.0;

/// Position of the stream.
///
/// Assumes that the stream is as fast as the server may send. It may be slower because of demands.
/// Demanding more for that reason would leave nothing of the stream.
#[derive(Debug)]
pub(super) struct StreamPosition {
    pages: u32,
    /// Pages per second, an upper bound.
    speed: f64,
    /// Page that the stream sends next, and the time of this observation; the number of pages while
    /// it rests.
    position: (u32, Instant),
    /// Whether a beacon stated the position.
    is_told: bool,
}

impl StreamPosition {
    /// Starts after a join: the stream begins soon, with the first page.
    pub(super) fn new(
        pages: u32,
        page_size: PageSize,
        rate: Option<BitRate>,
        now: Instant,
    ) -> Self {
        let pages_a_second = |rate: BitRate| {
            let bytes = rate.bytes_in(Duration::from_secs(1));
            to_f64(bytes / page_size.wire_len().max(1)).max(SLOWEST)
        };
        let speed = rate.map_or(GUESS, pages_a_second);
        debug_assert!(speed >= SLOWEST && speed.is_finite(), "a stream of {speed} pages a second");
        Self { pages, speed, position: (0, now + SHORT_HOLD), is_told: false }
    }

    /// Updates the position from a beacon.
    pub(super) fn beacon(&mut self, position: PageIndex, now: Instant) {
        self.position = (position.0, now);
        self.is_told = true;
    }

    /// Page that the stream was about to send when last observed; `None` before that and while it
    /// rests.
    pub(super) fn position(&self) -> Option<PageIndex> {
        Some(PageIndex(self.position.0)).filter(|at| self.is_told && at.0 < self.pages)
    }

    /// Whether a beacon said lately that the stream sends pages.
    pub(super) fn is_running(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.position.1);
        self.position().is_some() && age <= BELIEVED
    }

    /// Earliest time from now at which the stream will have sent `page`, in this pass or the next.
    /// `None` if the stream rests or its position is too old.
    pub(super) fn eta(&self, page: PageIndex, now: Instant) -> Option<Duration> {
        let (position, at) = self.position;
        let age = now.saturating_duration_since(at);
        if position >= self.pages || age > BELIEVED {
            return None;
        }
        let wait = at.saturating_duration_since(now);
        let here = f64::from(position) + age.as_secs_f64() * self.speed;
        let ahead = f64::from(page.0) + 1.0 - here;
        // A page that it should have sent since then may come at any moment, because it may be
        // slower than estimated.
        let ahead = if page.0 < position { ahead + f64::from(self.pages) } else { ahead };
        let seconds = ahead.max(0.0) / self.speed;
        Duration::try_from_secs_f64(seconds).ok()?.checked_add(wait)
    }

    /// Pages that the server sends in this time, at most.
    pub(super) fn pages_in(&self, time: Duration) -> u32 {
        to_u32(self.speed * time.as_secs_f64())
    }

    /// Pages that the stream sends before `page` in this pass; `None` if it is not known to send
    /// it.
    pub(super) fn pages_before(&self, page: PageIndex, now: Instant) -> Option<u32> {
        self.eta(page, now)?;
        page.0.checked_sub(self.position.0)
    }
}

/// Nearest whole number, as far as there is one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a conversion of floating point numbers saturates"
)]
fn to_u32(number: f64) -> u32 {
    number.round() as u32
}

fn to_f64(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    const PAGES: u32 = 10_000;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A stream of a thousand pages per second.
    fn stream(now: Instant) -> StreamPosition {
        let page_size = PageSize::for_mtu(1500).unwrap();
        let rate = BitRate::from_bits_per_second(page_size.wire_len() * 8 * 1000);
        StreamPosition::new(PAGES, page_size, rate, now)
    }

    fn eta_ms(stream: &StreamPosition, page: u32, now: Instant) -> Option<u128> {
        stream.eta(PageIndex(page), now).map(|eta| eta.as_millis())
    }

    #[test]
    fn before_anything_is_heard_it_begins_a_moment_after_the_join() {
        let now = Instant::now();
        let stream = stream(now);
        assert_eq!(eta_ms(&stream, 49, now), Some(70));
        assert_eq!(eta_ms(&stream, 49, now + ms(40)), Some(30));
        assert_eq!(stream.position(), None);
        assert_eq!(stream.pages_in(ms(250)), 250);
    }

    #[test]
    fn between_beacons_it_goes_on_and_behind_its_back_it_comes_in_the_next_pass() {
        let now = Instant::now();
        let mut stream = stream(now);
        stream.beacon(PageIndex(5000), now);
        assert_eq!(eta_ms(&stream, 5049, now + ms(20)), Some(30));
        assert_eq!(eta_ms(&stream, 5009, now + ms(20)), Some(0), "late");
        assert_eq!(eta_ms(&stream, 4999, now), Some(10_000));
        assert_eq!(stream.pages_before(PageIndex(5010), now), Some(10));
        assert_eq!(stream.pages_before(PageIndex(4000), now), None);
    }

    #[test]
    fn a_stream_that_rests_or_is_not_heard_of_brings_nothing() {
        let now = Instant::now();
        let mut stream = stream(now);
        stream.beacon(PageIndex(0), now);
        assert!(eta_ms(&stream, 5, now).is_some());
        assert_eq!(eta_ms(&stream, 5, now + ms(1100)), None);
        stream.beacon(PageIndex(PAGES), now);
        assert_eq!((eta_ms(&stream, 5, now), stream.position()), (None, None));
    }
}
