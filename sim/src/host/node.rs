//! A host that runs a node.
//!
//! The data plane is driven inline: what the fast path reports is handed to the node at once, what the node wants
//! is carried out in order, and packets that come out of the tunnel reach the host's own stack, which answers
//! echo requests and requests of our applications, until nothing is left to do.

use core::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};
use std::collections::{BTreeMap, BTreeSet};

use mesh_core::{
    control::types::MapResponse,
    dataplane::{DataPlane, Inbound, ReportBuffer},
    derp::DerpMap,
    ip::{packet::IpPacket, prefix::Prefix},
    key::{DiscoPrivate, NodePrivate, NodePublic},
    machine::{Deadline, Machine},
    node::{
        BackendState, Command, HostEvent, Input, LinkState, Node, NodeConfig, PeerAddressing, PeerConfig, SavedState,
        Status,
    },
    path::{PathAddr, Selection, SendPath},
    rng::{Rng, Seed},
    time::{Instant, earliest},
};

use crate::{
    kernel::clock::HostClock,
    net::{NetId, Proto},
};

use super::{
    Delivery, Effects, HostId, NodeEvent, Over, Sealed,
    asks::Asks,
    control::link::ControlLink,
    links::Links,
    message::{Carrier, Marker, Message},
    names::Names,
    stack::Stack,
};

pub use join::{JoinSetup, NodeOrder};

use join::MAP;

/// MTU of the TUN in bytes: the smallest that IPv6 allows.
const MTU_BYTES: usize = 1280;

/// Length of the overlay's network, 100.64.0.0/10 (RFC 6598).
const OVERLAY_BITS: u8 = 10;

/// The port that a host asks for names from.
const NAMES_PORT: u16 = 61_053;

/// What a host is made of.
#[derive(Debug)]
pub struct NodeSetup {
    /// Its number.
    pub id: HostId,
    /// The net that it is in at first.
    pub net: NetId,
    /// Its addresses there, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The relays that there are.
    pub derp_map: DerpMap,
    /// Where it looks up names.
    pub resolver: Option<SocketAddr>,
    /// What relays' certificates name, by host name.
    pub certificates: BTreeMap<String, NodePublic>,
    /// All nodes by key: who a relay says that a packet is from.
    pub by_key: BTreeMap<NodePublic, HostId>,
    /// The UDP port that it listens on; 0 lets the host choose.
    pub port: u16,
    /// Its overlay address; a node that joins is given one by control instead.
    pub overlay: Ipv4Addr,
    /// What it joins with; none where nodes know each other without control.
    pub join: Option<JoinSetup>,
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
    /// Where it is now.
    net: Option<NetId>,
    addresses: Vec<IpAddr>,
    clock: HostClock,
    /// Its overlay address now.
    overlay: Option<Ipv4Addr>,
    /// What the node asked to keep.
    saved: Option<SavedState>,
    /// What the node said last that it does.
    state: BackendState,
    /// How each peer is sent to, as was told.
    ways: BTreeMap<HostId, Selection>,
    ports: Rng,
    boots: u64,
    running: Option<Running>,
    asleep_since: Option<Instant>,
    sealed: Vec<(SendPath, Vec<u8>)>,
    reports: ReportBuffer,
    /// What the packet that is being looked at came in.
    opening: Option<Sealed>,
    /// Packets from the tunnel that the host has not looked at yet.
    tun: Vec<Vec<u8>>,
    #[cfg(test)]
    heard: Vec<(Instant, NodePublic, Vec<u8>)>,
}

#[derive(Debug)]
struct Running {
    node: Node,
    plane: DataPlane,
    port: u16,
    stack: Stack,
    names: Names,
    links: Links,
    asks: Asks,
    control: ControlLink,
}

