//! A link that all receivers share, perhaps with other traffic.

use std::time::{Duration, Instant};

use bootcast_proto::BitRate;

use super::link::Mask;

/// Properties of a link between the server and all receivers.
#[derive(Clone, Copy, Debug)]
pub struct CoreKind {
    /// Rate that it carries.
    pub rate: BitRate,
    /// Time from which it is no bottleneck any more; `None`: always one.
    pub until: Option<Duration>,
    /// Bytes that its queue holds; more are dropped.
    pub queue: u32,
    /// TCP connections through it that always have something to send.
    pub flows: u32,
}

/// Round trip of the connections in seconds, without the queue.
const ROUND_TRIP: f64 = 0.002;

/// Bytes in a segment.
const SEGMENT: f64 = 1538.0;

/// Longest step of the fluid model, in seconds.
const STEP: f64 = 0.001;

/// A TCP connection as a fluid: its window grows by a segment each round trip and is halved by a
/// drop.
#[derive(Clone, Copy, Debug)]
struct Flow {
    window: f64,
    /// Bytes dropped since the window was last halved.
    dropped: f64,
    /// Seconds until a further drop halves the window: one round trip.
    deaf: f64,
}

/// State of the link.
#[derive(Debug)]
pub(super) struct Core {
    kind: CoreKind,
    began: Instant,
    now: Instant,
    /// Rate in bytes per second.
    speed: f64,
    /// Bytes in the queue.
    queued: f64,
    flows: Vec<Flow>,
    /// Part of a datagram that was refused and not dropped yet.
    refused: f64,
    /// Bytes of the connections that got through.
    carried: f64,
}

impl Core {
    /// Creates the link with an empty queue.
    pub(super) fn new(kind: CoreKind, now: Instant) -> Self {
        let speed = to_f64(kind.rate.bits_per_second()) / 8.0;
        let window = speed * ROUND_TRIP / f64::from(kind.flows.max(1));
        let flow = Flow { window, dropped: 0.0, deaf: 0.0 };
        let flows = vec![flow; kind.flows as usize];
        Self { kind, began: now, now, speed, queued: 0.0, refused: 0.0, flows, carried: 0.0 }
    }

    /// Carries a burst of datagrams of these lengths. Returns which find no room, and when the
    /// others have crossed.
    pub(super) fn carry(&mut self, lens: &[u64], now: Instant) -> (Mask, Instant) {
        if self.kind.until.is_some_and(|until| now >= self.began + until) {
            return (0, now);
        }
        let refused = self.pass_until(now, to_f64(lens.iter().sum()));
        let mut lost = 0;
        for bit in 0..lens.len() {
            self.refused += refused;
            if self.refused >= 1.0 {
                self.refused -= 1.0;
                lost |= 1 << bit;
            }
        }
        (lost, now + Duration::from_secs_f64(self.queued / self.speed))
    }

    /// Share of the carried bytes that belonged to the connections, until `now`.
    pub(super) fn share_of_flows(&mut self, now: Instant) -> f64 {
        self.pass_until(now, 0.0);
        self.carried / (self.speed * (now - self.began).as_secs_f64())
    }

    /// Advances time while these bytes arrive. Returns the share of them that found no room.
    fn pass_until(&mut self, now: Instant, bytes: f64) -> f64 {
        let mut left = now.saturating_duration_since(self.now).as_secs_f64();
        self.now = self.now.max(now);
        while left > STEP {
            self.pass(STEP, 0.0);
            left -= STEP;
        }
        self.pass(left, bytes)
    }

    /// Advances one step. A full queue refuses the same share of everything that arrives.
    fn pass(&mut self, step: f64, bytes: f64) -> f64 {
        let round_trip = ROUND_TRIP + self.queued / self.speed;
        let sent: f64 = self.flows.iter().map(|flow| flow.window / round_trip * step).sum();
        let come = sent + bytes;
        let waiting = self.queued + come - self.speed * step;
        let over = (waiting - f64::from(self.kind.queue)).clamp(0.0, come);
        self.queued = (waiting - over).max(0.0);
        let refused = if come > 0.0 { over / come } else { 0.0 };
        self.carried += sent * (1.0 - refused);
        for flow in &mut self.flows {
            let sent = flow.window / round_trip * step;
            flow.window += SEGMENT * step / round_trip;
            flow.deaf -= step;
            if flow.deaf > 0.0 {
                continue;
            }
            flow.dropped += sent * refused;
            if flow.dropped >= SEGMENT {
                flow.window = (flow.window / 2.0).max(2.0 * SEGMENT);
                (flow.dropped, flow.deaf) = (0.0, round_trip);
            }
        }
        refused
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate or a length")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn core(flows: u32) -> (Core, Instant) {
        let now = Instant::now();
        let rate = "100mbit".parse().unwrap();
        (Core::new(CoreKind { rate, until: Some(2000 * MS), queue: 60_000, flows }, now), now)
    }

    #[test]
    fn it_passes_its_rate_and_drops_the_rest_until_it_is_wide() {
        let (mut core, start) = core(0);
        let (mut lost, mut at) = (0, start);
        for ms in 0..1000 {
            // 200 Mbit/s.
            let (mask, arrives) = core.carry(&[1250; 20], start + MS * ms);
            lost += mask.count_ones();
            assert!(arrives >= at && arrives <= start + MS * (ms + 5));
            at = arrives;
        }
        assert!((9_900..10_000).contains(&lost), "{lost}");
        assert_eq!(core.carry(&[60_000; 2], start + 2000 * MS), (0, start + 2000 * MS));
    }

    #[test]
    fn connections_fill_it_and_yield_to_who_does_not_yield() {
        let (mut alone, start) = core(4);
        assert!(alone.share_of_flows(start + 10_000 * MS) > 0.9);
        let (mut core, start) = core(4);
        core.kind.until = None;
        for ms in 0..10_000 {
            core.carry(&[1250; 8], start + MS * ms);
        }
        let share = core.share_of_flows(start + 10_000 * MS);
        assert!((0.1..0.4).contains(&share), "{share}");
    }
}
