//! Two nodes and a pipe between them, driven inline: what a one-thread daemon does, without sockets.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "each test binary uses its part"
)]
#![allow(clippy::unwrap_used, clippy::new_without_default, reason = "test support")]

pub mod tailnet;
pub mod world;

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use mesh_core::{
    dataplane::{DataPlane, DropCounts, Inbound, ReportBuffer},
    ip::packet::protocol,
    key::{DiscoPrivate, NodePrivate, NodePublic, PresharedKey},
    machine::Machine,
    node::{Event, Input, Node, NodeConfig, Output, PeerAddressing, PeerConfig},
    path::PathAddr,
    rng::Seed,
    time::{Instant, WallAnchor, WallTime},
};

pub const MTU: usize = 1420;
/// 2026-01-01.
pub const EPOCH: WallTime = WallTime::from_unix_secs(1_767_225_600);

/// One end: a node with its driver.
pub struct End {
    pub node: Node,
    pub plane: DataPlane,
    pub address: SocketAddr,
    pub key: NodePublic,
    /// Datagrams on their way out, with where they go.
    pub sent: VecDeque<(PathAddr, Vec<u8>)>,
    /// Packets that reached the host.
    pub delivered: Vec<Vec<u8>>,
    /// What else the node said.
    pub said: Vec<Output>,
    /// Packets that ended in the fast path.
    pub drops: DropCounts,
}

pub fn private(number: u8) -> NodePrivate {
    NodePrivate::from_bytes([number; 32])
}

pub fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51820))
}

pub fn peer(number: u8) -> PeerConfig {
    PeerConfig {
        key: private(number).public(),
        preshared_key: Some(PresharedKey::from_bytes([77; 32])),
        allowed_ips: vec![format!("10.0.0.{number}/32").parse().unwrap()],
        addressing: PeerAddressing::Roaming { endpoint: Some(address(number)) },
        persistent_keepalive: None,
    }
}

pub fn config(number: u8, peers: Vec<PeerConfig>) -> NodeConfig {
    NodeConfig {
        key: private(number),
        disco_key: DiscoPrivate::from_bytes([number; 32]),
        addresses: vec![([10, 0, 0, number].into(), 24)],
        mtu_bytes: MTU,
        listen_port: 51820,
        peers,
        control: None,
        seed: Seed::from_number(u64::from(number)),
        epoch: WallAnchor { at: Instant::ZERO, wall: EPOCH },
    }
}

impl End {
    pub fn new(number: u8, config: NodeConfig, now: Instant) -> Self {
        let node = Node::new(config, now).expect("the configuration is good");
        let mut end = Self {
            plane: node.data_plane(),
            node,
            address: address(number),
            key: private(number).public(),
            sent: VecDeque::new(),
            delivered: Vec::new(),
            said: Vec::new(),
            drops: DropCounts::default(),
        };
        end.drain(now);
        end
    }

    /// The host sends a packet.
    pub fn send(&mut self, packet: &[u8], now: Instant) {
        let (mut sink, mut reports) = (Vec::new(), ReportBuffer::default());
        self.plane.fib().outbound([packet], now, &mut sink, &mut reports);
        self.sent.extend(sink.into_iter().map(|(path, datagram)| (path.to, datagram)));
        self.report(reports, now);
    }

    /// A datagram arrives.
    pub fn receive(&mut self, datagram: Vec<u8>, from: SocketAddr, now: Instant) {
        self.receive_from(datagram, PathAddr::Udp(from), now);
    }

    pub fn receive_from(&mut self, mut datagram: Vec<u8>, from: PathAddr, now: Instant) {
        let mut reports = ReportBuffer::default();
        let fib = self.plane.fib();
        let mut run = fib.inbound(now);
        if let Inbound::Deliver { packet, .. } = run.handle(&mut datagram, from, &mut reports) {
            self.delivered.push(packet.to_vec());
        }
        drop(run);
        self.report(reports, now);
    }

