//! Nodes that know each other from network maps, a relay that hands packets on, and UDP that can be cut: all in one
//! thread, in simulated time. No NAT: that is the simulator's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mesh_core::{
    control::types::{FilterRule, MapResponse, PeerNode},
    dataplane::{DataPlane, DropCounts, DropReason, Inbound, ReportBuffer},
    derp::{DerpMap, DerpNode, DerpRegion, RegionId},
    endpoints::LocalPorts,
    ip::prefix::Prefix,
    key::{DiscoPrivate, NodePrivate, NodePublic},
    machine::Machine,
    node::{
        Command, CommandError, CommandId, Event, HostEvent, Input, LinkState, Node, NodeConfig, Output, RelayCommand,
        RelayEvent, Reply, Transmit,
    },
    path::{PathAddr, Selection, SendPath},
    rng::Seed,
    time::{Instant, WallAnchor},
};

use super::{EPOCH, MTU, packet};

/// One way over UDP.
pub const DIRECT: Duration = Duration::from_millis(5);
/// One way to the relay.
pub const TO_RELAY: Duration = Duration::from_millis(10);
/// The port of all nodes.
pub const PORT: u16 = 41641;

/// A node with its driver.
pub struct Member {
    pub node: Node,
    pub plane: DataPlane,
    pub number: u8,
    pub disco_key: DiscoPrivate,
    /// Regions that it is connected to.
    connected: BTreeSet<RegionId>,
    pub delivered: Vec<(Instant, Vec<u8>)>,
    pub events: Vec<(Instant, Event)>,
    pub replies: Vec<(CommandId, Result<Reply, CommandError>)>,
    pub commands: Vec<(Instant, RelayCommand)>,
    /// Disco packets sent over UDP, and all datagrams sent over UDP and over relays.
    pub disco_sent: usize,
    pub udp_sent: usize,
    pub relayed_sent: usize,
    sealed: Vec<(SendPath, Vec<u8>)>,
    /// Packets that ended in its fast path.
    drops: DropCounts,
    reports: ReportBuffer,
}

#[derive(Clone, Debug)]
enum Arrival {
    Udp { to: SocketAddr, from: SocketAddr, payload: Vec<u8> },
    AtRelay { region: RegionId, to: NodePublic, from: NodePublic, payload: Vec<u8> },
    FromRelay { region: RegionId, to: NodePublic, from: NodePublic, payload: Vec<u8> },
    Connected { region: RegionId, who: NodePublic },
}

/// All of them.
pub struct Tailnet {
    pub now: Instant,
    pub members: Vec<Member>,
    wire: BTreeMap<(Instant, u64), Arrival>,
    sequence: u64,
    /// Whether UDP gets through.
    pub is_udp_open: bool,
    /// Whether the relay takes connections and hands packets on.
    pub is_relay_up: bool,
}

pub fn key(number: u8) -> NodePrivate {
    NodePrivate::from_bytes([number; 32])
}

pub fn overlay(number: u8) -> IpAddr {
    [10, 0, 0, number].into()
}

pub fn underlay(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], PORT))
}

pub fn region(number: u16) -> RegionId {
    RegionId::new(number).expect("not 0")
}

/// A map of one region with one relay.
pub fn derp_map() -> DerpMap {
    let node = DerpNode { name: "900a".into(), region_id: 900, host_name: "relay.test".into(), ..DerpNode::default() };
    let node = DerpNode { ipv4: "192.0.2.200".into(), stun_port: -1, ..node };
    let region = DerpRegion { region_id: 900, region_code: "test".into(), ..DerpRegion::default() };
    let region = DerpRegion { nodes: Some(vec![node]), ..region };
    DerpMap { regions: Some([(900, Some(region))].into()), ..DerpMap::default() }
}

