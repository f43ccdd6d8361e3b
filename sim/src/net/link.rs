//! One direction of a link: delay, jitter, loss with memory, reordering, duplication, corruption, rate and queue.
//!
//! A link decides about a packet the moment it is offered: it ends, or it is told when it arrives. There is no
//! queue of packets: with a rate, the time at which the sender is idle again says how much waits, and that is
//! compared with the queue's size. Order is kept unless a packet is picked for reordering: independent delays
//! would reorder far more than real links do.

use core::time::Duration;

use mesh_core::time::Instant;

use crate::kernel::dice::{Dice, Die, Probability, Roll, Rolls};

use super::packet::{CauseCounts, DropCause, Packet, PacketKind};

/// Bytes of Ethernet header and check sum in front of and behind an IP packet: they take time on the wire too.
const L2_BYTES: u64 = 18;

/// How much later than the first the second copy of a packet arrives at most.
const DUPLICATE_WITHIN: Duration = Duration::from_millis(2);

/// How a link behaves. Times are one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkParams {
    /// Propagation: one value in this range, drawn once for each direction.
    pub delay: (Duration, Duration),
    /// Packets arrive up to this much earlier or later.
    pub jitter: Duration,
    /// Which packets are lost.
    pub loss: Loss,
    /// Share of packets that others may overtake.
    pub reorder: Probability,
    /// Share of packets that arrive twice.
    pub duplicate: Probability,
    /// Share of packets in which one bit is flipped.
    pub corrupt: Probability,
    /// Bits a second, headers of layer 2 included; `None` is no limit.
    pub rate: Option<u64>,
    /// Bytes that may wait for the rate; more is dropped at the tail.
    pub queue_bytes: u64,
    /// Largest IP packet in bytes; larger ones vanish silently.
    pub mtu_bytes: usize,
}

/// Which packets a link loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Each with this probability.
    Bernoulli(Probability),
    /// Gilbert–Elliott by packet: all in the bad state, none in the good one.
    Bursts {
        /// Mean share lost.
        mean: Probability,
        /// Mean length of a burst in packets, at least 1.
        burst: u32,
    },
}

impl LinkParams {
    /// A wire without length or faults.
    pub const PERFECT: Self = Self {
        delay: (Duration::ZERO, Duration::ZERO),
        jitter: Duration::ZERO,
        loss: Loss::Bernoulli(Probability::ZERO),
        reorder: Probability::ZERO,
        duplicate: Probability::ZERO,
        corrupt: Probability::ZERO,
        rate: None,
        queue_bytes: 1_000_000,
        mtu_bytes: 1500,
    };
}

/// One direction of a link.
#[derive(Debug)]
pub struct Link {
    params: LinkParams,
    up: bool,
    /// Where in the range of delays this direction is, in parts of 2^16.
    delay_at: u32,
    rolls: Rolls,
    /// Whether Gilbert–Elliott is in its bad state.
    bad: bool,
    /// When the last packet that kept its place arrives.
    last_arrival: Instant,
    /// When the sender is idle.
    idle_at: Instant,
    /// Probes that had to wait for the rate, and how long the longest did.
    probe_waits: (u64, Duration),
    counts: LinkCounts,
}

/// What a link did. `offered + duplicated = delivered + dropped + in flight`, always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Packets that were offered.
    pub offered: u64,
    /// Second copies that were made.
    pub duplicated: u64,
    /// Packets that came out.
    pub delivered: u64,
    /// Packets in which a bit was flipped.
    pub corrupted: u64,
    /// Packets that others were let overtake.
    pub reordered: u64,
    /// Packets that ended.
    pub dropped: CauseCounts,
}

/// What becomes of an offered packet.
#[derive(Debug)]
pub enum Carried {
    /// It ends.
    Dropped(DropCause),
    /// It arrives then; and once more, when the link duplicated it.
    Arrives {
        /// When.
        at: Instant,
        /// When the second copy does.
        again_at: Option<Instant>,
    },
}

impl Link {
    /// The direction of a link that `label` and `id` name.
    #[must_use]
    pub fn new(params: LinkParams, dice: &Dice, label: &str, id: u64) -> Self {
        Self {
            params,
            up: true,
            delay_at: dice.stream(label, id | 1 << 63).u32() >> 16,
            rolls: dice.rolls(label, id),
            bad: false,
            last_arrival: Instant::ZERO,
            idle_at: Instant::ZERO,
            probe_waits: (0, Duration::ZERO),
            counts: LinkCounts::default(),
        }
    }

