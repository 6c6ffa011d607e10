//! Simulates the path from the server to one receiver.

use std::time::{Duration, Instant};

use bootcast_proto::BitRate;

use super::random::Random;

/// Set of datagrams of a burst: one bit for each datagram.
pub(super) type Mask = u64;

/// Returns the mask of the lowest `len` bits.
pub(super) fn all(len: usize) -> Mask {
    debug_assert!(len <= 64, "a burst is at most 64 datagrams");
    if len == 64 { Mask::MAX } else { (1 << len) - 1 }
}

/// Loss of datagrams: its rate, and the length of runs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Share of all datagrams, 0 to 1.
    pub share: f64,
    /// Mean length of a run of losses, in datagrams; 0 if each is lost independently.
    pub burst: f64,
}

impl Loss {
    /// Loses each datagram independently.
    pub fn independent(share: f64) -> Self {
        Self { share, burst: 0.0 }
    }

    /// Loses runs of this mean length (Gilbert's model, whose bad state loses every datagram).
    pub fn bursts(share: f64, burst: f64) -> Self {
        Self { share, burst }
    }
}

/// Picks datagrams in runs. Runs that are picked alternate with runs that are not, and all lengths
/// are geometrically distributed.
#[derive(Debug)]
struct Runs {
    random: Random,
    /// Mean lengths of the runs that are not picked and of those that are; `None` if nothing is
    /// ever picked.
    means: Option<[f64; 2]>,
    /// Whether the present run is picked.
    picking: bool,
    /// Datagrams left in the present run.
    left: u64,
}

impl Runs {
    fn new(loss: Loss, mut random: Random) -> Self {
        let Loss { share, burst } = loss;
        let picked = if burst > 0.0 { burst.max(1.0) } else { 1.0 / (1.0 - share).max(1e-9) };
        let means = (share > 0.0).then(|| [(picked * (1.0 - share) / share).max(1.0), picked]);
        let picking = random.chance(share);
        let left = means.map_or(0, |means| random.geometric(means[usize::from(picking)]));
        Self { random, means, picking, left }
    }

    /// Returns which of the next `len` datagrams are picked.
    fn pick(&mut self, len: usize) -> Mask {
        let Some(means) = self.means else { return 0 };
        let (mut mask, mut at) = (0, 0);
        while at < len {
            let run = usize::try_from(self.left).unwrap_or(usize::MAX).min(len - at);
            if self.picking {
                mask |= all(run) << at;
            }
            at += run;
            self.left -= run as u64;
            if self.left == 0 {
                self.picking = !self.picking;
                self.left = self.random.geometric(means[usize::from(self.picking)]);
            }
        }
        mask
    }
}

/// Loss that several receivers share, such as the loss of a switch port.
#[derive(Debug)]
pub(super) struct SharedLoss(Runs);

impl SharedLoss {
    /// Creates the loss before its first datagram.
    pub(super) fn new(loss: Loss, random: Random) -> Self {
        Self(Runs::new(loss, random))
    }

    /// Returns which of the next `len` datagrams are lost for all receivers.
    pub(super) fn next(&mut self, len: usize) -> Mask {
        self.0.pick(len)
    }
}

/// Properties of the path to one receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkKind {
    /// Loss of this receiver alone.
    pub loss: Loss,
    /// Loss that it shares with the other receivers at its switch port.
    pub shared: Loss,
    /// Number of receivers at a switch port; 0 if loss is not shared.
    pub port: usize,
    /// Delay from the server, in addition to the delay that all receivers have.
    pub delay: Duration,
    /// Share of datagrams that others overtake.
    pub overtaken: f64,
    /// Longest additional delay of datagrams that are overtaken or duplicated.
    pub jitter: Duration,
    /// Share of datagrams that arrive twice.
    pub duplicated: f64,
    /// Rate of the last hop as a share of the server's rate; 0 if it is no bottleneck.
    pub access: f64,
    /// Size of the queue before the last hop, in datagrams.
    pub queue: u32,
    /// Rate at which the receiver's machine reads datagrams, as a share of the server's rate; 0 if
    /// it always keeps up.
    pub machine: f64,
    /// Size of its socket buffer, in datagrams. The receiver learns how many were dropped there.
    pub socket: u32,
}

