//! Simulated computers.
//!
//! A host has an address in a net, two clocks, a UDP socket and a TUN device, and runs one participant. What a
//! host wants done it leaves in [`Effects`]; it never touches the network or the agenda itself.

pub mod message;
mod node;

use core::net::SocketAddr;

use mesh_core::dataplane::DropCounts;

use crate::kernel::trace::Names;

use message::Message;

pub use node::{NodeHost, NodeSetup, PeerSetup};

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
    /// Datagrams to send, in order.
    pub datagrams: Vec<(SocketAddr, Vec<u8>)>,
    /// IP packets that came out of the tunnel, in order.
    pub delivered: Vec<Delivery>,
    /// What the node said.
    pub events: Vec<NodeEvent>,
    /// Packets that ended in the fast path since the host was asked last.
    pub drops: DropCounts,
}

/// An IP packet that came out of the tunnel.
#[derive(Clone, Debug)]
pub struct Delivery {
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
    /// A peer is now answered at another address.
    PathChanged {
        /// Who.
        peer: HostId,
        /// Where.
        to: SocketAddr,
    },
    /// A peer did not answer.
    HandshakeGivenUp {
        /// Who.
        peer: HostId,
    },
}

impl NodeEvent {
    /// The names that scenarios may use.
    pub const NAMES: &'static [&'static str] =
        &["started", "stopped", "session_established", "path_changed", "handshake_given_up"];

    /// The name in scenarios and reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::SessionEstablished { .. } => "session_established",
            Self::PathChanged { .. } => "path_changed",
            Self::HandshakeGivenUp { .. } => "handshake_given_up",
        }
    }

    /// The peer concerned.
    #[must_use]
    pub const fn peer(&self) -> Option<HostId> {
        match self {
            Self::Started | Self::Stopped => None,
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
            Self::PathChanged { to, .. } => 3 | u64::from(to.port()) << 8,
            Self::HandshakeGivenUp { .. } => 4,
        };
        (kind, self.peer().map_or(u64::MAX, |peer| u64::from(peer.0)))
    }

    /// A few words.
    pub(crate) fn text(&self, names: &Names) -> String {
        let peer = self.peer().and_then(|peer| names.hosts.get(peer.index()));
        match (self, peer) {
            (Self::PathChanged { to, .. }, Some(peer)) => format!("{} {peer} at {to}", self.name()),
            (_, Some(peer)) => format!("{} {peer}", self.name()),
            (_, None) => self.name().to_owned(),
        }
    }
}
