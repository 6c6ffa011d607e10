//! The network core: a link that all receivers share, perhaps with TCP connections.

use std::time::{Duration, Instant};

use bootcast_proto::BitRate;

use super::link::Mask;

/// Properties of the link between the server and all receivers.
#[derive(Clone, Copy, Debug)]
pub struct CoreKind {
    /// Rate of the link.
    pub rate: BitRate,
    /// Time after which the link is no bottleneck any more. `None`: it always is one.
    pub until: Option<Duration>,
    /// Size of the link's queue in bytes. Datagrams that find it full are dropped.
    pub queue: u32,
    /// Number of TCP connections through the link, which always have data to send.
    pub flows: u32,
}

/// Round-trip time of the connections in seconds, without the time in the queue.
const ROUND_TRIP: f64 = 0.002;

/// Bytes in a TCP segment.
const SEGMENT: f64 = 1538.0;

/// Longest step of the fluid model, in seconds.
const MAX_STEP: f64 = 0.001;

/// Fluid model of a TCP connection. Its window grows by a segment each round trip, and a drop
/// halves it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// Congestion window in bytes.
    window: f64,
    /// Bytes dropped since the window was last halved.
    dropped: f64,
    /// Seconds until a further drop halves the window again: one round trip after the last time.
    recovery: f64,
}

/// State of the link.
#[derive(Debug)]
pub(super) struct Core {
    kind: CoreKind,
    began: Instant,
    /// Time up to which the model was computed.
    now: Instant,
    /// Rate in bytes per second.
    speed: f64,
    /// Bytes in the queue.
    queued: f64,
    flows: Vec<Flow>,
    /// Fraction of a datagram that the queue refused; one is dropped when it reaches 1.
    refused: f64,
    /// Bytes of the TCP connections that the link carried.
    carried: f64,
}

impl Core {
    /// Creates the link with an empty queue.
    pub(super) fn new(kind: CoreKind, now: Instant) -> Self {
        let speed = to_f64(kind.rate.bits_per_second()) / 8.0;
        let window = speed * ROUND_TRIP / f64::from(kind.flows.max(1));
        let flow = Flow { window, dropped: 0.0, recovery: 0.0 };
        let flows = vec![flow; kind.flows as usize];
        Self { kind, began: now, now, speed, queued: 0.0, refused: 0.0, flows, carried: 0.0 }
    }

    /// Carries a burst of datagrams of these lengths. Returns the datagrams that are dropped, and
    /// the time at which the others have crossed the link.
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

    /// Share of the link's capacity until `now` that the TCP connections used.
    pub(super) fn share_of_flows(&mut self, now: Instant) -> f64 {
        self.pass_until(now, 0.0);
        self.carried / (self.speed * (now - self.began).as_secs_f64())
    }

    /// Advances the model to `now`, when these bytes arrive. Returns the share of them that the
    /// queue refuses.
    fn pass_until(&mut self, now: Instant, bytes: f64) -> f64 {
        let mut left = now.saturating_duration_since(self.now).as_secs_f64();
        self.now = self.now.max(now);
        while left > MAX_STEP {
            self.pass(MAX_STEP, 0.0);
            left -= MAX_STEP;
        }
        self.pass(left, bytes)
    }

    /// Advances the model by one step. Returns the refused share: when the queue is full, it
    /// refuses the same share of everything that arrives.
    fn pass(&mut self, step: f64, bytes: f64) -> f64 {
        let round_trip = ROUND_TRIP + self.queued / self.speed;
        let sent: f64 = self.flows.iter().map(|flow| flow.window / round_trip * step).sum();
        let arriving = sent + bytes;
        let waiting = self.queued + arriving - self.speed * step;
        let excess = (waiting - f64::from(self.kind.queue)).clamp(0.0, arriving);
        self.queued = (waiting - excess).max(0.0);
        let refused = if arriving > 0.0 { excess / arriving } else { 0.0 };
        self.carried += sent * (1.0 - refused);
        for flow in &mut self.flows {
            let sent = flow.window / round_trip * step;
            flow.window += SEGMENT * step / round_trip;
            flow.recovery -= step;
            if flow.recovery > 0.0 {
                continue;
            }
            flow.dropped += sent * refused;
            if flow.dropped >= SEGMENT {
                flow.window = (flow.window / 2.0).max(2.0 * SEGMENT);
                (flow.dropped, flow.recovery) = (0.0, round_trip);
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
    fn a_core_carries_its_rate_and_drops_the_excess_while_it_is_a_bottleneck() {
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
    fn tcp_connections_fill_the_core_and_yield_to_unresponsive_traffic() {
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