/// Datagrams that arrive at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    /// Time of arrival.
    pub(super) at: Instant,
    /// Datagrams of the burst that arrive.
    pub(super) which: Mask,
    /// Datagrams that the socket dropped since the last delivery.
    pub(super) dropped: u64,
}

/// State of the link to one receiver.
#[derive(Debug)]
pub(super) struct Link {
    kind: LinkKind,
    lost: Runs,
    overtaken: Runs,
    duplicated: Runs,
    random: Random,
    /// Queue of the last hop, if that is a bottleneck.
    access: Option<Queue>,
    /// Queue of the receiver's machine, if that is a bottleneck.
    machine: Option<Queue>,
    /// Number of datagrams that the socket dropped since the last delivery.
    dropped: u64,
}

/// A queue that forwards datagrams one by one, at a fixed rate.
#[derive(Debug)]
struct Queue {
    rate: BitRate,
    /// Time to empty a full queue.
    depth: Duration,
    /// Time at which the queue will be empty.
    busy_until: Instant,
}

impl Queue {
    /// Creates a queue with this share of `rate` and a size of `size` bytes. `None` for a share of
    /// 0.
    fn new(rate: BitRate, share: f64, size: u64, now: Instant) -> Option<Self> {
        let rate = BitRate::from_bits_per_second(scaled(rate, share))?;
        Some(Self { rate, depth: rate.time_to_send(size), busy_until: now })
    }

    /// Forwards the datagrams `arriving` at `now`. Returns those that find room, and the time at
    /// which the last of them has left the queue.
    fn pass(&mut self, lens: &[u64], arriving: Mask, now: Instant) -> (Mask, Instant) {
        let mut passed = arriving;
        for (bit, &len) in lens.iter().enumerate() {
            if arriving & 1 << bit != 0 && !self.enqueue(len, now) {
                passed &= !(1 << bit);
            }
        }
        (passed, self.busy_until.max(now))
    }

    /// Adds a datagram of `bytes` bytes. Returns `false` if the queue is full.
    fn enqueue(&mut self, bytes: u64, now: Instant) -> bool {
        let begins = self.busy_until.max(now);
        let has_room = begins - now <= self.depth;
        if has_room {
            self.busy_until = begins + self.rate.time_to_send(bytes);
        }
        has_room
    }
}

impl Link {
    /// Creates a link. `rate` is the server's rate, `datagram` the size of a full page on the wire,
    /// in bytes.
    pub(super) fn new(
        kind: LinkKind,
        rate: BitRate,
        datagram: u64,
        mut random: Random,
        now: Instant,
    ) -> Self {
        let mut stream = || Random::new(random.next(), 0);
        let bytes = |datagrams: u32| datagram * u64::from(datagrams);
        Self {
            lost: Runs::new(kind.loss, stream()),
            overtaken: Runs::new(Loss::independent(kind.overtaken), stream()),
            duplicated: Runs::new(Loss::independent(kind.duplicated), stream()),
            random: stream(),
            access: Queue::new(rate, kind.access, bytes(kind.queue), now),
            machine: Queue::new(rate, kind.machine, bytes(kind.socket), now),
            dropped: 0,
            kind,
        }
    }

    /// Carries a burst of datagrams of these lengths, without those of `lost_before`. Returns the
    /// datagrams that arrive now, and adds later deliveries to `late`.
    pub(super) fn carry(
        &mut self,
        lens: &[u64],
        lost_before: Mask,
        now: Instant,
        late: &mut Vec<Delivery>,
    ) -> Mask {
        let mut passed = all(lens.len()) & !lost_before & !self.lost.pick(lens.len());
        let mut at = now + self.kind.delay;
        if let Some(access) = &mut self.access {
            let left_at;
            (passed, left_at) = access.pass(lens, passed, now);
            at = at.max(left_at + self.kind.delay);
        }
        if let Some(machine) = &mut self.machine {
            let (accepted, read_at) = machine.pass(lens, passed, at);
            self.dropped += u64::from((passed & !accepted).count_ones());
            (passed, at) = (accepted, read_at);
        }
        let duplicated = passed & self.duplicated.pick(lens.len());
        let overtaken = passed & self.overtaken.pick(lens.len());
        for which in [duplicated, overtaken] {
            if which != 0 {
                late.push(Delivery {
                    at: at + self.random.within(self.kind.jitter),
                    which,
                    dropped: 0,
                });
            }
        }
        let in_time = passed & !overtaken;
        // A socket reports its drops with the next datagram that finds room.
        let dropped = if in_time == 0 { 0 } else { std::mem::take(&mut self.dropped) };
        if at == now {
            return in_time;
        }
        late.push(Delivery { at, which: in_time, dropped });
        0
    }
}

