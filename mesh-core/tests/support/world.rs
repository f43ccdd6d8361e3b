//! Two nodes and a pipe that loses, reorders, repeats and changes what it carries, moved by a script of [`Step`]s, and
//! everything that must hold whatever the script says. Shared by the model test and the fuzz target.
//!
//! Checked after every step, by [`World::apply`]:
//!
//! * nothing is delivered that was not sent to that end, nothing changed, nothing twice
//! * no initiation is answered twice by a node that remembers it
//! * no two datagrams carry one receiver index and counter, which would be one nonce used twice
//! * no deadline lies in the past (in [`End`])
//! * one call sends no more than its queue may hold
//!
//! Checked at the end, by [`World::finish`]:
//!
//! * once the faults stop, fresh packets get through both ways within [`HEALED_WITHIN`]
//! * after nine idle minutes no tunnel, session or receiver index is left

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use mesh_core::{
    crypto::hash::blake2s,
    limits,
    node::{Command, CommandId, HostEvent, Input, Reply},
    rng::Seed,
    time::Instant,
    wireguard::timers::{ERASE_AFTER_TIME, NO_ANSWER_TIMEOUT, REKEY_TIMEOUT},
};

use super::{End, address, config, packet, peer};

/// Fresh packets must pass this long after the last fault: one end may have to find out that the other has forgotten
/// their session, and its handshake may have to wait for the one before, and then for a cookie.
pub const HEALED_WITHIN: Duration = NO_ANSWER_TIMEOUT.saturating_add(REKEY_TIMEOUT.saturating_mul(3));

/// Datagrams on their way in one direction. Beyond that the pipe loses the oldest.
const IN_FLIGHT: usize = 96;

/// Handshake messages and keepalives that one call may send beside the packets that had waited.
const BESIDE_QUEUE: usize = 4;

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

/// One thing that happens. `pick` chooses among the datagrams on their way, modulo how many there are.
#[derive(Clone, Debug)]
pub enum Step {
    /// The host at `from` sends a packet with so many bytes of payload, `lag` behind the newest time.
    Send { from: Side, bytes: u16, lag: Duration },
    /// A datagram arrives, `lag` behind the newest time.
    Deliver { to: Side, pick: usize, lag: Duration },
    /// All datagrams on their way to one end arrive, in order.
    DeliverAll { to: Side },
    /// A datagram arrives and stays on its way.
    Duplicate { to: Side, pick: usize },
    /// A datagram is lost.
    Drop { to: Side, pick: usize },
    /// A datagram arrives with one byte changed, and stays on its way.
    Corrupt { to: Side, pick: usize, at: usize, xor: u8 },
    /// A datagram arrives with its end cut off, and stays on its way.
    Truncate { to: Side, pick: usize, length: usize },
    /// A datagram arrives from an address where nobody is, and stays on its way: a replay by somebody else.
    Replay { to: Side, pick: usize },
    /// Bytes from a stranger arrive.
    Garbage { to: Side, bytes: Vec<u8> },
    /// So many good initiations by somebody who is no peer arrive.
    Flood { to: Side, count: u16 },
    /// Time passes; timers are late.
    Jump { by: Duration },
    /// Time passes until the next deadline, and all that is due acts.
    Wait,
    /// Timers are asked to act, with a time that is long past.
    OldTimeout { side: Side, by: Duration },
    /// The host slept or changed its links.
    Host { side: Side },
    /// A node is stopped and started again, with nothing kept.
    Restart { side: Side },
    /// A node forgets its peer and is told of it again.
    Reconfigure { side: Side },
}

/// Two nodes, the pipe between them, and what was seen so far.
pub struct World {
    a: Place,
    b: Place,
    pub now: Instant,
    /// Packets sent so far, each with a number of its own.
    sent: Vec<(Side, Vec<u8>)>,
    nonces: BTreeSet<(u8, u32, u64)>,
    /// Which initiations were answered: by whom, with which memory, and the index that they named.
    answered: BTreeSet<(u8, u64, u32)>,
    flood: Vec<u8>,
    trace: [u8; 32],
}

/// One end, and what is on its way to it.
struct Place {
    end: End,
    number: u8,
    starts: u64,
    /// How often it has forgotten its peer, by a restart or otherwise.
    memory: u64,
    inbound: Vec<Vec<u8>>,
    /// Numbers of the packets delivered here.
    delivered: BTreeSet<u32>,
}

impl World {
    pub fn new() -> Self {
        let now = Instant::from_secs(100);
        let mut stranger = End::new(9, config(9, vec![peer(1)]), now);
        stranger.send(&packet(9, 1, b"x"), now);
        let flood = stranger.sent.pop_front().expect("a first packet makes an initiation").1;
        let place = |number| Place {
            end: start(number, 0, now),
            number,
            starts: 0,
            memory: 0,
            inbound: Vec::new(),
            delivered: BTreeSet::new(),
        };
        Self {
            a: place(1),
            b: place(2),
            now,
            sent: Vec::new(),
            nonces: BTreeSet::new(),
            answered: BTreeSet::new(),
            flood,
            trace: [0; 32],
        }
    }