impl Tailnet {
    /// So many nodes, numbered from 1, that start at `now` and have not heard of each other.
    pub fn new(count: u8, now: Instant) -> Self {
        let mut tailnet =
            Self { now, members: Vec::new(), wire: BTreeMap::new(), sequence: 0, is_udp_open: true, is_relay_up: true };
        for number in 1..=count {
            tailnet.members.push(Member::new(number, 0, now));
        }
        tailnet
    }

    /// Hands everybody the map of all of them.
    pub fn hand_out_maps(&mut self) {
        for number in 1..=self.members.len() as u8 {
            self.hand_out_map(number);
        }
    }

    /// Hands a node the map of all of them.
    pub fn hand_out_map(&mut self, number: u8) {
        self.hand_out_map_of(number, &(1..=self.members.len() as u8).collect::<Vec<_>>());
    }

    /// Hands a node the map of some of them.
    pub fn hand_out_map_of(&mut self, number: u8, known: &[u8]) {
        let own = Arc::new(self.member(number).describe());
        let others = self.members.iter().filter(|member| member.number != number && known.contains(&member.number));
        let peers = others.map(|member| Arc::new(member.describe())).collect();
        let packet_filter = Some(vec![FilterRule::allow_all()]);
        let map = MapResponse { node: Some(own), peers, derp_map: Some(derp_map()), ..MapResponse::default() };
        let map = MapResponse { packet_filter, ..map };
        self.input(number, Input::Command(CommandId(0), Command::ReplaceMap(Box::new(map))));
        let reply = self.member(number).replies.pop();
        assert_eq!(reply, Some((CommandId(0), Ok(Reply::MapApplied))));
    }

    /// A node is started anew: the same node key, another disco key, nothing else kept.
    pub fn restart(&mut self, number: u8) {
        let boots = self.member(number).disco_key.to_bytes()[1].wrapping_add(1);
        *self.member(number) = Member::new(number, boots, self.now);
        self.hand_out_map(number);
    }

    pub fn member(&mut self, number: u8) -> &mut Member {
        &mut self.members[usize::from(number) - 1]
    }

    pub fn input(&mut self, number: u8, input: Input) {
        let now = self.now;
        let member = self.member(number);
        member.node.handle_input(input, now);
        self.settle(number);
    }

    /// The host of one sends a packet to another; `tag` tells packets apart.
    pub fn send(&mut self, from: u8, to: u8, tag: u16) {
        // A UDP header: the packet filter wants to know the ports.
        let [high, low] = tag.to_be_bytes();
        let bytes = packet(from, to, &[0, 7, 0, 7, 0, 10, 0, 0, high, low]);
        let now = self.now;
        let member = self.member(from);
        let fib = member.plane.fib();
        fib.outbound([bytes.as_slice()], now, &mut member.sealed, &mut member.reports);
        self.settle(from);
    }

    /// Tags of the packets that reached a node's host, in order.
    pub fn tags(&mut self, number: u8) -> Vec<u16> {
        let tag = |packet: &[u8]| u16::from_be_bytes([packet[packet.len() - 2], packet[packet.len() - 1]]);
        self.member(number).delivered.iter().map(|(_, packet)| tag(packet)).collect()
    }

    /// How many packets ended in a node's fast path for `reason`.
    pub fn drops(&mut self, number: u8, reason: DropReason) -> u64 {
        self.member(number).drops.get(reason)
    }

    /// How one sends to another now.
    pub fn selection(&mut self, of: u8, to: u8) -> Selection {
        let (now, peer) = (self.now, key(to).public());
        let status = self.member(of).node.status(now);
        status.peers.iter().find(|status| status.key == peer).expect("a peer").path
    }