impl NodeHost {
    /// A host that is switched off.
    #[must_use]
    pub fn new(setup: NodeSetup) -> Self {
        let clock = HostClock::new(&mut setup.seed.stream("clock", 0));
        let ports = setup.seed.stream("ports", 0);
        Self {
            net: Some(setup.net),
            addresses: setup.addresses.clone(),
            overlay: setup.join.is_none().then_some(setup.overlay),
            saved: None,
            state: BackendState::NoState,
            setup,
            clock,
            ways: BTreeMap::new(),
            ports,
            boots: 0,
            running: None,
            asleep_since: None,
            sealed: Vec::new(),
            reports: ReportBuffer::default(),
            opening: None,
            tun: Vec::new(),
            #[cfg(test)]
            heard: Vec::new(),
        }
    }

    /// Starts the node: the same key, and what it asked to keep.
    ///
    /// # Panics
    /// When the node refuses its configuration, which scenarios cannot bring about.
    pub fn start(&mut self, world: Instant, effects: &mut Effects) {
        let now = self.clock.at(world);
        let (control, is_first) = self.control_config();
        let key = control.as_ref().map_or(&self.setup.key, |control| &control.saved.node_key).clone();
        let config = NodeConfig {
            key: key.clone(),
            disco_key: self.disco_key(),
            addresses: self.setup.fixed_addresses(),
            mtu_bytes: MTU_BYTES,
            listen_port: self.setup.port,
            peers: self.setup.peers.iter().map(PeerSetup::config).collect(),
            control,
            // Another seed each time, as entropy is after a restart: with the old one ephemeral keys would repeat.
            seed: self.setup.seed.child("boot", self.boots),
            epoch: self.clock.anchor(),
        };
        let boot = self.setup.seed.child("host", self.boots);
        self.boots += 1;
        let mut node = Node::new(config, now).expect("peers are distinct and within limits");
        node.handle_input(Input::Host(HostEvent::Links(link_state(&self.addresses))), now);
        self.running = Some(Running {
            plane: node.data_plane(),
            node,
            port: 0,
            stack: Stack::new(&mut boot.stream("streams", 0)),
            names: Names::new(self.setup.resolver),
            links: Links::new(key, self.setup.certificates.clone(), boot.child("links", 0)),
            asks: Asks::new(),
            control: ControlLink::new(boot.child("control", 0)),
        });
        self.ways.clear();
        self.state = BackendState::NoState;
        effects.events.push(NodeEvent::Started);
        if is_first {
            self.join(now);
        }
        self.settle(now, effects);
    }

    /// The host is in another net, or in none, and has these addresses now.
    pub fn set_net(&mut self, net: Option<NetId>, addresses: Vec<IpAddr>, world: Instant, effects: &mut Effects) {
        (self.net, self.addresses) = (net, addresses);
        // A sleeping host notices when it wakes.
        if self.asleep_since.is_none() {
            self.note_links(self.clock.at(world), effects);
        }
    }

    /// The host sleeps: nothing happens in it until [`Self::wake`].
    pub fn sleep(&mut self, world: Instant) {
        self.asleep_since.get_or_insert(world);
    }

    /// The host wakes up; its monotonic clock has counted the sleep.
    pub fn wake(&mut self, world: Instant, effects: &mut Effects) {
        let Some(since) = self.asleep_since.take() else { return };
        let now = self.clock.at(world);
        let entropy = Some(self.setup.seed.child("resumed", now.as_nanos()));
        if let Some(running) = &mut self.running {
            running.node.handle_input(Input::Host(HostEvent::Resumed { slept: world.since(since), entropy }), now);
        }
        self.note_links(now, effects);
        // What was due meanwhile is late, as it is on a computer that wakes.
        self.handle_timeout(world, effects);
    }

    /// Ends the node without a word to anybody.
    pub fn stop(&mut self, effects: &mut Effects) {
        if self.running.take().is_some() {
            effects.events.push(NodeEvent::Stopped);
        }
    }

    /// The node is told of the host's addresses.
    fn note_links(&mut self, now: Instant, effects: &mut Effects) {
        if let Some(running) = &mut self.running {
            running.node.handle_input(Input::Host(HostEvent::Links(link_state(&self.addresses))), now);
        }
        self.settle(now, effects);
    }