    /// Offers a packet; the link may flip a bit in it.
    pub fn carry(&mut self, packet: &mut Packet, now: Instant) -> Carried {
        self.counts.offered += 1;
        let (_, roll) = self.rolls.next_roll();
        match self.decide(packet, &roll, now) {
            Ok(at) => {
                let again = roll.hits(Die::Duplicate, self.params.duplicate);
                self.counts.duplicated += u64::from(again);
                let again_at = again.then(|| at + roll.duration_below(Die::DuplicateDelay, DUPLICATE_WITHIN));
                Carried::Arrives { at, again_at }
            }
            Err(cause) => {
                self.counts.dropped.add(cause);
                Carried::Dropped(cause)
            }
        }
    }

    /// A packet came out.
    pub fn note_delivered(&mut self) {
        self.counts.delivered += 1;
    }

    /// Behaves otherwise from now on. What is under way arrives as it was told.
    pub fn set_params(&mut self, params: LinkParams) {
        self.params = params;
    }

    /// Carries nothing while down.
    pub fn set_up(&mut self, up: bool) {
        self.up = up;
    }

    /// Whether it carries anything.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// How the link behaves.
    #[must_use]
    pub fn params(&self) -> &LinkParams {
        &self.params
    }

    /// Probes that had to wait for the rate, and how long the longest did.
    #[must_use]
    pub fn probe_waits(&self) -> (u64, Duration) {
        self.probe_waits
    }

    /// How long a packet takes that need not wait, without jitter.
    fn propagation(&self) -> Duration {
        let (low, high) = self.params.delay;
        low + high.saturating_sub(low) * self.delay_at / (1 << 16)
    }

    /// How long a small packet takes behind one full packet, without jitter.
    #[must_use]
    pub fn passage(&self) -> Duration {
        let full = (self.params.mtu_bytes as u64 + L2_BYTES) * 8_000_000_000;
        self.propagation() + self.params.rate.map_or(Duration::ZERO, |rate| Duration::from_nanos(full / rate.max(1)))
    }

    /// What the link did.
    #[must_use]
    pub fn counts(&self) -> &LinkCounts {
        &self.counts
    }

    fn decide(&mut self, packet: &mut Packet, roll: &Roll, now: Instant) -> Result<Instant, DropCause> {
        if !self.up {
            return Err(DropCause::LinkDown);
        }
        if packet.ip_bytes() > self.params.mtu_bytes {
            return Err(DropCause::TooBig);
        }
        if self.is_lost(roll) {
            return Err(DropCause::Loss);
        }
        let sent = self.serialize(packet, now)?;
        if roll.hits(Die::Corrupt, self.params.corrupt) {
            self.counts.corrupted += 1;
            packet.flip(roll.below(Die::CorruptAt, u64::MAX));
        }
        Ok(self.arrival(roll, sent))
    }

    fn is_lost(&mut self, roll: &Roll) -> bool {
        match self.params.loss {
            Loss::Bernoulli(probability) => roll.hits(Die::Loss, probability),
            Loss::Bursts { mean, burst } => {
                // A burst ends with probability r = 1/burst; p/(p+r) = mean gives p = mean·r/(1−mean).
                let one = u64::from(Probability::ONE.parts());
                let mean = u64::from(mean.parts());
                let burst = u64::from(burst.max(1));
                let change = if self.bad { one / burst } else { mean * one / (burst * (one - mean).max(1)) };
                let change = Probability::from_parts(u32::try_from(change).unwrap_or(u32::MAX));
                self.bad ^= roll.hits(Die::State, change);
                self.bad
            }
        }
    }

    /// When the last bit is on the wire.
    fn serialize(&mut self, packet: &Packet, now: Instant) -> Result<Instant, DropCause> {
        let Some(rate) = self.params.rate else { return Ok(now) };
        let rate = rate.max(1);
        let nanos = |bytes: u64| (u128::from(bytes) * 8_000_000_000 / u128::from(rate)) as u64;
        let waiting = self.idle_at.since(now);
        if waiting > Duration::from_nanos(nanos(self.params.queue_bytes)) {
            return Err(DropCause::QueueFull);
        }
        if !waiting.is_zero() && PacketKind::of(packet.proto, &packet.payload) == PacketKind::Disco {
            let (probes, longest) = self.probe_waits;
            self.probe_waits = (probes + 1, longest.max(waiting));
        }
        self.idle_at = self.idle_at.max(now) + Duration::from_nanos(nanos(packet.ip_bytes() as u64 + L2_BYTES));
        Ok(self.idle_at)
    }

