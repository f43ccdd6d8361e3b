//! A host that runs a node.
//!
//! The data plane is driven inline: what the fast path reports is handed to the node at once, what the node wants
//! is carried out in order, and packets that come out of the tunnel reach the host's own stack, which answers
//! echo requests and requests of our applications, until nothing is left to do.

use core::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};
use std::collections::BTreeMap;

use mesh_core::{
    dataplane::{DataPlane, Inbound, ReportBuffer},
    ip::{packet::IpPacket, prefix::Prefix},
    key::{DiscoPrivate, NodePrivate, NodePublic},
    machine::{Deadline, Machine},
    node::{
        Event, HostConfig, Input, Node, NodeConfig, Output, PeerAddressing, PeerConfig, SocketPlan, Status, Transmit,
    },
    path::{PathAddr, SendPath},
    rng::{Rng, Seed},
    time::Instant,
};

use crate::{kernel::clock::HostClock, net::NetId};

use super::{
    Delivery, Effects, HostId, NodeEvent,
    message::{Carrier, Marker, Message},
};

/// MTU of the TUN in bytes: the smallest that IPv6 allows.
const MTU_BYTES: usize = 1280;

/// Length of the overlay's network, 100.64.0.0/10 (RFC 6598).
const OVERLAY_BITS: u8 = 10;

/// What a host is made of.
#[derive(Debug)]
pub struct NodeSetup {
    /// Its number.
    pub id: HostId,
    /// The net that it is in.
    pub net: NetId,
    /// Its address there.
    pub address: Ipv4Addr,
    /// The UDP port that it listens on; 0 lets the host choose.
    pub port: u16,
    /// Its overlay address.
    pub overlay: Ipv4Addr,
    /// Its key.
    pub key: NodePrivate,
    /// Its peers.
    pub peers: Vec<PeerSetup>,
    /// Where the randomness of its boots comes from.
    pub seed: Seed,
    /// What fills messages.
    pub marker: Marker,
}

/// A peer as a host is told of it.
#[derive(Clone, Debug)]
pub struct PeerSetup {
    /// Who.
    pub id: HostId,
    /// Its key.
    pub key: NodePublic,
    /// Its overlay address.
    pub overlay: Ipv4Addr,
    /// Where to begin.
    pub endpoint: Option<SocketAddr>,
    /// How often to send something.
    pub keepalive: Option<Duration>,
}

/// A host that runs a node.
#[derive(Debug)]
pub struct NodeHost {
    setup: NodeSetup,
    clock: HostClock,
    peers_by_key: BTreeMap<NodePublic, HostId>,
    ports: Rng,
    boots: u64,
    running: Option<Running>,
    sealed: Vec<(SendPath, Vec<u8>)>,
    reports: ReportBuffer,
    /// Packets from the tunnel that the host has not looked at yet.
    tun: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Running {
    node: Node,
    plane: DataPlane,
    port: u16,
}

impl NodeHost {
    /// A host that is switched off.
    #[must_use]
    pub fn new(setup: NodeSetup) -> Self {
        let clock = HostClock::new(&mut setup.seed.stream("clock", 0));
        let peers_by_key = setup.peers.iter().map(|peer| (peer.key, peer.id)).collect();
        let ports = setup.seed.stream("ports", 0);
        Self {
            setup,
            clock,
            peers_by_key,
            ports,
            boots: 0,
            running: None,
            sealed: Vec::new(),
            reports: ReportBuffer::default(),
            tun: Vec::new(),
        }
    }

