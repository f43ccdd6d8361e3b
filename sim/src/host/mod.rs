//! Simulated computers.
//!
//! A host has addresses in a net, sockets and streams, and runs one participant: a node with its TUN and
//! applications, a relay, a resolver. What a host wants done it leaves in [`Effects`]; it never touches the network or
//! the agenda itself.

pub mod asks;
pub mod control;
pub mod dns;
pub mod http;
pub mod links;
pub mod message;
pub mod names;
mod node;
pub mod relay;
pub mod resolver;
pub mod stack;

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use mesh_core::{
    control::Interner, dataplane::DropCounts, derp::RegionId, key::NodePublic, machine::Deadline, node::BackendState,
    path::Selection, time::Instant,
};

use crate::{
    kernel::trace::Names,
    net::{DropCause, NetId, Packet, Proto},
};

use message::Message;

pub use self::control::{ControlChange, ControlHost, ControlSetup, KeySetup, Preparation};
pub use node::{JoinSetup, NodeHost, NodeOrder, NodeSetup, PeerSetup};
pub use relay::{RelayChange, RelayHost, RelaySetup};
pub use resolver::{Manner, ResolverHost};

/// A simulated computer.
#[derive(Debug)]
pub enum Host {
    /// Runs a node.
    Node(Box<NodeHost>),
    /// Runs a relay.
    Relay(Box<RelayHost>),
    /// Runs a DNS server.
    Resolver(Box<ResolverHost>),
    /// Runs a control server.
    Control(Box<ControlHost>),
}

impl Host {
    /// The node that it runs.
    #[must_use]
    pub fn node(&self) -> Option<&NodeHost> {
        match self {
            Self::Node(node) => Some(node),
            Self::Relay(_) | Self::Resolver(_) | Self::Control(_) => None,
        }
    }

    /// The node that it runs, to do something to it.
    pub fn node_mut(&mut self) -> Option<&mut NodeHost> {
        match self {
            Self::Node(node) => Some(node),
            Self::Relay(_) | Self::Resolver(_) | Self::Control(_) => None,
        }
    }

    /// The relay that it runs.
    #[must_use]
    pub fn relay(&self) -> Option<&RelayHost> {
        match self {
            Self::Relay(relay) => Some(relay),
            Self::Node(_) | Self::Resolver(_) | Self::Control(_) => None,
        }
    }

    /// The control server that it runs, to do something to it.
    pub fn control_mut(&mut self) -> Option<&mut ControlHost> {
        match self {
            Self::Control(control) => Some(control),
            Self::Node(_) | Self::Relay(_) | Self::Resolver(_) => None,
        }
    }

    /// The net that it is in; none while it is on its way to another.
    #[must_use]
    pub fn net(&self) -> Option<NetId> {
        match self {
            Self::Node(node) => node.net(),
            Self::Relay(relay) => Some(relay.net()),
            Self::Resolver(resolver) => Some(resolver.net()),
            Self::Control(control) => Some(control.net()),
        }
    }

    /// The control server that it runs.
    #[must_use]
    pub fn control(&self) -> Option<&ControlHost> {
        match self {
            Self::Control(control) => Some(control),
            Self::Node(_) | Self::Relay(_) | Self::Resolver(_) => None,
        }
    }