/// Returns a share of a rate, in bits per second.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate of a simulation, to the nearest bit or so"
)]
fn scaled(rate: BitRate, share: f64) -> u64 {
    (rate.bits_per_second() as f64 * share) as u64
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    const BURST: usize = 44;

    /// Returns the loss rate and the mean length of a run of losses.
    fn measure(loss: Loss) -> (f64, f64) {
        let mut runs = Runs::new(loss, Random::new(1, 1));
        let (mut packets, mut runs_lost, mut before) = (0u32, 0u32, false);
        for _ in 0..50_000 {
            let mask = runs.pick(BURST);
            packets += mask.count_ones();
            for bit in 0..BURST {
                let is_lost = mask & 1 << bit != 0;
                runs_lost += u32::from(is_lost && !before);
                before = is_lost;
            }
        }
        (f64::from(packets) / (50_000.0 * 44.0), f64::from(packets) / f64::from(runs_lost))
    }

    #[test]
    fn losses_have_the_configured_rate_and_run_length() {
        for (loss, length) in [
            (Loss::independent(0.01), 1.01),
            (Loss::independent(0.2), 1.25),
            (Loss::bursts(0.01, 20.0), 20.0),
        ] {
            let (share, run) = measure(loss);
            assert!((share / loss.share - 1.0).abs() < 0.05, "{loss:?}: {share}");
            assert!((run / length - 1.0).abs() < 0.05, "{loss:?}: {run}");
        }
    }

    #[test]
    fn a_slow_last_hop_forwards_at_its_own_rate_and_drops_the_excess() {
        let now = Instant::now();
        let rate: BitRate = "8mbit".parse().unwrap();
        let kind = LinkKind { access: 0.5, queue: 10, ..LinkKind::default() };
        let mut link = Link::new(kind, rate, 1000, Random::new(1, 1), now);
        let mut passed = 0;
        for ms in 0..1000 {
            let mut late = Vec::new();
            link.carry(&[1000], 0, now + Duration::from_millis(ms), &mut late);
            passed += late.iter().map(|it| it.which.count_ones()).sum::<u32>();
        }
        assert!((500..=511).contains(&passed), "{passed}");
    }

    #[test]
    fn a_slow_machine_reads_at_its_own_rate_and_its_socket_counts_the_drops() {
        let now = Instant::now();
        let rate: BitRate = "8mbit".parse().unwrap();
        let kind = LinkKind { machine: 0.25, socket: 20, ..LinkKind::default() };
        let mut link = Link::new(kind, rate, 1000, Random::new(1, 1), now);
        let (mut read, mut dropped) = (0, 0);
        for ms in 0..1000 {
            let mut late = Vec::new();
            assert_eq!(link.carry(&[1000], 0, now + Duration::from_millis(ms), &mut late), 0);
            read += late.iter().map(|it| it.which.count_ones()).sum::<u32>();
            dropped += late.iter().map(|it| it.dropped).sum::<u64>();
        }
        assert!((250..=271).contains(&read), "{read}");
        assert!((1000 - 4..=1000).contains(&(u64::from(read) + dropped)), "{read} {dropped}");
    }

    #[test]
    fn overtaken_datagrams_arrive_later_and_duplicated_ones_twice() {
        let now = Instant::now();
        let rate: BitRate = "8mbit".parse().unwrap();
        let kind = LinkKind {
            overtaken: 0.1,
            duplicated: 0.1,
            jitter: Duration::from_millis(1),
            ..LinkKind::default()
        };
        let mut link = Link::new(kind, rate, 1000, Random::new(1, 1), now);
        let (mut in_time, mut late) = (0, Vec::new());
        for _ in 0..1000 {
            in_time += link.carry(&[1000; BURST], 0, now, &mut late).count_ones();
        }
        let later: u32 = late.iter().map(|it| it.which.count_ones()).sum();
        assert!(late.iter().all(|it| it.at > now));
        assert!((in_time + later) > 44_000 + 4000, "{in_time} {later}");
        assert!(in_time < 44_000 - 4000);
    }
}
