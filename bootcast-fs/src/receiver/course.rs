//! Where the server's stream is at this moment, and when it will bring a page. An estimate.

use std::time::{Duration, Instant};

use bootcast_proto::{BitRate, PageIndex, PageSize};

/// How long the stream is expected to wait after the join, before anything was heard of it.
const HOLD: Duration = Duration::from_millis(20);
/// A position that is older tells nothing.
const BELIEVED: Duration = Duration::from_secs(1);
/// Pages a second where the server told no rate, and the slowest.
const GUESS: f64 = 1000.0;
const SLOWEST: f64 = 1.0;

/// The stream on its way through the file.
///
/// It is taken to be as fast as the server can send. Where it is slower, that may be because of what readers demand: if they
/// demanded the more for it, nothing would be left of it.
#[derive(Debug)]
pub(super) struct Course {
    pages: u32,
    /// Pages a second, at most.
    speed: f64,
    /// The page that it sends next, and as of when; `pages` while it rests.
    position: (u32, Instant),
    /// A beacon told the position.
    is_told: bool,
}

impl Course {
    /// After a join: the stream begins soon, from the first page.
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
        Self { pages, speed, position: (0, now + HOLD), is_told: false }
    }

    /// A beacon says where the stream is.
    pub(super) fn beacon(&mut self, position: PageIndex, now: Instant) {
        self.position = (position.0, now);
        self.is_told = true;
    }

    /// The page that it sends next, as of the last news; `None` before those, and while it rests.
    pub(super) fn position(&self) -> Option<PageIndex> {
        Some(PageIndex(self.position.0)).filter(|at| self.is_told && at.0 < self.pages)
    }

    /// When it will have brought the page at the earliest, from now on: in this pass, or in one that follows directly. `None`: it rests,
    /// or nothing was heard of it for too long.
    pub(super) fn eta(&self, page: PageIndex, now: Instant) -> Option<Duration> {
        let (position, at) = self.position;
        let age = now.saturating_duration_since(at);
        if position >= self.pages || age > BELIEVED {
            return None;
        }
        let wait = at.saturating_duration_since(now);
        let here = f64::from(position) + age.as_secs_f64() * self.speed;
        let ahead = f64::from(page.0) + 1.0 - here;
        // One that it should have brought since the last news may come at any moment: it may be slower than it was.
        let ahead = if page.0 < position { ahead + f64::from(self.pages) } else { ahead };
        let seconds = ahead.max(0.0) / self.speed;
        Duration::try_from_secs_f64(seconds).ok()?.checked_add(wait)
    }

    /// Pages that the server sends in this time, at most.
    pub(super) fn pages_in(&self, time: Duration) -> u32 {
        to_u32(self.speed * time.as_secs_f64())
    }

    /// Pages that it brings before this one in this pass; `None` where it will not come by, as far as is known.
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

    /// A thousand pages a second.
    fn course(now: Instant) -> Course {
        let page_size = PageSize::for_mtu(1500).unwrap();
        let rate = BitRate::from_bits_per_second(page_size.wire_len() * 8 * 1000);
        Course::new(PAGES, page_size, rate, now)
    }

    fn eta_ms(course: &Course, page: u32, now: Instant) -> Option<u128> {
        course.eta(PageIndex(page), now).map(|eta| eta.as_millis())
    }

    #[test]
    fn before_anything_is_heard_it_begins_a_moment_after_the_join() {
        let now = Instant::now();
        let course = course(now);
        assert_eq!(eta_ms(&course, 49, now), Some(70));
        assert_eq!(eta_ms(&course, 49, now + ms(40)), Some(30));
        assert_eq!(course.position(), None);
        assert_eq!(course.pages_in(ms(250)), 250);
    }

    #[test]
    fn between_beacons_it_goes_on_and_behind_its_back_it_comes_in_the_next_pass() {
        let now = Instant::now();
        let mut course = course(now);
        course.beacon(PageIndex(5000), now);
        assert_eq!(eta_ms(&course, 5049, now + ms(20)), Some(30));
        assert_eq!(eta_ms(&course, 5009, now + ms(20)), Some(0), "late");
        assert_eq!(eta_ms(&course, 4999, now), Some(10_000));
        assert_eq!(course.pages_before(PageIndex(5010), now), Some(10));
        assert_eq!(course.pages_before(PageIndex(4000), now), None);
    }

    #[test]
    fn a_stream_that_rests_or_is_not_heard_of_brings_nothing() {
        let now = Instant::now();
        let mut course = course(now);
        course.beacon(PageIndex(0), now);
        assert!(eta_ms(&course, 5, now).is_some());
        assert_eq!(eta_ms(&course, 5, now + ms(1100)), None);
        course.beacon(PageIndex(PAGES), now);
        assert_eq!((eta_ms(&course, 5, now), course.position()), (None, None));
    }
}