    /// Its addresses there.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Node(node) => node.addresses(),
            Self::Relay(relay) => relay.addresses(),
            Self::Resolver(resolver) => resolver.addresses(),
            Self::Control(control) => control.addresses(),
        }
    }

    /// Why a packet that arrived ends here, if it does.
    #[must_use]
    pub fn refuses(&self, packet: &Packet) -> Option<DropCause> {
        let (is_up, has_socket) = match self {
            Self::Node(node) => (node.is_awake(), node.has_socket(packet.destination.port())),
            Self::Relay(relay) => (relay.is_reachable(), relay.has_socket(packet.destination.port())),
            Self::Resolver(resolver) => (true, resolver.has_socket(packet.destination.port())),
            Self::Control(control) => (control.is_reachable(), false),
        };
        match packet.proto {
            _ if !is_up => Some(DropCause::HostDown),
            Proto::Udp if !has_socket => Some(DropCause::PortClosed),
            Proto::Udp | Proto::Tcp => None,
        }
    }

    /// A packet arrived.
    pub fn handle_packet(&mut self, packet: Packet, now: Instant, effects: &mut Effects) {
        let Packet { proto, source, destination, payload, .. } = packet;
        match self {
            Self::Node(node) => node.handle_packet(proto, (source, destination), packet.origin, payload, now, effects),
            Self::Relay(relay) => relay.handle_packet(proto, source, destination, &payload, now, effects),
            Self::Resolver(resolver) => {
                resolver.handle_datagram(source, destination, &payload, now);
                resolver.handle_timeout(now, effects);
            }
            Self::Control(control) => control.handle_packet(source, destination, &payload, now, effects),
        }
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, now: Instant, effects: &mut Effects) {
        match self {
            Self::Node(node) => node.handle_timeout(now, effects),
            Self::Relay(relay) => relay.handle_timeout(now, effects),
            Self::Resolver(resolver) => resolver.handle_timeout(now, effects),
            Self::Control(control) => control.handle_timeout(now, effects),
        }
    }

    /// When [`Self::handle_timeout`] is wanted next, in the world's time.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        match self {
            Self::Node(node) => node.poll_timeout(),
            Self::Relay(relay) => relay.poll_timeout(),
            Self::Resolver(resolver) => resolver.poll_timeout(),
            Self::Control(control) => control.poll_timeout(),
        }
    }

    /// Starts what it runs.
    pub fn start(&mut self, now: Instant, effects: &mut Effects) {
        match self {
            Self::Node(node) => node.start(now, effects),
            Self::Relay(relay) => relay.change(RelayChange::Start, now, effects),
            Self::Resolver(_) => {}
            Self::Control(control) => control.change(&ControlChange::Start, now, effects),
        }
    }
}

/// Names a host: its number in the scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub u32);

impl HostId {
    /// The number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a host wants done and seen. The kernel empties it after every call.
#[derive(Debug, Default)]
pub struct Effects {
    /// Packets to send, in order.
    pub packets: Vec<Outgoing>,
    /// Copies of what a node gave to a relay's connection, for the checks, in order.
    pub relayed: Vec<Relayed>,
    /// DERP frames that were written to streams.
    pub derp_frames: u64,
    /// IP packets that came out of the tunnel, in order.
    pub delivered: Vec<Delivery>,
    /// What the node said.
    pub events: Vec<NodeEvent>,
    /// Packets that ended in the fast path since the host was asked last.
    pub drops: DropCounts,
    /// Messages that were said and heard inside control channels.
    pub control_messages: u64,
    /// The overlay address that control gave the node.
    pub overlay: Option<Ipv4Addr>,
    /// Whether control told the node something of its network.
    pub told: bool,
    /// The key that the node has from now on.
    pub new_key: Option<NodePublic>,
    /// What control said that it has stored; what was wrong with that, if it had not.
    pub stored: Vec<Option<String>>,
    /// Peers as maps say them: all hosts share those that are written alike.
    pub interner: Interner,
}

/// A packet to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// What it carries.
    pub proto: Proto,
    /// The address and port of the host that it is sent from.
    pub from: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
    /// Routers that it may pass, where that is not for the host to say.
    pub ttl: Option<u8>,
    /// The UDP payload, or the segment.
    pub payload: Vec<u8>,
}

/// What a node gave to a relay's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// The packet.
    pub payload: Vec<u8>,
    /// Whether it goes directly as well.
    pub is_copy: bool,
}

/// Who sealed a packet, and how it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Who.
    pub by: HostId,
    /// Its first bytes.
    pub head: [u8; 16],
    /// How it came.
    pub over: Over,
}

/// How a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// As a datagram.
    Udp,
    /// Through a relay.
    Relay,
}

/// An IP packet that came out of the tunnel.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// What it came in; none of what the node itself has to say.
    pub sealed: Option<Sealed>,
    /// The packet.
    pub packet: Vec<u8>,
    /// The application's message in it, if it holds one undamaged.
    pub message: Option<Message>,
}

/// What a node said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// It runs.
    Started,
    /// It was ended.
    Stopped,
    /// A session with a peer is ready.
    SessionEstablished {
        /// With whom.
        peer: HostId,
    },
    /// Packets for a peer go another way now.
    PathChanged {
        /// Who.
        peer: HostId,
        /// Which.
        to: Selection,
    },
    /// A relay took the node in.
    RelayConnected {
        /// Of which region.
        region: RegionId,
    },
    /// A connection to a relay broke or could not be made.
    RelayFailed {
        /// Of which region.
        region: RegionId,
    },
    /// A peer did not answer.
    HandshakeGivenUp {
        /// Who.
        peer: HostId,
    },
    /// The node's home is in this region now.
    HomeChanged {
        /// Which.
        region: RegionId,
    },
    /// What the node does is this now.
    State(BackendState),
    /// What the node, or control, was told to do was refused.
    OrderRefused,
    /// Somebody has to sign in.
    LoginUrl,
    /// Control cannot be reached, or refuses.
    ControlProblem,
}