    /// Does one step and checks what must hold.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Send { from, bytes, lag } => {
                self.catch_up(*from, *lag);
                self.send(*from, *bytes, self.now - *lag);
            }
            Step::Deliver { to, pick, lag } => {
                self.catch_up(*to, *lag);
                if let Some(at) = self.pick(*to, *pick) {
                    let datagram = self.place(*to).inbound.remove(at);
                    self.deliver(*to, datagram, peer_address(*to), self.now - *lag);
                }
            }
            Step::DeliverAll { to } => {
                for datagram in core::mem::take(&mut self.place(*to).inbound) {
                    self.deliver(*to, datagram, peer_address(*to), self.now);
                }
            }
            Step::Duplicate { to, pick } => self.deliver_changed(*to, *pick, peer_address(*to), |_| ()),
            Step::Drop { to, pick } => {
                if let Some(at) = self.pick(*to, *pick) {
                    self.place(*to).inbound.remove(at);
                }
            }
            Step::Corrupt { to, pick, at, xor } => self.deliver_changed(*to, *pick, peer_address(*to), |datagram| {
                let at = at % datagram.len();
                datagram[at] ^= xor;
            }),
            Step::Truncate { to, pick, length } => {
                self.deliver_changed(*to, *pick, peer_address(*to), |datagram| {
                    datagram.truncate(length % (datagram.len() + 1));
                });
            }
            Step::Replay { to, pick } => self.deliver_changed(*to, *pick, address(66), |_| ()),
            Step::Garbage { to, bytes } => self.deliver(*to, bytes.clone(), address(66), self.now),
            Step::Flood { to, count } => {
                for _ in 0..*count {
                    self.deliver(*to, self.flood.clone(), address(66), self.now);
                }
            }
            Step::Jump { by } => self.now += *by,
            Step::Wait => self.wait(Instant::FAR_FUTURE),
            Step::OldTimeout { side, by } => {
                let then = self.now - *by;
                self.place(*side).end.timeout(then);
                self.collect(*side);
            }
            Step::Host { side } => {
                self.input(*side, Input::Host(HostEvent::Resumed { slept: Duration::ZERO, entropy: None }))
            }
            Step::Restart { side } => {
                let now = self.now;
                let place = self.place(*side);
                place.starts += 1;
                place.memory += 1;
                place.end = start(place.number, place.starts, now);
            }
            Step::Reconfigure { side } => {
                let other = 3 - self.place(*side).number;
                self.place(*side).memory += 1;
                for peers in [vec![], vec![peer(other)]] {
                    self.input(*side, Input::Command(CommandId(1), Command::SetPeers(peers)));
                }
                let is_set = |said: &_| matches!(said, mesh_core::node::Output::Reply(_, Ok(Reply::PeersSet)));
                assert!(self.place(*side).end.said.iter().any(is_set));
            }
        }
        for side in [Side::A, Side::B] {
            self.place(side).end.said.clear();
        }
    }

    /// Ends the faults, and checks that the tunnel heals and, when idle, leaves nothing behind.
    pub fn finish(&mut self) {
        let healed_at = self.now + HEALED_WITHIN;
        while self.now < healed_at {
            self.talk_for_a_second();
        }
        let before = self.sent.len() as u32;
        for _ in 0..5 {
            self.talk_for_a_second();
        }
        let after = self.sent.len() as u32;
        let missing: Vec<_> = (before..after)
            .filter(|number| !self.a.delivered.contains(number) && !self.b.delivered.contains(number))
            .collect();
        assert!(missing.is_empty(), "of the packets {before}..{after} these did not get through: {missing:?}");

        let idle_until = self.now + ERASE_AFTER_TIME + REKEY_TIMEOUT * 30;
        while self.now < idle_until {
            self.carry();
            self.wait(idle_until);
        }
        for place in [&self.a, &self.b] {
            let node = &place.end.node;
            let left = (node.tunnel_count(), node.index_count(), place.end.plane.fib().receivers().len());
            assert_eq!(left, (0, 0, 0), "tunnels, indices, sessions left at {}", place.number);
            assert_eq!(place.end.deadline(), None);
        }
    }

    /// Packets delivered so far, at both ends.
    pub fn delivered(&self) -> usize {
        self.a.delivered.len() + self.b.delivered.len()
    }

    /// A hash over all that was sent and delivered, in order.
    pub fn trace(&self) -> [u8; 32] {
        self.trace
    }

    /// Lets timers act at both ends.
    pub fn timeout_both(&mut self, now: Instant) {
        for side in [Side::A, Side::B] {
            self.place(side).end.timeout(now);
            self.collect(side);
        }
    }

    fn talk_for_a_second(&mut self) {
        let end = self.now + Duration::from_secs(1);
        self.send(Side::A, 40, self.now);
        self.send(Side::B, 40, self.now);
        while self.now < end {
            self.carry();
            self.wait(end);
        }
        self.carry();
    }

    /// Carries datagrams in order and without loss until none is left.
    fn carry(&mut self) {
        while !(self.a.inbound.is_empty() && self.b.inbound.is_empty()) {
            self.apply(&Step::DeliverAll { to: Side::B });
            self.apply(&Step::DeliverAll { to: Side::A });
        }
    }

    /// Lets time pass until the next deadline, or `until`, and everything due act.
    fn wait(&mut self, until: Instant) {
        let next = [self.a.end.deadline(), self.b.end.deadline()].into_iter().flatten().min();
        self.now = match next {
            Some(at) => at.min(until).max(self.now),
            None if until == Instant::FAR_FUTURE => return,
            None => until,
        };
        self.timeout_both(self.now);
    }

    /// A worker's stamp may be old, but only the driver knows the time: before a stamp that is older than any batch, the
    /// node has seen a newer one. (A node whose only clock stands still would judge its sessions younger than its peer
    /// does, and drop them late.)
    fn catch_up(&mut self, side: Side, lag: Duration) {
        if lag > Duration::from_millis(100) {
            let now = self.now;
            self.place(side).end.timeout(now);
            self.collect(side);
        }
    }

    fn send(&mut self, from: Side, bytes: u16, now: Instant) {
        let number = self.sent.len() as u32;
        let (source, destination) = if from == Side::A { (1, 2) } else { (2, 1) };
        let mut payload = number.to_be_bytes().to_vec();
        payload.resize(4 + usize::from(bytes % 1300), number as u8);
        let packet = packet(source, destination, &payload);
        self.sent.push((from, packet.clone()));
        self.place(from).end.send(&packet, now);
        self.collect(from);
    }

    fn input(&mut self, side: Side, input: Input) {
        let now = self.now;
        self.place(side).end.input(input, now);
        self.collect(side);
    }

    fn deliver(&mut self, to: Side, datagram: Vec<u8>, from: SocketAddr, now: Instant) {
        self.place(to).end.receive(datagram, from, now);
        self.collect(to);
    }

    fn deliver_changed(&mut self, to: Side, pick: usize, from: SocketAddr, change: impl FnOnce(&mut Vec<u8>)) {
        let Some(at) = self.pick(to, pick) else { return };
        let mut datagram = self.place(to).inbound[at].clone();
        change(&mut datagram);
        self.deliver(to, datagram, from, self.now);
    }

    /// Puts what an end has sent on its way, takes what it has delivered, and checks both.
    fn collect(&mut self, side: Side) {
        let Self { a, b, sent, nonces, answered, trace, .. } = self;
        let (here, there) = if side == Side::A { (a, b) } else { (b, a) };
        let count = here.end.sent.len();
        assert!(count <= limits::QUEUED_PACKETS_PER_PEER + BESIDE_QUEUE, "{count} datagrams at once");
        for (_, datagram) in here.end.sent.drain(..) {
            if datagram[0] == 4 {
                let receiver = u32::from_le_bytes(datagram[4..8].try_into().expect("four bytes"));
                let counter = u64::from_le_bytes(datagram[8..16].try_into().expect("eight bytes"));
                assert!(nonces.insert((here.number, receiver, counter)), "{receiver:08x}:{counter} is used twice");
            }
            if datagram[0] == 2 {
                let initiation = u32::from_le_bytes(datagram[8..12].try_into().expect("four bytes"));
                assert!(answered.insert((here.number, here.memory, initiation)), "an initiation is answered twice");
            }
            *trace = blake2s(&[&*trace, &[here.number], &datagram]);
            there.inbound.push(datagram);
        }
        let excess = there.inbound.len().saturating_sub(IN_FLIGHT);
        there.inbound.drain(..excess);

        for packet in here.end.delivered.drain(..) {
            *trace = blake2s(&[&*trace, &[here.number + 10], &packet]);
            let number = packet.get(20..24).map(|n| u32::from_be_bytes(n.try_into().expect("four bytes")));
            let original = number.and_then(|number| sent.get(number as usize));
            let (from, original) = original.expect("what is delivered was sent");
            assert!(*from != side && *original == packet, "what is delivered was sent so, to this end");
            assert!(number.is_some_and(|number| here.delivered.insert(number)), "packet {number:?} is delivered twice");
        }
    }

    fn pick(&mut self, to: Side, pick: usize) -> Option<usize> {
        pick.checked_rem(self.place(to).inbound.len())
    }

    fn place(&mut self, side: Side) -> &mut Place {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }
}

/// Node `number`, started for the `starts`th time. Its calendar goes on; its dice are others, as a daemon's are.
fn start(number: u8, starts: u64, now: Instant) -> End {
    let mut settings = config(number, vec![peer(3 - number)]);
    settings.seed = Seed::from_number(u64::from(number)).child("start", starts);
    End::new(number, settings, now)
}

fn peer_address(to: Side) -> SocketAddr {
    match to {
        Side::A => address(2),
        Side::B => address(1),
    }
}