    pub fn input(&mut self, input: Input, now: Instant) {
        self.node.handle_input(input, now);
        self.drain(now);
    }

    /// Lets timers act when they are due.
    pub fn timeout(&mut self, now: Instant) {
        self.node.handle_timeout(now);
        self.drain(now);
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.node.poll_timeout().map(|deadline| deadline.at)
    }

    pub fn sessions_established(&self) -> usize {
        self.said.iter().filter(|o| matches!(o, Output::Event(Event::SessionEstablished { .. }))).count()
    }

    fn report(&mut self, reports: ReportBuffer, now: Instant) {
        self.drops.merge(&reports.drops);
        if reports.is_empty() {
            // The node was not asked, so timers that are due have not acted.
            return;
        }
        for notice in reports.notices {
            self.node.handle_input(Input::Notice(notice), now);
        }
        for punt in reports.punts {
            self.node.handle_input(Input::Punt(punt), now);
        }
        self.drain(now);
    }

    fn drain(&mut self, now: Instant) {
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Transmit(transmit) => self.sent.push_back((transmit.to, transmit.payload)),
                Output::TunWrite(packet) => self.delivered.push(packet),
                other => self.said.push(other),
            }
        }
        if let Some(deadline) = self.node.poll_timeout() {
            assert!(deadline.at > now, "spins at {now}: {deadline:?}");
        }
    }
}

/// Two ends that know each other, with a pipe without loss or delay.
pub struct Pair {
    pub a: End,
    pub b: End,
    pub now: Instant,
    /// Datagrams carried so far, by direction.
    pub carried: Vec<(NodePublic, Vec<u8>)>,
    /// While set, what is carried does not arrive.
    pub is_cut: bool,
}

impl Pair {
    pub fn new() -> Self {
        Self::with(|_, _| ())
    }

    /// A pair whose configurations `change` may alter.
    pub fn with(change: impl FnOnce(&mut NodeConfig, &mut NodeConfig)) -> Self {
        let (mut a, mut b) = (config(1, vec![peer(2)]), config(2, vec![peer(1)]));
        change(&mut a, &mut b);
        let now = Instant::from_secs(1);
        Self { a: End::new(1, a, now), b: End::new(2, b, now), now, carried: Vec::new(), is_cut: false }
    }

    /// Carries datagrams until none is left.
    pub fn settle(&mut self) {
        loop {
            if let Some((_, datagram)) = self.a.sent.pop_front() {
                self.carried.push((self.a.key, datagram.clone()));
                if !self.is_cut {
                    self.b.receive(datagram, self.a.address, self.now);
                }
            } else if let Some((_, datagram)) = self.b.sent.pop_front() {
                self.carried.push((self.b.key, datagram.clone()));
                if !self.is_cut {
                    self.a.receive(datagram, self.b.address, self.now);
                }
            } else {
                return;
            }
        }
    }

    /// Lets time pass, with timers and datagrams.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.settle();
        while let Some(next) = [self.a.deadline(), self.b.deadline()].into_iter().flatten().min()
            && next <= end
        {
            self.now = next;
            self.a.timeout(next);
            self.b.timeout(next);
            self.settle();
        }
        self.now = end;
    }

    /// How many datagrams of a WireGuard type were carried.
    pub fn carried_of_type(&self, kind: u8) -> usize {
        self.carried.iter().filter(|(_, datagram)| datagram[0] == kind).count()
    }
}

/// An IPv4 packet of protocol UDP from `10.0.0.from` to `10.0.0.to`.
pub fn packet(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 20];
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
    bytes[8] = 64;
    bytes[9] = protocol::UDP;
    bytes[12..16].copy_from_slice(&[10, 0, 0, from]);
    bytes[16..20].copy_from_slice(&[10, 0, 0, to]);
    bytes.extend_from_slice(payload);
    bytes
}
