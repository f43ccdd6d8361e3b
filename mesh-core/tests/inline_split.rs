//! Both uses of the data plane give the same bytes.
//!
//! *Inline*, the node hears of a punt or notice while the packet that made it is still being handled. *Split*, workers
//! carry on with tables that may be a little old, and what they have to say reaches the node through a bounded queue,
//! some time later and some packets later. The same hosts send the same packets either way.

mod support;

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use mesh_core::{
    dataplane::{DataPlane, DropReason, Fib, Inbound, Notice, Punt, Reports},
    limits,
    machine::Machine,
    node::{Command, CommandId, Input, Node, Output},
    path::{PathAddr, SendPath},
    rng::{Rng, Seed},
    time::Instant,
};
use support::{address, config, packet, peer};

const TICK: Duration = Duration::from_millis(10);
const LATENCY: Duration = Duration::from_millis(20);

#[test]
fn with_equal_timing_the_datagrams_are_the_same() {
    for seed in 0..4 {
        let inline = run(seed, Mode::Inline);
        let split = run(seed, Mode::Split { delay: Duration::ZERO });
        assert!(inline.datagrams.len() > 1000, "{}", inline.datagrams.len());
        let first = inline.datagrams.iter().zip(&split.datagrams).position(|(a, b)| a != b);
        assert_eq!(first, None, "seed {seed}: another datagram");
        assert_eq!(inline.datagrams.len(), split.datagrams.len());
        assert_eq!(inline.delivered, split.delivered);
    }
}

#[test]
fn with_delays_the_same_packets_arrive() {
    for seed in 0..8 {
        let inline = run(seed, Mode::Inline);
        assert_eq!(inline.delivered.len(), inline.sent, "seed {seed}: on this pipe nothing is lost");
        for millis in [10, 50, 200] {
            let mut split = run(seed, Mode::Split { delay: Duration::from_millis(millis) });
            let mut expected = inline.delivered.clone();
            // A packet that waited for the owner may come after one that did not.
            expected.sort_unstable();
            split.delivered.sort_unstable();
            assert_eq!(split.delivered.len(), expected.len(), "seed {seed}, delays up to {millis} ms");
            assert!(split.delivered == expected, "seed {seed}, delays up to {millis} ms: other bytes");
            assert!(split.handshakes <= inline.handshakes + 3, "{} {}", split.handshakes, inline.handshakes);
        }
    }
}

/// Who hears of punts and notices, and when.
#[derive(Clone, Copy)]
enum Mode {
    /// The node, at once.
    Inline,
    /// The node, after up to `delay`; workers keep an old table as long.
    Split { delay: Duration },
}

/// What a run came to.
struct Outcome {
    /// Packets that the hosts sent.
    sent: usize,
    /// Packets with their receiver, in order of arrival.
    delivered: Vec<(u8, Vec<u8>)>,
    /// All datagrams of one sender and tick together, sorted: which of the owner's and the workers' comes first is not
    /// promised.
    datagrams: Vec<(Instant, u8, Vec<u8>)>,
    handshakes: usize,
}

/// Two hosts talk in bursts, fall silent for longer than a session lives, and talk again; one of them is told of a third
/// peer meanwhile.
fn run(seed: u64, mode: Mode) -> Outcome {
    let seed = Seed::from_number(seed);
    let mut dice = seed.stream("traffic", 0);
    let mut now = Instant::from_secs(1);
    let mut drivers = [1, 2].map(|number| Driver::new(number, mode, seed.stream("driver", u64::from(number)), now));
    let mut pipe: VecDeque<(Instant, usize, Vec<u8>)> = VecDeque::new();
    let mut outcome = Outcome { sent: 0, delivered: Vec::new(), datagrams: Vec::new(), handshakes: 0 };
    let end = now + Duration::from_secs(420);
    while now < end {
        let second = now.as_nanos() / 1_000_000_000;
        let is_talking = !(140..340).contains(&second) && now + Duration::from_secs(5) < end;
        for from in [0, 1] {
            let burst = if is_talking && dice.below(12) == 0 { 1 + dice.below(6) } else { 0 };
            let packets: Vec<_> = (0..burst)
                .map(|_| {
                    let payload = vec![dice.u32() as u8; 4 + dice.below(200) as usize];
                    let number = (outcome.sent as u32).to_be_bytes();
                    outcome.sent += 1;
                    packet(1 + from as u8, 2 - from as u8, &[&number[..], &payload].concat())
                })
                .collect();
            drivers[from].send(&packets, now);
        }
        while pipe.front().is_some_and(|(at, ..)| *at <= now) {
            let (_, to, datagram) = pipe.pop_front().expect("there is a first");
            drivers[to].receive(datagram, address(2 - to as u8), now);
        }
        if second == 60 && now.as_nanos().is_multiple_of(1_000_000_000) {
            let peers = vec![peer(2), peer(3)];
            drivers[0].hand_over(Input::Command(CommandId(1), Command::SetPeers(peers)), now);
        }
        for (number, driver) in drivers.iter_mut().enumerate() {
            driver.turn(now);
            outcome.delivered.extend(driver.delivered.drain(..).map(|packet| (number as u8, packet)));
            driver.sent.sort_unstable();
            for datagram in driver.sent.drain(..) {
                outcome.handshakes += usize::from(datagram[0] == 1);
                outcome.datagrams.push((now, number as u8, datagram.clone()));
                pipe.push_back((now + LATENCY, 1 - number, datagram));
            }
        }
        now += TICK;
    }
    outcome
}