    /// A packet arrived; `ends` are where it comes from and the address of the host that it is for.
    pub fn handle_packet(
        &mut self,
        proto: Proto,
        ends: (SocketAddr, SocketAddr),
        origin: HostId,
        payload: Vec<u8>,
        world: Instant,
        effects: &mut Effects,
    ) {
        let Some(running) = &mut self.running else { return };
        let now = self.clock.at(world);
        let (from, to) = ends;
        match proto {
            Proto::Udp if to.port() == running.port => {
                let head = payload.first_chunk().copied().unwrap_or_default();
                self.opening = Some(Sealed { by: origin, head, over: Over::Udp });
                self.open(payload, PathAddr::Udp(from), now);
            }
            Proto::Udp => running.names.handle_datagram(from, &payload),
            Proto::Tcp => running.stack.handle_segment(from, to, &payload, now),
        }
        self.settle(now, effects);
        self.opening = None;
    }

    /// A packet for the data plane.
    fn open(&mut self, mut payload: Vec<u8>, from: PathAddr, now: Instant) {
        let Some(running) = &self.running else { return };
        let fib = running.plane.fib();
        let mut run = fib.inbound(now);
        match run.handle(&mut payload, from, &mut self.reports) {
            Inbound::Deliver { packet, .. } => self.tun.push(packet.to_vec()),
            Inbound::Consumed | Inbound::Drop(_) => {}
        }
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
        // Without an address of its own a host has nothing to send from.
        let Some(own) = self.overlay else { return };
        let packet = message.packet(own, to, self.setup.marker);
        self.seal(&packet, now, effects);
        self.settle(now, effects);
    }

    /// The node is handed a network map.
    pub fn handle_map(&mut self, map: MapResponse, world: Instant, effects: &mut Effects) {
        let Some(running) = &mut self.running else { return };
        let now = self.clock.at(world);
        let command = Command::ReplaceMap(Box::new(map));
        running.node.handle_input(Input::Command(MAP, command), now);
        self.settle(now, effects);
        self.tell_ways(now, effects);
    }

    /// A way that is there with the map is not told of by the node: nothing changed.
    fn tell_ways(&mut self, now: Instant, effects: &mut Effects) {
        let Some(running) = &self.running else { return };
        for status in running.node.status(now).peers {
            let Some(peer) = self.setup.by_key.get(&status.key).copied() else { continue };
            let known = self.ways.entry(peer).or_insert(Selection::Nowhere);
            if core::mem::replace(known, status.path) != status.path {
                effects.events.push(NodeEvent::PathChanged { peer, to: status.path });
            }
        }
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
        let running = self.running.as_ref().filter(|_| self.asleep_since.is_none())?;
        let deadline = earliest(running.node.poll_timeout(), running.poll_streams_timeout())?;
        Some(Deadline { at: self.clock.world(deadline.at), why: deadline.why })
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> HostId {
        self.setup.id
    }

    /// The net that it is in; none while it is on its way to another.
    #[must_use]
    pub fn net(&self) -> Option<NetId> {
        self.net
    }

    /// Its addresses there.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether a datagram to this port would be read.
    #[must_use]
    pub fn has_socket(&self, port: u16) -> bool {
        self.running.as_ref().is_some_and(|running| running.port == port || port == NAMES_PORT)
    }

    /// Whether anything happens in it.
    #[must_use]
    pub fn is_awake(&self) -> bool {
        self.running.is_some() && self.asleep_since.is_none()
    }

    /// Whether the host sleeps.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.asleep_since.is_some()
    }

    /// The node that runs on it, to be watched.
    #[must_use]
    pub fn running(&self) -> Option<&Node> {
        self.running.as_ref().map(|running| &running.node)
    }

    /// Its overlay address; none before control gave it one.
    #[must_use]
    pub fn overlay(&self) -> Option<Ipv4Addr> {
        self.overlay
    }