    /// Starts the node: the same key, nothing else kept.
    ///
    /// # Panics
    /// When the node refuses its configuration, which scenarios cannot bring about.
    pub fn start(&mut self, world: Instant, effects: &mut Effects) {
        let now = self.clock.at(world);
        let config = NodeConfig {
            key: self.setup.key.clone(),
            disco_key: DiscoPrivate::from_bytes(self.setup.seed.stream("disco-key", 0).bytes()),
            addresses: vec![(IpAddr::V4(self.setup.overlay), OVERLAY_BITS)],
            mtu_bytes: MTU_BYTES,
            listen_port: self.setup.port,
            peers: self.setup.peers.iter().map(PeerSetup::config).collect(),
            // Another seed each time, as entropy is after a restart: with the old one ephemeral keys would repeat.
            seed: self.setup.seed.child("boot", self.boots),
            epoch: self.clock.anchor(),
        };
        self.boots += 1;
        let node = Node::new(config, now).expect("peers are distinct and within limits");
        self.running = Some(Running { plane: node.data_plane(), node, port: 0 });
        effects.events.push(NodeEvent::Started);
        self.settle(now, effects);
    }

    /// Ends the node without a word to anybody.
    pub fn stop(&mut self, effects: &mut Effects) {
        if self.running.take().is_some() {
            effects.events.push(NodeEvent::Stopped);
        }
    }

    /// A datagram arrived at the node's socket.
    pub fn handle_datagram(&mut self, from: SocketAddr, mut payload: Vec<u8>, world: Instant, effects: &mut Effects) {
        let Some(running) = &self.running else { return };
        let now = self.clock.at(world);
        let fib = running.plane.fib();
        let mut run = fib.inbound(now);
        match run.handle(&mut payload, PathAddr::Udp(from), &mut self.reports) {
            Inbound::Deliver { packet, .. } => self.tun.push(packet.to_vec()),
            Inbound::Consumed | Inbound::Drop(_) => {}
        }
        drop(run);
        self.settle(now, effects);
    }

    /// An application on the host sends a message to an overlay address.
    pub fn handle_message(&mut self, message: Message, to: Ipv4Addr, world: Instant, effects: &mut Effects) {
        let Some(running) = &self.running else { return };
        let now = self.clock.at(world);
        let ping_id = running.plane.fib().local().ping_id;
        let message = match message.carrier {
            // The node takes echo replies with its own identifier for itself.
            Carrier::Echo { id } if id == ping_id => Message { carrier: Carrier::Echo { id: !id }, ..message },
            Carrier::Echo { .. } | Carrier::Udp => message,
        };
        let packet = message.packet(self.setup.overlay, to, self.setup.marker);
        self.seal(&packet, now, effects);
        self.settle(now, effects);
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, world: Instant, effects: &mut Effects) {
        let Some(running) = &mut self.running else { return };
        let now = self.clock.at(world);
        running.node.handle_timeout(now);
        self.settle(now, effects);
    }

    /// When [`Self::handle_timeout`] is wanted next, in the world's time.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let deadline = self.running.as_ref()?.node.poll_timeout()?;
        Some(Deadline { at: self.clock.world(deadline.at), why: deadline.why })
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> HostId {
        self.setup.id
    }

    /// The net that it is in.
    #[must_use]
    pub fn net(&self) -> NetId {
        self.setup.net
    }

    /// The address and port that its datagrams come from; `None` while it is off.
    #[must_use]
    pub fn socket(&self) -> Option<SocketAddr> {
        let running = self.running.as_ref()?;
        Some(SocketAddr::from((self.setup.address, running.port)))
    }

    /// Its overlay address.
    #[must_use]
    pub fn overlay(&self) -> Ipv4Addr {
        self.setup.overlay
    }

    /// Whether the node runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.running.is_some()
    }

    /// How often the node was started.
    #[must_use]
    pub fn boots(&self) -> u64 {
        self.boots
    }

    /// What the node looks like; `None` while it is off.
    #[must_use]
    pub fn status(&self, world: Instant) -> Option<Status> {
        Some(self.running.as_ref()?.node.status(self.clock.at(world)))
    }

    fn seal(&mut self, packet: &[u8], now: Instant, effects: &mut Effects) {
        let Some(running) = &self.running else { return };
        running.plane.fib().outbound([packet], now, &mut self.sealed, &mut self.reports);
        for (path, datagram) in self.sealed.drain(..) {
            if let PathAddr::Udp(to) = path.to {
                effects.datagrams.push((to, datagram));
            }
        }
    }