    /// Lets time pass until `until`.
    pub fn run_until(&mut self, until: Instant) {
        loop {
            let arrival = self.wire.keys().next().map(|(at, _)| *at);
            let timers = self.members.iter().filter_map(|member| member.node.poll_timeout()).map(|timer| timer.at);
            let Some(next) = arrival.into_iter().chain(timers).min().filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            while let Some(entry) = self.wire.first_entry()
                && entry.key().0 <= self.now
            {
                let arrival = entry.remove();
                self.arrive(arrival);
            }
            for number in 1..=self.members.len() as u8 {
                let now = self.now;
                if self.member(number).node.poll_timeout().is_some_and(|timer| timer.at <= now) {
                    self.member(number).node.handle_timeout(now);
                    self.settle(number);
                }
            }
        }
        self.now = until;
    }

    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// The relay is gone: all connections break.
    pub fn kill_relay(&mut self) {
        self.is_relay_up = false;
        for number in 1..=self.members.len() as u8 {
            for region in core::mem::take(&mut self.member(number).connected) {
                self.input(number, Input::Relay(RelayEvent::Failed { region, reason: "reset".into() }));
            }
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Udp { to, from, payload } => {
                if let Some(number) = self.members.iter().find(|m| underlay(m.number) == to).map(|m| m.number) {
                    self.receive(number, PathAddr::Udp(from), payload);
                }
            }
            Arrival::AtRelay { region, to, from, payload } => {
                let is_there = self.with_key(to).is_some_and(|number| self.member(number).connected.contains(&region));
                if !self.is_relay_up {
                    return;
                }
                if is_there {
                    self.put(TO_RELAY, Arrival::FromRelay { region, to, from, payload });
                } else if let Some(number) = self.with_key(from) {
                    self.input(number, Input::Relay(RelayEvent::PeerGone { region, peer: to }));
                }
            }
            Arrival::FromRelay { region, to, from, payload } => {
                if let Some(number) =
                    self.with_key(to).filter(|number| self.member(*number).connected.contains(&region))
                {
                    self.receive(number, PathAddr::Relay { region, peer: from }, payload);
                }
            }
            Arrival::Connected { region, who } => {
                let Some(number) = self.with_key(who) else { return };
                let event = if self.is_relay_up {
                    self.member(number).connected.insert(region);
                    RelayEvent::Connected { region }
                } else {
                    RelayEvent::Failed { region, reason: "refused".into() }
                };
                self.input(number, Input::Relay(event));
            }
        }
    }

    fn receive(&mut self, number: u8, source: PathAddr, mut payload: Vec<u8>) {
        let now = self.now;
        let member = self.member(number);
        let fib = member.plane.fib();
        let mut run = fib.inbound(now);
        if let Inbound::Deliver { packet, .. } = run.handle(&mut payload, source, &mut member.reports) {
            member.delivered.push((now, packet.to_vec()));
        }
        drop(run);
        self.settle(number);
    }

    fn settle(&mut self, number: u8) {
        let now = self.now;
        let member = self.member(number);
        while !member.reports.is_empty() {
            for notice in core::mem::take(&mut member.reports.notices) {
                member.node.handle_input(Input::Notice(notice), now);
            }
            for punt in core::mem::take(&mut member.reports.punts) {
                member.node.handle_input(Input::Punt(punt), now);
            }
        }
        member.drops.merge(&core::mem::take(&mut member.reports.drops));
        if member.node.poll_timeout().is_some_and(|timer| timer.at <= now) {
            member.node.handle_timeout(now);
        }
        let mut sends = Vec::new();
        let mut connects = Vec::new();
        while let Some(output) = member.node.poll_output() {
            match output {
                Output::Transmit(Transmit { to, payload, .. }) => sends.push((to, payload)),
                Output::Relay(command) => {
                    match &command {
                        RelayCommand::Connect { region, .. } => connects.push(*region),
                        RelayCommand::Close { region } => {
                            member.connected.remove(region);
                        }
                        RelayCommand::SetHome { .. } | RelayCommand::SetKey(_) | RelayCommand::Ask { .. } => {}
                    }
                    member.commands.push((now, command));
                }
                Output::Event(event) => member.events.push((now, event)),
                Output::Reply(id, result) => member.replies.push((id, result)),
                Output::TunWrite(_)
                | Output::Sockets(_)
                | Output::Configure(_)
                | Output::Control(_)
                | Output::Save(_)
                | Output::Fetch(..)
                | Output::Resolve { .. } => {}
            }
        }
        for (path, payload) in core::mem::take(&mut member.sealed) {
            if let Some(also) = path.also {
                sends.push((also, payload.clone()));
            }
            sends.push((path.to, payload));
        }
        assert!(member.node.poll_timeout().is_none_or(|timer| timer.at > now), "a timer spins");
        for region in connects {
            self.put(TO_RELAY * 4, Arrival::Connected { region, who: key(number).public() });
        }
        for (to, payload) in sends {
            self.transmit(number, to, payload);
        }
    }