    fn arrival(&mut self, roll: &Roll, sent: Instant) -> Instant {
        let delay = self.propagation();
        let jitter = self.params.jitter;
        let at = (sent + delay + roll.duration_below(Die::Jitter, jitter * 2) - jitter).max(sent);
        if roll.hits(Die::Reorder, self.params.reorder) {
            self.counts.reordered += 1;
            // Held back for long enough that packets sent a little later pass; those do not wait for this one.
            return at.max(self.last_arrival) + jitter * 2 + Duration::from_millis(10);
        }
        self.last_arrival = self.last_arrival.max(at);
        self.last_arrival
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::HostId, kernel::trace::digest_of, net::Proto};

    #[test]
    fn order_is_kept_under_jitter_and_broken_by_reordering_alone() {
        let params = LinkParams {
            delay: (Duration::from_millis(20), Duration::from_millis(20)),
            jitter: Duration::from_millis(10),
            ..LinkParams::PERFECT
        };
        let arrivals = run(params, 500, Duration::from_millis(1));
        assert!(arrivals.is_sorted());
        let reorder = Probability::from_basis_points(500);
        let arrivals = run(LinkParams { reorder, ..params }, 500, Duration::from_millis(1));
        assert!(!arrivals.is_sorted());
    }

    #[test]
    fn bursts_have_their_mean_and_their_length() {
        let mean = Probability::from_basis_points(1000);
        let mut link = link(LinkParams { loss: Loss::Bursts { mean, burst: 8 }, ..LinkParams::PERFECT });
        let lost: Vec<bool> = (0..100_000)
            .map(|_| matches!(link.carry(&mut packet(100), Instant::ZERO), Carried::Dropped(DropCause::Loss)))
            .collect();
        let total = lost.iter().filter(|lost| **lost).count();
        let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        assert!((8_500..11_500).contains(&total), "{total} lost");
        assert!((7 * bursts..9 * bursts).contains(&total), "{total} lost in {bursts} bursts");
    }

    #[test]
    fn a_rate_spaces_packets_and_the_queue_drops_at_its_tail() {
        // 1000 bytes at 8 Mbit/s take one millisecond.
        let params = LinkParams { rate: Some(8_000_000), queue_bytes: 10_000, ..LinkParams::PERFECT };
        let mut link = link(params);
        let mut arrivals = Vec::new();
        for _ in 0..20 {
            if let Carried::Arrives { at, .. } = link.carry(&mut packet(1000 - 46), Instant::ZERO) {
                arrivals.push(at);
            }
        }
        assert_eq!(arrivals.len(), 11);
        assert!(arrivals.windows(2).all(|pair| pair[1].since(pair[0]) == Duration::from_millis(1)));
        assert_eq!(link.counts().dropped.total(), 9);
    }

    #[test]
    fn what_a_link_does_to_a_packet_depends_on_the_number_alone() {
        let lost = |params: LinkParams| {
            let mut link = link(params);
            (0..1000).map(|_| matches!(link.carry(&mut packet(100), Instant::ZERO), Carried::Dropped(_))).collect()
        };
        let params = LinkParams { loss: Loss::Bernoulli(Probability::from_basis_points(1000)), ..LinkParams::PERFECT };
        let plain: Vec<bool> = lost(params);
        let jitter = Duration::from_millis(5);
        let shaken: Vec<bool> = lost(LinkParams { jitter, corrupt: Probability::ONE, ..params });
        assert_eq!(plain, shaken);
    }

    #[test]
    fn a_link_that_is_down_or_too_narrow_carries_nothing() {
        let mut link = link(LinkParams::PERFECT);
        assert!(matches!(link.carry(&mut packet(1473), Instant::ZERO), Carried::Dropped(DropCause::TooBig)));
        assert!(matches!(link.carry(&mut packet(1472), Instant::ZERO), Carried::Arrives { .. }));
        link.set_up(false);
        assert!(matches!(link.carry(&mut packet(1), Instant::ZERO), Carried::Dropped(DropCause::LinkDown)));
        assert_eq!((link.counts().offered, link.counts().dropped.total()), (3, 2));
    }

    fn run(params: LinkParams, packets: u64, every: Duration) -> Vec<Instant> {
        let mut link = link(params);
        let at = |number| Instant::ZERO + every * number as u32;
        (0..packets)
            .map(|number| match link.carry(&mut packet(100), at(number)) {
                Carried::Arrives { at, .. } => at,
                Carried::Dropped(cause) => panic!("{cause:?}"),
            })
            .collect()
    }

    fn link(params: LinkParams) -> Link {
        Link::new(params, &Dice::new(1), "test", 0)
    }

    fn packet(bytes: usize) -> Packet {
        let payload = vec![0; bytes];
        let address = "198.19.0.1:1".parse().unwrap();
        Packet {
            number: 0,
            origin: HostId(0),
            proto: Proto::Udp,
            source: address,
            destination: address,
            ttl: 64,
            digest: digest_of(&payload),
            payload,
        }
    }
}