    /// Goes on until neither the node nor the host's stack has anything left to do.
    fn settle(&mut self, now: Instant, effects: &mut Effects) {
        loop {
            self.report(now);
            self.carry_out(effects);
            if self.tun.is_empty() {
                if self.reports.is_empty() {
                    break;
                }
                continue;
            }
            for packet in core::mem::take(&mut self.tun) {
                self.deliver(packet, now, effects);
            }
        }
        if self.reports.drops.total() > 0 {
            effects.drops.merge(&core::mem::take(&mut self.reports.drops));
        }
    }

    fn report(&mut self, now: Instant) {
        let Some(running) = &mut self.running else { return };
        for notice in self.reports.notices.drain(..) {
            running.node.handle_input(Input::Notice(notice), now);
        }
        for punt in self.reports.punts.drain(..) {
            running.node.handle_input(Input::Punt(punt), now);
        }
    }

    fn carry_out(&mut self, effects: &mut Effects) {
        let Some(running) = &mut self.running else { return };
        while let Some(output) = running.node.poll_output() {
            match output {
                Output::Transmit(Transmit { to: PathAddr::Udp(to), payload, .. }) => {
                    effects.datagrams.push((to, payload));
                }
                Output::Transmit(Transmit { to: PathAddr::Relay { .. }, .. })
                | Output::Relay(_)
                | Output::Fetch(..)
                | Output::Resolve { .. } => {}
                Output::TunWrite(packet) => self.tun.push(packet),
                Output::Sockets(SocketPlan { port: 0 }) => {
                    running.port = 32_768 + self.ports.below(28_232) as u16;
                }
                Output::Sockets(SocketPlan { port }) => running.port = port,
                // The TUN is as the node's configuration says from the start; commands are not given.
                Output::Configure(HostConfig { .. }) | Output::Reply(..) => {}
                Output::Event(event) => effects.events.extend(node_event(event, &self.peers_by_key)),
            }
        }
    }

    /// The host's own stack: questions are answered, everything is shown to the kernel.
    fn deliver(&mut self, packet: Vec<u8>, now: Instant, effects: &mut Effects) {
        let message = IpPacket::parse(&packet).ok().and_then(|ip| {
            let for_us = ip.destination() == IpAddr::V4(self.setup.overlay);
            Some((ip.source(), Message::parse(&ip, self.setup.marker).filter(|_| for_us)?))
        });
        if let Some((IpAddr::V4(from), message)) = &message
            && let Some(answer) = message.answer()
        {
            let answer = answer.packet(self.setup.overlay, *from, self.setup.marker);
            self.seal(&answer, now, effects);
        }
        effects.delivered.push(Delivery { packet, message: message.map(|(_, message)| message) });
    }
}

impl PeerSetup {
    fn config(&self) -> PeerConfig {
        PeerConfig {
            key: self.key,
            preshared_key: None,
            allowed_ips: vec![Prefix::host(IpAddr::V4(self.overlay))],
            addressing: PeerAddressing::Roaming { endpoint: self.endpoint },
            persistent_keepalive: self.keepalive,
        }
    }
}

fn node_event(event: Event, peers: &BTreeMap<NodePublic, HostId>) -> Option<NodeEvent> {
    let id = |key| peers.get(&key).copied();
    Some(match event {
        Event::SessionEstablished { peer } => NodeEvent::SessionEstablished { peer: id(peer)? },
        Event::PathChanged { peer, path } => NodeEvent::PathChanged { peer: id(peer)?, to: path.direct()? },
        Event::HandshakeGivenUp { peer } => NodeEvent::HandshakeGivenUp { peer: id(peer)? },
        // Maps of scenarios make sense.
        Event::MapPartSkipped(_) | Event::HomeChanged(_) => return None,
    })
}
