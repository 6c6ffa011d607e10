//! Simulates the network between server and one receiver.

use std::time::{Duration, Instant};

use bootcast_proto::BitRate;

use super::random::Random;

/// Set of datagrams of a burst, one bit each.
pub(super) type Mask = u64;

/// Mask of the lowest `len` bits.
pub(super) fn all(len: usize) -> Mask {
    debug_assert!(len <= 64, "a burst is at most 64 datagrams");
    if len == 64 { Mask::MAX } else { (1 << len) - 1 }
}

/// Loss of datagrams: how many, and how many in a row.
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

    /// Loses runs of this mean length: Gilbert's model, in which a bad period loses everything.
    pub fn bursts(share: f64, burst: f64) -> Self {
        Self { share, burst }
    }
}

/// Alternating runs of geometric length; one kind picks datagrams.
#[derive(Debug)]
struct Runs {
    random: Random,
    /// Mean lengths of the runs that do not pick and of those that do; `None` if nothing is ever
    /// picked.
    means: Option<[f64; 2]>,
    picking: bool,
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

    /// Picks from the next `len` datagrams.
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

/// Loss that several receivers share, such as that of a switch port.
#[derive(Debug)]
pub(super) struct SharedLoss(Runs);

impl SharedLoss {
    /// Creates the loss before its first datagram.
    pub(super) fn new(loss: Loss, random: Random) -> Self {
        Self(Runs::new(loss, random))
    }

    /// Picks those of the next `len` datagrams that none of the receivers gets.
    pub(super) fn next(&mut self, len: usize) -> Mask {
        self.0.pick(len)
    }
}

/// Connection of one receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkKind {
    /// Loss of this receiver alone.
    pub loss: Loss,
    /// Loss that it shares with the others of its port.
    pub shared: Loss,
    /// Receivers at a port; 0 if loss is not shared.
    pub port: usize,
    /// Delay from the server, in addition to the common one.
    pub delay: Duration,
    /// Share of datagrams that others overtake.
    pub overtaken: f64,
    /// Largest additional delay of these.
    pub jitter: Duration,
    /// Share of datagrams that arrive twice.
    pub duplicated: f64,
    /// Speed of the last hop as a share of the server's rate; 0 if it is no bottleneck.
    pub access: f64,
    /// Datagrams that the queue before the last hop holds.
    pub queue: u32,
    /// Speed at which the receiver's machine takes datagrams, as a share of the server's rate; 0 if
    /// it always keeps up.
    pub machine: f64,
    /// Datagrams that its socket holds. The receiver learns how many were dropped.
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
    /// Drops of its socket that the receiver does not know yet.
    dropped: u64,
}

/// A queue that passes datagrams on one by one, at a fixed speed.
#[derive(Debug)]
struct Queue {
    rate: BitRate,
    /// Time to empty a full queue.
    depth: Duration,
    /// The queue is busy until then.
    busy_until: Instant,
}

impl Queue {
    /// Creates a queue with this share of `rate` and room for `room` bytes; `None` for a share of
    /// 0.
    fn new(rate: BitRate, share: f64, room: u64, now: Instant) -> Option<Self> {
        let rate = BitRate::from_bits_per_second(scaled(rate, share))?;
        Some(Self { rate, depth: rate.time_to_send(room), busy_until: now })
    }

    /// Passes a burst that arrives at `now`. Returns which datagrams find room, and when the last
    /// of these is through.
    fn pass(&mut self, lens: &[u64], come: Mask, now: Instant) -> (Mask, Instant) {
        let mut passed = come;
        for (bit, &len) in lens.iter().enumerate() {
            if come & 1 << bit != 0 && !self.takes(len, now) {
                passed &= !(1 << bit);
            }
        }
        (passed, self.busy_until.max(now))
    }

    /// Whether a datagram of `bytes` finds room at `now`.
    fn takes(&mut self, bytes: u64, now: Instant) -> bool {
        let begins = self.busy_until.max(now);
        let room = begins - now <= self.depth;
        if room {
            self.busy_until = begins + self.rate.time_to_send(bytes);
        }
        room
    }
}

impl Link {
    /// Creates a link. `rate` is the server's, `datagram` the size of a typical datagram on the
    /// wire.
    pub(super) fn new(
        kind: LinkKind,
        rate: BitRate,
        datagram: u64,
        mut random: Random,
        now: Instant,
    ) -> Self {
        let mut stream = || Random::new(random.next(), 0);
        let room = |datagrams: u32| datagram * u64::from(datagrams);
        Self {
            lost: Runs::new(kind.loss, stream()),
            overtaken: Runs::new(Loss::independent(kind.overtaken), stream()),
            duplicated: Runs::new(Loss::independent(kind.duplicated), stream()),
            random: stream(),
            access: Queue::new(rate, kind.access, room(kind.queue), now),
            machine: Queue::new(rate, kind.machine, room(kind.socket), now),
            dropped: 0,
            kind,
        }
    }

    /// Carries a burst of datagrams of these lengths, without those that were lost before. Returns
    /// what arrives now and adds later deliveries to `late`.
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
            let through;
            (passed, through) = access.pass(lens, passed, now);
            at = at.max(through + self.kind.delay);
        }
        if let Some(machine) = &mut self.machine {
            let (taken, through) = machine.pass(lens, passed, at);
            self.dropped += u64::from((passed & !taken).count_ones());
            (passed, at) = (taken, through);
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

/// Computes a share of a rate, in bits per second.
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

    fn losses(loss: Loss) -> (f64, f64) {
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
    fn losses_have_the_share_and_the_length_that_was_asked_for() {
        for (loss, length) in [
            (Loss::independent(0.01), 1.01),
            (Loss::independent(0.2), 1.25),
            (Loss::bursts(0.01, 20.0), 20.0),
        ] {
            let (share, run) = losses(loss);
            assert!((share / loss.share - 1.0).abs() < 0.05, "{loss:?}: {share}");
            assert!((run / length - 1.0).abs() < 0.05, "{loss:?}: {run}");
        }
    }

    #[test]
    fn a_slow_last_hop_passes_its_own_rate_and_drops_the_rest() {
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
    fn a_slow_machine_takes_what_it_can_and_its_socket_tells_of_the_rest() {
        let now = Instant::now();
        let rate: BitRate = "8mbit".parse().unwrap();
        let kind = LinkKind { machine: 0.25, socket: 20, ..LinkKind::default() };
        let mut link = Link::new(kind, rate, 1000, Random::new(1, 1), now);
        let (mut taken, mut dropped) = (0, 0);
        for ms in 0..1000 {
            let mut late = Vec::new();
            assert_eq!(link.carry(&[1000], 0, now + Duration::from_millis(ms), &mut late), 0);
            taken += late.iter().map(|it| it.which.count_ones()).sum::<u32>();
            dropped += late.iter().map(|it| it.dropped).sum::<u64>();
        }
        assert!((250..=271).contains(&taken), "{taken}");
        assert!((1000 - 4..=1000).contains(&(u64::from(taken) + dropped)), "{taken} {dropped}");
    }

    #[test]
    fn what_is_overtaken_comes_later_and_what_is_duplicated_twice() {
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