    /// What the node said last that it does.
    #[must_use]
    pub fn state(&self) -> BackendState {
        self.state
    }

    /// A node has another key from now on.
    pub fn note_key(&mut self, key: NodePublic, of: HostId) {
        self.setup.by_key.insert(key, of);
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

    /// Whom the node knows by its network map, with keys that have not expired; `None` while it is off.
    #[must_use]
    pub fn known(&self, world: Instant) -> Option<BTreeSet<HostId>> {
        let wall = self.clock.anchor().wall_at(self.clock.at(world));
        let peers = self.running.as_ref()?.node.netmap().peers().values();
        let valid = peers.filter(|peer| !peer.expired && peer.key_expiry.is_none_or(|expiry| expiry > wall));
        Some(valid.filter_map(|peer| self.setup.by_key.get(&peer.key).copied()).collect())
    }

    /// How many streams the programs on it use.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.running.as_ref().map_or(0, |running| running.stack.in_use())
    }

    /// What the node looks like; `None` while it is off.
    #[must_use]
    pub fn status(&self, world: Instant) -> Option<Status> {
        Some(self.running.as_ref()?.node.status(self.clock.at(world)))
    }

    fn seal(&mut self, packet: &[u8], now: Instant, effects: &mut Effects) {
        let Some(running) = &self.running else { return };
        running.plane.fib().outbound([packet], now, &mut self.sealed, &mut self.reports);
        for (path, datagram) in core::mem::take(&mut self.sealed) {
            if let Some(also) = path.also {
                self.transmit(also, None, datagram.clone(), true, now, effects);
            }
            self.transmit(path.to, None, datagram, false, now, effects);
        }
    }

    /// The relays that it was told of.
    #[must_use]
    pub fn derp_map(&self) -> &DerpMap {
        &self.setup.derp_map
    }

    /// Its disco key, which it keeps over restarts.
    #[must_use]
    pub fn disco_key(&self) -> DiscoPrivate {
        DiscoPrivate::from_bytes(self.setup.seed.stream("disco-key", 0).bytes())
    }

    /// Its key, as others know it.
    #[must_use]
    pub fn public(&self) -> NodePublic {
        self.saved.as_ref().map_or(&self.setup.key, |saved| &saved.node_key).public()
    }

    /// The host's own stack: questions are answered, everything is shown to the kernel.
    fn deliver(&mut self, packet: Vec<u8>, now: Instant, effects: &mut Effects) {
        let message = IpPacket::parse(&packet).ok().and_then(|ip| {
            let for_us = self.overlay.is_some_and(|own| ip.destination() == IpAddr::V4(own));
            Some((ip.source(), Message::parse(&ip, self.setup.marker).filter(|_| for_us)?))
        });
        if let Some((IpAddr::V4(from), message)) = &message
            && let Some(answer) = message.answer()
            && let Some(own) = self.overlay
        {
            let answer = answer.packet(own, *from, self.setup.marker);
            self.seal(&answer, now, effects);
        }
        let message = message.map(|(_, message)| message);
        effects.delivered.push(Delivery { sealed: self.opening, packet, message });
    }
}

impl NodeSetup {
    /// The addresses that it has without control.
    fn fixed_addresses(&self) -> Vec<(IpAddr, u8)> {
        self.join.is_none().then(|| (self.overlay.into(), OVERLAY_BITS)).into_iter().collect()
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

/// The host's own address for sending there.
fn source(addresses: &[IpAddr], to: IpAddr) -> Option<IpAddr> {
    addresses.iter().find(|own| own.is_ipv4() == to.is_ipv4()).copied()
}

fn link_state(addresses: &[IpAddr]) -> LinkState {
    LinkState {
        addresses: addresses.to_vec(),
        has_default_v4: addresses.iter().any(IpAddr::is_ipv4),
        has_default_v6: addresses.iter().any(IpAddr::is_ipv6),
    }
}

mod join;
mod outputs;
mod serve;

#[cfg(test)]
pub(crate) mod tests;