    fn transmit(&mut self, number: u8, to: PathAddr, payload: Vec<u8>) {
        let from = key(number).public();
        match to {
            PathAddr::Udp(to) => {
                let member = self.member(number);
                member.udp_sent += 1;
                member.disco_sent += usize::from(mesh_core::disco::sender(&payload).is_some());
                if self.is_udp_open {
                    self.put(DIRECT, Arrival::Udp { to, from: underlay(number), payload });
                }
            }
            PathAddr::Relay { region, peer } => {
                self.member(number).relayed_sent += 1;
                // A driver keeps packets until the connection stands; here it takes as long.
                let is_connected = self.member(number).connected.contains(&region);
                let delay = if is_connected { TO_RELAY } else { TO_RELAY * 5 };
                self.put(delay, Arrival::AtRelay { region, to: peer, from, payload });
            }
        }
    }

    fn put(&mut self, delay: Duration, arrival: Arrival) {
        self.sequence += 1;
        self.wire.insert((self.now + delay, self.sequence), arrival);
    }

    fn with_key(&self, wanted: NodePublic) -> Option<u8> {
        self.members.iter().map(|member| member.number).find(|number| key(*number).public() == wanted)
    }
}

impl Member {
    fn new(number: u8, boots: u8, now: Instant) -> Self {
        let mut bytes = [number; 32];
        bytes[1] = boots;
        let disco_key = DiscoPrivate::from_bytes(bytes);
        let config = NodeConfig {
            key: key(number),
            disco_key: disco_key.clone(),
            addresses: Vec::new(),
            mtu_bytes: MTU,
            listen_port: PORT,
            peers: Vec::new(),
            control: None,
            seed: Seed::from_number(u64::from(number) << 8 | u64::from(boots)),
            epoch: WallAnchor { at: Instant::ZERO, wall: EPOCH },
        };
        let mut node = Node::new(config, now).expect("the configuration is good");
        node.handle_input(Input::Host(HostEvent::SocketsOpen(LocalPorts { v4: Some(PORT), v6: None })), now);
        let links = LinkState { addresses: vec![underlay(number).ip()], has_default_v4: true, has_default_v6: false };
        node.handle_input(Input::Host(HostEvent::Links(links)), now);
        Self {
            plane: node.data_plane(),
            node,
            number,
            disco_key,
            connected: BTreeSet::new(),
            delivered: Vec::new(),
            events: Vec::new(),
            replies: Vec::new(),
            commands: Vec::new(),
            disco_sent: 0,
            udp_sent: 0,
            relayed_sent: 0,
            sealed: Vec::new(),
            drops: DropCounts::default(),
            reports: ReportBuffer::default(),
        }
    }

    /// As control describes it to others.
    pub fn describe(&self) -> PeerNode {
        let prefix = Prefix::host(overlay(self.number));
        PeerNode {
            id: mesh_core::control::types::NodeId(self.number.into()),
            name: format!("node{}.test.", self.number),
            key: key(self.number).public(),
            disco_key: Some(self.disco_key.public()),
            addresses: vec![prefix],
            allowed_ips: Some(vec![prefix]),
            endpoints: vec![underlay(self.number)],
            home_derp: 900,
            ..PeerNode::default()
        }
    }
}
