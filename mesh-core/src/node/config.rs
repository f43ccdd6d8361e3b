//! What a node starts with.

use core::{net::SocketAddr, time::Duration};

use crate::{
    control::types::Hostinfo,
    dataplane::Addressing,
    derp::RegionId,
    ip::prefix::Prefix,
    key::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic, PresharedKey},
    rng::Seed,
    time::WallAnchor,
};

use super::SavedState;

/// What a node starts with.
#[derive(Debug)]
pub struct NodeConfig {
    /// Who we are. With a control server [`SavedState::node_key`] counts instead.
    pub key: NodePrivate,
    /// What our disco messages are sealed with.
    pub disco_key: DiscoPrivate,
    /// Our overlay addresses, with the length of the network they are in.
    pub addresses: Vec<(core::net::IpAddr, u8)>,
    /// MTU of the TUN in bytes.
    pub mtu_bytes: usize,
    /// UDP port to listen on; 0 lets the host choose.
    pub listen_port: u16,
    /// The other nodes. With a control server they come from it.
    pub peers: Vec<PeerConfig>,
    /// With a control server: what an earlier run kept, and what we say of ourselves.
    pub control: Option<ControlConfig>,
    /// The root of the node's randomness.
    pub seed: Seed,
    /// What the calendar says when the node starts.
    pub epoch: WallAnchor,
}

/// What a node with a control server starts with.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// What an earlier run asked to keep; [`SavedState::new`] when there was none.
    pub saved: SavedState,
    /// What is known of the host. Name, routes and tags of the preferences come on top.
    pub hostinfo: Hostinfo,
}

/// Another node.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Who it is.
    pub key: NodePublic,
    /// A secret shared with it beforehand.
    pub preshared_key: Option<PresharedKey>,
    /// Overlay addresses that are sent to it and accepted from it. The last peer to name a prefix has it.
    pub allowed_ips: Vec<Prefix>,
    /// How it is found.
    pub addressing: PeerAddressing,
    /// Send something at least this often, to keep a NAT's mapping open.
    pub persistent_keepalive: Option<Duration>,
}

/// How a peer is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAddressing {
    /// As in plain WireGuard: it is answered where its last authenticated packet came from.
    Roaming {
        /// Where to begin.
        endpoint: Option<SocketAddr>,
    },
    /// Over its home relay first, then over the best path that disco finds.
    Discovered(Whereabouts),
}

/// What the network map says about where a peer is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// What its disco messages are sealed with; without it only the relay leads to it.
    pub disco_key: Option<DiscoPublic>,
    /// Its own candidate addresses.
    pub endpoints: Vec<SocketAddr>,
    /// The region of its home relay.
    pub home: Option<RegionId>,
}

impl PeerAddressing {
    /// Which of the two it is, as the fast path knows it.
    #[must_use]
    pub const fn kind(&self) -> Addressing {
        match self {
            Self::Roaming { .. } => Addressing::Roaming,
            Self::Discovered(_) => Addressing::Discovered,
        }
    }

    /// What the network map says, of peers that are found by disco.
    #[must_use]
    pub const fn whereabouts(&self) -> Option<&Whereabouts> {
        match self {
            Self::Roaming { .. } => None,
            Self::Discovered(whereabouts) => Some(whereabouts),
        }
    }
}

/// Why a configuration is refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Two peers with one key.
    #[error("peer {0} is listed twice")]
    DuplicatePeer(NodePublic),
    /// A peer with our own key.
    #[error("peer {0} is this node itself")]
    OwnKey(NodePublic),
    /// More than [`limits::PEERS`](crate::limits::PEERS).
    #[error("{0} peers are more than this node can have, which is {limit}", limit = crate::limits::PEERS)]
    TooManyPeers(usize),
    /// More than [`limits::ROUTES_PER_PEER`](crate::limits::ROUTES_PER_PEER).
    #[error("peer {0} has more allowed IPs than {limit}", limit = crate::limits::ROUTES_PER_PEER)]
    TooManyRoutes(NodePublic),
    /// Outside 576 bytes (RFC 791) to what a datagram can carry.
    #[error("an MTU of {0} bytes is not between 576 and {limit}", limit = crate::limits::PACKET_BYTES)]
    Mtu(usize),
}