impl NodeEvent {
    /// The names that scenarios may use.
    pub const NAMES: &'static [&'static str] = &[
        "started",
        "stopped",
        "session_established",
        "path_changed",
        "handshake_given_up",
        "relay_connected",
        "relay_failed",
        "home_changed",
        "no_state",
        "needs_login",
        "needs_approval",
        "disconnected",
        "starting",
        "running",
        "order_refused",
        "login_url",
        "control_problem",
    ];

    /// The name in scenarios and reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::SessionEstablished { .. } => "session_established",
            Self::PathChanged { .. } => "path_changed",
            Self::HandshakeGivenUp { .. } => "handshake_given_up",
            Self::RelayConnected { .. } => "relay_connected",
            Self::RelayFailed { .. } => "relay_failed",
            Self::HomeChanged { .. } => "home_changed",
            Self::State(state) => state_name(*state),
            Self::OrderRefused => "order_refused",
            Self::LoginUrl => "login_url",
            Self::ControlProblem => "control_problem",
        }
    }

    /// The peer concerned.
    #[must_use]
    pub const fn peer(&self) -> Option<HostId> {
        match self {
            Self::Started
            | Self::Stopped
            | Self::RelayConnected { .. }
            | Self::RelayFailed { .. }
            | Self::HomeChanged { .. }
            | Self::State(_)
            | Self::OrderRefused
            | Self::LoginUrl
            | Self::ControlProblem => None,
            Self::SessionEstablished { peer } | Self::PathChanged { peer, .. } | Self::HandshakeGivenUp { peer } => {
                Some(*peer)
            }
        }
    }

    /// Two numbers that stand for it in the digest.
    pub(crate) fn numbers(&self) -> (u64, u64) {
        let kind = match self {
            Self::Started => 0,
            Self::Stopped => 1,
            Self::SessionEstablished { .. } => 2,
            Self::PathChanged { to, .. } => {
                let port = to.direct().map_or(0, |direct| direct.port());
                let region = to.relay().map_or(0, RegionId::number);
                3 | u64::from(port) << 8 | u64::from(region) << 24
            }
            Self::HandshakeGivenUp { .. } => 4,
            Self::RelayConnected { region } => 5 | u64::from(region.number()) << 24,
            Self::RelayFailed { region } => 6 | u64::from(region.number()) << 24,
            Self::HomeChanged { region } => 7 | u64::from(region.number()) << 24,
            Self::State(state) => 8 | (*state as u64) << 24,
            Self::OrderRefused => 9,
            Self::LoginUrl => 10,
            Self::ControlProblem => 11,
        };
        (kind, self.peer().map_or(u64::MAX, |peer| u64::from(peer.0)))
    }

    /// A few words.
    pub(crate) fn text(&self, names: &Names) -> String {
        let peer = self.peer().and_then(|peer| names.hosts.get(peer.index()));
        match (self, peer) {
            (Self::PathChanged { to, .. }, Some(peer)) => format!("{} {peer} at {to}", self.name()),
            (Self::RelayConnected { region } | Self::RelayFailed { region } | Self::HomeChanged { region }, _) => {
                format!("{} {region}", self.name())
            }
            (_, Some(peer)) => format!("{} {peer}", self.name()),
            (_, None) => self.name().to_owned(),
        }
    }
}

/// All states of a node that joins.
pub(crate) const STATES: [BackendState; 5] = [
    BackendState::NeedsLogin,
    BackendState::NeedsMachineAuth,
    BackendState::Stopped,
    BackendState::Starting,
    BackendState::Running,
];

/// The name of a state in scenarios and reports.
pub(crate) const fn state_name(state: BackendState) -> &'static str {
    match state {
        BackendState::NoState => "no_state",
        BackendState::NeedsLogin => "needs_login",
        BackendState::NeedsMachineAuth => "needs_approval",
        BackendState::Stopped => "disconnected",
        BackendState::Starting => "starting",
        BackendState::Running => "running",
    }
}