/// A node, and workers that share its data plane.
struct Driver {
    node: Node,
    plane: DataPlane,
    /// What the workers have loaded, and since when.
    fib: (Instant, Arc<Fib>),
    mode: Mode,
    dice: Rng,
    queue: VecDeque<(Instant, Input)>,
    sent: Vec<Vec<u8>>,
    delivered: Vec<Vec<u8>>,
}

impl Driver {
    fn new(number: u8, mode: Mode, dice: Rng, now: Instant) -> Self {
        let node = Node::new(config(number, vec![peer(3 - number)]), now).expect("the configuration is good");
        let plane = node.data_plane();
        let fib = (now, plane.fib());
        let (queue, sent, delivered) = (VecDeque::new(), Vec::new(), Vec::new());
        Self { node, plane, fib, mode, dice, queue, sent, delivered }
    }

    fn send(&mut self, packets: &[Vec<u8>], now: Instant) {
        let (fib, mut sink) = (self.fib(now), Vec::<(SendPath, Vec<u8>)>::new());
        fib.outbound(packets.iter().map(Vec::as_slice), now, &mut sink, &mut Said { driver: self, now });
        self.sent.extend(sink.into_iter().map(|(_, datagram)| datagram));
    }

    fn receive(&mut self, mut datagram: Vec<u8>, from: SocketAddr, now: Instant) {
        let fib = self.fib(now);
        let mut said = Said { driver: self, now };
        if let Inbound::Deliver { packet, .. } = fib.inbound(now).handle(&mut datagram, PathAddr::Udp(from), &mut said)
        {
            let packet = packet.to_vec();
            self.delivered.push(packet);
        }
    }

    /// The owner's turn: what has come through the queue, then timers, then what the node wants done.
    fn turn(&mut self, now: Instant) {
        while self.queue.front().is_some_and(|(at, _)| *at <= now) {
            let (_, input) = self.queue.pop_front().expect("there is a first");
            self.node.handle_input(input, now);
        }
        self.node.handle_timeout(now);
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Transmit(transmit) => self.sent.push(transmit.payload),
                Output::TunWrite(packet) => self.delivered.push(packet),
                Output::Relay(_)
                | Output::Control(_)
                | Output::Save(_)
                | Output::Fetch(..)
                | Output::Resolve { .. }
                | Output::Sockets(_)
                | Output::Configure(_)
                | Output::Reply(..)
                | Output::Event(_) => {}
            }
        }
        assert!(self.node.poll_timeout().is_none_or(|deadline| deadline.at > now));
    }

    fn hand_over(&mut self, input: Input, now: Instant) {
        match self.mode {
            Mode::Inline => self.node.handle_input(input, now),
            Mode::Split { delay } => {
                assert!(self.queue.len() < limits::PUNTS);
                // The queue keeps its order: nothing overtakes.
                let at = now + self.dice.duration_below(delay);
                let at = self.queue.back().map_or(at, |(last, _)| at.max(*last));
                self.queue.push_back((at, input));
            }
        }
    }

    /// The table as the workers have it.
    fn fib(&mut self, now: Instant) -> Arc<Fib> {
        let keeps = match self.mode {
            Mode::Inline => Duration::ZERO,
            Mode::Split { delay } => delay,
        };
        if now.since(self.fib.0) >= keeps {
            self.fib = (now, self.plane.fib());
        }
        Arc::clone(&self.fib.1)
    }
}

/// Passes on what the fast path says.
struct Said<'d> {
    driver: &'d mut Driver,
    now: Instant,
}

impl Reports for Said<'_> {
    fn punt(&mut self, punt: Punt) {
        self.driver.hand_over(Input::Punt(punt), self.now);
    }

    fn notice(&mut self, notice: Notice) {
        self.driver.hand_over(Input::Notice(notice), self.now);
    }

    fn dropped(&mut self, reason: DropReason) {
        // This pipe loses and changes nothing, so neither may the data plane.
        panic!("dropped: {}", reason.name());
    }
}
